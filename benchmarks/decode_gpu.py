"""Greedy generation on one GPU as a user calls it: milliseconds and joules a token, compared with peers in turns.

    python benchmarks/decode_gpu.py [--model 7b|135m|PATH] [--systems NAME ...] [--tokens N] [--out FILE.json]

`7b` and `135m` have the shapes of Qwen2.5-7B and SmolLM2-135M, and random weights. The systems are `generate` of
transformers in BF16, the same with `cache_implementation="static"` (transformers compiles the model), one step of it in
a CUDA graph, INT8 weight-only products of torchao (compiled in the same way; left out if torchao is not installed),
`generate` of the spiking model, its graph alone, and the spiking model layer by layer, as it runs with a hook.
`--texts N` decodes as many texts at a time; graphs are for one. Spiking models have INT8 rows at k = 3, 4-bit groups of
32 inputs, or INT8 rows of which small counts read 4 bits. Tokens after the first are timed. The floor is the time in
which the bytes that the spiking model must read (rows of channels that fire at k = 3, and the dense head) are read at
the copying speed measured in the same run. Joules need nvidia-ml-py (pip install 'spikebrain[measure]').
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu import copy_bandwidth
from timing import Clock, environment, write_json
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, StaticCache

import spikebrain as sb
from spikebrain.errors import SpikebrainError
from spikebrain.models.decoding import attach_decoder, decoder_of

SYSTEMS = (
    *("bf16", "bf16_static", "bf16_graph", "torchao", "spiking", "spiking_graph", "int4", "int4_graph"),
    *("coarse", "coarse_graph", "layers"),
)
NAMES = {
    "bf16": "BF16, generate",
    "bf16_static": "BF16, generate, static cache, compiled by transformers",
    "bf16_graph": "BF16, one step in a CUDA graph",
    "torchao": "INT8 weights of torchao, generate, static cache, compiled by transformers",
    "spiking": "spiking, generate",
    "spiking_graph": "spiking, its graph alone",
    "int4": "spiking, 4-bit groups of 32, generate",
    "int4_graph": "spiking, 4-bit groups of 32, its graph alone",
    "coarse": "spiking, small counts read 4 of 8 bits, generate",
    "coarse_graph": "spiking, small counts read 4 of 8 bits, its graph alone",
    "layers": "spiking layer by layer, generate",
}
# Of `coarse`: 0.6 of the bytes at 3.3 % loss on SmolLM2 (docs/spikes-that-pay.md).
COARSE = sb.SpikeSettings(neuron=sb.DeadZoneThreshold(k=8.0, dead_zone=0.125), coarse=((4, 8),))
PROMPT = 32
# Of Qwen2.5-7B and of SmolLM2-135M.
SHAPES = {
    "7b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        max_position_embeddings=32768,
    ),
    "135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}


def load(name: str) -> Any:
    if name not in SHAPES:
        return sb.load(name).model.to("cuda", torch.bfloat16)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(SHAPES[name]).eval()
    torch.set_default_dtype(torch.float32)
    return model


def generate(model: Any, ids: Tensor, num_tokens: int, **options: Any) -> float:
    """Return the mean seconds between tokens."""
    clock = Clock()
    length = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
    model.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **length, **options)
    return clock.seconds_per_token


class Replay:
    """A graph, what it reads, and the counters that it moves on: they are set back before a cache is full."""

    def __init__(self, graph: Any, counters: list[Any], kept: object) -> None:
        self.graph, self.counters, self.kept = graph, counters, kept
        self.before = [counter.clone() for counter in counters]
        self.number = 0

    def __call__(self) -> None:
        if self.number % 64 == 0:
            for counter, value in zip(self.counters, self.before, strict=True):
                counter.copy_(value)
        self.number += 1
        self.graph.replay()

    def seconds(self, num: int) -> float:
        """Return the seconds of a replay, of many one after the other."""
        torch.cuda.synchronize()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(num):
            self()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / num


def with_int8_weights(dense: Any) -> Any:
    """Return a copy of a model whose linear layers have INT8 weights of torchao; None if that is not installed."""
    try:
        quantization = importlib.import_module("torchao.quantization")
    except ImportError as error:
        print(f"no INT8 weights of torchao: {error}")
        return None
    model = copy.deepcopy(dense)
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())  # the head stays as it is, as ours does
    return model


def models_of(dense: Any, systems: list[str]) -> dict[str, Any]:
    """Return the models of the systems beside the dense one, by name."""
    spiking = sb.to_spiking(dense)
    models: dict[str, Any] = {"spiking": spiking, "layers": layer_by_layer(spiking)}
    if "torchao" in systems and (weight_only := with_int8_weights(dense)) is not None:
        models["torchao"] = weight_only
    for kind, settings in (("int4", sb.SpikeSettings(weights="int4")), ("coarse", COARSE)):
        if any(name.startswith(kind) for name in systems):
            models[kind] = sb.to_spiking(dense, settings)
    return models


def layer_by_layer(spiking: Any) -> Any:
    """Return a model with the same layers and a hook, which no graph of a whole model is for."""
    model = copy.copy(spiking)
    vars(model).update(_forward_hooks=OrderedDict(), _watch=None)
    attach_decoder(model)
    model.register_forward_hook(lambda *_: None)
    return model


def step_in_graph(model: Any, ids: Tensor) -> Replay:
    """Return a graph of one step after a prompt with a static cache."""
    cache = StaticCache(config=model.config, max_cache_len=256)
    name = "cache" if "cache" in model.forward.__code__.co_varnames else "past_key_values"
    model(ids, **{name: cache}, use_cache=True)
    token, position = ids[:, :1].clone(), torch.tensor([[ids.shape[1]]], device="cuda")

    def step() -> Tensor:
        return model(token, position_ids=position, **{name: cache}, use_cache=True).logits

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    counters = [getattr(layer, "cumulative_length", None) for layer in cache.layers]
    counters = [counter for counter in counters if counter is not None]
    return Replay(graph, counters, (cache, token, position))


def graph_of(spiking: Any, ids: Tensor) -> Replay:
    """Return the graph of the spiking model's decoder after a prompt, with a cache of its own."""
    generate(spiking, ids, 4)  # tunes, captures
    decoder: Any = decoder_of(spiking)
    shape = (2 * decoder.num_layers, 1, decoder.num_key_heads, 256, decoder.head_dim)
    memory = torch.zeros(shape, dtype=decoder.dtype, device="cuda")
    decoder.decode(ids[:, :1], torch.tensor([[PROMPT]], device="cuda"), memory, PROMPT)
    return Replay(decoder._graph, [decoder._cache, decoder._positions], (decoder, memory))


def bytes_read(model: Any, ids: Tensor) -> int:
    """Return the bytes of weights that a token of the spiking model must read, from a recording."""
    with sb.record(model) as recording:
        model(ids, use_cache=False)
    total = 0.0
    for name, layer in recording.layers.items():
        module = model.get_submodule(name)
        total += layer.num_active_channels / layer.num_tokens * module.out_features
    head = model.get_output_embeddings()
    if not isinstance(head, sb.SpikeLinear):
        total += head.weight.numel() * head.weight.element_size()
    return int(total)


def joules(call: Callable[[], Any], num_tokens: int) -> dict[str, float] | None:
    """Return joules of a token, of the whole board and without its idle power; None without a meter."""
    try:
        meter = sb.energy.NvmlMeter()
        found = sb.energy.measure_energy(
            call, num_tokens, meter, seconds=2.0, repetitions=3, synchronize=torch.cuda.synchronize
        )
    except (SpikebrainError, ImportError) as error:
        print(f"no joules: {error}")
        return None
    whole = statistics.median(found.measured_whole_j_per_token)
    return {"joules_above_idle": found.measured_median_j, "joules_whole": whole}


def row_of(
    name: str, seconds: dict[str, list[float]], call: Callable[[], Any] | None, num_tokens: int
) -> dict[str, Any]:
    """Return what was measured of a system, and print it."""
    found = seconds[name]
    median = statistics.median(found)
    row = {"name": NAMES[name], "ms": 1e3 * median, "low": 1e3 * min(found), "high": 1e3 * max(found)}
    peers = {peer: round(statistics.median(seconds[peer]) / median, 3) for peer in SYSTEMS[:3] if peer in seconds}
    print(f"{NAMES[name]:56} {row['ms']:7.3f} ms ({row['low']:.3f} to {row['high']:.3f})", peers)
    if call is not None:
        row |= joules(call, num_tokens) or {}
    if "joules_whole" in row:
        print(f"  {row['joules_whole']:.3f} J a token of the whole board, {row['joules_above_idle']:.3f} above idle")
    return row | {f"speed_up_vs_{peer}": ratio for peer, ratio in peers.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="7b")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=1, help="texts at a time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--joules", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    versions = {"gpu": torch.cuda.get_device_name(), "transformers": version("transformers")}
    conditions = versions | {"prompt": PROMPT, "texts": options.texts}
    print(environment() | conditions)
    dense = load(options.model)
    ids = torch.randint(dense.config.vocab_size, (options.texts, PROMPT), device="cuda")
    models = models_of(dense, options.systems)
    plain = models["layers"]
    print(sb.describe_decoding(models["spiking"]))
    calls: dict[str, Callable[[], float]] = {}
    graphs: dict[str, Replay] = {}
    for name in options.systems:
        if name == "torchao" and name not in models:
            continue
        start = time.perf_counter()
        if name == "bf16_graph":
            graphs[name] = step_in_graph(dense, ids)
        elif name.endswith("_graph"):
            graphs[name] = graph_of(models[name.removesuffix("_graph")], ids)
        if name in graphs:
            calls[name] = lambda name=name: graphs[name].seconds(options.tokens)
        else:
            model = models.get(name, dense)
            more = {"cache_implementation": "static"} if name in ("bf16_static", "torchao") else {}
            calls[name] = lambda model=model, more=more: generate(model, ids, options.tokens, **more)
        calls[name]()
        calls[name]()
        print(f"{NAMES[name]}: ready after {time.perf_counter() - start:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            seconds[name].append(call())
    bandwidth = copy_bandwidth()
    floor = bytes_read(plain, ids) / bandwidth
    print(
        f"copying: {bandwidth / 1e12:.2f} TB/s; so fast, the spiking model's weights are read in {1e3 * floor:.2f} ms"
    )
    rows = []
    for name in seconds:
        measured = None
        if options.joules and (name in graphs or name == "torchao"):
            measured = graphs.get(name, calls[name])
        rows.append(row_of(name, seconds, measured, 1 if name in graphs else options.tokens))
    write_json(options.out, rows, bandwidth=bandwidth, floor_ms=1e3 * floor, model=options.model, **conditions)


if __name__ == "__main__":
    main()
