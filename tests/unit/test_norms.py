"""Norms are counted from what they compute, and modules that only have a known name are told, not guessed at."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikebrain import record, to_spiking
from spikebrain.energy import count_operations
from spikebrain.models.recording.norms import norm_sizes


class OddNorm(nn.Module):
    """x over the root of its mean square, or of its variance: times w + offset, plus b."""

    def __init__(self, dim=6, *, centred=False, weight=None, offset=0.0, bias=None):
        super().__init__()
        self.centred, self.offset = centred, offset
        if weight is not None:
            self.gamma = nn.Parameter(torch.full((dim,), weight))
        if bias is not None:
            self.beta = nn.Parameter(torch.full((dim,), bias))

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        y = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        y = y * (self.gamma + self.offset) if hasattr(self, "gamma") else y
        return y + self.beta if hasattr(self, "beta") else y


class HalfNorm(nn.Module):
    """No norm that is known."""

    def forward(self, x):
        return x / x.abs().sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (nn.LayerNorm(6), ("layer-norm", {"dim": 6})),
        (nn.LayerNorm(6, bias=False), ("layer-norm", {"dim": 6, "bias": 0})),
        (nn.LayerNorm(6, elementwise_affine=False), ("layer-norm", {"weight": 0, "bias": 0})),
        (nn.LayerNorm((2, 3)), ("layer-norm", {"dim": 6})),
        (nn.RMSNorm(6), ("rms-norm", {"dim": 6})),
        (nn.RMSNorm(6, elementwise_affine=False), ("rms-norm", {"weight": 0})),
        (OddNorm(weight=1.0), ("rms-norm", {"dim": 6})),
        (OddNorm(weight=0.0, offset=1.0), ("rms-norm", {"dim": 6, "offset": 1})),
        (OddNorm(weight=1.0, offset=1.0), ("rms-norm", {"dim": 6, "offset": 1})),
        (OddNorm(weight=0.5, bias=2.0), ("rms-norm", {"dim": 6, "bias": 1})),
        (OddNorm(centred=True), ("layer-norm", {"weight": 0, "bias": 0})),
        (OddNorm(centred=True, weight=3.0).to(torch.bfloat16), ("layer-norm", {"dim": 6, "bias": 0})),
        (HalfNorm(), None),
        (nn.BatchNorm1d(6), None),
    ],
)
def test_a_norm_is_known_by_what_it_computes(norm, expected):
    assert norm_sizes(norm) == expected


def test_a_trial_changes_nothing():
    norm = nn.BatchNorm1d(6)
    norm_sizes(norm)
    assert norm.num_batches_tracked == 0


def counted(norm):
    model = to_spiking(nn.Sequential(nn.Linear(6, 6), norm))
    with torch.no_grad(), record(model) as recording:
        model(torch.randn(5, 6))
    return count_operations(recording)


def test_operations_of_norms():
    # 5 vectors of 6 channels. With weights: a square and two products each, 5 additions of squares and that of eps.
    usual = counted(OddNorm(weight=0.5)).layers["1"].spiking
    assert (usual.num_mul_fp32, usual.num_add_fp32, usual.parameter_bytes) == (90, 30, 60)
    offset = counted(OddNorm(weight=0.5, offset=1.0)).layers["1"].spiking
    assert (offset.num_mul_fp32, offset.num_add_fp32, offset.parameter_bytes) == (90, 60, 60)
    # Without, one product less; the width is that of what it was given.
    bare = counted(OddNorm()).layers["1"].spiking
    assert (bare.num_mul_fp32, bare.num_add_fp32, bare.parameter_bytes) == (60, 30, 0)
    # Less the mean: 5 additions for it and 6 subtractions a vector; then a bias for each channel.
    layer = counted(nn.LayerNorm(6)).layers["1"].spiking
    assert (layer.num_mul_fp32, layer.num_add_fp32, layer.parameter_bytes) == (90, 30 + 55 + 30, 120)
    plain = counted(nn.LayerNorm(6, elementwise_affine=False)).layers["1"].spiking
    assert (plain.num_mul_fp32, plain.num_add_fp32, plain.parameter_bytes) == (60, 30 + 55, 0)


def test_an_unknown_norm_is_told():
    counts = counted(HalfNorm())
    assert counts.unsupported == ("HalfNorm (1, first '1')",)
    assert "1" not in counts.layers
    assert counts.not_counted().endswith("these do 0.0%.")


class LlamaAttention(nn.Module):
    """Has the name of a class of transformers, and none of its attributes."""

    def forward(self, x):
        return F.softmax(x, -1)


class LlamaMLP(nn.Module):
    """Has what is looked at, and is called without its input."""

    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(6, 6)

    def forward(self):
        return self.gate_proj(torch.ones(2, 6))


def test_a_known_name_alone_is_told():
    counts = counted(LlamaAttention())
    assert counts.unsupported == ("LlamaAttention (1, first '1')",)


def test_a_call_of_another_kind_is_told():
    model = to_spiking(LlamaMLP())
    with torch.no_grad(), record(model) as recording:
        model()
        model()
    assert recording.unsupported == ("LlamaMLP '', which was called in a way that is not known",)
    assert set(count_operations(recording).layers) == {"gate_proj"}


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.Linear(6, 6)

    def forward(self, x):
        return self.last(self.conv(x).mT)


def test_the_share_of_a_convolution():
    model = to_spiking(Convolution())
    with torch.no_grad(), record(model) as recording:
        model(torch.randn(2, 4, 9))
    counts = count_operations(recording)
    # (9 + 2 - 3) / 2 + 1 = 5 places of 2 samples, of 6 outputs from 4 x 3 inputs; then 10 tokens of 6 x 6.
    assert counts.uncounted_macs == 10 * 6 * 4 * 3
    assert counts.uncounted_share == 720 / (720 + 360)
    assert counts.not_counted() == (
        "Not counted: Conv1d (1, first 'conv'). Of all multiply-accumulates with weights these do up to 66.7%."
    )
