"""Weights as integers: what is refused, rounding to 4 bits, and what a layer with minima keeps."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from spikebrain import SpikeLinear, load, save
from spikebrain.errors import InputError
from spikebrain.models.io import packed_bits
from spikebrain.models.layers.quantize import quantize_int4

BITS_4 = {"weight_bits": 4, "group_size": 4}


def layer_of(bits=4, group_size=4, inputs=10, outputs=6, bias=True):
    return SpikeLinear.from_linear(nn.Linear(inputs, outputs, bias), weight_bits=bits, group_size=group_size)


@pytest.mark.parametrize("group_size", [None, 4, 100])
def test_int4_is_the_formula(group_size):
    weight = torch.randn(5, 70)
    weight[2, :40] = 0.75
    found = quantize_int4(weight, group_size)
    size, w = group_size or 32, weight.numpy()
    assert (found.group_size, found.weight_bits) == (size, 4)
    assert found.scale.shape == found.minimum.shape == (5, -(-70 // size))
    for g, first in enumerate(range(0, 70, size)):
        part = w[:, first : first + size]
        low, high = part.min(1), part.max(1)
        scale = np.where(high > low, (high - low) / np.float32(15), np.float32(0))
        assert np.array_equal(found.minimum[:, g].numpy(), low)
        assert np.array_equal(found.scale[:, g].numpy(), scale)
        expected = np.rint((part - low[:, None]) / np.where(scale > 0, scale, 1)[:, None])
        assert np.array_equal(found.weight[:, first : first + size].numpy(), expected)
    assert (int(found.weight.min()), int(found.weight.max())) == (0, 15)
    error = SpikeLinear.from_quantized(found).dequantized_weight() - weight
    step = found.scale.repeat_interleave(size, 1)[:, :70]
    assert (error.abs() <= step * 0.501).all()
    assert error[2, :32].abs().max() == 0 or group_size == 100


def test_int4_without_channels():
    assert quantize_int4(torch.empty(3, 0)).weight.shape == (3, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_bits": 5}, "weight_bits: expected one of"),
        ({"weight_bits": True}, "weight_bits: expected one of"),
        ({"minimum": torch.zeros(6, 2)}, r"minimum: expected float32 of shape \(6, 3\)"),
        ({"minimum": torch.zeros(6, 3, dtype=torch.float64)}, "minimum: expected float32"),
        ({"minimum": torch.full((6, 3), torch.inf)}, "minimum: expected finite, got inf"),
        ({"scale": torch.full((6, 3), torch.nan)}, "scale: expected finite, got nan"),
        ({"weight": torch.full((6, 10), 16, dtype=torch.int8)}, "with a minimum, 0 to 15, got 16"),
        ({"weight": torch.full((6, 10), -1, dtype=torch.int8)}, "with a minimum, 0 to 15, got -1"),
        ({"weight": torch.full((6, 10), 8, dtype=torch.int8), "minimum": None}, "without a minimum, -8 to 7, got 8"),
        ({"weight": torch.full((6, 10), -9, dtype=torch.int8), "minimum": None}, "-8 to 7, got -9"),
        ({"group_size": 0}, "group_size: expected an integer >= 1"),
        ({"group_size": 3}, r"scale: expected float32 of shape \(6, 4\)"),
    ],
)
def test_bad_tensors(as_users, change, words):
    good = {"weight": torch.ones(6, 10, dtype=torch.int8), "scale": torch.ones(6, 3), "minimum": torch.zeros(6, 3)}
    SpikeLinear(**good, **BITS_4)
    with pytest.raises(InputError, match=words):
        SpikeLinear(**{**good, **BITS_4, **change})


def test_a_state_dict_of_another_width_or_dtype_is_refused():
    layer = layer_of()
    with pytest.raises(RuntimeError, match="4 bits with a minimum, 0 to 15"):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.full((6, 10), 99, dtype=torch.int8)})
    with pytest.raises(RuntimeError, match=r"minimum: expected torch.float32.*float16"):
        layer.load_state_dict({**layer.state_dict(), "minimum": layer.minimum.half()})
    with pytest.raises(RuntimeError, match=r"Missing key.*minimum"):
        layer.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "minimum"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*minimum"):
        layer_of(bits=8).load_state_dict(layer.state_dict())
    with pytest.raises(InputError, match="minimum: expected float32 numbers"):
        layer.minimum = nn.Parameter(layer.minimum)


def test_a_replaced_minimum_of_another_shape_is_refused():
    layer = layer_of()
    layer.minimum = torch.zeros(1, 3)
    with pytest.raises(InputError, match=r"minimum: expected shape \(6, 3\)"):
        layer(torch.randn(2, 10))


def test_minima_stay_float32_and_are_copied_and_loaded():
    layer, x = layer_of(), torch.randn(3, 10)
    half = copy.deepcopy(layer).half()
    assert (half.scale.dtype, half.minimum.dtype, half.bias.dtype) == (torch.float32, torch.float32, torch.float16)
    assert torch.equal(half.minimum, layer.minimum)
    other = layer_of()
    other.load_state_dict(layer.state_dict())
    memory = io.BytesIO()
    torch.save(layer, memory)
    memory.seek(0)
    for same in (other, copy.deepcopy(layer), torch.load(memory, weights_only=False)):
        assert torch.equal(same(x), layer(x))
    assert layer.to("meta").minimum.is_meta


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("inputs", [0, 1, 6, 7])
@pytest.mark.parametrize("bits", [2, 4])
def test_packing_in_files(signed, inputs, bits):
    low = -(2 ** (bits - 1)) if signed else 0
    weight = torch.randint(low, low + 2**bits, (5, inputs), dtype=torch.int8)
    packed = packed_bits.pack(weight, bits)
    assert packed.shape == (5, -(-inputs * bits // 8))
    assert torch.equal(packed_bits.unpack(packed, inputs, bits, signed=signed), weight)
    with pytest.raises(InputError, match=f"expected {bits}-bit integers as uint8"):
        packed_bits.unpack(weight, inputs + 2 * (8 // bits), bits, signed=signed)


def test_a_file_keeps_minima_and_widths(tmp_path):
    def build():
        torch.manual_seed(1)
        net = nn.ModuleDict({"a": layer_of(), "b": layer_of(8), "c": layer_of(4, 3, 7)})
        signed = SpikeLinear(torch.randint(-8, 8, (6, 9), dtype=torch.int8), torch.rand(6, 3), **{**BITS_4})
        net["d"], net["again"] = signed, net["a"]
        return net

    model = build()
    save(model, tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors", architecture=build()).model
    assert back["again"] is back["a"]
    for name in "abcd":
        assert (back[name].weight_bits, back[name].group_size) == (model[name].weight_bits, model[name].group_size)
        for tensor in ("weight", "scale", "minimum"):
            assert (getattr(back[name], tensor) is None) == (getattr(model[name], tensor) is None)
        x = torch.randn(3, model[name].in_features)
        assert torch.equal(back[name](x), model[name](x))
        assert back[name].weight.t().is_contiguous()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_groups_in_a_compiled_model(bits):
    model, x = nn.Sequential(layer_of(bits), nn.ReLU(), layer_of(bits, 3, 6, 2)), torch.randn(3, 10)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="eager")(x), model(x))
