"""Time to first token of long texts: hybrids in float and on spikes against full attention, random weights, bfloat16.

    python benchmarks/ttft.py [--model smollm2|7b-pair|tiny] [--lengths N ...] [--portion N] [--systems NAME ...]
                              [--device cuda|cpu] [--out FILE] [--plot FILE]

The hybrid alternates linear attention and windows of 4096 tokens, as SpikingBrain-7B does; "full" has causal attention
over the whole text in each layer, through PyTorch's fastest backend on this device (flash, cuDNN or efficient; all are
timed at first). All have the same sizes and run the same norms, products and rotary embedding, so they differ in
attention only; "spiking" also runs all projections on spikes ("as-described"). Models read the ids and give the logits
after the last token. Texts longer than a portion are read in portions, but for "full", which reads them in one piece.
Texts of at most --graph tokens run as a CUDA graph (`PrefillGraph`), since launching kernels from Python takes longer
than they run; without it the same time is printed too ("eager").

Times are medians of repeated calls with their quartiles, in turns over the systems; memory is the peak of what PyTorch
allocated, weights included. A length at which full attention would take longer than --most seconds is extrapolated from
the one before, by the operations of its attention and products, and marked so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from timing import environment, write_json
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import spikebrain as sb
from spikebrain.models.spikingbrain import (
    PrefillGraph,
    SpikingBrainConfig,
    layout,
    parse_layers,
    prefill,
    spikingbrain_7b,
    tiny_7b,
)

_SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_heads": 9,
    "num_kv_heads": 3,
    "intermediate_size": 1536,
    "qkv_bias": False,
}
MODELS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "smollm2": (spikingbrain_7b, 30, _SMOLLM2),
    "7b-pair": (spikingbrain_7b, 2, {"vocab_size": 4096}),
    "tiny": (tiny_7b, 2, {}),
}
SYSTEMS = ("hybrid", "spiking", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072, 262144, 1048576])
    parser.add_argument("--portion", type=int, default=131072)
    parser.add_argument("--graph", type=int, default=16384, help="longest text that runs as a CUDA graph")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--most", type=float, default=20.0, help="seconds of full attention, above which it is not run")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the repeats of a length and system")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    on = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(environment(), on)
    models = {name: build(options.model, name, options.device) for name in options.systems}
    backend = fastest_backend(next(iter(models.values())).settings, options.device)
    print(f"full attention: {backend.name}" if backend else "full attention: PyTorch's choice")
    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        ids = torch.randint(models[options.systems[0]].settings.vocab_size, (1, length))
        rows += measure(models, ids, options, backend, rows)
    write_json(options.out, rows, device=on, model=options.model, portion=options.portion)
    if options.plot:
        plot(rows, options.plot, f"{options.model} sizes, random weights, {on}")


def build(model: str, system: str, device: str) -> sb.SpikingBrainForCausalLM:
    """Return a model with random weights."""
    preset, depth, changes = MODELS[model]
    plans = parse_layers(",".join(["full"] * depth)) if system == "full" else layout("7b", depth)
    config: SpikingBrainConfig = preset(**changes, layers=plans, max_position_embeddings=None)
    torch.manual_seed(0)
    with torch.device(device):
        made = sb.SpikingBrainForCausalLM(config)
    made = made.bfloat16().eval()
    return sb.to_spiking(made) if system == "spiking" else made


def fastest_backend(settings: SpikingBrainConfig, device: str) -> SDPBackend | None:
    """Return PyTorch's fastest backend of causal attention at 16k tokens with these heads."""
    if device != "cuda":
        return None
    q = torch.randn(1, settings.num_heads, 16384, settings.dim, device=device, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, settings.num_kv_heads, 16384, settings.dim, device=device, dtype=torch.bfloat16)
    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                seconds = []
                for _ in range(8):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                    torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - start)
            found[backend] = statistics.median(seconds[3:])
        except RuntimeError as error:
            print(f"{backend.name}: {str(error).splitlines()[0]}")
    for backend, seconds in found.items():
        operations = 2 * settings.num_heads * settings.dim * 16384**2
        print(f"{backend.name}: {1e3 * seconds:.3f} ms, {operations / seconds / 1e12:.0f} TFLOP/s at 16,384 tokens")
    return min(found, key=lambda backend: found[backend])


def measure(
    models: dict[str, sb.SpikingBrainForCausalLM],
    ids: torch.Tensor,
    options: argparse.Namespace,
    backend: SDPBackend | None,
    before: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return a row for each system at one length, and print them."""
    length = ids.shape[1]
    expected = extrapolated(models.get("full"), before, length)
    skipped = expected is not None and expected > options.most
    running = [name for name in models if not (name == "full" and skipped)]
    graphs = {}
    if options.device == "cuda" and length <= options.graph:
        for name in running:
            with sdpa_kernel(backend or SDPBackend.MATH):
                graphs[name] = PrefillGraph(models[name], length)
            eager = [run(models[name], ids, length, backend)[0] for _ in range(6)][1:]
            print(f"{length:9,} tokens  {name:8} {statistics.median(eager):9.4f} s eager, without a CUDA graph")
    seconds: dict[str, list[float]] = {name: [] for name in running}
    peaks = dict.fromkeys(running, 0)
    for turn in range(20):
        for name in running:
            if turn > 2 and sum(seconds[name]) > options.seconds:
                continue
            portion = ids.shape[1] if name == "full" else options.portion
            took, peak = run(graphs.get(name, models[name]), ids, portion, backend)
            seconds[name] += [took] if turn else []  # the first call may compile
            peaks[name] = max(peaks[name], peak)
        if all(sum(times) > options.seconds for times in seconds.values()):
            break
    rows = []
    for name in models:
        row: dict[str, Any] = {
            "system": name,
            "tokens": length,
            "extrapolated": name not in running,
            "graph": name in graphs,
        }
        if name in running:
            times = sorted(seconds[name])
            low, high = times[len(times) // 4], times[-1 - len(times) // 4]
            row |= {"seconds": statistics.median(times), "low": low, "high": high, "calls": len(times)}
            row["peak_bytes"] = peaks[name]
        else:
            row["seconds"] = expected
        rows.append(row)
    full = next((row["seconds"] for row in rows if row["system"] == "full"), None)
    for row in rows:
        row["ratio"] = full / row["seconds"] if full else None
        memory = f"{row['peak_bytes'] / 1e9:6.2f} GB" if "peak_bytes" in row else "extrapolated"
        spread = f"({row['low']:.4f} to {row['high']:.4f}, {row['calls']} calls)" if "low" in row else ""
        ratio = f"{row['ratio']:7.2f} x" if full else ""
        print(f"{length:9,} tokens  {row['system']:8} {row['seconds']:9.4f} s {spread:32} {memory} {ratio}", flush=True)
    return rows


def run(
    model: sb.SpikingBrainForCausalLM | PrefillGraph, ids: torch.Tensor, portion: int, backend: SDPBackend | None
) -> tuple[float, int]:
    """Return seconds to the first token, and the most memory that was allocated."""
    on_gpu = isinstance(model, PrefillGraph) or model.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    if isinstance(model, PrefillGraph):
        token = model(ids).logits
    elif backend is None:
        token = prefill(model, ids, portion=portion).logits
    else:
        with sdpa_kernel(backend):
            token = prefill(model, ids, portion=portion).logits
    assert token is not None
    int(token.argmax())
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() if on_gpu else 0


def extrapolated(model: sb.SpikingBrainForCausalLM | None, before: list[dict[str, Any]], length: int) -> float | None:
    """Return what full attention would take, from its longest text so far; None without one."""
    known = [row for row in before if row["system"] == "full"]
    if model is None or not known:
        return None
    settings = model.settings
    products = 2 * sum(weight.numel() for weight in model.model.layers.parameters())
    attention = 2 * settings.num_layers * settings.num_heads * settings.dim

    def operations(tokens: int) -> float:
        return tokens * (products + attention * tokens)

    return known[-1]["seconds"] * operations(length) / operations(known[-1]["tokens"])


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw seconds over tokens; extrapolated times as open circles."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == name]
        (line,) = axes.plot([row["tokens"] for row in own], [row["seconds"] for row in own], label=name)
        for row in own:
            fill = "none" if row["extrapolated"] else "full"
            axes.plot(row["tokens"], row["seconds"], marker="o", fillstyle=fill, color=line.get_color())
    lengths = sorted({row["tokens"] for row in rows})
    names = [f"{n // 2**20}M" if n >= 2**20 else f"{n // 1024}k" for n in lengths]
    axes.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel="seconds to the first token", title=title)
    axes.set_xticks(lengths, names)
    axes.xaxis.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
