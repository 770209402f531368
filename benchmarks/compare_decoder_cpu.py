"""Compare the integer sums of the compiled decoder with exact products until a number of them has been compared.

    python benchmarks/compare_decoder_cpu.py [--number 1e9] [--seed S] [--only PATH ...] [--out FILE]

Each round draws a model of random sizes, with random integer weights over their whole range, a random k and embeddings
and norms as in `compare_integers.py`, and lets 128 tokens through the compiled decoder. Every sum of every spiking
projection (of every group of inputs) is compared with a float64 product of the integers, exact below 2^53, whose counts
come from the plain neuron. The paths: INT8 rows with one scale or with groups, 4-bit groups with and without minima, or
with small counts that read 2 of the 4 bits, a head on spikes, and SpikingBrain models (7b and 76b layouts, with all of
these). A token that the decoder leaves to the separate steps, since counts might not fit, is counted as left out.

With --out, the file is written after every round, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compare_integers import activations
from timing import environment, write_json
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import spikebrain as sb
from spikebrain.models.conversion.to_spiking import spikingbrain_settings
from spikebrain.models.decoding import decoder_of
from spikebrain.models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM, tiny_7b, tiny_76b
from spikebrain.neuro import without_band

_TOKENS = 128
_WEIGHTS = {  # settings of the conversion; range of the integers, and whether groups have minima
    "int8": ({}, (-128, 127), False),
    "int8 in groups": ({"group_size": 32}, (-128, 127), False),
    "4 bits": ({"weights": "int4"}, (-8, 7), False),
    "4 bits with minima": ({"weights": "int4"}, (0, 15), True),
    "4 bits, small counts 2": ({"weights": "int4", "coarse": ((2, 3),)}, (0, 15), True),
}
PATHS = [*_WEIGHTS, "head", "hybrid"]


def draw_llama(rng: random.Random, *, head: bool) -> Any:
    config = LlamaConfig(
        hidden_size=32 * rng.randrange(2, 25),
        intermediate_size=32 * rng.randrange(2, 60),
        num_hidden_layers=1,
        num_attention_heads=rng.choice([4, 8, 16]),
        num_key_value_heads=rng.choice([1, 2, 4]),
        head_dim=rng.choice([8, 32, 64, 80]),
        vocab_size=rng.randrange(2000, 9000) if head else _TOKENS,
        attention_bias=rng.random() < 0.3,
        mlp_bias=rng.random() < 0.3,
    )
    return LlamaForCausalLM(config).eval()


def draw_hybrid(rng: random.Random) -> Any:
    config = rng.choice([tiny_7b, tiny_76b])(
        vocab_size=_TOKENS,
        hidden_size=32 * rng.randrange(2, 17),
        head_dim=rng.choice([8, 32, 64]),
        intermediate_size=32 * rng.randrange(2, 33),
        window=rng.choice([7, 64, 4096]),
        gate_rank=32,  # groups divide it
    )
    return SpikingBrainForCausalLM(config).eval()


def draw_model(rng: random.Random, path: str) -> Any:
    """Return a spiking model with random integers."""
    # SpikingBrain models have no coarse rows.
    kinds = [name for name in _WEIGHTS if path != "hybrid" or "coarse" not in _WEIGHTS[name][0]]
    weights = path if path in _WEIGHTS else rng.choice(kinds)
    options, (low, high), has_minima = _WEIGHTS[weights]
    k = rng.choice([0.3, 1.0, 3.0, 3.0, 8.0, 30.0, 200.0])
    model = draw_hybrid(rng) if path == "hybrid" else draw_llama(rng, head=path == "head")
    embedding = model.get_input_embeddings().weight
    embedding[:_TOKENS] = activations(rng, _TOKENS, embedding.shape[1], torch.float32, "cpu")
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases
            parameter.copy_(activations(rng, 1, len(parameter), torch.float32, "cpu")[0])
    if path == "hybrid":
        settings = spikingbrain_settings(k=k, **options)
    else:
        settings = sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k), include_head=path == "head", **options)
    spiking = sb.to_spiking(model, settings, inplace=True)
    for layer in spiking.modules():
        if isinstance(layer, sb.SpikeLinear) and layer.weight_bits > 2:  # the decoder takes 2 bits of the 4
            shape = (layer.in_features, layer.out_features)
            layer.weight = torch.randint(low, high + 1, shape, dtype=torch.int8).t()
            if not has_minima:
                layer.minimum = None
    return spiking


class Seen:
    """Memory for what a projection gets and for its sums, token by token."""

    def __init__(self, record: Any, layer: Any) -> None:
        self.edge, self.dropped = int(record["edge_0"]), int(record["dropped_0"])
        if isinstance(layer, sb.GradedLinear):
            layer = layer.own
        self.layer, self.neuron = layer, without_band(layer.neuron)
        self.x = torch.empty(layer.in_features)
        self.sums = torch.empty(len(layer.groups), layer.out_features, dtype=torch.int32)
        record["seen_input"], record["seen_sums"] = self.x.data_ptr(), self.sums.data_ptr()
        self.inputs: list[Tensor] = []
        self.found: list[Tensor] = []

    def clear(self) -> None:
        self.x.fill_(torch.nan)
        self.sums.fill_(-1)

    def note(self) -> None:
        if not self.x.isnan().any():  # an expert that was not chosen got nothing
            self.inputs.append(self.x.clone())
            self.found.append(self.sums.clone())

    def compare(self) -> tuple[int, int]:
        """Return how many sums were compared and how many differ."""
        if not self.inputs:
            return 0, 0
        count = self.neuron(torch.stack(self.inputs)).count.double()
        found, weight = torch.stack(self.found), self.layer.weight.double()
        middle = torch.zeros_like(weight)
        if self.edge > 0:  # then sums are in halves
            step = 2**self.dropped
            weight, middle = 2 * weight, 2 * step * (weight / step).floor() + step - 1
        is_small = count.abs() <= self.edge
        differing = 0
        for number, group in enumerate(self.layer.groups):
            exact = (count * ~is_small)[:, group] @ weight[:, group].t()
            exact += (count * is_small)[:, group] @ middle[:, group].t()
            differing += int((exact != found[:, number]).sum())
        return found.numel(), differing


def tokens_through(decoder: Any, model: Any) -> Iterator[bool]:
    """Let tokens pass, and yield after each whether the decoder did it."""
    if isinstance(model, SpikingBrainForCausalLM):
        cache = SpikingBrainCache(model.settings)
        SpikingBrainForCausalLM.forward(model, torch.zeros(1, 1, dtype=torch.int64), cache=cache)
        for token in range(_TOKENS):
            yield decoder.step(torch.tensor([[token]]), cache, None, None) is not None
        return
    memory = torch.zeros(2, 1, decoder.num_key_heads, _TOKENS, decoder.head_dim)
    for token in range(_TOKENS):
        ids = torch.tensor([[token]])
        yield decoder.decode(ids, ids, memory, token) is not None


def one_round(path: str, seed: str) -> dict[str, int]:
    """Return how many sums were compared, how many differ, and how many tokens passed and were left out."""
    rng = random.Random(seed)
    torch.manual_seed(rng.randrange(2**32))
    torch.set_num_threads(rng.choice([1, 2, 3]))
    model = draw_model(rng, path)
    decoder: Any = decoder_of(model)
    assert decoder is not None, sb.describe_decoding(model)
    pairs = zip(decoder.tables.projections, decoder.tables.modules, strict=True)
    seen = [Seen(record, layer) for record, layer in pairs if isinstance(layer, sb.SpikeLinear | sb.GradedLinear)]
    counts = {"compared": 0, "differing": 0, "tokens": 0, "left_out": 0}
    passing = tokens_through(decoder, model)
    for _ in range(_TOKENS):
        for one in seen:
            one.clear()
        passed = next(passing)
        counts["tokens" if passed else "left_out"] += 1
        if passed:
            for one in seen:
                one.note()
    torch.set_num_threads(2)
    for one in seen:
        compared, differing = one.compare()
        counts["compared"] += compared
        counts["differing"] += differing
    return counts


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=float, default=1e9, help="sums to compare, over all paths")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--out", type=Path, help="JSON file to write, and to go on from")
    options = parser.parse_args()
    before = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    start = {"rounds": 0, "compared": 0, "differing": 0, "tokens": 0, "left_out": 0}
    rows = {path: {"path": path, "seed": options.seed, **start} for path in options.only}
    rows |= {row["path"]: row for row in before}
    if any(row["seed"] != options.seed for row in rows.values()):
        raise SystemExit(f"{options.out} was made with another --seed. Name another file, or the same seed.")
    began = time.perf_counter()
    until = options.number / len(options.only)
    while unfinished := [path for path in options.only if rows[path]["compared"] < until]:
        path = min(unfinished, key=lambda path: rows[path]["compared"])
        row = rows[path]
        for name, number in one_round(path, f"{options.seed} {path} {row['rounds']}").items():
            row[name] += number
        row["rounds"] += 1
        write_json(options.out, list(rows.values()), environment_of_run=environment())
        total, wrong = (sum(rows[path][name] for path in options.only) for name in ("compared", "differing"))
        print(f"{total:,} sums compared, {wrong:,} differ, {time.perf_counter() - began:.0f} s; {path}", flush=True)
    for row in rows.values():
        print(f"{row['path']:20} {row['compared']:>13,} sums of {row['rounds']:,} models, {row['differing']:,} differ")
    if any(row["differing"] for row in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
