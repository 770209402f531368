"""Draw the pictures of the pages: python docs/figures/make.py [NAME ...], about a minute, with SmolLM2 from the cache.

The other pictures in this folder are drawn by benchmarks, as docs/results.md says.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import spikebrain as sb
from spikebrain import analysis
from spikebrain.analysis.histogram import plot_histogram
from spikebrain.analysis.stats import merged_histogram
from spikebrain.analysis.style import NEGATIVE, NEUTRAL, POSITIVE, SHADE, plain_log_axis, save_figure
from spikebrain.energy.count_spiking import accumulator_bits
from spikebrain.models.layers.observing import observing
from spikebrain.models.layers.quantize import dequantize, quantize_to
from spikebrain.models.spikingbrain.gla import recurrent_gla
from spikebrain.models.spikingbrain.layouts import layout

FOLDER = Path(__file__).parent
TEXT = (
    "Neurons in the brain exchange short pulses, and only when there is something to say. A silent neuron costs almost "
    "nothing, which is why a brain gets by on twenty watts. "
)


def figure_with(columns: int, width: float, height: float, **options):
    """Return a figure and its axes, without frames above and at the right."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


@functools.cache
def smollm2_recording():
    """Return SmolLM2 on spikes and the recording of a short text, with the trains of one layer."""
    model, tokenizer, _ = sb.load("smollm2")
    spiking = sb.to_spiking(model, inplace=True)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.inference_mode(), sb.record(spiking) as recording:
        spiking(ids)
    return spiking, ids, recording


def neuron() -> None:
    """The membrane potential of three channels of the unrolled neuron, and the count over the activation."""
    threshold, x = 0.4, torch.tensor([[0.3, -0.9, 1.6]])
    unit = sb.IntegrateAndFire(threshold=threshold, v_initial=threshold / 2, negative_threshold=0.0)
    state, steps = unit.initial_state(x[0]), []
    for inputs in torch.cat([x, torch.zeros(6, 3)]):
        spikes, state = unit.step(inputs, state)
        steps.append((state.v, spikes.count))
    figure, axes = figure_with(4, 13, 3.4, width_ratios=(1, 1, 1, 1.15))
    for channel, one in enumerate(axes[:3]):
        v = [threshold / 2, *(float(v[channel]) for v, _ in steps)]
        one.axhspan(0, threshold, color=SHADE, zorder=0)
        one.step(range(len(v)), v, where="post", color=NEUTRAL)
        for t, (_, count) in enumerate(steps, 1):
            if fired := int(count[channel]):
                color = POSITIVE if fired > 0 else NEGATIVE
                marks = {"markerfacecolor": color if fired > 0 else "white", "markeredgecolor": color, "markersize": 8}
                one.plot(t + 0.5, v[t], "^" if fired > 0 else "v", **marks)
        count = sum(int(count[channel]) for _, count in steps)
        one.set_title(f"x = {float(x[0, channel]):.1f}: count {count:+d}".replace("-", "−"), loc="left", fontsize=10)
        one.set_xlabel("timestep")
        one.set_ylim(-1.0, 2.0)
    axes[0].set_ylabel("membrane potential v")
    axes[0].text(7, 0.42, "threshold 0.4", ha="right", va="bottom", fontsize=8, color="#444444")
    grid = torch.linspace(-2, 2, 801)[:, None]
    counts = (grid / threshold).round()
    axes[3].plot(grid, grid / threshold, color=NEUTRAL, linewidth=0.8, label="x / threshold")
    axes[3].plot(grid, counts, color=POSITIVE, linewidth=1.4, label="count")
    axes[3].set_xlabel("activation x")
    axes[3].set_title("count = round(x / threshold)", loc="left", fontsize=10)
    axes[3].legend(frameon=False, fontsize=9)
    save_figure(figure, FOLDER / "neuron.png")


def raster() -> None:
    """The raster of the tutorial: eight inputs of a layer, in two codes."""
    torch.manual_seed(0)
    layers = {"hidden": nn.Linear(32, 128), "relu": nn.ReLU(), "out": nn.Linear(128, 10)}
    mine = sb.to_spiking(nn.Sequential(OrderedDict(layers)))
    with torch.no_grad(), sb.record(mine, layers=("hidden",), keep_trains=True, keep_inputs=True) as recording:
        mine(torch.randn(8, 32))
    drawn = analysis.raster(recording, encoders=("ternary", "bitwise-bidirectional"), num_neurons=32)
    analysis.plot_raster(drawn, FOLDER / "raster.png")


def codes() -> None:
    """The same ten counts in four codes."""
    counts = torch.tensor([0, 1, -1, 2, 3, -5, 7, -7, 11, 15])
    chosen = {"ternary": 15, "bitwise-bidirectional": 4, "twos-complement": 5, "signed-digit": 5}
    figure, axes = figure_with(4, 13, 3.6, width_ratios=tuple(max(8, t) for t in chosen.values()))
    for one, (name, num_timesteps) in zip(axes, chosen.items(), strict=True):
        train = sb.coding.ENCODERS.create(name).encode(counts, num_timesteps)
        for value, marker, color in ((1, "^", POSITIVE), (-1, "v", NEGATIVE)):
            time, channel = (train.spikes == value).nonzero(as_tuple=True)
            face = color if value > 0 else "white"
            one.plot(time, channel, marker, color=color, markerfacecolor=face, linestyle="", markersize=7)
        written, rows = (
            [str(number).replace("-", "−") for number in numbers.tolist()]
            for numbers in (train.timestep_weight, counts)
        )
        one.set_xticks(range(num_timesteps), written, fontsize=8)
        one.set_yticks(range(len(counts)), rows)
        one.set_xlim(-0.6, num_timesteps - 0.4)
        one.invert_yaxis()
        one.set_title(f"{name}: {train.num_spikes} spikes", loc="left", fontsize=9)
        one.set_xlabel("weight of the timestep")
    axes[0].set_ylabel("count")
    save_figure(figure, FOLDER / "codes.png")


def counts() -> None:
    """The histogram of spike counts in SmolLM2."""
    _, ids, recording = smollm2_recording()
    title = f"SmolLM2-135M, k = 3, {ids.shape[1]} tokens"
    plot_histogram(merged_histogram(recording.layers.values()), FOLDER / "counts.png", title)


def exactness() -> None:
    """The largest sum of each layer of SmolLM2 beside what bounds it, and beside what 16 and 32 bits hold."""
    model, ids, recording = smollm2_recording()
    most: dict[str, int] = {}

    def observe(layer, step):
        most[layer.name] = max(most.get(layer.name, 0), int(step.accumulation.abs().max()))

    with torch.inference_mode(), observing(sb.models.spiking_layers(model).values(), observe):
        model(ids)
    figure, (axes,) = figure_with(1, 7.5, 4.2)
    inputs = {name: layer.in_features for name, layer in recording.layers.items()}
    rng = np.random.default_rng(0)
    spread = [inputs[name] * 1.08 ** rng.uniform(-1, 1) for name in most]
    axes.plot(
        spread, list(most.values()), "o", color=POSITIVE, markersize=3, alpha=0.7, label="largest |sum| of a layer"
    )
    channels = np.geomspace(64, 2e5, 50)
    axes.plot(channels, 127 * 3.5 * channels, color=NEGATIVE, label="bound 127 (k + 1/2) K at k = 3")
    for bits in (16, 24, 32):
        axes.axhline(2.0 ** (bits - 1), color=NEUTRAL, linewidth=0.8, linestyle=":")
        axes.text(2e5, 2.0 ** (bits - 1), f"{bits} bits ", ha="right", va="bottom", fontsize=9, color="#444444")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("K, input channels of a layer")
    axes.set_ylabel("magnitude of an integer sum")
    axes.set_title("SmolLM2-135M: no sum comes near 32 bits", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    assert all(2 ** (accumulator_bits(recording.layers[name]) - 1) > value for name, value in most.items())
    save_figure(figure, FOLDER / "exactness.png")


def kernels() -> None:
    """Which weights one token reads: the rows of channels that fire, by the size of their count."""
    _, _, recording = smollm2_recording()
    torch.manual_seed(1)
    x = torch.distributions.Laplace(0.0, 1.0).sample((1, 48))
    count = sb.AdaptiveThreshold()(x).count[0]
    figure, (left, right) = figure_with(2, 11, 4.2, width_ratios=(1, 1.3))
    image = np.repeat(count.abs().numpy()[:, None], 24, 1).astype(float)
    image[image == 0] = np.nan
    left.imshow(image, aspect="auto", cmap="Blues", vmin=-3, vmax=10, interpolation="nearest")
    left.set_facecolor("#eeeeee")
    silent = int((count == 0).sum())
    left.set_title(f"one token: {48 - silent} of 48 rows are read", loc="left", fontsize=10)
    left.set_xlabel("outputs")
    left.set_ylabel("input channels; grey rows are silent")
    kinds: dict[str, list[float]] = {}
    for name, layer in recording.layers.items():
        share = layer.num_active_channels / (layer.num_tokens * layer.in_features)
        kinds.setdefault(name.rpartition(".")[2], []).append(100 * share)
    right.boxplot(list(kinds.values()), tick_labels=list(kinds), widths=0.5, medianprops={"color": POSITIVE})
    right.tick_params(axis="x", labelrotation=30)
    right.set_ylabel("rows of weights that a token reads, %")
    right.set_ylim(0, 100)
    right.set_title("SmolLM2-135M, k = 3: 30 layers of each kind", loc="left", fontsize=10)
    save_figure(figure, FOLDER / "kernels.png")


def chip() -> None:
    """The mesh of the chip while it runs a layer of SmolLM2's size, and where the energy of SmolLM2 goes."""
    model, ids, _ = smollm2_recording()
    found = sb.simulate_model(model, ids[0, :4], "async-45nm")
    analysis.plot_mesh(found, FOLDER / "chip_mesh.png", "SmolLM2-135M, 4 tokens, decode, on async-45nm")
    analysis.plot_chip_energy(found, FOLDER / "chip_energy.png", "SmolLM2-135M, 4 tokens, decode, on async-45nm")


def spikingbrain() -> None:
    """What a token sees in the three kinds of attention, and the layers of the 7B."""
    torch.manual_seed(0)
    length, window, dim = 48, 12, 16
    q, k = torch.randn(2, length, dim).relu()
    scores = q @ k.t() / dim**0.5
    causal = torch.ones(length, length).tril().bool()
    near = causal & ~torch.ones(length, length).tril(-window).bool()
    maps = {"full": (2 * scores).masked_fill(~causal, -torch.inf).softmax(-1)}
    maps[f"window of {window}"] = (2 * scores).masked_fill(~near, -torch.inf).softmax(-1)
    decay = torch.full((1, length, 1, dim), -1 / 12)
    heads = (x[None, :, None] for x in (q, k, torch.eye(length)))  # values are unit vectors: outputs are the weights
    maps["linear, with decay"] = recurrent_gla(*heads, decay)[0][0, :, 0]
    figure, axes = figure_with(4, 13, 3.5, width_ratios=(1, 1, 1, 1.1))
    for one, (name, weights) in zip(axes, maps.items(), strict=False):
        one.imshow(weights / weights.amax(-1, keepdim=True).clamp_min(1e-6), cmap="Blues", interpolation="nearest")
        one.set_title(name, loc="left", fontsize=10)
        one.set_xlabel("token that is seen")
    axes[0].set_ylabel("token that sees")
    colors = {"gla": POSITIVE, "swa": NEGATIVE, "full": NEUTRAL}
    for x, name in enumerate(("7b", "76b")):
        for i, plan in enumerate(layout(name, 28), 1):
            for part, mixer in enumerate(plan.mixers):
                width = 0.9 / len(plan.mixers)
                axes[3].bar(x + (part + 0.5) * width, 0.8, width, bottom=i - 0.4, color=colors[mixer])
    axes[3].set_xticks([0.45, 1.45], ["7B", "76B"])
    axes[3].set_ylabel("layer")
    axes[3].set_title("linear: blue, window: orange, full: grey", loc="left", fontsize=10)
    save_figure(figure, FOLDER / "spikingbrain.png")


def weights() -> None:
    """One row of weights, in 8 bits with one scale and in 4 bits with a scale and a minimum for 32 channels."""
    torch.manual_seed(3)
    row = torch.randn(1, 96) * torch.repeat_interleave(torch.tensor([0.3, 1.0, 0.5]), 32) + 0.2
    figure, axes = figure_with(2, 12, 3.6, sharey=True)
    for one, bits in zip(axes, (8, 4), strict=True):
        found = quantize_to(bits, row, None, "")
        rounded = dequantize(found.weight, found.scale, found.minimum, found.group_size)
        one.plot(row[0], "o", color=NEUTRAL, markersize=3, label="weights")
        one.step(
            range(96), rounded[0], where="mid", color=POSITIVE, linewidth=1, label=f"{bits}-bit integers, rescaled"
        )
        error = float((rounded - row).norm() / row.norm())
        scales = "a scale" if found.group_size is None else f"a scale and a minimum for {found.group_size} channels"
        one.set_title(f"{bits} bits, {scales}: relative error {error:.3f}", loc="left", fontsize=10)
        if found.group_size:
            for edge in range(found.group_size, 96, found.group_size):
                one.axvline(edge - 0.5, color=NEUTRAL, linewidth=0.8, linestyle=":")
        one.set_xlabel("input channel")
        one.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("weight")
    save_figure(figure, FOLDER / "weights.png")


def training() -> None:
    """A small model that learns with spikes in the loop, and one that learns without: the loss of both on spikes."""
    settings = sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k=0.7))
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
    x = torch.randn(512, 16)
    with torch.no_grad():
        y = teacher(x)
    figure, (axes,) = figure_with(1, 7.5, 3.6)
    for aware, color, name in ((False, NEGATIVE, "trained in float"), (True, POSITIVE, "trained with spikes")):
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))
        optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
        steps, losses = [], []
        for step in range(401):
            if step % 20 == 0:
                with torch.no_grad():
                    loss = nn.functional.mse_loss(sb.to_spiking(student, settings)(x), y)
                steps.append(step)
                losses.append(float(loss))
            if aware:
                with sb.spike_aware(student, settings):
                    loss = nn.functional.mse_loss(student(x), y)
                    loss.backward()
            else:
                loss = nn.functional.mse_loss(student(x), y)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        axes.plot(steps, losses, "o-", color=color, markersize=3, label=name)
    plain_log_axis(axes)
    axes.set_xlabel("step")
    axes.set_ylabel("error on spikes (mean squared)")
    axes.set_title("A small model on spikes, k = 0.7", loc="left", fontsize=10)
    axes.legend(frameon=False)
    save_figure(figure, FOLDER / "training.png")


PICTURES = (neuron, raster, codes, counts, exactness, kernels, chip, spikingbrain, weights, training)


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all."""
    known = {draw.__name__: draw for draw in PICTURES}
    if unknown := set(names) - known.keys():
        sys.exit(f"expected names of {', '.join(known)}; got {', '.join(sorted(unknown))}")
    for name in names or known:
        known[name]()
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
