"""One layer whose small counts read upper bits, beside the paper's rule and BF16, on an NVIDIA GPU.

    python benchmarks/coarse_rows_gpu.py [--shape IN OUT ...] [--setting K DEAD_ZONE UP_TO ...] [--out FILE]

One token, BF16 activations from a Laplace distribution, INT8 rows whose upper 4 bits lie in a plane of their own; calls
in CUDA graphs, with weights that rotate through more memory than the caches hold. For each setting also the same neuron
with whole rows. Before anything is timed, every output is compared with an exact product. "read" is bytes of rows that
a token reads, dense INT8 = 1; the floor is these bytes divided by the copy bandwidth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from gpu import copy_bandwidth, measure_in_graph
from timing import as_row, environment, write_json
from torch import Tensor, nn

import spikebrain as sb
from spikebrain.backends import Triton

ROTATING_BYTES = 1200 * 2**20
# k, dead zone, and the count up to which 4 bits are read; None for whole rows.
Setting = tuple[float, float, int | None]
PAPER: Setting = (3.0, 0.0, None)


def neuron_of(setting: Setting) -> sb.neuro.Neuron[Any]:
    k, dead_zone, _ = setting
    return sb.DeadZoneThreshold(k=k, dead_zone=dead_zone) if dead_zone else sb.AdaptiveThreshold(k=k)


def reads_of(setting: Setting) -> tuple[tuple[int, int], ...]:
    return () if setting[2] is None else ((setting[2], 4),)


def run(setting: Setting, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    encoder = sb.coding.ENCODERS.create("bitwise-bidirectional")
    y = Triton().fused(x, weight, scale, None, neuron_of(setting), encoder, upper=reads_of(setting))
    assert y is not None
    return y


def exact(setting: Setting, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, float]:
    """Return the outputs by products in float64, rounded as the layer rounds, and what is read."""
    spikes = neuron_of(setting)(x)
    count, wide = spikes.count.double(), weight.double().t()
    small = count.abs() <= (setting[2] or 0)
    middle = wide.div(16, rounding_mode="floor") * 16 + 7.5
    sums = (count * ~small) @ wide + (count * small) @ middle
    y = (2 * sums).float() * (scale.t() / 2) if setting[2] else sums.float() * scale.t()
    active = count != 0
    read = float((active & ~small).double().mean() + (active & small).double().mean() / 2)
    return (y * spikes.threshold.float()).to(x.dtype), read


def bench(shape: tuple[int, int], settings: list[Setting], bandwidth: float) -> list[dict[str, Any]]:
    num_in, num_out = shape
    variants = min(64, max(2, ROTATING_BYTES // (num_in * num_out)))
    x = torch.distributions.Laplace(0.0, 1.0).sample((1, num_in)).to("cuda", torch.bfloat16)
    weights = [torch.randint(-128, 128, shape, dtype=torch.int8, device="cuda").t() for _ in range(variants)]
    scale = torch.rand(num_out, 1, device="cuda") / 100
    half = [torch.randn(num_out, num_in, device="cuda", dtype=torch.bfloat16) for _ in range(max(2, variants // 2))]
    rows: list[dict[str, Any]] = []
    timing = measure_in_graph(lambda i: nn.functional.linear(x, half[i]), len(half))
    rows.append(as_row(timing, name="F.linear BF16", in_features=num_in, out_features=num_out))
    del half
    for setting in [PAPER, *(one for k, zone, up_to in settings for one in ((k, zone, None), (k, zone, up_to)))]:
        expected, read = exact(setting, x, weights[0], scale)
        differ = int((run(setting, x, weights[0], scale) != expected).sum())
        if differ:
            raise SystemExit(
                f"{setting}: {differ} of {num_out} outputs differ from the exact product; nothing is timed"
            )

        def call(i: int, setting: Setting = setting) -> Tensor:
            return run(setting, x, weights[i], scale)

        k, zone, up_to = setting
        name = (
            f"k = {k:g}" + (f", silent below {zone:g}" if zone else "") + (f", 4 bits up to {up_to}" if up_to else "")
        )
        row = as_row(measure_in_graph(call, variants), name=name, in_features=num_in, out_features=num_out)
        rows.append(row | {"read": read, "floor_s": read * num_in * num_out / bandwidth})
    for row in rows:
        row["speed_up_vs_bf16"] = rows[0]["median_s"] / row["median_s"]
        row["speed_up_vs_paper"] = rows[1]["median_s"] / row["median_s"]
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=2, type=int, action="append", metavar=("IN", "OUT"))
    parser.add_argument("--setting", nargs=3, type=float, action="append", metavar=("K", "DEAD_ZONE", "UP_TO"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    bandwidth, gpu = copy_bandwidth(), torch.cuda.get_device_name()
    print(environment(), gpu, f"copies at {bandwidth / 1e12:.2f} TB/s")
    given: list[list[float]] = options.setting or [[8, 0.125, 8], [16, 0.125, 17]]
    settings: list[Setting] = [(k, zone, int(up_to)) for k, zone, up_to in given]
    rows: list[dict[str, Any]] = []
    for num_in, num_out in options.shape or [(3584, 18944), (18944, 3584), (3584, 3584)]:
        print(f"{num_in} x {num_out}")
        for row in (found := bench((num_in, num_out), settings, bandwidth)):
            median, low, high = (1e6 * row[f"{what}_s"] for what in ("median", "low", "high"))
            read = (
                f"read {row['read']:.3f}, {row['floor_s'] / row['median_s']:5.1%} of the floor" if "read" in row else ""
            )
            ratios = f"{row['speed_up_vs_bf16']:5.2f}x BF16 {row['speed_up_vs_paper']:5.2f}x k = 3"
            print(f"  {row['name']:42} {median:8.2f} us ({low:8.2f} to {high:8.2f}) {ratios} {read}", flush=True)
        rows += found
    write_json(options.out, rows, gpu=gpu, copy_bytes_per_s=bandwidth)


if __name__ == "__main__":
    main()
