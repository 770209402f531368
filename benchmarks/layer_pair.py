"""Prefill and decoding of two layers the size of SpikingBrain-7B's, linear and window attention, with random weights.

    python benchmarks/layer_pair.py [--tokens N ...] [--device cpu|cuda] [--preset 7b|tiny] [--out FILE]

Compares three bfloat16 models of the same shapes: the float pair, the pair on spikes ("as-described": all projections
and the queries of attention spike, keys and values are INT8), and two layers of full attention, as in a Transformer.
Milliseconds per layer are the median over repeated calls of the whole pair, halved. Decoding is one token after the
prefill, in eager mode, so it includes Python's time to launch kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import environment, write_json

import spikebrain as sb
from spikebrain.models.spikingbrain import (
    SpikingBrainCache,
    SpikingBrainConfig,
    layout,
    parse_layers,
    spikingbrain_7b,
    tiny_7b,
)

PRESETS: dict[str, Callable[..., SpikingBrainConfig]] = {"7b": spikingbrain_7b, "tiny": tiny_7b}


def milliseconds(call: Callable[[], object], device: str, seconds: float = 1.0) -> list[float]:
    """Return the times of at least five calls, after two calls to warm up."""
    found: list[float] = []
    for i in range(10_000):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found += [1e3 * (time.perf_counter() - start)] if i >= 2 else []
        if len(found) >= 5 and sum(found) > 1e3 * seconds:
            break
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 8192])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=PRESETS, default="7b")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    on = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(environment(), on)
    preset = PRESETS[options.preset]
    models: dict[str, sb.SpikingBrainForCausalLM] = {}
    for name, plans in {"float pair": layout("7b", 2), "full attention": parse_layers("full,full")}.items():
        with torch.device(options.device):
            model = sb.SpikingBrainForCausalLM(preset(layers=plans, vocab_size=256))
        models[name] = model.bfloat16().eval()
    models["spiking pair"] = sb.to_spiking(models["float pair"])
    rows = []
    for num_tokens in options.tokens:
        ids = torch.randint(256, (1, num_tokens), device=options.device)
        for name, model in models.items():

            def prefill(model: sb.SpikingBrainForCausalLM = model, ids: torch.Tensor = ids) -> SpikingBrainCache:
                cache = SpikingBrainCache(model.settings)
                model.model(input_ids=ids, cache=cache, use_cache=True)
                return cache

            cache = prefill()
            state = cache.num_bytes

            def decode(
                model: sb.SpikingBrainForCausalLM = model,
                cache: SpikingBrainCache = cache,
                one: torch.Tensor = ids[:, :1],
            ) -> object:
                return model.model(input_ids=one, cache=cache, use_cache=True)

            row = {"model": name, "tokens": num_tokens, "state_bytes": state}
            for what, call in (("decode", decode), ("prefill", prefill)):
                low, median, high = statistics.quantiles(milliseconds(call, options.device), n=4)
                row |= {f"{what}_ms": median / 2, f"{what}_low_ms": low / 2, f"{what}_high_ms": high / 2}
            rows.append(row)
            print(
                f"{num_tokens:6} tokens  {name:15} prefill {row['prefill_ms']:9.3f} ms a layer, "
                f"decoding {row['decode_ms']:7.3f} ms a layer and token, state {state / 1e6:8.2f} MB",
                flush=True,
            )
    write_json(options.out, rows, device=on, preset=options.preset)


if __name__ == "__main__":
    main()
