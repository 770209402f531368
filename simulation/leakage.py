"""For how long the cores of a chip are awake, asleep or switched off while a model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..chip import Activity, Description, Placement
from ..chip.parts import to_ps
from .replay import LayerOnChip
from .stages import Stage


def leakage_of(
    chip: Description,
    layers: Iterable[LayerOnChip],
    stages: Sequence[Stage],
    num_tokens: int,
    mode: str,
    total_ps: int,
    idle: Iterable[Placement] = (),
) -> Activity:
    """Return what leaks on the whole chip from the begin of the first token to the end of the last.

    A core that holds weights is awake from `core.wake_ns` before its layer gets a token until that token has left the
    layer; in prefill until the last token has. The cores of a stage's home tiles, and of those before it, are awake for
    transfers and dense work between them; all cores of the chip, for dense work that is spread over all tiles. What
    overlaps counts twice, but no core is awake for longer than all of it takes. On a chip whose `core.sleep_share` is 1
    cores never sleep, and none is switched off where `core.off_share` is 1.

    Args:
        chip: the chip.
        layers: that were simulated.
        stages: of the model, in order.
        num_tokens: tokens of the run.
        mode: "decode" or "prefill".
        total_ps: time of the run.
        idle: layers that no token reached, whose cores hold weights all the same.
    """
    layers = list(layers)
    num_used = used_cores([*(layer.placement for layer in layers), *idle])
    num_unused = chip.num_cores - num_used
    num_wakes = 0
    spread_ps = sum(stage.spread_ps for stage in stages) * num_tokens
    awake_ps = num_used * spread_ps
    for layer in layers:
        if mode == "decode":
            own_ps, wakes = int(layer.latency_ps.sum()), layer.num_tokens
        else:
            seen = layer.latency_ps > 0
            begin_ps = layer.end_ps - layer.latency_ps
            own_ps, wakes = int(layer.end_ps[seen].max() - begin_ps[seen].min()) if seen.any() else 0, 1
        num_wakes += wakes * len(layer.placement.cores)
        awake_ps += len(layer.placement.cores) * min(own_ps + wakes * to_ps(chip.core.wake_ns), total_ps)
    homes: set[tuple[int, int]] = set()
    by_name = {layer.name: layer for layer in layers}
    for stage in stages:
        own = {by_name[name].placement.home for name in stage.layers}
        between_ps = stage.transfer_ps + stage.rest_ps - stage.spread_ps
        awake_ps += chip.mesh.cores_per_tile * len(homes | own) * between_ps * num_tokens
        homes = own
    awake_ps = min(awake_ps, num_used * total_ps)
    sleeping_ps = num_used * total_ps - awake_ps
    unused_awake_ps = num_unused * min(spread_ps, total_ps)
    off_ps = num_unused * total_ps - unused_awake_ps
    never_sleep, never_off = chip.core.sleep_share == 1, chip.core.off_share == 1
    return Activity(
        leaking_core_ps=awake_ps + unused_awake_ps + never_sleep * sleeping_ps + never_off * off_ps,
        sleeping_core_ps=0 if never_sleep else sleeping_ps,
        off_core_ps=0 if never_off else off_ps,
        num_wakes=0 if never_sleep else num_wakes,
    )


def used_cores(placements: Iterable[Placement]) -> int:
    """Return the number of cores that hold weights; streamed layers take turns on the same ones."""
    most: Counter[tuple[int, int]] = Counter()
    for placement in placements:
        most |= Counter(core.tile for core in placement.cores)
    return sum(most.values())
