"""Against vectors made with the public reference implementation, outside this project."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from spikebrain import (
    AdaptiveThreshold,
    BidirectionalBitwise,
    Binary,
    Bitwise,
    SpikeLinear,
    Ternary,
    TwosComplement,
    decode,
)
from spikebrain.backends import BACKENDS
from spikebrain.models.layers.quantize import quantize

ON_CPU = [name for name in BACKENDS if BACKENDS.create(name).why_unavailable(torch.device("cpu")) is None]
KINDS = {
    "binary": Binary,
    "ternary": Ternary,
    "bitwise_unsigned": Bitwise,
    "bitwise_bidirectional": BidirectionalBitwise,
    "bitwise_twos_complement": TwosComplement,
}


def test_encoders(golden):
    vectors = golden("encoders")
    cases = [key.removesuffix(".spikes") for key in vectors if re.match(r".*\]\w*\.spikes", key)]
    assert len(cases) == 38
    for case in cases:
        encoder, count = KINDS[case.partition("[")[0]](), vectors[f"{case}.x"]
        num_timesteps = int(vectors[f"{case}.T"])
        train = encoder.encode(count, num_timesteps)
        assert torch.equal(train.spikes, vectors[f"{case}.spikes"]), case
        assert torch.equal(decode(train), count), case
        assert train.firing_rate == pytest.approx(float(vectors[f"{case}.firing_rate"]), rel=1e-6), case
        if "]T" not in case:  # the reference chose the number of timesteps
            assert encoder.timesteps_for(int(count.abs().max())) == num_timesteps, case


@pytest.mark.parametrize("code", ["ternary", "bitwise_bidirectional"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_spike_matmul(golden, code, backend):
    vectors = golden("encoders")
    x, w = vectors["spike_matmul.x"].int(), vectors["spike_matmul.w"]
    assert torch.equal(w, w.to(torch.int8).to(w.dtype))
    encoder = KINDS[code]()
    train = encoder.encode(x, encoder.timesteps_for(int(x.abs().max())))
    result = BACKENDS.create(backend).accumulate(train, w.to(torch.int8).t())
    assert torch.equal(result.to(w.dtype), vectors[f"spike_matmul.{code}.out"].to(w.dtype))


@pytest.mark.parametrize("k", [2.0, 2.5, 3.0, 3.5, 4.0])
def test_dynamic_spikes(golden, k):
    vectors = golden("dynamic_spikes")
    cases = sorted({key.split(".")[0] for key in vectors})
    assert len(cases) == 10
    for case in cases:
        x = vectors[f"{case}.x"]
        expected, vth, safe = (vectors[f"{case}.k{k:g}.{what}"] for what in ("counts", "vth", "safe"))
        spikes = AdaptiveThreshold(k=k)(x)
        if x.dtype == torch.bfloat16:
            # The reference rounds the mean to bfloat16 before dividing, we do not: thresholds within one such step.
            torch.testing.assert_close(spikes.threshold, vth, rtol=2**-8, atol=0)
            spikes_at_theirs = torch.round(x.float() / vth).int()
            assert torch.equal(spikes_at_theirs[safe.bool()], expected[safe.bool()]), case
            continue
        torch.testing.assert_close(spikes.threshold, vth, rtol=1e-6, atol=0)
        assert torch.equal(spikes.count[safe.bool()], expected[safe.bool()]), case
        assert int((spikes.count - expected).abs().max()) <= 1, case


@pytest.mark.parametrize("file", ["w8aspike_tiny_A", "w8aspike_tiny_C"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_spiking_linear_layers(shared, golden, file, backend):
    vectors = golden(file)
    with safe_open(shared / "golden" / f"{file}.safetensors", "pt") as opened:
        config = json.loads(opened.metadata()["config"])
    layers = sorted({".".join(key.split(".")[1:4]) for key in vectors if key.startswith("ql.")})
    assert len(layers) == 5, config
    for layer in layers:
        x, counts, vth, out, w_int8 = (
            vectors[f"ql.{layer}.{what}"] for what in ("x", "counts", "vth", "out", "w_int8")
        )
        weight = vectors[f"weights.model.layers.{layer}.weight"]
        stored = vectors[f"weights.model.layers.{layer}.weight_quantizer.scales"]
        bias = vectors.get(f"weights.model.layers.{layer}.bias")
        group_size = 128 if file == "w8aspike_tiny_A" else None
        integers, scale = quantize(weight, group_size)
        assert torch.equal(integers, w_int8), layer
        torch.testing.assert_close(scale, stored.reshape(scale.shape), rtol=1e-6, atol=0)
        spiking = SpikeLinear(integers, scale, bias, group_size=group_size, backend=BACKENDS.create(backend))
        spikes = spiking.neuron(x)
        assert torch.equal(spikes.count, counts.int()), layer
        torch.testing.assert_close(spikes.threshold, vth, rtol=1e-6, atol=0)
        # INDEX.md: layer outputs atol 2e-5 + rtol 1e-5.
        torch.testing.assert_close(spiking(x), out, rtol=1e-5, atol=2e-5)
