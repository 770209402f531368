"""What must hold for the description of a chip, and for every layer that is simulated on one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from ..chip import (
    BYTES,
    MAPPINGS,
    CoarseRows,
    Description,
    LayerSimulation,
    Mapping,
    Weights,
    chip_names,
    load_description,
    simulate_layer,
)
from ..chip.checks import placed
from ..chip.mapping import accumulators_of_output, knows_weights
from ..chip.network import COLLECT, LINK
from ..errors import InputError
from .laws import strategies, try_law


def check_chip(chip: Description | str | os.PathLike, *, examples: int = 50) -> None:
    """Check the description of a chip: every number in range and with its source, and layers that run on it.

    Random layers are simulated by both implementations. Their sums are exact, no spike is lost or made, queues never
    hold more than fits, and twice the energies cost twice the energy.

    Args:
        chip: an object, a name or the path of a .toml file.
        examples: random layers.
    Raises:
        InputError: something is missing or wrong; the message names the chip.
    """
    found = load_description(chip)
    if Description.from_dict(found.to_dict()) != found:
        raise InputError(f"chip {found.name!r}: expected a description that its file gives back, equal to itself.")
    try_law(lambda job: check_simulation(job, compare=True), examples, job=jobs(found))


def changed(chip: Description, **parts: dict[str, Any]) -> Description:
    """Return a chip with some values of its parts replaced: core={"lanes": 1}, say."""
    return replace(chip, **{part: replace(getattr(chip, part), **values) for part, values in parts.items()})


def chips() -> Any:
    """Return a strategy of small chips of every kind: tiny queues, little memory, several cores a tile, equal times."""
    st = strategies()
    presets = [load_description(name) for name in chip_names()]
    depth, time = st.integers(1, 3), st.sampled_from([0.0, 0.001, 0.5, 1.0, 3.7])

    @st.composite
    def small(draw: Any) -> Description:
        return changed(
            draw(st.sampled_from(presets)),
            mesh={"cores_per_tile": draw(st.integers(1, 3)), "columns": 16, "rows": 16},
            packet={"multicast": draw(st.booleans())},
            link={
                "queue_packets": draw(depth),
                "bandwidth_bits_per_ns": draw(st.sampled_from([0.0, 16.0])),
                "east_west_ns": draw(time),
            },
            core={
                "sram_bytes": draw(st.sampled_from([100, 200, 500, 10_000])),
                "block_bytes": draw(st.sampled_from([1, 4, 64])),
                "queue_packets": draw(depth),
                "accumulator_banks": draw(st.integers(1, 3)),
                "lanes": draw(st.integers(1, 8)),
                "add_ns": draw(time),
                "access_ns": draw(time),
                "sums_travel": draw(st.booleans()),
                "register_accumulators": draw(st.sampled_from([0, 0, 3, 8])),
                "register_pj": 2.5,
            },
            encoder={"lanes": draw(st.integers(1, 4)), "round_ns": draw(time)},
            digital={"queue_packets": draw(depth)},
        )

    return small()


def kinds_of_weights(*, in_groups: bool) -> Any:
    """Return a strategy of `Weights`: bytes as often as all others, groups only if asked for."""
    st = strategies()

    @st.composite
    def others(draw: Any) -> Weights:
        bits, has_minimum = draw(st.sampled_from([8, 4, 2])), draw(st.booleans())
        if not in_groups or draw(st.integers(0, 3)) == 0:
            return Weights(bits, has_minimum=has_minimum)
        size, parameters = draw(st.integers(1, 5)), draw(st.sampled_from([0, 7, 15, 32]))
        return Weights(bits, size, parameters, has_minimum)

    return st.one_of(st.just(BYTES), others())


def jobs(chip: Description | None = None, mapping: Mapping | None = None) -> Any:
    """Return a strategy of layers, each placed, with its train and weights: the arguments of `simulate_layer`.

    Args:
        chip: on which they are placed; None for small ones of every kind.
        mapping: that places them; None for any.
    """
    st = strategies()

    @st.composite
    def layers(draw: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        on = draw(chips()) if chip is None else chip
        num_inputs, num_outputs = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        cutting = MAPPINGS.create(draw(st.sampled_from(MAPPINGS.own()))) if mapping is None else mapping
        height = draw(st.integers(1, 4))
        weights = draw(kinds_of_weights(in_groups=not on.barrier.tiles and on.core.sums_travel))
        if not knows_weights(cutting):
            weights = BYTES
        placement = placed(cutting, num_inputs, num_outputs, on, height=height, weights=weights)
        if draw(st.booleans()) and num_inputs > 1 and not placement.sources:  # two senders, on different tiles
            cut = draw(st.integers(1, num_inputs - 1))
            other = (placement.columns - 1, placement.rows - 1)
            placement = replace(placement, sources=((placement.home, range(cut)), (other, range(cut, num_inputs))))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        spikes = rng.choice(
            np.array([-1, 0, 0, 1], np.int8), (draw(st.integers(1, 3)), draw(st.integers(1, 4)), num_inputs)
        )
        timestep_weight = rng.choice([1, 1, 2, 3, 4, -4], len(spikes))
        least = 0 if weights.has_minimum and weights.bits < 8 else -(2 ** (weights.bits - 1))
        weight = rng.integers(least, least + 2**weights.bits, (num_inputs, num_outputs)).astype(np.int8)
        options = {
            "overlap": draw(st.booleans()),
            "jitter": draw(st.sampled_from([0.0, 0.0, 0.3, 2.0])),
            "seed": draw(st.integers(0, 2**64 - 1)),
            "arrival_ps": np.sort(rng.integers(0, 20_000, spikes.shape[1])) if draw(st.booleans()) else None,
            "coarse": _coarse(rng, weights.bits, weight.shape, spikes.shape[1]) if draw(st.booleans()) else (),
        }
        return (spikes, timestep_weight, weight, on, placement), options

    return layers()


def _coarse(rng: np.random.Generator, bits: int, shape: tuple[int, int], num_tokens: int) -> tuple[CoarseRows, ...]:
    """Return up to two kinds of coarse rows, which random channels of random tokens read."""
    widths = [width for width in (2, 4) if width < bits and rng.random() < 0.7]
    kind = rng.integers(0, len(widths) + 1, (num_tokens, shape[0]))
    rows = [rng.integers(-256, 256, shape).astype(np.int16) for _ in widths]
    return tuple(CoarseRows(width, row, kind == i) for i, (width, row) in enumerate(zip(widths, rows, strict=True), 1))


def exact(
    spikes: np.ndarray, timestep_weight: np.ndarray, weight: np.ndarray, coarse: Sequence[CoarseRows] = ()
) -> np.ndarray:
    """Return the sums of a train, [tokens, out_features], without a chip; in halves if there are coarse rows."""
    count = np.einsum("t,tln->ln", timestep_weight, spikes.astype(np.int64))
    whole = (2 if coarse else 1) * weight.astype(np.int64)
    sums = np.where(sum((rows.read for rows in coarse), np.zeros(count.shape, bool)), 0, count) @ whole
    for rows in coarse:
        sums += np.where(rows.read, count, 0) @ rows.weight.astype(np.int64)
    return sums


def exact_groups(
    spikes: np.ndarray,
    timestep_weight: np.ndarray,
    weight: np.ndarray,
    group_size: int,
    coarse: Sequence[CoarseRows] = (),
) -> np.ndarray:
    """Return the sums of each group of a train, [tokens, groups, out_features], without a chip; see `exact`."""

    def part(group: slice) -> np.ndarray:
        some = [replace(rows, weight=rows.weight[group], read=rows.read[:, group]) for rows in coarse]
        return exact(spikes[:, :, group], timestep_weight, weight[group], some)

    return np.stack([part(slice(i, i + group_size)) for i in range(0, len(weight), group_size)], 1)


def check_simulation(job: tuple[tuple[Any, ...], dict[str, Any]], *, compare: bool) -> None:
    """Check all that must hold for a simulated layer.

    Args:
        job: of `jobs`.
        compare: whether both implementations must agree on times and queues, which takes longer.
    Raises:
        InputError: something does not hold; the message names the chip.
    """
    arguments, options = job
    spikes, timestep_weight, weight, chip, placement = arguments
    found = simulate_layer(*arguments, **options, trace=True)

    def require(holds: Any, what: str) -> None:
        if not bool(holds):
            raise InputError(f"chip {chip.name!r}: expected {what} of a simulated layer, found otherwise.")

    coarse = options["coarse"]
    require(np.array_equal(found.sums, exact(spikes, timestep_weight, weight, coarse)), "exact sums")
    outcome, network, kind = found.outcome, found.network, placement.weights
    if kind.group_size is not None and found.group_sums is not None:
        by_group = exact_groups(spikes, timestep_weight, weight, kind.group_size, coarse)
        require(np.array_equal(found.group_sums, by_group), "exact sums of each group")
        _check_rescaling(found, spikes, require)
    ones = np.array([abs(int(w)).bit_count() for w in timestep_weight])
    additions = int(ones @ np.abs(spikes).sum((1, 2))) * weight.shape[1]
    require(outcome.num_synops.sum() == additions, "every spike's additions at every output once")
    activity = found.activity
    updates, rescaled = int(outcome.num_updates.sum()), int(outcome.num_rescaled.sum())
    in_registers = chip.core.register_accumulators > 0
    require(
        (activity.num_updates, activity.num_register_updates)
        == ((rescaled, updates) if in_registers else (rescaled + updates, 0)),
        "every accumulator read and written in registers or in memory",
    )
    held = int(np.diff(network.core_outputs).max()) * accumulators_of_output(chip, kind)
    require(not in_registers or held <= chip.core.register_accumulators, "registers that hold the accumulators")
    duration = int(outcome.end_ps.max())
    require((outcome.queue_most <= network.depth).all(), "queues that hold no more than fits")
    require((outcome.busy_ps + outcome.blocked_ps <= duration).all(), "stations that are busy while it lasts")
    require((outcome.queue_ps <= network.depth * duration).all(), "queues that are filled while it lasts")
    _check_routes(found, require, travel=chip.core.sums_travel)
    require((np.diff(outcome.end_ps) >= 0).all(), "tokens that end in order")
    require((outcome.end_ps >= outcome.begin_ps).all(), "tokens that end after they began")
    if options["arrival_ps"] is not None and not chip.barrier.tiles:
        require((found.begin_ps >= options["arrival_ps"]).all(), "tokens that begin when their input is there")
    if not options["overlap"]:
        require((outcome.begin_ps[1:] >= outcome.end_ps[:-1]).all(), "tokens one after the other")
    require(sum(found.critical_path_ps().values()) == duration, "a critical path without gaps")
    doubled = {}
    for part in (f.name for f in fields(chip) if is_dataclass(getattr(chip, f.name))):
        values = vars(getattr(chip, part))
        doubled[part] = {k: 2 * v for k, v in values.items() if k.endswith(("_pj", "_mw"))}
    twice = found.activity.energy_pj(changed(chip, **doubled))
    require(
        twice == {name: 2 * value for name, value in found.energy_pj.items()}, "twice the energy of twice the energies"
    )
    if compare:
        plain = simulate_layer(*arguments, **options, trace=True, implementation="simpy").outcome
        for field in fields(outcome):
            same = field.name == "trace" or np.array_equal(getattr(outcome, field.name), getattr(plain, field.name))
            require(same, f"the {field.name} of its twin on SimPy")


def _check_rescaling(found: LayerSimulation, spikes: np.ndarray, require: Any) -> None:
    """Check how many sums were rescaled: those of each group with a spike, once if one sender sends all of it."""
    kind, activity = found.placement.weights, found.activity
    rescaled = int(found.outcome.num_rescaled.sum())
    fired = np.asarray(spikes != 0).max(axis=0)
    size = kind.group_size or fired.shape[1]
    groups = sum(int(fired[:, i : i + size].max(axis=1).sum()) for i in range(0, fired.shape[1], size))
    once, num_outputs = groups * found.sums.shape[1], found.sums.size
    several = len(found.placement.senders) > 1
    require(rescaled >= once if several else rescaled == once, "each group with a spike rescaled at every output")
    require(
        activity.num_multiplies == rescaled * kind.multiplies + num_outputs, "a product with each scale and threshold"
    )
    met = num_outputs * (found.placement.num_input_blocks if found.placement.num_input_blocks > 1 else 0)
    counted = int(found.outcome.num_updates.sum() - rescaled) if kind.has_minimum else 0
    least = rescaled * kind.additions + met
    require(least <= activity.num_adds <= least + counted, "an addition of each rescaled sum")


def _check_routes(found: LayerSimulation, require: Any, *, travel: bool) -> None:
    """Check that a link leads to the next tile, and that links of a route hang together; all else stays in its tile.

    Sums that do not travel are collected where they are, without a route.
    """
    network = found.network
    for station, (start, end) in enumerate(network.tiles):
        steps = abs(start[0] - end[0]) + abs(start[1] - end[1])
        require(steps == (network.kind[station] == LINK), "links between neighbouring tiles")
        for r in range(network.next_num.shape[1]):
            at = network.next_first[station, r]
            for following in network.next_station[at : at + network.next_num[station, r]]:
                joined = network.tiles[following][0] == end or (network.kind[following] == COLLECT and not travel)
                require(joined, "routes that hang together")
