"""What mixtures of experts save, at both levels of sparsity: experts without the token, channels without a spike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..models import LayerRecord
from ..models.recording import Recording
from ..models.recording.modules import ModuleRecord
from ..models.recording.weight_reads import row_bytes


@dataclass(frozen=True)
class MixtureStatistics:
    """Figures over all mixtures of a model whose experts spike.

    Attributes:
        num_layers: mixtures.
        experts_per_token: experts that a token goes through, and experts of a mixture, shared ones included; means.
        expert_sparsity: share of the experts' weights in experts that the token does not go through.
        neuron_sparsity: of the weights of its experts, share in rows of channels without a spike.
        weight_sparsity: both, 1 - (1 - expert_sparsity) x (1 - neuron_sparsity): the share that it does not read.
        bytes_per_token: weights read for a token, the rows of active channels of its experts.
        expert_bytes_per_token: all rows of its experts.
        all_bytes_per_token: all experts: a dense part of their size.
        dense_bytes_per_token: a dense part as wide as one expert, all rows.
        dense_active_bytes_per_token: the same, with as many active channels as an expert has.
        spikes_per_token: spikes into the experts of a token.
        dense_spikes_per_token: spikes into a dense part as wide as one expert, as many as into an expert.
        largest_load: most tokens of a routed expert over an even share, mean of the mixtures: 1 if even; None where
            experts are equal, and so one set of weights for all.
        num_silent_experts: routed experts without a token; None likewise.
    """

    num_layers: int
    experts_per_token: tuple[float, float]
    expert_sparsity: float
    neuron_sparsity: float
    weight_sparsity: float
    bytes_per_token: float
    expert_bytes_per_token: float
    all_bytes_per_token: float
    dense_bytes_per_token: float
    dense_active_bytes_per_token: float
    spikes_per_token: float
    dense_spikes_per_token: float
    largest_load: float | None
    num_silent_experts: int | None


@dataclass(frozen=True)
class _Mixture:
    """What the experts of one mixture did, per token; `size` is the weights of one expert, in bytes."""

    num_experts: int
    runs: float
    size: float
    read: float
    routed: float
    spikes: float
    loads: list[int] | None


def mixture_statistics(recording: Recording) -> MixtureStatistics | None:
    """Return the figures of a model's mixtures of experts, counted; None if there are none that spike and ran.

    Args:
        recording: of any model with experts, SpikingBrain's or of transformers; shared experts of the latter are
            layers like others, and left out.
    """
    parts = [part for part in recording.modules.values() if part.kind in ("moe", "experts") and part.num_tokens]
    found = [one for part in parts if (one := _of(part, recording.layers)) is not None]
    if not found:
        return None
    every, routed = sum(one.num_experts * one.size for one in found), sum(one.routed for one in found)
    read = sum(one.read for one in found)
    loads = [one.loads for one in found if one.loads]
    return MixtureStatistics(
        num_layers=len(found),
        experts_per_token=(_mean(one.runs for one in found), _mean(one.num_experts for one in found)),
        expert_sparsity=1 - routed / every,
        neuron_sparsity=1 - read / routed,
        weight_sparsity=1 - read / every,
        bytes_per_token=read,
        expert_bytes_per_token=routed,
        all_bytes_per_token=every,
        dense_bytes_per_token=sum(one.size for one in found),
        dense_active_bytes_per_token=sum(one.read / one.runs for one in found),
        spikes_per_token=sum(one.spikes for one in found),
        dense_spikes_per_token=sum(one.spikes / one.runs for one in found),
        largest_load=_mean(max(load) * len(load) / sum(load) for load in loads) if loads else None,
        num_silent_experts=sum(load.count(0) for load in loads) if loads else None,
    )


def _of(part: ModuleRecord, layers: Mapping[str, LayerRecord]) -> _Mixture | None:
    """Return what the experts of a mixture did, by the names of their layers; None if none of them spikes."""
    inside = f"{part.name}." if part.name else ""
    routed = f"{inside}experts." if part.kind == "moe" else inside
    experts: dict[str, list[LayerRecord]] = {}
    for name, layer in layers.items():
        for kind in (routed, f"{inside}shared."):
            number = name.removeprefix(kind).partition(".")[0]
            if name.startswith(kind) and number.isdigit():
                experts.setdefault(kind + number, []).append(layer)
    ran = {name: expert for name, expert in experts.items() if any(layer.num_tokens for layer in expert)}
    if not ran:
        return None
    num_experts = part.sizes["experts"] + part.sizes["shared"] if part.kind == "moe" else len(experts)
    whole = [layer for expert in ran.values() for layer in expert]
    tokens, num_layers = part.num_tokens, max(len(expert) for expert in experts.values())
    are_equal = len(experts) == 1 and num_experts > 1
    runs = {name: max(layer.num_tokens for layer in expert) for name, expert in experts.items()}
    loads = [number for name, number in runs.items() if name.startswith(routed)]
    first = next(expert for expert in experts.values() if len(expert) == num_layers)
    return _Mixture(
        num_experts=num_experts,
        runs=sum(runs.values()) / tokens,
        size=float(sum(_bytes(layer) for layer in first)),
        read=sum(layer.num_active_channels * _row(layer) for layer in whole) / tokens,
        routed=sum(layer.num_tokens * _bytes(layer) for layer in whole) / tokens,
        spikes=sum(layer.num_spikes for layer in whole) / tokens,
        loads=None if are_equal or not sum(loads) else loads,
    )


def _row(layer: LayerRecord) -> int:
    return row_bytes(layer.out_features, layer.weight_bits)


def _bytes(layer: LayerRecord) -> int:
    return layer.in_features * _row(layer)


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return sum(values) / len(values)


def mixture_rows(figures: Mapping[str, Any]) -> list[tuple[str, float, float, float | None]]:
    """Return the table of both levels of sparsity: what reads, bytes a token, share of all experts', spikes a token.

    Args:
        figures: those of a `MixtureStatistics`, by name.
    """
    of_token, of_mixture = figures["experts_per_token"]
    whole, spikes = figures["all_bytes_per_token"], figures["spikes_per_token"]
    rows = [
        (f"all {of_mixture:g} experts, as a dense part of their size", whole, None),
        (f"the {of_token:g} experts of the token", figures["expert_bytes_per_token"], None),
        ("their rows of active channels", figures["bytes_per_token"], spikes),
        ("a dense part as wide as one expert", figures["dense_bytes_per_token"], None),
        ("its rows of active channels", figures["dense_active_bytes_per_token"], figures["dense_spikes_per_token"]),
    ]
    return [(name, num_bytes, num_bytes / whole, number) for name, num_bytes, number in rows]


def mixture_in_words(figures: Mapping[str, Any]) -> str:
    """Return both levels of sparsity and the load in a sentence or two."""
    words = (
        f"A token reads {1 - figures['weight_sparsity']:.1%} of the experts' weights: expert sparsity "
        f"{figures['expert_sparsity']:.1%}, neuron sparsity {figures['neuron_sparsity']:.1%}."
    )
    if figures["largest_load"] is None:
        return f"{words} The experts are equal, one set of weights, so they have no loads of their own."
    silent = figures["num_silent_experts"]
    return (
        f"{words} A mixture's busiest expert gets {figures['largest_load']:.2f} times an even share of the tokens; "
        f"{silent:,} routed {'expert' if silent == 1 else 'experts'} got none."
    )
