"""Where a spiking layer is faster than a dense one, by k and the number of tokens.

    python benchmarks/break_even.py [--device cpu|cuda] [--shape IN OUT] [--out FILE.json] [--plot FILE.png]
    python benchmarks/break_even.py --read FILE.json --plot FILE.png

Measures the speed-up of a whole SpikeLinear, event-driven and with collapsed counts, over F.linear in BF16 and over
INT8: dynamic INT8 (torch.ao) on a CPU, torch._int_mm on a GPU, which needs 17 tokens and so gets at least 17.
Activations follow a Laplace distribution.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu import measure_in_graph
from matplotlib import colormaps
from matplotlib.figure import Figure
from spike_linear import dynamic_int8
from timing import Timing, environment, measure, write_json
from torch import Tensor, nn

import spikebrain as sb
from spikebrain.backends import Backend, Cpu, Triton

KS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
TOKENS = {"cpu": (1, 4, 16, 64, 256), "cuda": (1, 2, 4, 8, 16, 64)}
ROTATING_BYTES = {"cpu": 512 * 2**20, "cuda": 1024 * 2**20}


def bench(device: str, in_features: int, out_features: int) -> list[dict[str, Any]]:
    num_variants = max(2, ROTATING_BYTES[device] // (in_features * out_features))
    weights = [
        torch.randint(-127, 128, (in_features, out_features), dtype=torch.int8, device=device).t()
        for _ in range(num_variants)
    ]
    half = [torch.randn(out_features, in_features, dtype=torch.bfloat16, device=device) for _ in range(num_variants)]
    dense = int8_layers(device, weights)
    backends: dict[str, type[Backend]] = {"cpu": Cpu, "cuda": Triton}

    def timed(call: Callable[[int], object]) -> Timing:
        if device == "cpu":
            return measure(call, num_variants, min_calls=10, min_seconds=0.2)
        return measure_in_graph(call, num_variants, num_replays=10)

    rows = []
    for num_tokens in TOKENS[device]:
        x = torch.distributions.Laplace(0.0, 1.0).sample((num_tokens, in_features)).to(device, torch.bfloat16)
        with torch.inference_mode():
            bf16 = timed(lambda i, x=x: nn.functional.linear(x, half[i])).median_s
            int8 = timed(lambda i, x=x: dense[i](x)).median_s
            for k in KS:
                layer = sb.SpikeLinear.from_linear(
                    nn.Linear(in_features, out_features, bias=False), neuron=sb.AdaptiveThreshold(k=k)
                ).to(device)
                count = layer.neuron(x).count
                row = {"tokens": num_tokens, "k": k, "active": float((count != 0).float().mean())}
                for mode in ("spike", "count"):
                    layer.backend = backends[device](mode)  # pyright: ignore[reportCallIssue]

                    def forward(i: int, layer: sb.SpikeLinear = layer, x: Tensor = x) -> Tensor:
                        layer.weight = weights[i]
                        return layer(x)

                    row[f"{mode}_s"] = timed(forward).median_s
                rows.append(row | {"bf16_s": bf16, "int8_s": int8})
                print(" ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()), flush=True)
    return rows


def int8_layers(device: str, weights: list[Tensor]) -> list[Callable[[Tensor], Tensor]]:
    """Return dense INT8 layers; on a CPU they also round the activations, on a GPU they only multiply."""
    if device == "cpu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layers = [dynamic_int8(weight.float()) for weight in weights]
        return [lambda x, layer=layer: layer(x.float()) for layer in layers]
    int_mm = getattr(torch, "_int_mm")  # noqa: B009 - private, and unknown to type checkers
    few = {
        n: torch.randint(-9, 10, (max(n, 17), weights[0].shape[1]), dtype=torch.int8, device=device)
        for n in TOKENS[device]
    }
    rows_first = [weight.contiguous() for weight in weights]
    return [lambda x, rows=rows: int_mm(few[len(x)], rows.t()) for rows in rows_first]


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw speed-up over k, with one line per number of tokens: solid for events, dotted for collapsed counts."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = {"bf16": "BF16 (F.linear)", "int8": f"INT8 ({found['int8']})"}
    tokens = sorted({row["tokens"] for row in found["rows"]})
    colors = colormaps["viridis"]
    for axis, (key, name) in zip(axes, names.items(), strict=True):
        for position, number in enumerate(tokens):
            rows = [row for row in found["rows"] if row["tokens"] == number]
            color = colors(position / max(len(tokens) - 1, 1) * 0.9)
            for mode, style in (("spike", "-o"), ("count", ":s")):
                ratio = [row[f"{key}_s"] / row[f"{mode}_s"] for row in rows]
                label = f"{number} token{'s' if number > 1 else ''}" if mode == "spike" else None
                axis.plot([row["k"] for row in rows], ratio, style, color=color, label=label, markersize=4)
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="k (spikes per mean |x|)", title=f"against {name}")
        axis.set_xticks(KS, [f"{k:g}" for k in KS])
        axis.minorticks_off()
        ticks = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
        axis.set_yticks(ticks, [f"{tick:g}x" if tick >= 1 else f"1/{1 / tick:g}x" for tick in ticks])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("speed-up of SpikeLinear")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title="solid: events\ndotted: collapsed counts")
    shape = f"{found['in_features']} x {found['out_features']}"
    figure.suptitle(f"One layer, {shape}, on {found['on']}: above 1x, spikes are faster")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", nargs=2, type=int, default=(3584, 18944), metavar=("IN", "OUT"))
    parser.add_argument("--read", type=Path, help="draw what an earlier run wrote")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    options = parser.parse_args()
    if options.read:
        found = json.loads(options.read.read_text())
    else:
        torch.manual_seed(0)
        rows = bench(options.device, *options.shape)
        on_gpu = options.device == "cuda"
        about = {
            "in_features": options.shape[0],
            "out_features": options.shape[1],
            "on": torch.cuda.get_device_name() if on_gpu else f"{environment()['num_threads']} CPU threads",
            "int8": "_int_mm" if on_gpu else "dynamic, torch.ao",
        }
        found = {**about, "rows": rows}
        write_json(options.out, rows, **about)
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
