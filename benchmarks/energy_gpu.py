"""Joules per token of a model in BF16, with INT8 products and on spikes, from the GPU's energy counter.

    python benchmarks/energy_gpu.py [--model smollm2] [--text FILE] [--prefill 2048] [--seconds 3] [--out FILE.json]

All models get the same text, or random tokens without --text. Decoding is one token after a prompt of 64 tokens (which
is not measured), with one model call per token, and the same replayed as a CUDA graph, which does not wait for Python.
Prefill takes all tokens at once. The INT8 model has the same INT8 weights and dynamic INT8 activations, through
`torch._int_mm`. This needs more than 16 rows, so the model decodes 32 rows at a time and is charged for all of them.
Needs a CUDA GPU and nvidia-ml-py (pip install 'spikebrain[measure]').
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import spikebrain as sb
from spikebrain.energy import NvmlMeter, measure_energy
from spikebrain.models import SpikeLinear

_ROWS = 32


class Int8Linear(nn.Module):
    """Dense INT8: weights of a SpikeLinear, activations rounded per token, `torch._int_mm`."""

    def __init__(self, layer: SpikeLinear) -> None:
        super().__init__()
        self.weight = layer.weight.contiguous().t()  # [in, out], column by column, as INT8 products need it
        self.scale, self.bias = layer.scale.t(), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer, padded with rows of zeros to the 32 rows that the product needs."""
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-5) / 127
        codes = (rows / scale).round().to(torch.int8)
        padded = nn.functional.pad(codes, (0, 0, 0, max(_ROWS - len(codes), 0)))
        product = torch._int_mm(padded, self.weight)  # pyright: ignore[reportPrivateImportUsage]
        sums = product[: len(codes)]
        y = sums * self.scale * scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def int8_model(spiking: nn.Module) -> nn.Module:
    for parent in list(spiking.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SpikeLinear):
                setattr(parent, name, Int8Linear(child))
    return spiking


def in_graph(call: Callable[[], None], cache: Any) -> Callable[[], None] | None:
    """Return a function that replays a call on the cache, or print why it cannot be captured and return None."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), [dict(vars(layer)) for layer in cache.layers]
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        print(f"cannot be captured: {str(error).splitlines()[0]}")
        return None

    def replay() -> None:
        assert kept  # every replay reads the cache's tensors, so they must stay alive
        graph.replay()

    return replay


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, help="whose first tokens are taken")
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("energy_gpu.py: there is no GPU that PyTorch can use.")
    meter = NvmlMeter()
    loaded, tokenizer, _ = sb.load(options.model)
    dense: Any = loaded.to("cuda", torch.bfloat16).eval()
    if options.text is None:
        torch.manual_seed(0)
        ids = torch.randint(dense.config.vocab_size, (1, options.prefill))
    else:
        assert tokenizer is not None
        ids = torch.tensor([tokenizer.encode(options.text.read_text("utf-8"), verbose=False)[: options.prefill]])
    if ids.shape[1] < options.prefill:
        sys.exit(f"energy_gpu.py: {options.text} has {ids.shape[1]} tokens, fewer than --prefill {options.prefill}.")
    ids = ids.to("cuda")
    results = []
    for system in ("bf16", "int8", "spiking"):
        model: Any = dense if system == "bf16" else sb.to_spiking(dense)
        model = int8_model(model) if system == "int8" else model
        first = model(ids[:, :64], use_cache=True)
        # The name of the cache argument depends on the version of transformers.
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        cache, one = getattr(first, name), ids[:, 64:65]

        def decode(model: Any = model, cache: Any = cache, name: str = name, one: Tensor = one) -> None:
            model(one, use_cache=True, **{name: cache})
            cache.crop(-1)  # so that every token sees the same columns

        def prefill(model: Any = model) -> None:
            model(ids, use_cache=False)

        stages = (
            ("decode", decode, 1),
            ("decode, CUDA graph", in_graph(decode, cache), 1),
            ("prefill", prefill, options.prefill),
        )
        for stage, run, tokens in stages:
            if run is None:
                continue
            found = measure_energy(
                run,
                tokens,
                meter,
                seconds=options.seconds,
                repetitions=options.repetitions,
                synchronize=torch.cuda.synchronize,
            )
            low, high = found.measured_spread_j
            whole, seconds = (median(x) for x in (found.measured_whole_j_per_token, found.measured_s_per_token))
            print(
                f"{system:8} {stage:18} {found.measured_median_j:.5f} J a token ({low:.5f} to {high:.5f}), idle "
                f"{found.measured_idle_w:.0f} W subtracted; whole board {whole:.5f} J, {1e3 * seconds:.4f} ms a token",
                flush=True,
            )
            results.append({"system": system, "stage": stage, **dataclasses.asdict(found)})
        del model, first, cache, stages
    if options.out:
        environment = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "text": str(options.text)}
        options.out.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
