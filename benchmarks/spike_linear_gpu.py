"""One spiking linear layer compared with dense layers, on an NVIDIA GPU.

    python benchmarks/spike_linear_gpu.py [--shape IN OUT ...] [--tokens N ...] [--k K] [--out FILE]

All calls are timed inside CUDA graphs, with weights that rotate through more memory than the caches hold. The peers run
in the same process: F.linear in FP32 and BF16, torch._int_mm, FP8 (torch._scaled_mm), and the public spiking method (a
float train times float weights). Activations are BF16 from a Laplace distribution: 15 % of the channels are then silent
at k = 3, as in language models. Before anything is timed, every integer is compared with an exact product. The floor
(lower bound) of mode `spike` is the bytes of the active channels' INT8 rows divided by the copy bandwidth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from gpu import copy_bandwidth, measure_in_graph
from spike_linear import public_method
from timing import as_row, environment, write_json
from torch import Tensor, nn

import spikebrain as sb
from spikebrain.backends import Triton
from spikebrain.backends.gpu import spike as triton_spike
from spikebrain.backends.gpu.job import Matrix
from spikebrain.backends.gpu.stage import Stage

Mode = Literal["spike", "count"]
ROTATING_BYTES = 1200 * 2**20


def bench(in_features: int, out_features: int, num_tokens: int, k: float, bandwidth: float) -> list[dict[str, Any]]:
    # Many tokens take long enough that their weights need not rotate.
    num_variants = max(2, ROTATING_BYTES // (in_features * out_features)) if num_tokens <= 64 else 2
    num_variants = min(num_variants, 64)
    x = torch.distributions.Laplace(0.0, 1.0).sample((num_tokens, in_features)).to("cuda", torch.bfloat16)
    layer = sb.SpikeLinear.from_linear(
        nn.Linear(in_features, out_features, bias=False), neuron=sb.AdaptiveThreshold(k=k)
    ).cuda()
    spikes = layer.neuron(x)
    encoder, num_timesteps = layer.encoder.fitted(*(int(v) for v in spikes.count.aminmax()))
    train = encoder.encode(spikes.count, num_timesteps)
    shape = (in_features, out_features)
    weights = [torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda").t() for _ in range(num_variants)]
    for mode in get_args(Mode):
        exact = spikes.count.double() @ weights[0].double().t()  # far below 2^53
        mismatches = int((Triton(mode).accumulate(train, weights[0]).double() != exact).sum())
        if mismatches:
            raise SystemExit(f"{mismatches} sums of mode {mode} differ from the exact product: nothing is timed")
    rows: list[dict[str, Any]] = []
    case = {"in_features": in_features, "out_features": out_features, "tokens": num_tokens, "k": k}

    def run(name: str, call: Callable[[int], object], variants: int = num_variants) -> None:
        try:
            timing = measure_in_graph(call, variants)
        except RuntimeError as error:
            print(f"  {name} cannot run: {str(error).splitlines()[0][:90]}")
            torch.cuda.synchronize()
            return
        rows.append(as_row(timing, name=name, **case))

    def whole(mode: Mode) -> Callable[[int], Tensor]:
        def call(i: int) -> Tensor:
            layer.backend, layer.weight = Triton(mode), weights[i]
            return layer(x)

        return call

    with torch.inference_mode():
        if num_tokens <= 64:
            run("SpikeLinear, spike", whole("spike"))
            for settings in triton_spike.two_kernel_settings(stage_of(layer, x, weights[0])):
                run(f"add alone, {tuple(settings)}", add_alone(settings, layer, x, weights))
        run("SpikeLinear, count", whole("count"))
        few = max(2, num_variants // 2)
        half = [torch.randn(out_features, in_features, device="cuda", dtype=torch.bfloat16) for _ in range(few)]
        run("F.linear BF16", lambda i: nn.functional.linear(x, half[i]), few)
        eighth = [w.to(torch.float8_e4m3fn) for w in half]
        one, x8 = torch.ones((), device="cuda"), x.to(torch.float8_e4m3fn)
        scaled_mm, int_mm = getattr(torch, "_scaled_mm"), getattr(torch, "_int_mm")  # noqa: B009 - private
        run("FP8 _scaled_mm", lambda i: scaled_mm(x8, eighth[i].t(), one, one, out_dtype=torch.bfloat16), few)
        del eighth
        small = spikes.count.clamp(-127, 127).to(torch.int8)
        rows_first = [w.contiguous() for w in weights[:few]]
        run("_int_mm", lambda i: int_mm(small, rows_first[i].t()), few)
        del rows_first
        single = [half[0].float(), half[1].float()]
        run("F.linear FP32", lambda i: nn.functional.linear(x.float(), single[i]), 2)
        digits = 2.0 ** torch.arange(num_timesteps - 1, -1, -1, device="cuda").view(-1, 1, 1)
        shifts = torch.arange(num_timesteps - 1, -1, -1, device="cuda").view(-1, 1, 1)
        run("public method", lambda i: public_method(spikes.count, spikes.threshold, single[i], shifts, digits), 2)
    reference = next(row for row in rows if row["name"] == "F.linear BF16")["median_s"]
    floor = int((spikes.count != 0).any(0).sum()) * out_features / bandwidth
    for row in rows:
        row |= {"speed_up_vs_bf16": reference / row["median_s"], "floor_s": floor}
    return rows


def stage_of(layer: sb.SpikeLinear, x: Tensor, weight: Tensor) -> Stage:
    rule, bounds = layer.neuron.kernel_rule(), layer.neuron.count_bounds(layer.in_features)
    assert rule is not None
    y = torch.empty(len(x), len(weight), dtype=x.dtype, device="cuda")
    failed = torch.empty(len(x), dtype=torch.int32, device="cuda")
    return Stage(x, (Matrix(weight, layer.scale),), y, rule, bounds, failed)


def add_alone(
    settings: triton_spike.Settings, layer: sb.SpikeLinear, x: Tensor, weights: list[Tensor]
) -> Callable[[int], None]:
    """Return a call that runs only the accumulation of mode `spike`: rows from ready lists are added and rescaled."""
    plans: list[Any] = []
    for weight in weights:
        plans.append(triton_spike.plan_for(settings, stage_of(layer, x, weight)))
        triton_spike.list_rows(plans[-1])
    sums = torch.zeros(len(plans), *plans[0].sums.shape, dtype=torch.int64, device="cuda")

    def call(i: int) -> None:
        if i == 0:
            sums.zero_()  # all at once: one pass over a few megabytes per round
        triton_spike.add_rows(plans[i]._replace(sums=sums[i]))

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=2, type=int, action="append", metavar=("IN", "OUT"))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 16, 8192])
    parser.add_argument("--k", type=float, default=3.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    gpu = torch.cuda.get_device_name()
    print(environment(), gpu, f"copies at {bandwidth / 1e12:.2f} TB/s")
    rows: list[dict[str, Any]] = []
    for in_features, out_features in options.shape or [(3584, 18944), (18944, 3584), (3584, 3584)]:
        for num_tokens in options.tokens:
            print(f"{num_tokens} token(s), {in_features} x {out_features}, k = {options.k:g}")
            found = bench(in_features, out_features, num_tokens, options.k, bandwidth)
            for row in found:
                median, low, high = (1e6 * row[f"{what}_s"] for what in ("median", "low", "high"))
                is_spike = "spike" in row["name"] or "alone" in row["name"]
                share = f"{row['floor_s'] / row['median_s']:6.1%} of the floor" if is_spike else ""
                print(f"  {row['name']:28} {median:10.2f} us ({low:10.2f} to {high:10.2f})", end="  ")
                print(f"{row['speed_up_vs_bf16']:6.2f}x {share}", flush=True)
            rows += found
    write_json(options.out, rows, gpu=gpu, copy_bytes_per_s=bandwidth)


if __name__ == "__main__":
    main()
