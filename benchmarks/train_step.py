"""A training step of a hybrid on one GPU, kernel by kernel and as a CUDA graph; and the teacher's writing meanwhile.

    python benchmarks/train_step.py [--layout 7b] [--texts 32] [--context 512] [--out FILE.json] [--profile]

SmolLM2-135M's shapes, random weights, bfloat16 autocast, the objectives of `distill` and its spikes in the loop. Each
system runs --steps steps in turn, --repeats times; milliseconds are of one step with its optimiser.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from decode_gpu import SHAPES
from timing import environment, write_json
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaForCausalLM

from spikebrain.models.conversion import from_transformer
from spikebrain.models.training import DistillSettings, Stage, Team, sample_from
from spikebrain.models.training.distill import _optimizer, _prepared, _step
from spikebrain.models.training.gradients import Gradients, why_not_captured
from spikebrain.models.training.writer import Writer

KINDS: dict[str, tuple[str, str, str | None]] = {
    "attention": ("attention", "attention", None),
    "logits": ("logits", "all", None),
    "logits, attention learns": ("logits", "attention", None),
    "logits, spikes": ("logits", "all", "as-described"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", default="7b")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=int, default=2048, help="texts that the teacher writes; 0 for none")
    parser.add_argument("--profile", action="store_true", help="print where the GPU's time goes in a captured step")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    print(environment(), torch.cuda.get_device_name())
    torch.manual_seed(0)
    with torch.device("cuda"):
        teacher = LlamaForCausalLM(SHAPES["135m"]).eval()
    rows = [row for kind in options.kinds for row in steps_of(kind, teacher, options)]
    if options.write:
        rows += writing(teacher, options)
    write_json(options.out, rows, device=torch.cuda.get_device_name(), layout=options.layout)


def steps_of(kind: str, teacher: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    objective, trainable, spiking = KINDS[kind]
    student = from_transformer(teacher, options.layout)
    sizes = {"context": options.context, "batch_size": options.texts, "steps": 1000}
    stage = Stage(objective=objective, trainable=trainable, learning_rate=1e-4, **sizes)
    settings = DistillSettings(stages=(stage,), spiking=spiking, precision="bfloat16")
    tokens = torch.randint(49152, (options.texts * options.context * 8,))
    found: dict[str, list[float]] = {"kernel by kernel": [], "graph": []}
    reason = why_not_captured(student, settings)
    if reason is not None:
        print(f"{kind}: no graph, since {reason}")
        del found["graph"]
    with _prepared(student, teacher, settings):
        optimizer = _optimizer(student, stage, settings)
        for name in found:
            gradients = Gradients(student, teacher, stage, settings)
            if name != "graph":
                gradients._left = -1
            run(gradients, tokens, settings, optimizer, 8)
            found[name] = [run(gradients, tokens, settings, optimizer, options.steps) for _ in range(options.repeats)]
            if options.profile and name == list(found)[-1]:
                with profile(activities=[ProfilerActivity.CUDA]) as trace:
                    run(gradients, tokens, settings, optimizer, 2)
                print(
                    trace.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)
                )
            optimizer.zero_grad(set_to_none=True)
            del gradients
    rows = []
    for name, seconds in found.items():
        median = statistics.median(seconds)
        speed = options.texts * options.context / median
        rows.append({"kind": kind, "system": name, "ms": 1e3 * median, "tokens_per_s": speed})
        print(
            f"{kind:26} {name:18} {1e3 * median:7.1f} ms ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f}), "
            f"{speed:9,.0f} tokens/s, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB",
            flush=True,
        )
    return rows


def run(gradients: Gradients, tokens: Any, settings: Any, optimizer: Any, steps: int) -> float:
    """Return the seconds of a step."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for step in range(steps):
        _step(gradients, tokens, settings, 0, step, optimizer, Team())
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def writing(teacher: nn.Module, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows, num_tokens = [], options.write * options.context
    half = copy.deepcopy(teacher).bfloat16()
    sample_from(half, options.write * 32, length=32, batch_size=options.write)
    start = time.perf_counter()
    writer = Writer(half, options.write, options.context, torch.bfloat16)
    print(f"writer: ready after {time.perf_counter() - start:.1f} s")
    ways = {
        "a graph a token": lambda: writer.write(0),
        "step by step": lambda: sample_from(half, num_tokens, length=options.context, batch_size=options.write),
    }
    for name, way in ways.items():
        start = time.perf_counter()
        way()
        took = time.perf_counter() - start
        rows.append({"kind": "writing", "system": name, "seconds": took, "tokens_per_s": num_tokens / took})
        print(f"writing, {name}: {num_tokens:,} tokens in {took:.2f} s, {num_tokens / took:,.0f} tokens/s", flush=True)
    if options.profile:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            writer.write(0)
        print(trace.key_averages().table(sort_by="self_cuda_time_total", row_limit=15, max_name_column_width=90))
    return rows


if __name__ == "__main__":
    main()
