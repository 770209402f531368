"""Compare sums of random layers with exact products until a given number of integers has been compared.

    python benchmarks/compare_integers.py [--device cpu|cuda] [--number 1e9] [--seed S] [--layers N] [--out FILE]

Each round draws a layer (shape, data type, bias), k, code, weights (-128 to 127), tokens and activations (Gaussian,
Laplace, heavy-tailed; some tokens silent, some channels huge). For every backend and mode that runs here, it compares
the sums of the unrolled train and the result of the whole layer with a float64 product of the integers, which is exact
below 2^53. On a GPU, kernels are compiled for each layer, so all rounds share a few, each with its own launch settings.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import Progress
from timing import environment, write_json
from torch import Tensor, nn

import spikebrain as sb
from spikebrain.backends import Backend, Cpu, Triton
from spikebrain.backends.gpu import backend as triton
from spikebrain.coding import ENCODERS

BACKENDS: dict[str, list[Backend]] = {"cpu": [Cpu("spike"), Cpu("count")], "cuda": [Triton("spike"), Triton("count")]}


class Layer(NamedTuple):
    """The settings that kernels are compiled for."""

    num_inputs: int
    num_outputs: int
    dtype: torch.dtype
    bias: bool
    settings: int  # index of the launch settings, modulo their number


def draw_layer(rng: random.Random, size: int) -> Layer:
    num_inputs, num_outputs = (rng.choice([rng.randrange(1, size), 16 * rng.randrange(1, size // 16)]) for _ in "io")
    dtype = rng.choice([torch.float32, torch.bfloat16, torch.float16])
    return Layer(num_inputs, num_outputs, dtype, rng.random() < 0.3, rng.randrange(100))


def activations(rng: random.Random, num_tokens: int, num_inputs: int, dtype: torch.dtype, device: str) -> Tensor:
    x = torch.randn(num_tokens, num_inputs, device=device)
    kind = rng.choice(["gauss", "laplace", "heavy", "lattice"])
    if kind == "laplace":
        x = x * torch.empty_like(x).exponential_().sqrt()
    elif kind == "heavy":
        x = x / torch.rand_like(x).clamp(min=1e-3)
    elif kind == "lattice":  # many rounding ties
        x = (2 * x).round() / 2
    x[torch.rand(num_tokens, device=device) < 0.05] = 0
    x[:, rng.randrange(num_inputs)] *= rng.choice([1, 30, 300])
    return x.clamp(-6e4, 6e4).to(dtype)  # float16 ends at 65504


def one_round(rng: random.Random, device: str, drawn: Layer) -> tuple[int, int]:
    """Return how many numbers were compared and how many differ."""
    num_inputs, num_outputs, dtype, bias, settings = drawn
    setattr(triton, "fastest", lambda key, candidates, run, device: candidates[settings % len(candidates)])  # noqa: B010
    num_tokens = rng.choice([1, 2, 3, 7, 33, 64, 100, 257])
    k = rng.choice([0.3, 1.0, 3.0, 3.0, 8.0, 30.0])
    x = activations(rng, num_tokens, num_inputs, dtype, device)
    linear = nn.Linear(num_inputs, num_outputs, bias=bias, device=device)
    layer = sb.SpikeLinear.from_linear(linear, neuron=sb.AdaptiveThreshold(k=k))
    layer.weight = torch.randint(-128, 128, (num_inputs, num_outputs), dtype=torch.int8, device=device).t()
    spikes = layer.neuron(x)
    exact = spikes.count.double() @ layer.weight.double().t()
    expected = exact.to(torch.float32) * layer.scale.t() * spikes.threshold
    if layer.bias is not None:
        expected = expected + layer.bias
    low, high = (int(v) for v in spikes.count.aminmax())
    name = rng.choice(
        [
            name
            for name in ENCODERS
            if (ENCODERS.get(name).lossless and name not in ("binary", "ternary")) or high - low < 64
        ]
    )
    encoder, num_timesteps = ENCODERS.create(name).fitted(low, high)
    compared = differing = 0
    for backend in BACKENDS[device]:
        layer.backend = backend
        whole = layer(x)
        differing += int((whole != expected.to(x.dtype)).sum())
        compared += whole.numel()
        part = spikes.count[:16]
        sums = backend.accumulate(encoder.encode(part, num_timesteps), layer.weight)
        differing += int((sums.double() != exact[:16]).sum())
        compared += sums.numel()
    return compared, differing


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--number", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--layers", type=int, default=12, help="layers to draw on a GPU; on a CPU each round has its own"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.manual_seed(options.seed)
    on_gpu = options.device == "cuda"
    layers = [draw_layer(rng, 4096) for _ in range(options.layers if on_gpu else 0)]
    start, compared, differing, rounds = time.perf_counter(), 0, 0, 0
    with Progress() as progress:
        task = progress.add_task("comparing", total=options.number)
        while compared < options.number:
            layer = rng.choice(layers) if on_gpu else draw_layer(rng, 1024)
            more, wrong = one_round(rng, options.device, layer)
            compared, differing, rounds = compared + more, differing + wrong, rounds + 1
            progress.update(task, completed=compared)
    seconds = time.perf_counter() - start
    backends = [repr(backend) for backend in BACKENDS[options.device]]
    print(f"{compared:,} numbers of {rounds:,} rounds, {differing:,} differ; {', '.join(backends)}; {seconds:.0f} s")
    row = {"compared": compared, "differing": differing, "rounds": rounds, "backends": backends, "seconds": seconds}
    write_json(options.out, [row], device=options.device, environment_of_run=environment())
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
