"""Which modules become spiking layers: all that a swap would lose, or cannot read, is left out or refused by name."""

import ast
import copy
import inspect
import re
import textwrap
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as old_weight_norm
from transformers import JambaConfig, JambaForCausalLM, MambaConfig, MambaForCausalLM
from transformers.pytorch_utils import Conv1D

from spikebrain import AdaptiveThreshold, SpikeLinear, SpikeSettings, spike_aware, to_spiking
from spikebrain.errors import InputError

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def emulate(weight, bias, x, k=3.0):
    """Return y of a spiking layer from float64 products of rounded weights and counts."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).double()
    threshold = (x.abs().double().mean(-1, keepdim=True) / k).float().double()
    count = torch.round(x.double() / threshold)
    return ((count @ (weight.double() / scale).round().T) * scale.T * threshold + bias.double()).float()


def replaced_forward(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 10 + 100


def child(layer):
    layer.extra = nn.ReLU()


def extra_repr(layer):
    layer.extra_repr = lambda: "mine"


CHANGES = {
    "forward": (replaced_forward, "forward was replaced"),
    "other method": (extra_repr, "extra_repr was replaced"),
    "forward hook": (lambda m: m.register_forward_hook(lambda *a: None), "hooks"),
    "forward pre-hook": (lambda m: m.register_forward_pre_hook(lambda *a: None), "hooks"),
    "full backward hook": (lambda m: m.register_full_backward_hook(lambda *a: None), "hooks"),
    "backward pre-hook": (lambda m: m.register_full_backward_pre_hook(lambda *a: None), "hooks"),
    "backward hook": (lambda m: m.register_backward_hook(lambda *a: None), "hooks"),
    "state-dict hook": (lambda m: m.register_state_dict_post_hook(lambda *a: None), "hooks"),
    "state-dict pre-hook": (lambda m: m.register_state_dict_pre_hook(lambda *a: None), "hooks"),
    "load hook": (lambda m: m.register_load_state_dict_pre_hook(lambda *a: None), "hooks"),
    "load post-hook": (lambda m: m.register_load_state_dict_post_hook(lambda *a: None), "hooks"),
    "child": (child, "more than weight and bias.*: extra"),
    "parameter": (lambda m: m.register_parameter("gain", nn.Parameter(torch.ones(3))), "more than.*: gain"),
    "buffer": (lambda m: m.register_buffer("seen", torch.ones(())), "more than.*: seen"),
    "spectral norm": (parametrizations.spectral_norm, "not a plain linear layer"),
    "weight norm": (parametrizations.weight_norm, "not a plain linear layer"),
    "old weight norm": (old_weight_norm, "hooks"),
    "pruning": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "hooks"),
}


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_is_skipped_with_the_reason(change, kind):
    model = nn.Sequential(nn.Linear(6, 6), kind(6, 6))
    alter, reason = CHANGES[change]
    alter(model[1])
    with torch.no_grad():
        model(X)  # some hooks compute the weight
        expected = model[1](emulate(model[0].weight, model[0].bias, X))
        for inplace in (False, True):
            spiking = to_spiking(model, inplace=inplace)
            assert spiking.conversion.converted == ("0",)
            assert re.search(reason, spiking.conversion.skipped["1"])
            torch.testing.assert_close(spiking(X), expected, rtol=1e-5, atol=1e-4)


def test_a_block_whose_forward_is_a_function_of_the_original(as_users):
    block = nn.Sequential(nn.Linear(6, 6))
    model = nn.ModuleDict({"block": block})
    forward = block.forward
    block.forward = lambda x: forward(x) * 10
    with pytest.raises(InputError, match=r"forward of block .*inplace=True"):
        to_spiking(model)
    bound = copy.deepcopy(model)
    bound["block"].forward = types.MethodType(lambda self, x: self[0](x) * 10, bound["block"])
    with torch.no_grad():
        expected = emulate(block[0].weight, block[0].bias, X) * 10
        for spiking in (to_spiking(bound), to_spiking(model, inplace=True)):
            torch.testing.assert_close(spiking["block"](X), expected, rtol=1e-5, atol=1e-5)


def test_a_class_whose_forward_was_replaced(monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x @ self.weight.T)
    with pytest.raises(InputError, match="its forward was replaced"):
        to_spiking(nn.Linear(6, 6))


class Packed(nn.Module):
    """As GPTQ and AWQ have it: integers in buffers."""

    def __init__(self, widths=("in_features", "out_features"), tensor="qweight"):
        super().__init__()
        for name in widths:
            setattr(self, name, 6)
        if tensor:
            self.register_buffer(tensor, torch.ones(6, 6, dtype=torch.int32))

    def forward(self, x):
        return x * 2


class Wrapper(nn.Module):
    """Has widths like a linear layer, and only wraps one."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = 6
        self.inner = nn.Linear(6, 6)
        self.register_buffer("position_ids", torch.arange(6)[None])

    def forward(self, x):
        return self.inner(x)


def test_layers_with_packed_weights_are_listed():
    model = nn.ModuleDict(
        {
            "buffer": Packed(()),
            "widths": Packed(tensor=None),
            "old widths": Packed(("infeatures", "outfeatures"), None),
            "dynamic": torch.ao.nn.quantized.dynamic.Linear(6, 6),
            "frozen": nn.Module(),
            "wrapper": Wrapper(),
        }
    )
    model["frozen"].register_buffer("weight", torch.ones(6, 6))
    conversion = to_spiking(model).conversion
    assert conversion.converted == ("wrapper.inner",)
    assert set(conversion.skipped) == {"buffer", "widths", "old widths", "dynamic", "frozen"}
    assert conversion.skipped["buffer"] == "Packed is not a plain linear layer"


class Reader(nn.Module):
    """Uses weights in every way: as numbers, as dtype of its input, and harmlessly."""

    def __init__(self):
        super().__init__()
        self.reads, self.casts, self.both, self.asks = (nn.Linear(6, 6) for _ in range(4))
        self.listed = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x):
        x = nn.functional.linear(x, self.reads.weight.float())
        x = self.casts(x.to(self.casts.weight.dtype))
        x = self.both(x) if self.both.weight.shape[0] == 6 else nn.functional.linear(x, self.both.weight[:1])
        if self.asks.weight.dtype != torch.int8:
            x = x.to(self.asks.weight.dtype)
        return self.asks(x) @ self.listed[0].weight


def test_layers_whose_weights_other_code_uses_are_skipped():
    model = Reader()
    spiking = to_spiking(model)
    assert spiking.conversion.converted == ("both", "asks")
    assert spiking.conversion.skipped == {
        "reads": "Reader uses its weights without calling it",
        "casts": "Reader casts its input to the dtype of its weights",
        "listed.0": "Reader uses its weights without calling it",
    }
    with torch.no_grad():
        h = model.casts(nn.functional.linear(X, model.reads.weight))
        h = emulate(model.asks.weight, model.asks.bias, emulate(model.both.weight, model.both.bias, h))
        torch.testing.assert_close(spiking(X), h @ model.listed[0].weight, rtol=1e-4, atol=1e-5)


class Rescaler(nn.Module):
    """Changes weights from afar, as RWKV does."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attention": nn.Sequential(nn.Linear(6, 6)), "up": Reader()})])
        self.blocks[0]["up"].output = nn.Linear(6, 6)

    def rescale(self):
        for block in self.blocks:
            block.up.output.weight.div_(2)


def test_weights_used_from_afar():
    conversion = to_spiking(Rescaler()).conversion
    assert conversion.skipped["blocks.0.up.output"] == "Rescaler uses its weights without calling it"
    assert "blocks.0.attention.0" in conversion.converted


def test_jamba():
    config = JambaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_experts=1, mamba_d_state=4, mamba_dt_rank=2,
    )  # fmt: skip
    model = to_spiking(JambaForCausalLM(config).eval())
    mixer = model.model.layers[0].mamba
    # Some versions of transformers multiply with the weight, and others call the layer.
    code = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(type(mixer)))))
    assert isinstance(mixer.dt_proj, SpikeLinear) == ("self.dt_proj.weight @" not in code)
    with torch.no_grad():
        assert model(torch.arange(5)[None], use_cache=False).logits.isfinite().all()


def test_mamba():
    config = MambaConfig(vocab_size=50, hidden_size=8, state_size=4, num_hidden_layers=1, time_step_rank=2)
    conversion = to_spiking(MambaForCausalLM(config)).conversion
    assert "uses its weights" in conversion.skipped["backbone.layers.0.mixer.dt_proj"]
    assert "backbone.layers.0.mixer.in_proj" in conversion.converted


class Tensorlike(torch.Tensor):
    """Stands for a quantised or distributed tensor."""


@pytest.mark.parametrize("verb", [to_spiking, lambda model: spike_aware(model, SpikeSettings()).__enter__()])
def test_weights_that_cannot_be_read_are_an_error_with_the_name(verb):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for change, reason in (
        (lambda w: w.to("meta"), "a tensor on the meta device"),
        (lambda w: w.as_subclass(Tensorlike), "Tensorlike"),
        (lambda w: w.to_sparse(), "torch.sparse_coo"),
    ):
        changed = copy.deepcopy(model)
        changed[1]._parameters["weight"] = change(model[1].weight.detach())
        with pytest.raises(InputError, match=f"weight of 1: expected .*{reason}.*`skip`"):
            verb(changed)
        assert to_spiking(changed, SpikeSettings(skip=("1",)), inplace=True).conversion.converted == ("0",)
    changed = copy.deepcopy(model)
    changed[1].bias = nn.Parameter(torch.empty(6, device="meta"))
    with pytest.raises(InputError, match="bias of 1: expected"):
        verb(changed)


def test_a_pattern_that_matches_nothing_is_an_error_with_one_that_would(tiny_llama):
    for settings, message in (
        (SpikeSettings(skip=("self_attn",)), r"skip 'self_attn': .* Patterns that match: \*self_attn\*\."),
        (SpikeSettings(skip=("*down_proj", "*.donw_proj")), r"skip '\*\.donw_proj': .*\*down_proj\*"),
        (SpikeSettings(layers=("*.mlp.*", "selfattn*")), r"layers 'selfattn\*': .*\*self_attn\*"),
        (SpikeSettings(layers=("self_attn",)), r"found none\. .* Patterns that match: \*self_attn\*\."),
        (SpikeSettings(neuron={"q_proj": AdaptiveThreshold(2.0), "*": AdaptiveThreshold()}), r"neuron 'q_proj'"),
        (SpikeSettings(skip=("zzz",)), r"Patterns that match: \*model\*, \*layers\*, \*self_attn\*, \*q_proj\*"),
    ):
        with pytest.raises(InputError, match=message):
            to_spiking(tiny_llama, settings)
    conversion = to_spiking(tiny_llama, SpikeSettings(skip=("*self_attn*", "*down_proj"))).conversion
    assert len(conversion.converted) == 2 * 2
