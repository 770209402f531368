"""Time to first token of one text on several GPUs, and a spiking layer split over them; run with torchrun.

    torchrun --nproc-per-node 2 benchmarks/ttft_ranks.py [--model smollm2|7b-pair|tiny] [--tokens N] [--out FILE]

Every rank reads `--tokens` tokens of a text that is as many times longer as there are ranks (`sequence_prefill`), in
turns with one rank that reads `--tokens` tokens alone. Hybrids in float and on spikes, random weights, bfloat16. The
logits are compared with those of one rank that reads the whole text. Then a layer of 18944 x 3584 weights is split
(`split_spiking`), and its outputs are compared bit for bit. Without GPUs, processes use gloo.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timing import environment, write_json
from ttft import MODELS, build

import spikebrain as sb
from spikebrain.models.layers import SplitSpikeLinear
from spikebrain.models.spikingbrain import prefill, sequence_prefill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--tokens", type=int, default=131072, help="of each rank")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    on = f"{size} x {torch.cuda.get_device_name()}" if on_gpu else f"{size} processes on a CPU"
    rows: list[dict[str, Any]] = []
    if rank == 0:
        print(environment(), on)
    for system in ("hybrid", "spiking"):
        model = build(options.model, system, device)
        vocabulary = model.settings.vocab_size
        ids = torch.randint(vocabulary, (1, size * options.tokens), generator=torch.Generator().manual_seed(0))
        own = ids[:, : options.tokens]
        one, several = [], []
        for _ in range(2 + options.repeats):
            one.append(seconds(lambda m=model, x=own: prefill(m, x, portion=options.tokens)))
            several.append(seconds(lambda m=model, x=ids: sequence_prefill(m, x)))
        one, several = one[2:], several[2:]  # the first calls may compile
        found = sequence_prefill(model, ids).logits
        expected = prefill(model, ids, portion=options.tokens).logits
        assert found is not None
        assert expected is not None
        error = float((found.float() - expected.float()).norm() / expected.float().norm())
        row = {
            "system": system,
            "tokens_per_rank": options.tokens,
            "ranks": size,
            "one_s": statistics.median(one),
            "several_s": statistics.median(several),
            "growth": statistics.median(several) / statistics.median(one) - 1,
            "one_range_s": [min(one), max(one)],
            "several_range_s": [min(several), max(several)],
            "logit_error": error,
            "same_token": bool(found.argmax() == expected.argmax()),
        }
        rows.append(row)
        if rank == 0:
            print(
                f"{system:8} {options.tokens:,} tokens a rank: one {row['one_s']:.4f} s ({min(one):.4f} to "
                f"{max(one):.4f}), {size} ranks {row['several_s']:.4f} s ({min(several):.4f} to {max(several):.4f}), "
                f"{100 * row['growth']:+.1f} %; logits differ by {100 * error:.2f} % of their norm, same token "
                f"{row['same_token']}",
                flush=True,
            )
        del model
    rows.append(split_layer(device, rank, size))
    if rank == 0:
        write_json(options.out, rows, device=on, model=options.model)
    dist.destroy_process_group()


@torch.no_grad()
def split_layer(device: str, rank: int, size: int) -> dict[str, Any]:
    """Compare a split layer with the whole one."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(18944, 3584, device=device) if device != "cpu" else torch.nn.Linear(1894, 358)
    layer = sb.SpikeLinear.from_linear(linear, name="down_proj")
    split = SplitSpikeLinear(layer)
    wrong = total = 0
    for tokens in (1, 64, 1024):
        x = torch.randn(tokens, layer.in_features, device=device)
        x[:, ::100] *= 50  # counts beyond INT8
        wrong += int((split(x) != layer(x)).sum())
        total += tokens * layer.out_features
    if rank == 0:
        print(f"split layer {layer.out_features} x {layer.in_features}: {total:,} outputs compared, {wrong} differ")
    return {"layer": list(layer.weight.shape), "ranks": size, "compared": total, "different": wrong}


def seconds(call: Callable[[], Any]) -> float:
    """Return the time from all ranks' start to the first token, on the slowest rank."""
    on_gpu = torch.cuda.is_available()
    dist.barrier()
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    int(call().logits.argmax())
    took = torch.tensor(time.perf_counter() - start, device="cuda" if on_gpu else "cpu")
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


if __name__ == "__main__":
    main()
