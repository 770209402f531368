"""Prefill of a Transformer of Qwen2.5-7B's shapes on a GPU: transformers in bfloat16 against the same model on spikes.

    python benchmarks/prefill_gpu.py [--tokens N ...] [--layers N] [--k K] [--repeats N] [--out FILE]

Random weights. Both are transformers' model class with PyTorch's attention, and give the logits after the last token;
on spikes, all linear layers but the head are `SpikeLinear`, as `spikebrain.to_spiking` makes them. Times are medians of
calls in turns, with quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import transformers
from timing import environment, write_json
from transformers import Qwen2Config, Qwen2ForCausalLM

import spikebrain as sb


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--k", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    on = torch.cuda.get_device_name()
    print(environment(), f"transformers {transformers.__version__}", on)
    config = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=options.layers,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        dense = Qwen2ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    models = {
        "transformers, bfloat16": dense,
        "spikes": sb.to_spiking(dense, sb.SpikeSettings(neuron=sb.AdaptiveThreshold(options.k))),
    }
    rows = []
    for num_tokens in options.tokens:
        ids = torch.randint(config.vocab_size, (1, num_tokens), device="cuda")
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(options.repeats + 2):
            for name, model in models.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                int(model(ids, logits_to_keep=1).logits.argmax())
                seconds[name] += [time.perf_counter() - start] if turn >= 2 else []
        dense_s = statistics.median(seconds["transformers, bfloat16"])
        for name, times in seconds.items():
            low, median, high = statistics.quantiles(times, n=4)
            rows.append({"model": name, "tokens": num_tokens, "seconds": median, "low": low, "high": high})
            print(
                f"{num_tokens:6} tokens  {name:24} {1e3 * median:8.2f} ms ({1e3 * low:.2f} to {1e3 * high:.2f})  "
                f"{dense_s / median:.3f} x"
            )
    write_json(options.out, rows, device=on, layers=options.layers, k=options.k)


if __name__ == "__main__":
    main()
