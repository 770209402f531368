"""Encoding and packing, compared with the public method's float train, on a CPU or a GPU.

    python benchmarks/encode.py [--device cpu|cuda] [--shape TOKENS CHANNELS ...] [--k K] [--code NAME] [--out FILE]

The public method is implemented from its description: counts expand into a float32 train [T, ...] of bits and signs.
When it starts from activations, it computes counts as ours does (threshold and rounding in PyTorch). Inputs rotate
through more memory than the caches hold. Before anything is timed, packed trains are compared with the plain path, and
the sum of the public train with the counts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import Timing, as_row, environment, measure, write_json
from torch import Tensor

import spikebrain as sb
from spikebrain.coding import ENCODERS

ROTATING_BYTES = 256 * 2**20
SHAPES = {"cpu": [(512, 3584), (1, 3584), (1, 18944)], "cuda": [(8192, 3584), (512, 3584), (1, 18944)]}


def float_train(count: Tensor, num_timesteps: int) -> Tensor:
    """Expand counts to a float train of bits and signs, [T, ...], most significant first."""
    shifts = torch.arange(num_timesteps - 1, -1, -1, device=count.device).view(-1, *[1] * count.ndim)
    return (((count.abs() >> shifts) & 1) * count.sign()).to(torch.float32)


def measure_on(device: torch.device, call: Callable[[int], object], num_variants: int) -> Timing:
    """Time calls; on a GPU between events, which gives the device's time, or the host's if it is slower."""
    if device.type == "cpu":
        return measure(call, num_variants)
    for i in range(10):
        call(i % num_variants)
    torch.cuda.synchronize(device)
    seconds = []
    for i in range(200):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(i % num_variants)
        stop.record()
        stop.synchronize()
        seconds.append(start.elapsed_time(stop) / 1e3)
    low, median, high = statistics.quantiles(seconds, n=4)
    return Timing(median, low, high, len(seconds))


def seconds_of_kernels(call: Callable[[int], object], num_variants: int) -> float:
    """Return the GPU's part of a call: the time of its kernels and copies, from PyTorch's profiler."""
    num_calls = 20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiler:
        for i in range(num_calls):
            call(i % num_variants)
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / num_calls


def check(encoder: sb.Encoder, x: Tensor, count: Tensor, num_timesteps: int, neuron: sb.AdaptiveThreshold) -> None:
    """Exit unless every way of packing gives the plain train, and the public train gives the counts."""
    packed = encoder.pack(count, num_timesteps)
    plain = sb.PackedTrain.from_train(encoder.encode(count, num_timesteps), len(packed.negative))
    whole, _ = sb.pack_activations(x, neuron, encoder, num_timesteps)
    derived, _ = sb.pack_activations(x, neuron, encoder)
    for train in (packed, whole, *([derived] if derived.num_timesteps == num_timesteps else [])):
        if not (torch.equal(train.fired, plain.fired) and torch.equal(train.negative, plain.negative)):
            raise SystemExit("a packed train differs from the plain one: nothing is timed")
    public = float_train(count, num_timesteps)
    weights = 2.0 ** torch.arange(num_timesteps - 1, -1, -1, device=x.device)
    summed = torch.tensordot(weights, public, 1)
    if not torch.equal(summed, count.to(torch.float32)):
        raise SystemExit("the public method's train differs from the counts: nothing is timed")


def bench(device: torch.device, shape: Sequence[int], k: float, code: str) -> list[dict[str, Any]]:
    num_variants = min(64, max(2, ROTATING_BYTES // (4 * shape[0] * shape[1])))
    neuron = sb.AdaptiveThreshold(k=k)
    inputs = [torch.randn(*shape, device=device) for _ in range(num_variants)]
    halves = [x.bfloat16() for x in inputs]
    counts = [neuron(x).count for x in inputs]
    low, high = min(int(c.min()) for c in counts), max(int(c.max()) for c in counts)
    encoder, num_timesteps = ENCODERS.create(code).fitted(low, high)
    num_timesteps += 1 if max(int(neuron(x).count.abs().max()) for x in halves) > max(high, -low) else 0
    # The public train has one timestep per bit of the largest count, regardless of our code.
    public_timesteps = max(1, max(high, -low).bit_length())
    check(encoder, inputs[0], counts[0], num_timesteps, neuron)
    ours = encoder.pack(counts[0], num_timesteps).num_bytes
    public = float_train(counts[0], public_timesteps).nbytes
    case = {"device": str(device), "tokens": shape[0], "channels": shape[1], "k": k, "code": code}
    case |= {"num_timesteps": num_timesteps, "packed_bytes": ours, "float_bytes": public, "ratio_bytes": public / ours}
    rows: list[dict[str, Any]] = []

    def run(name: str, call: Callable[[int], object], input_bytes: int) -> None:
        timing = measure_on(device, call, num_variants)
        rate = input_bytes / timing.median_s / 1e9
        kernels = {} if device.type == "cpu" else {"kernels_s": seconds_of_kernels(call, num_variants)}
        rows.append(as_row(timing, name=name, input_gb_per_s=rate, **kernels, **case))

    def compare(first: int) -> None:
        """Compare rows with the first one, the public method."""
        for row in rows[first:]:
            row["ratio_time"] = rows[first]["median_s"] / row["median_s"]
            if "kernels_s" in row:
                row["ratio_kernels"] = rows[first]["kernels_s"] / row["kernels_s"]

    size = inputs[0].nbytes
    with torch.inference_mode():
        run("public method, from counts", lambda i: float_train(counts[i], public_timesteps), size)
        run("pack, from counts", lambda i: encoder.pack(counts[i], num_timesteps), size)
        compare(0)
        run("public method, from activations", lambda i: float_train(neuron(inputs[i]).count, public_timesteps), size)
        run(
            "pack_activations, T given",
            lambda i: sb.pack_activations(inputs[i], neuron, encoder, num_timesteps),
            size,
        )
        run("pack_activations, T derived", lambda i: sb.pack_activations(inputs[i], neuron, encoder), size)
        run(
            "pack_activations, T given, bfloat16",
            lambda i: sb.pack_activations(halves[i], neuron, encoder, num_timesteps),
            size // 2,
        )
        compare(2)
        trains = [encoder.pack(count, num_timesteps) for count in counts]
        run("list active channels", lambda i: sb.ChannelEvents.from_packed(trains[i]), trains[0].num_bytes)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", nargs=2, type=int, action="append", metavar=("TOKENS", "CHANNELS"))
    parser.add_argument("--k", type=float, default=3.0)
    parser.add_argument(
        "--code", default="bitwise-bidirectional", choices=[name for name in ENCODERS if ENCODERS.get(name).has_kernels]
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    print(environment() | {"gpu": gpu})
    rows: list[dict[str, Any]] = []
    for shape in options.shape or SHAPES[device.type]:
        found = bench(device, shape, options.k, options.code)
        first = found[0]
        print(f"{shape[0]} token(s) x {shape[1]}, {options.code}, T = {first['num_timesteps']}")
        print(f"  {first['packed_bytes']:,} bytes, {first['ratio_bytes']:.1f}x smaller than the float train")
        for row in found:
            median, low, high = (1e3 * row[f"{what}_s"] for what in ("median", "low", "high"))
            ratio = f"{row['ratio_time']:7.1f}x" if "ratio_time" in row else ""
            kernels = f"; kernels {1e3 * row['kernels_s']:.4f} ms" if "kernels_s" in row else ""
            kernels += f" {row['ratio_kernels']:.1f}x" if "ratio_kernels" in row else ""
            print(
                f"  {row['name']:36} {median:9.4f} ms ({low:9.4f} to {high:9.4f}) {row['input_gb_per_s']:8.1f} GB/s "
                f"{ratio}{kernels}",
                flush=True,
            )
        rows += found
    write_json(options.out, rows, gpu=gpu)


if __name__ == "__main__":
    main()
