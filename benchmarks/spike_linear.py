"""One spiking linear layer compared with dense layers, on the CPU.

    python benchmarks/spike_linear.py [--shape IN OUT ...] [--tokens N ...] [--k K] [--out FILE]

The peers run in the same process: F.linear in FP32 and BF16, dynamic INT8 (torch.ao), torch._int_mm, and the public
spiking method as its papers describe it: a float train [T, ...] times float weights, summed over time. Weights rotate
through more memory than the caches hold. The whole layer and dynamic INT8 are timed again in turns, call by call, so
that any disturbance affects both. Before anything is timed, every integer is compared with an exact product.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import Timing, as_row, environment, measure, measure_in_turns, write_json
from torch import Tensor, nn

import spikebrain as sb
from spikebrain.backends import Cpu

ROTATING_BYTES = 512 * 2**20


def public_method(count: Tensor, threshold: Tensor, weight: Tensor, shifts: Tensor, digits: Tensor) -> Tensor:
    """Expand counts to a float train of bits and signs, multiply every timestep densely, and sum.

    shifts and digits: the position of each timestep's bit, and its weight 2^position; [T, 1, 1].
    """
    train = (((count.abs() >> shifts) & 1) * count.sign()).to(torch.float32)
    return (nn.functional.linear(train, weight) * digits).sum(0) * threshold


def bench(in_features: int, out_features: int, num_tokens: int, k: float) -> list[dict[str, Any]]:
    num_variants = max(2, ROTATING_BYTES // (in_features * out_features))
    x = torch.randn(num_tokens, in_features)
    layer = sb.SpikeLinear.from_linear(
        nn.Linear(in_features, out_features, bias=False), neuron=sb.AdaptiveThreshold(k=k)
    )
    spikes = layer.neuron(x)
    encoder, num_timesteps = layer.encoder.fitted(*(int(v) for v in spikes.count.aminmax()))
    train = encoder.encode(spikes.count, num_timesteps)
    weights = [torch.randint(-127, 128, (in_features, out_features), dtype=torch.int8).t() for _ in range(num_variants)]
    cpu = Cpu()
    mismatches = 0
    for weight in weights[:2]:
        exact = spikes.count.double() @ weight.double().t()  # far below 2^53
        mismatches += int((cpu.accumulate(train, weight).double() != exact).sum())
    if mismatches:
        raise SystemExit(f"{mismatches} sums differ from the exact product: nothing is timed")

    rows: list[dict[str, Any]] = []
    case = {"in_features": in_features, "out_features": out_features, "tokens": num_tokens, "k": k}

    def run(name: str, call: Callable[[int], object], variants: int = num_variants) -> Timing:
        timing = measure(call, variants)
        rows.append(as_row(timing, name=name, **case))
        return timing

    layers = [sb.SpikeLinear(weight, layer.scale, neuron=layer.neuron) for weight in weights]

    def forward(i: int) -> Tensor:
        return layers[i](x)

    with torch.inference_mode():
        accumulate = run("spikebrain cpu, accumulation alone", lambda i: cpu.accumulate(train, weights[i]))
        run("spikebrain SpikeLinear, whole layer", forward)
        float_variants = max(2, num_variants // 4)
        dense = [torch.randn(out_features, in_features) for _ in range(float_variants)]
        run("F.linear FP32", lambda i: nn.functional.linear(x, dense[i]), float_variants)
        shifts = torch.arange(max(1, int(spikes.count.abs().max()).bit_length()) - 1, -1, -1).view(-1, 1, 1)
        count, threshold, digits = spikes.count, spikes.threshold, 2.0**shifts
        run(
            "public method (float train)",
            lambda i: public_method(count, threshold, dense[i], shifts, digits),
            float_variants,
        )
        half = [w.bfloat16() for w in dense]
        run("F.linear BF16", lambda i: nn.functional.linear(x.bfloat16(), half[i]), float_variants)
        del half
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = [dynamic_int8(w) for w in dense]
        int8 = "dynamic INT8 (torch.ao)"
        run(int8, lambda i: quantized[i](x), float_variants)
        turns = measure_in_turns({"spikebrain": forward, int8: lambda i: quantized[i](x)}, float_variants)
        for name, timing in turns.items():
            rows.append(as_row(timing, name=f"in turns: {name}", **case))
        del dense, quantized
        small = spikes.count.clamp(-127, 127).to(torch.int8)
        rows_first = [w.contiguous() for w in weights]
        int_mm = getattr(torch, "_int_mm")  # noqa: B009 - private, and unknown to type checkers
        try:
            run("torch._int_mm", lambda i: int_mm(small, rows_first[i].t()))
        except RuntimeError as error:
            print(f"torch._int_mm cannot run {case}: {str(error).splitlines()[0]}")
    for row in rows:
        row["ratio"] = row["median_s"] / accumulate.median_s
    rows[0]["active_channels"] = int((spikes.count != 0).any(0).sum())
    return rows


def read_bandwidth() -> float:
    """Return bytes per second when all threads read memory in order, to sum 512 MB."""
    memory = torch.ones(ROTATING_BYTES // 4)
    return ROTATING_BYTES / measure(lambda i: memory.sum(), 1, min_calls=10, min_seconds=0.5).median_s


def dynamic_int8(weight: Tensor) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)
    assert isinstance(model, nn.Module)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=2, type=int, action="append", metavar=("IN", "OUT"))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1])
    parser.add_argument("--k", type=float, default=3.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(environment())
    shapes = options.shape or [(3584, 18944), (18944, 3584), (3584, 3584), (576, 1536), (1536, 576), (576, 576)]
    rows: list[dict[str, Any]] = []
    for in_features, out_features in shapes:
        for num_tokens in options.tokens:
            found = bench(in_features, out_features, num_tokens, options.k)
            print(f"{num_tokens} token(s), {in_features} x {out_features}, k = {options.k:g}")
            for row in found:
                name, ratio = row["name"], row["ratio"]
                median, low, high = (1e3 * row[f"{what}_s"] for what in ("median", "low", "high"))
                print(f"  {name:36} {median:9.3f} ms ({low:9.3f} to {high:9.3f})  {ratio:7.2f}x", flush=True)
            bandwidth = read_bandwidth()
            print(f"  {found[0]['active_channels']} channels are active; memory is read at {bandwidth / 1e9:.1f} GB/s")
            for row in found[:2]:
                row["read_bytes_per_s"] = found[0]["active_channels"] * out_features / row["median_s"]
                row["share_of_bandwidth"] = row["read_bytes_per_s"] / bandwidth
                rate, share = row["read_bytes_per_s"] / 1e9, row["share_of_bandwidth"]
                print(f"  active rows are read at {rate:.1f} GB/s, {share:.0%} of that: {row['name']}")
            print()
            rows += found
    write_json(options.out, rows)


if __name__ == "__main__":
    main()
