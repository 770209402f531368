"""Compare what the stages of the graph decoder compute with exact products until a number of outputs has been compared.

    python benchmarks/compare_decoder_gpu.py [--weights int8|int4|int4-minimum] [--number 1e9] [--models N] [--out FILE]

Each round draws a Llama-type model of one block (sizes, data type, bias, k, coarse rows for small counts) with random
weights: INT8 rows (-128 to 127), or 4 bits in groups of 32 inputs without or with minima. Launch settings are drawn,
not tuned. Scales of groups are 1 and 2 and minima are whole numbers, so that their sums are exact in float32, too, in
any order; tokens where they might not be (2^24 and more in halves) are left out.

Each stage (norm, counting, listing, adding for q, k and v; the output projection with its residual; gate and up; SiLU,
down with its residual; the head) gets activations of `compare_integers.py`. Its outputs are compared, bit for bit, with
float64 products of the integers, exact below 2^53, that are rescaled in float32.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from compare_integers import activations
from timing import environment, write_json
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import spikebrain as sb
from spikebrain.backends.gpu import groups as triton_groups
from spikebrain.backends.gpu import spike as triton_spike
from spikebrain.models.decoding.fits import projections
from spikebrain.models.decoding.graph import GraphDecoder
from spikebrain.neuro import without_band

_TOKENS = 256


def draw_model(rng: random.Random, weights: str) -> Any:
    heads, dim = rng.choice([4, 8, 12]), rng.choice([32, 64, 80, 128])
    config = LlamaConfig(
        hidden_size=48 * rng.randrange(3, 85),  # a multiple of all numbers of heads, as transformers wants it
        intermediate_size=rng.choice([16 * rng.randrange(8, 1024), rng.randrange(100, 19000)]),
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=rng.choice([1, 2, 4]),
        head_dim=dim,
        vocab_size=rng.randrange(1000, 50000),
        attention_bias=rng.random() < 0.3,
        mlp_bias=rng.random() < 0.3,
    )
    model: Any = LlamaForCausalLM(config).eval()
    model = model.to("cuda", rng.choice([torch.float32, torch.bfloat16, torch.float16]))
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    neuron = sb.AdaptiveThreshold(k=rng.choice([0.3, 1.0, 3.0, 3.0, 8.0, 30.0]))
    kind: Any = "int8" if weights == "int8" else "int4"
    edge = rng.randrange(1, 20)
    coarse: Any = rng.choice(
        [(), ((2, edge),)] + ([((4, edge),), ((2, edge), (4, 2 * edge))] if kind == "int8" else [])
    )
    settings = sb.SpikeSettings(include_head=True, neuron=neuron, weights=kind, coarse=coarse)
    spiking = sb.to_spiking(model, settings, inplace=True)
    low, high = {"int8": (-128, 128), "int4": (-8, 8), "int4-minimum": (0, 16)}[weights]
    for layer in spiking.modules():
        if isinstance(layer, sb.SpikeLinear) and getattr(layer.neuron, "up_to", None) is None:
            shape = (layer.in_features, layer.out_features)
            layer.weight = torch.randint(low, high, shape, dtype=torch.int8, device="cuda").t()
            if weights != "int8":
                layer.scale = torch.randint(1, 3, layer.scale.shape, device="cuda").float()
                minimum = torch.randint(-8, 9, layer.scale.shape, device="cuda").float()
                layer.minimum = minimum if weights == "int4-minimum" else None
    return spiking


def compare_stage(rng: random.Random, decoder: Any, plan: Any, group: list[Any]) -> tuple[int, int]:
    """Return how many outputs were compared and how many differ."""
    inputs, outputs, before = [], [], []
    reads = group[0].reads if isinstance(group[0], sb.GradedLinear) else ()
    group = [getattr(layer, "own", layer) for layer in group]
    seen = torch.empty(1, group[0].in_features, dtype=decoder.dtype, device="cuda")
    plan = plan._replace(stage=plan.stage._replace(seen=seen))
    stage, fits = plan.stage, True
    given = activations(rng, _TOKENS, stage.x.shape[1], torch.float32, "cuda")
    if stage.source == decoder._list.GATED.value:
        given = given.clamp(-200, 200)  # products must stay finite in float16
    given = given.to(decoder.dtype)
    for row in given:
        stage.x.copy_(row)
        if stage.residual:
            stage.y.normal_()
        before.append(stage.y.clone())
        decoder._run(plan)
        inputs.append(seen.clone())
        outputs.append(stage.y.clone())
        fits = fits & (stage.failed == 0)
    assert bool(fits)
    spikes = without_band(group[0].neuron)(torch.cat(inputs))
    expected = [exact_output(layer, reads, spikes.count, spikes.threshold) for layer in group]
    whole = torch.cat([y for y, _ in expected], 1).to(decoder.dtype)
    whole = torch.cat(before) + whole if stage.residual else whole
    surely = torch.cat([exact.expand_as(y) for y, exact in expected], 1)
    return int(surely.sum()), int(((whole != torch.cat(outputs)) & surely).sum())


def exact_output(
    layer: Any, reads: tuple[tuple[int, int], ...], count: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs of a layer, and for which tokens they must be equal to the last bit."""
    weight, scale, above = layer.weight.double(), layer.scale, 0
    surely = torch.ones_like(threshold, dtype=torch.bool)
    spread = []
    if layer.group_size is not None:
        spread = [part.double().repeat_interleave(layer.group_size, 1)[:, : layer.in_features]
                  for part in (layer.scale, layer.minimum) if part is not None]  # fmt: skip
        largest = weight.abs() * spread[0] + (spread[1].abs() if len(spread) > 1 else 0)
        surely = (count.double().abs() @ largest.t()).amax(1, keepdim=True) < 2 ** (23 if reads else 24)
        scale = torch.ones(1, 1, device="cuda")
    total = torch.zeros(len(count), len(weight), dtype=torch.float64, device=count.device)
    for up_to, dropped in (*reads, (2**31 - 1, 0)):
        heard = (count.abs() > above) & (count.abs() <= up_to)
        integers = weight.div(2**dropped, rounding_mode="floor") * 2**dropped + (2**dropped - 1) / 2
        if spread:
            integers = integers * spread[0] + (spread[1] if len(spread) > 1 else 0)
        total, above = total + (count * heard).double() @ integers.t(), up_to
    halves = 2 if reads else 1
    y = (halves * total).to(torch.float32) * (scale.t() / halves) * threshold
    return y if layer.bias is None else y + layer.bias.float(), surely


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="int8", choices=["int8", "int4", "int4-minimum"])
    parser.add_argument("--number", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=int, default=6, help="models to draw: kernels are compiled for each")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.manual_seed(options.seed)

    def drawn(stage: Any) -> Any:
        return rng.choice(triton_spike.settings_for(stage))

    def drawn_groups(stage: Any) -> Any:
        return triton_groups.plan_groups(stage, rng.choice(triton_groups.settings_for(stage)))

    setattr(triton_spike, "tuned", drawn)  # noqa: B010
    setattr(triton_groups, "tuned_groups", drawn_groups)  # noqa: B010
    start, compared, differing = time.perf_counter(), 0, 0
    for number in range(options.models):
        model = draw_model(rng, options.weights)
        decoder: Any = GraphDecoder(model)
        groups = [*projections(model.model.layers[0]), [model.lm_head]]
        until = options.number * (number + 1) / options.models
        while compared < until:
            for group, plan in zip(groups, [*decoder._blocks[0], decoder._last], strict=True):
                more, wrong = compare_stage(rng, decoder, plan, group)
                compared, differing = compared + more, differing + wrong
        print(f"{compared:,} outputs compared, {differing:,} differ, {time.perf_counter() - start:.0f} s", flush=True)
    row = {"compared": compared, "differing": differing, **vars(options), "out": str(options.out)}
    write_json(options.out, [row], gpu=torch.cuda.get_device_name(), environment_of_run=environment())
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
