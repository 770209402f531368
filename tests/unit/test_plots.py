"""Plots show what they are given: checked on the drawn elements and pixels, and looked at by people."""

from collections import Counter

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from spikebrain import SpikeTrain, Ternary
from spikebrain.analysis import plot_histogram, plot_raster
from spikebrain.analysis.style import NEGATIVE, POSITIVE
from spikebrain.errors import InputError


def num_pixels(path, color):
    image = matplotlib.image.imread(path)[..., :3]
    return int((np.abs(image - to_rgb(color)).max(-1) < 0.02).sum())


@pytest.fixture
def train():
    return Ternary().encode(torch.tensor([[2, -1, 0], [-2, 0, 1]]), 2)


@pytest.mark.slow
def test_raster_png(tmp_path, train):
    plot_raster(train, tmp_path / "r.png", title="two tokens", tokens=["a", "$b\n"])
    assert num_pixels(tmp_path / "r.png", POSITIVE) > 100
    assert num_pixels(tmp_path / "r.png", NEGATIVE) > 50
    unsigned = SpikeTrain(train.spikes.clamp(min=0), train.timestep_weight)
    plot_raster(unsigned, tmp_path / "u.png")
    assert num_pixels(tmp_path / "u.png", NEGATIVE) == 0


def test_raster_svg_places_every_spike(tmp_path, train):
    plot_raster(train, tmp_path / "r.svg")
    svg = (tmp_path / "r.svg").read_text()
    # Token 0: neuron 0 fires +1 twice, neuron 1 -1 once. Token 1: neuron 0 fires -1 twice, neuron 2 +1 once.
    assert "spikes: 3 of +1, 3 of −1" in svg
    # The same input gives the same file.
    plot_raster(train, tmp_path / "again.svg")


def test_raster_of_many_neurons_shows_some(tmp_path):
    big = SpikeTrain(torch.ones(3, 4, 1000, dtype=torch.int8), torch.tensor([4, 2, 1]))
    plot_raster(big, tmp_path / "r.svg", num_neurons=50)
    svg = (tmp_path / "r.svg").read_text()
    assert "spikes: 600 of +1<" in svg.replace(" -->", "<")  # 50 neurons x 12 timesteps
    assert "50 of 1,000" in svg


def test_raster_bad_input(tmp_path, train):
    with pytest.raises(InputError, match=r"\[T, tokens, neurons\]"):
        plot_raster(SpikeTrain(train.spikes[:, 0], train.timestep_weight), tmp_path / "r.png")
    with pytest.raises(InputError, match="texts of 2 tokens, got 1"):
        plot_raster(train, tmp_path / "r.png", tokens=["a"])


@pytest.mark.slow
def test_histogram(tmp_path):
    counts = Counter({0: 50, 1: 20, -1: 20, 7: 4, 40: 5, -40: 1})
    plot_histogram(counts, tmp_path / "h.png", "a title")
    assert num_pixels(tmp_path / "h.png", POSITIVE) > num_pixels(tmp_path / "h.png", NEGATIVE) > 500
    plot_histogram(counts, tmp_path / "h.svg")
    svg = (tmp_path / "h.svg").read_text()
    assert "silent: 50.0%" in svg
    assert "94.0%" in svg  # |count| <= 7
    assert "largest |count|: 40 (6 bits)" in svg


def test_histogram_of_silence(tmp_path):
    plot_histogram(Counter({0: 3}), tmp_path / "h.svg")
    assert "silent: 100.0%" in (tmp_path / "h.svg").read_text()
