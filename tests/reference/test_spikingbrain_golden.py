"""SpikingBrain against vectors of the public reference implementation (golden/INDEX.md), float and on spikes."""

import json
from functools import partial

import pytest
import torch
from fast_first import fast_first
from safetensors import safe_open
from safetensors.torch import save_file

from spikebrain import SpikeLinear, record, spikingbrain_settings
from spikebrain.models.conversion import to_spiking
from spikebrain.models.io import from_released, read_folder
from spikebrain.models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM
from spikebrain.models.spikingbrain.swa import attend, float_attention

close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-5)
SCALES = ".weight_quantizer.scales"
FLOAT, SPIKING = "hf7b_tiny_A", ["w8aspike_tiny_A", "w8aspike_tiny_C"]


@pytest.fixture(scope="module")
def vectors(golden, shared):
    """Read a file of vectors; return them and the released configuration in its metadata."""

    def read(name):
        with safe_open(shared / "golden" / f"{name}.safetensors", "pt") as file:
            return golden(name), json.loads(file.metadata()["config"])

    return read


@pytest.fixture(scope="module")
def model_of(vectors):
    def build(name):
        found, fields = vectors(name)
        weights = {key.removeprefix("weights."): x for key, x in found.items() if key.startswith("weights.")}
        scales = {key.removesuffix(SCALES): weights.pop(key) for key in list(weights) if key.endswith(SCALES)}
        config = from_released(fields)
        model = SpikingBrainForCausalLM(config.replace(gate="full") if scales else config).eval()
        model.load_state_dict(weights)
        return to_spiking(model, spikingbrain_settings("as-released", k=config.k), scales=scales) if scales else model

    return build


def observed(model, ids):
    """Run the model once and return what goes into and comes out of its parts, by the names of the vectors."""
    found, hooks = {}, []

    def watch(module, name_in, name_out):
        def keep(_, inputs, output):
            found[name_in], found[name_out] = inputs[0], output[0] if isinstance(output, tuple) else output

        hooks.append(module.register_forward_hook(keep))

    for i, layer in enumerate(model.model.layers):
        watch(layer, f"layer.{i}.in", f"layer.{i}.out")
        watch(layer.attn, f"layer.{i}.attn_in", f"layer.{i}.attn_out")
        watch(layer.mlp, f"layer.{i}.mlp_in", f"layer.{i}.mlp_out")
    watch(model.model.norm, "io.last_layer_out", "io.final_norm")
    with torch.no_grad():
        found["io.logits"] = model(ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def in_parts(model, ids, lengths):
    """Return logits and cache after a text that comes in parts."""
    cache = SpikingBrainCache(model.settings)
    logits = [model(part, cache=cache).logits for part in ids.split(lengths, 1)]
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("name", [FLOAT, *SPIKING])
def test_every_layer_and_the_logits(vectors, model_of, name):
    expected, _ = vectors(name)
    found = observed(model_of(name), expected["io.input_ids"])
    compared = [key for key in found if key in expected]
    # Five tensors a layer, and the last layer's output, the last norm's and the logits.
    num_layers = len({key.split(".")[1] for key in found if key.startswith("layer.")})
    assert len(compared) == 5 * num_layers + 3
    for key in compared:
        close(found[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("lengths", fast_first([[24, 24], [3, 17, 1, 1, 26], [1] * 48, [20] + [1] * 28], 2))
@pytest.mark.parametrize("name", [FLOAT, *SPIKING])
def test_decoding_step_by_step_and_prefill_in_parts(vectors, model_of, name, lengths):
    expected, _ = vectors(name)
    model = model_of(name)
    logits, cache = in_parts(model, expected["io.input_ids"], lengths)
    close(logits, expected["io.logits_decode_w1"])
    for i, plan in enumerate(model.settings.layers):
        if plan.mixers == ("gla",):  # the reference keeps the state once per query head
            state = cache.layers[i].linear.repeat_interleave(2, 1)
            torch.testing.assert_close(state, expected[f"layer.{i}.gla.final_state"], atol=5e-5, rtol=1e-5)
        else:
            assert cache.layers[i].columns.tensors[0].shape[2] == 17


def test_window_of_w_keys(vectors, model_of):
    expected, _ = vectors(FLOAT)
    ids, wide = expected["io.input_ids"], model_of(FLOAT)
    model = SpikingBrainForCausalLM(wide.settings.replace(window_keys="w")).eval()
    model.load_state_dict(wide.state_dict())
    with torch.no_grad():
        close(model(ids).logits, expected["io.logits_window_w"])
    close(in_parts(model, ids, [1] * 48)[0], expected["io.logits_decode_hf"])
    close(in_parts(model, ids, [24, 24])[0], expected["io.logits_decode_hf"])
    # The reference prefills half with w + 1 keys and decodes with w; each half is one of our two windows.
    mixed = expected["io.logits_prefill_half_then_hf_decode"]
    close(in_parts(wide, ids, [24, 24])[0][:, :24], mixed[:, :24])


def test_left_padding(vectors, model_of):
    expected, _ = vectors(FLOAT)
    ids, mask = expected["pad.input_ids"], expected["pad.attention_mask"]
    model, text = model_of(FLOAT), expected["pad.attention_mask"].bool()
    with torch.no_grad():
        close(model(ids, attention_mask=mask).logits[text], expected["pad.logits"][text])
        cache = SpikingBrainCache(model.settings)
        parts = []
        for part in ids.split([5, 7, *[1] * 18], 1):  # the first part of row 0 is nothing but padding
            parts.append(model(part, attention_mask=mask[:, : cache.num_tokens + part.shape[1]], cache=cache).logits)
    close(torch.cat(parts, 1)[text], expected["pad.logits"][text])


@pytest.mark.parametrize("name", [FLOAT, *SPIKING])
def test_inside_linear_attention(vectors, model_of, name):
    expected, _ = vectors(name)
    attn = model_of(name).model.layers[0].attn
    x, dim = expected["layer.0.attn_in"], attn.config.dim
    with torch.no_grad():
        q, k, v = (proj(x).unflatten(-1, (-1, dim)) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k, g = attn.linear_inputs(x, q, k)
    for key, ours in {"q": q, "k": k, "v": v, "g": g}.items():  # vectors are [B, H, L, D], heads repeated
        repeated = ours if key == "q" else ours.repeat_interleave(2, 2)
        close(repeated.transpose(1, 2), expected[f"layer.0.gla.{key}"])


def test_inside_window_attention(vectors, model_of):
    expected, _ = vectors(FLOAT)
    q, k, v = (expected[f"layer.1.swa.{key}"].transpose(1, 2) for key in "qkv")
    # One key/value head for each two query heads, as the repetition shows.
    o = attend((q,), (k[:, ::2], v[:, ::2]), float_attention, window=17)
    close(o.transpose(1, 2), expected["layer.1.swa.o"])


@pytest.mark.parametrize("name", SPIKING)
def test_spiking_layers_count_for_count(vectors, model_of, name):
    expected, _ = vectors(name)
    model = model_of(name)
    names = sorted(key.removeprefix("ql.").removesuffix(".counts") for key in expected if key.endswith("proj.counts"))
    assert len(names) == 5
    for layer_name in names:
        layer = model.get_submodule(f"model.layers.{layer_name}")
        assert isinstance(layer, SpikeLinear)
        x = expected[f"ql.{layer_name}.x"]
        spikes = layer.neuron(x)
        assert torch.equal(spikes.count, expected[f"ql.{layer_name}.counts"].int()), layer_name
        torch.testing.assert_close(spikes.threshold, expected[f"ql.{layer_name}.vth"], rtol=1e-6, atol=0)
        assert torch.equal(layer.weight, expected[f"ql.{layer_name}.w_int8"]), layer_name
        with torch.no_grad():
            close(layer(x), expected[f"ql.{layer_name}.out"])
    q = expected["swaq.1.q"]
    spikes = model.model.layers[0].attn.q_proj.neuron(q)
    assert torch.equal(spikes.count, expected["swaq.1.counts"].int())
    torch.testing.assert_close(spikes.threshold, expected["swaq.1.vth"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SPIKING)
def test_as_released_leaves_down_proj_dense(model_of, name):
    model = model_of(name)
    dense = {key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    num_layers = model.settings.num_layers
    assert dense == {"lm_head", *(f"model.layers.{i}.mlp.down_proj" for i in range(num_layers))}
    with record(model) as recording:
        model(torch.arange(8)[None])
    linear = sum(plan.mixers == ("gla",) for plan in model.settings.layers)
    assert len(recording.layers) == 6 * num_layers + linear  # q, k, v, o, gate, up; and gk


@pytest.mark.parametrize(("name", "spiking"), [(FLOAT, None), *((name, "as-released") for name in SPIKING)])
def test_released_folder(vectors, tmp_path, name, spiking):
    expected, fields = vectors(name)
    weights = {key.removeprefix("weights."): x for key, x in expected.items() if key.startswith("weights.")}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gla_swa", **fields}))
    model = read_folder(tmp_path, spiking=spiking)
    assert model.settings.spiking == spiking
    with torch.no_grad():
        close(model(expected["io.input_ids"]).logits, expected["io.logits"])
