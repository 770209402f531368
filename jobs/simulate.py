"""A model on a simulated asynchronous chip: what it costs, how long it takes, and what it waits for."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import analysis, pages
from ..chip import MAPPINGS, ORDERS, ChannelOrder, Description, InOrder, Mapping, Weights, load_description, plan
from ..coding import ENCODERS, Encoder
from ..errors import InputError
from ..exchange import require_perfetto, write_chip_timeline
from ..files import write_json
from ..models import SpikeLinear, SpikeSettings
from ..models.layers import check_matches, patterns_of
from ..models.layers.settings import matches_any
from ..neuro import NEURONS, Neuron, without_band
from ..paths import model_name
from ..registry import label
from ..simulation.describe import describe_simulation
from ..simulation.experts import Routing
from ..simulation.layers import layers_of
from ..simulation.model import MODES, ModelOnChip, simulate_model
from ..simulation.orders import learn_orders
from ..simulation.queue_steps import queue_steps
from ..simulation.weights import weights_of
from .given import K, refuse, spike_settings, usual
from .inputs import alone, check_seed, give_experts_cores, load_spiking, require_writable
from .measure import weights_in_words
from .progress import SILENT, Progress

# Tokens from which an order of channels is learned.
ORDER_TOKENS = 128
# Of timelines, which hold every service of every station, in one file.
MOST_TIMELINES = 8


@dataclass(frozen=True)
class SimulateSettings:
    """What runs on which chip.

    A model that spikes already keeps its own settings: how it is to spike must then not be given.

    Attributes:
        model: anything that `load` takes.
        chip: a name of `chip_names()`, the path of a .toml file, or a `Description`.
        text: a UTF-8 file, or None for the text of the standard library's pydoc_data.topics.
        num_tokens: tokens from the start of the text, as one window.
        mode: "decode": token after token; "prefill": tokens follow each other through the layers.
        mapping: cuts layers into cores.
        order: learns from the 128 tokens that follow in which order channels lie in memory; None to leave them.
        stream: weights stream from DRAM, so that the model need not fit.
        neuron: turns activations into counts, an object or a registered name; None for `AdaptiveThreshold`.
        k: of the neuron, if it has one: mean |x| of a token divided by its threshold, or one for each pattern of
            names of layers, of which the first that matches counts; None for its own.
        encoder: turns counts into spikes, an object or a registered name, as mapping and order; None for
            `BidirectionalBitwise`.
        layers: pattern of the names of layers that spike; None for all.
        skip: patterns of the names of layers that stay dense; None for none.
        weights: "int8", "int4", or "stored" for those of a GGUF file as they are; None for "int8".
        group_size: input channels that share a weight scale; None for all, with "int4" for 32.
        compact_scales: keep the scales of groups in few bits; None for not.
        coarse: pairs (bits, up_to): counts up to `up_to` read rows of that few bits; None for none.
        include_head: whether the output head spikes too, on cores of its own.
        jitter: services last up to this share longer, at random; changes times, never sums.
        seed: random seed for the jitter, which must be above 0; None for 0.
        critical_path: find what holds tokens up, which takes twice as long.
        timeline: pattern of the names of layers, at most 8, of which timeline.pftrace is written, for Perfetto. When
            decoding, each layer has a time of its own, from the beginning of its first token.
    """

    model: str = "smollm2"
    chip: str | Path | Description = "async-45nm"
    text: Path | None = None
    num_tokens: int = 16
    mode: str = "decode"
    mapping: Mapping | str = field(default_factory=InOrder)
    order: ChannelOrder | str | None = None
    stream: bool = False
    neuron: Neuron | str | None = None
    k: K | None = None
    encoder: Encoder | str | None = None
    layers: str | None = None
    skip: tuple[str, ...] | None = None
    weights: str | None = None
    group_size: int | None = None
    compact_scales: bool | None = None
    coarse: tuple[tuple[int, int], ...] | None = None
    include_head: bool = False
    jitter: float = 0.0
    seed: int | None = None
    critical_path: bool = False
    timeline: str | None = None

    def __post_init__(self) -> None:
        """Put objects in the place of names; raise an InputError if there is no such name."""
        object.__setattr__(self, "mapping", MAPPINGS.resolve(self.mapping, "mapping"))
        object.__setattr__(self, "order", ORDERS.resolve(self.order, "order", None))
        object.__setattr__(self, "neuron", NEURONS.resolve(self.neuron, "neuron", None))
        object.__setattr__(self, "encoder", ENCODERS.resolve(self.encoder, "encoder", None))

    def spike_settings(self) -> SpikeSettings:
        """Return which layers spike, and how."""
        return spike_settings(self)


@dataclass(frozen=True)
class Simulated:
    """What `simulate` found.

    Attributes:
        figures: the content of simulation.json.
        title: model, tokens, mode and chip, in words.
        files: names of the files that were written.
    """

    figures: dict[str, Any]
    title: str
    files: tuple[str, ...]


@alone
def simulate(settings: SimulateSettings, out: Path, progress: Progress = SILENT) -> Simulated:
    """Run a model on a simulated chip, event by event, and check its sums against the model's.

    Writes simulation.html, simulation.json, energy.png, time.png, mesh.png and, if asked for, timeline.pftrace into
    `out`.

    Args:
        settings: what runs on which chip.
        out: folder to write to; made if it is missing.
        progress: told what happens.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    num_tokens, order = settings.num_tokens, settings.order
    assert not isinstance(order, str)
    if num_tokens < 1:
        raise InputError(f"num_tokens: expected 1 or more, got {num_tokens}.")
    if settings.mode not in MODES:
        raise InputError(f"mode: expected one of {', '.join(MODES)}; got {settings.mode!r}.")
    check_seed(usual(settings.seed, 0))
    if settings.jitter == 0:
        refuse(settings, ("seed",), "without `jitter`, since nothing else is random")
    chip = load_description(settings.chip)
    if settings.timeline is not None:
        require_perfetto("timeline")
    require_writable(out)
    wanted = num_tokens + (ORDER_TOKENS if order is not None else 0)
    inputs = {"num_tokens": wanted, "context": num_tokens, "device": "cpu", "progress": progress}
    inputs["fits"] = lambda shapes: _look_ahead(shapes, chip, settings)
    inputs["prepare"] = lambda model: give_experts_cores(model, progress)
    model, ids, source, text_source, _ = load_spiking(settings.model, settings.text, settings, **inputs)
    spiking = layers_of(model)
    shapes = {name: (layer.in_features, layer.out_features) for name, layer in spiking.items()}
    check_fit(shapes, chip, settings, weights_of(spiking))
    ids, following = ids[:num_tokens], ids[num_tokens:]
    orders = {}
    if order is not None:
        if len(following) == 0:
            raise InputError(
                f"order {ORDERS.name_of(order)}: expected a text of more than {num_tokens} tokens to learn from. Give "
                "a longer text."
            )
        progress.say(f"Learning the order of channels from {len(following)} tokens")
        orders = learn_orders(model, following, order)
    began = time.perf_counter()
    timelines = _timelines(settings, spiking)
    # Of the waiting packets of the largest layer that sees all tokens there is a picture.
    of_experts = Routing(model, spiking).places
    seen = timelines or [name for name in spiking if name not in of_experts] or spiking
    traced = max(seen, key=lambda name: spiking[name].in_features * spiking[name].out_features)
    found = simulate_model(
        model,
        ids,
        chip,
        mapping=settings.mapping,
        stream=settings.stream,
        mode=settings.mode,
        orders=orders,
        jitter=settings.jitter,
        seed=usual(settings.seed, 0),
        trace=settings.critical_path,
        timelines=timelines or (traced,),
        progress=progress.bar("simulated", len(spiking), "layers"),
    )
    idle = [name for name in timelines if name in found.idle]
    if idle:
        raise InputError(
            f"timeline: expected layers that tokens reach, got {', '.join(idle)} of experts that had none. Name other "
            "layers, or take more tokens."
        )
    figures = {"kind": "simulation", "format": pages.FORMAT, **describe_simulation(found)}
    figures["model"] = {"name": settings.model, "source": Path(source).name}
    figures["text"] = text_source
    order_name = "as-given" if order is None else ORDERS.name_of(order) or label(order)
    figures["order"] = {"name": order_name, "num_tokens": len(following)}
    figures["settings"] = _describe_settings(settings, next(iter(spiking.values())), weights_in_words(model))
    figures["queue_steps"] = None if traced in found.idle else queue_steps(found.timelines[traced], traced)
    figures["seconds"] = time.perf_counter() - began
    title = f"{model_name(source)}, {len(ids)} tokens, {settings.mode}, on {chip.name}"
    files = _write(found, figures, title, timelines, out)
    return Simulated(figures, title, files)


def _look_ahead(shapes: dict[str, tuple[int, int]], chip: Description, settings: SimulateSettings) -> None:
    """Check what can be checked before the model is loaded: not how much memory weights in groups take."""
    if settings.weights in (None, "int8") and settings.group_size is None and not settings.coarse:
        check_fit(shapes, chip, settings)
        _timelines(settings, shapes)


def check_fit(
    shapes: dict[str, tuple[int, int]],
    chip: Description,
    settings: SimulateSettings,
    weights: dict[str, Weights] | None = None,
) -> None:
    """Raise an InputError unless layers fit a chip; the message says which do.

    Args:
        shapes: (in_features, out_features) of each layer, by name.
        chip: the chip.
        settings: of the simulation.
        weights: how they lie in the cores, by name; None for a byte a weight.
    """
    mapping = settings.mapping
    assert isinstance(mapping, Mapping)

    def fault(names: list[str]) -> str | None:
        try:
            plan({name: shapes[name] for name in names}, chip, mapping, stream=settings.stream, weights=weights)
        except InputError as error:
            return str(error)
        return None

    said = fault(list(shapes))
    if said is not None:
        some = {pattern: [name for name in shapes if fnmatch.fnmatch(name, pattern)] for pattern in patterns_of(shapes)}
        fitting = max((p for p in some if fault(some[p]) is None), key=lambda p: len(some[p]), default=None)
        raise InputError(said + (f" `layers` {fitting!r} fits." if fitting is not None else ""))


def _timelines(settings: SimulateSettings, names: Collection[str]) -> list[str]:
    """Return the names of the layers of which a timeline is asked for."""
    if settings.timeline is None:
        return []
    check_matches("timeline", (settings.timeline,), names)
    found = [name for name in names if matches_any(name, (settings.timeline,))]
    if len(found) > MOST_TIMELINES:
        raise InputError(
            f"timeline: expected at most {MOST_TIMELINES} layers, got {len(found)}, {found[0]!r} to {found[-1]!r}. "
            f"Name fewer, such as {found[len(found) // 2]!r}."
        )
    return found


def _describe_settings(settings: SimulateSettings, layer: SpikeLinear, weights: str) -> dict[str, Any]:
    """Return the settings that were used, those of the spiking layers included."""
    return {
        "num_tokens": settings.num_tokens,
        "mode": settings.mode,
        "mapping": label(settings.mapping),
        "order": "as-given" if settings.order is None else label(settings.order),
        "stream": settings.stream,
        "neuron": label(without_band(layer.neuron)),
        "encoder": ENCODERS.name_of(layer.encoder) or label(layer.encoder),
        "layers": usual(settings.layers, "*"),
        "skip": list(usual(settings.skip, ())),
        "weights": weights,
        "group_size": layer.group_size,
        "compact_scales": usual(settings.compact_scales, False),
        "coarse": [list(pair) for pair in usual(settings.coarse, ())],
        "include_head": settings.include_head,
        "jitter": settings.jitter,
        "seed": usual(settings.seed, 0),
        "critical_path": settings.critical_path,
        "timeline": settings.timeline,
    }


def _write(found: ModelOnChip, figures: dict[str, Any], title: str, timelines: list[str], out: Path) -> tuple[str, ...]:
    analysis.plot_chip_energy(found, out / "energy.png", title)
    analysis.plot_chip_time(found, out / "time.png", title)
    analysis.plot_mesh(found, out / "mesh.png", title)
    files = ("simulation.html", "simulation.json", "energy.png", "time.png", "mesh.png")
    if timelines:
        kept = {name: found.timelines[name] for name in timelines}
        figures["num_timeline_events"] = write_chip_timeline(kept, out / "timeline.pftrace")
        files += ("timeline.pftrace",)
    write_json(out / "simulation.json", figures)
    pages.write_page(figures, out / "simulation.html", files, pages.attributes_of(SimulateSettings))
    return files
