"""Exact and lossy codes at equal spikes: error of SmolLM2's layers against spikes per channel, as Markdown.

    python benchmarks/field_codes.py [--tokens 32] [--blocks 4 14 24] [--perplexity N]

Records the counts of q, o, up and down of some blocks for several k, on the default text of `spikebrain report`, and
carries the same counts by each code. The error is that of the layer's outputs, relative to INT8 weights with float
activations (root of the summed squares, over all those layers). The error at equal spikes is interpolated between
neighbouring k. With --perplexity, also that of N tokens at k = 3.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

import spikebrain as sb
from spikebrain.analysis import split_windows, window_nlls
from spikebrain.analysis.perplexity import perplexity_of
from spikebrain.coding import (
    BidirectionalBitwise,
    Delta,
    Encoder,
    Latency,
    Poisson,
    SignedDigit,
    Ternary,
    WeightedPhase,
    decode,
)
from spikebrain.jobs.inputs import read_text
from spikebrain.models import SpikeLinear, spiking_layers
from spikebrain.models.layers.observing import Step, observing

KS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
KINDS = ("q_proj", "o_proj", "up_proj", "down_proj")
EQUAL = (0.25, 0.5, 1.0)
CODES: dict[str, Encoder] = {
    "signed digit": SignedDigit(),
    "bitwise, bidirectional": BidirectionalBitwise(),
    "ternary": Ternary(),
    "weighted phase, step 2": WeightedPhase(step=2),
    "weighted phase, step 4": WeightedPhase(step=4),
    "Poisson, step 1": Poisson(),
    "Poisson, step 4": Poisson(step=4),
    "latency, linear, step 4": Latency(step=4),
    "latency, log": Latency(curve="log"),
    "latency, charge": Latency(curve="charge"),
    "delta, step 1": Delta(),
    "delta, step 3": Delta(step=3),
}
# Places of a train that are held at a time.
_PORTION = 2**24

Recorded = list[tuple[SpikeLinear, Step]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 14, 24])
    parser.add_argument("--perplexity", type=int, help="tokens of which the perplexity is measured, too")
    options = parser.parse_args()
    model, tokenizer, _ = sb.load("smollm2")
    assert tokenizer is not None
    ids = torch.tensor(tokenizer.encode(read_text(None)[0], verbose=False))
    points = points_of(model, ids[: options.tokens], options.blocks)
    print_points(points)
    print_equal(points)
    if options.perplexity:
        print_perplexity(model, ids[: options.perplexity])


def points_of(model: torch.nn.Module, ids: Tensor, blocks: list[int]) -> dict[str, list[tuple[float, float]]]:
    """Return the spikes per channel and token and the error of each code, for each k."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in CODES}
    names = tuple(f"*layers.{block}.*{kind}" for block in blocks for kind in KINDS)
    spiking = sb.to_spiking(model, sb.SpikeSettings(layers=names, backend=sb.Reference()))
    for k in KS:
        recorded = record_layers(spiking, ids, k)
        for name, code in CODES.items():
            points[name].append(error_of(code, recorded))
    return points


def record_layers(spiking: torch.nn.Module, ids: Tensor, k: float) -> Recorded:
    """Return the layers on spikes with what they compute for the tokens; all others run in floating point."""
    recorded: Recorded = []
    watched = spiking_layers(spiking).values()
    for layer in watched:
        layer.neuron = sb.AdaptiveThreshold(k=k)
    with observing(watched, lambda layer, step: recorded.append((layer, step))), torch.no_grad():
        spiking(ids[None])
    return recorded


def error_of(code: Encoder, recorded: Recorded) -> tuple[float, float]:
    """Return the spikes per channel and token, and the relative error of the outputs."""
    num_spikes = num_channels = 0
    wrong = right = 0.0
    for layer, step in recorded:
        weight = layer.dequantized_weight().double()
        spikes, carried = carry(code, step.count)
        num_spikes, num_channels = num_spikes + spikes, num_channels + step.count.numel()
        expected = step.x.reshape(-1, layer.in_features).double() @ weight.T
        found = (carried * step.threshold.double()) @ weight.T
        wrong, right = wrong + float((found - expected).square().sum()), right + float(expected.square().sum())
    return num_spikes / num_channels, math.sqrt(wrong / right)


def carry(code: Encoder, count: Tensor) -> tuple[int, Tensor]:
    """Return the spikes of some counts, and the values that their trains carry."""
    suited, num_timesteps = code.fitted(*(int(v) for v in count.aminmax()))
    trains = list(portions(suited, count, num_timesteps))
    return sum(n for n, _ in trains), torch.cat([values for _, values in trains])


def portions(code: Encoder, count: Tensor, num_timesteps: int) -> Iterator[tuple[int, Tensor]]:
    """Yield spikes and values of a few tokens at a time."""
    for part in count.split(max(1, _PORTION // (num_timesteps * count.shape[1]))):
        train = code.encode(part, num_timesteps)
        yield train.num_spikes, decode(train).double()


def print_points(points: dict[str, list[tuple[float, float]]]) -> None:
    print("| code | " + " | ".join(f"k = {k:g}" for k in KS) + " |\n| --- |" + " --- |" * len(KS))
    for name, found in points.items():
        shown = (f"{spikes:.2f}: {error:.1%}" for spikes, error in found)
        print(f"| {name} | {' | '.join(shown)} |")


def print_equal(points: dict[str, list[tuple[float, float]]]) -> None:
    """Print the error at equal spikes, interpolated between the two k around them, both axes logarithmic."""
    print("\n| code | " + " | ".join(f"{n:g} spikes" for n in EQUAL) + " |\n| --- |" + " --- |" * len(EQUAL))
    for name, found in points.items():
        print(f"| {name} | {' | '.join(at_equal(found, n) for n in EQUAL)} |")


def at_equal(found: list[tuple[float, float]], spikes: float) -> str:
    for (a, left), (b, right) in itertools.pairwise(found):
        if a <= spikes <= b and a < b:
            share = math.log(spikes / a) / math.log(b / a)
            return f"{math.exp((1 - share) * math.log(left) + share * math.log(right)):.1%}"
    return "not reached" if spikes > found[-1][0] else "more at every k"


def print_perplexity(model: torch.nn.Module, ids: Tensor) -> None:
    print(f"\n| code, k = 3 | perplexity of {len(ids)} tokens |\n| --- | --- |")
    spiking = sb.to_spiking(model, inplace=True)
    windows = split_windows(ids, min(512, len(ids)))
    for name, code in CODES.items():
        for layer in spiking_layers(spiking).values():
            layer.encoder = code
        print(f"| {name} | {perplexity_of(window_nlls(spiking, windows), windows):.2f} |")


if __name__ == "__main__":
    main()
