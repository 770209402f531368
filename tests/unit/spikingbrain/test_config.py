"""The configuration: presets, layouts, both kinds of config.json, and what it refuses."""

import dataclasses
import json

import pytest
from transformers import AutoConfig

from spikebrain.errors import InputError
from spikebrain.models.io import from_released, to_released
from spikebrain.models.spikingbrain import (
    LayerPlan,
    SpikingBrainConfig,
    SpikingBrainPretrainedConfig,
    layout,
    parse_layers,
    spikingbrain_7b,
    spikingbrain_76b,
    tiny_7b,
    tiny_76b,
)


def test_7b():
    config = spikingbrain_7b()
    assert [str(plan) for plan in config.layers] == ["gla", "swa"] * 14
    assert (config.num_layers, config.dim, config.max_window_keys) == (28, 128, 4097)
    assert spikingbrain_7b(window_keys="w").max_window_keys == 4096


def test_76b_has_the_parameters_of_its_name():
    config = spikingbrain_76b()
    full = [i for i, plan in enumerate(config.layers, 1) if plan.mixers == ("gla", "full")]
    dense = [i for i, plan in enumerate(config.layers, 1) if plan.ffn == "dense"]
    assert full == [7, 14, 21, 28]
    assert dense == [1, 2, 3, 5, 7, 9, 11]
    assert all(plan.mixers == ("gla", "swa") for i, plan in enumerate(config.layers, 1) if i not in full)
    d, ffn = config.hidden_size, 3 * config.hidden_size * config.intermediate_size
    attention = 2 * d * d + 2 * d * config.num_kv_heads * config.dim
    rest = 28 * attention + 7 * ffn + 2 * d * config.vocab_size
    experts = config.num_experts + config.num_shared
    active = config.num_experts_per_token + config.num_shared
    assert round((rest + 21 * experts * ffn) / 1e9) == 76
    assert round((rest + 21 * active * ffn) / 1e9) == 12


def test_layouts_of_any_depth():
    assert [str(plan) for plan in layout("7b", 3)] == ["gla", "swa", "gla"]
    assert str(layout("76b", 30)[29]) == "gla+swa/moe"
    assert parse_layers("7b", 2) == layout("7b", 2)
    parsed = parse_layers("gla, swa ,gla+swa,gla+full/moe")
    assert parsed[0] == LayerPlan(("gla",))
    assert parsed[3] == LayerPlan(("gla", "full"), "moe")
    assert [str(plan) for plan in parsed] == ["gla", "swa", "gla+swa", "gla+full/moe"]
    assert (parsed[0].softmax, parsed[3].softmax) == (None, "full")


@pytest.mark.parametrize("text", ["gal", "swa+gla", "gla+gla", "gla+swa+full", "swa+full", "gla/mixture", "gla/", ""])
def test_wrong_plans(text):
    with pytest.raises(InputError, match="LayerPlan"):
        parse_layers(text)


def test_wrong_depths():
    with pytest.raises(InputError, match="expected 3 plans, one per layer, got 2"):
        parse_layers("gla,swa", 3)
    with pytest.raises(InputError, match="expected num_layers with the layout '7b'"):
        parse_layers("7b")
    with pytest.raises(InputError, match="integer >= 1, got 0"):
        layout("7b", 0)
    with pytest.raises(InputError, match="expected one of"):
        layout("8b", 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window: expected an integer >= 1, got 0"),
        ({"num_kv_heads": 3}, "num_kv_heads: expected a divisor of num_heads = 4, got 3"),
        ({"num_heads": 5, "num_kv_heads": 5}, "num_heads: expected a divisor of hidden_size = 64, got 5"),
        ({"head_dim": 15}, "head_dim: expected an even number"),
        ({"layers": []}, "at least one layer"),
        ({"layers": "gla,swa"}, "parse_layers reads a text"),
        ({"layers": ["gla/moe"]}, "num_experts: expected at least 1"),
        ({"num_experts": 2, "num_experts_per_token": 3, "layers": ["gla/moe"]}, "at most num_experts = 2, got 3"),
        ({"gate": "tied"}, "feature_map: expected \"sigmoid\""),
        ({"gate": "open"}, "gate: expected one of"),
        ({"window_keys": "w+2"}, "window_keys: expected one of"),
        ({"spiking": "as-published"}, "spiking: expected one of"),
        ({"rope_theta": float("nan")}, "rope_theta: expected a finite number"),
        ({"windwo": 3, "depth": 2}, r"unknown fields \['depth', 'windwo'\]"),
    ],
)  # fmt: skip
def test_what_makes_no_model(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_7b(**changes)


def test_missing_fields_are_named_together():
    with pytest.raises(InputError, match=r"missing fields \['hidden_size', 'intermediate_size', .*'vocab_size'\]"):
        SpikingBrainConfig.from_dict({"layers": ["gla"], "num_heads": 1})


@pytest.mark.parametrize("config", [tiny_7b(), tiny_76b(spiking="as-described", k=2.5, group_size=32)])
def test_json_and_transformers_keep_everything(config, tmp_path):
    assert SpikingBrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    SpikingBrainPretrainedConfig(config, eos_token_id=7).save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, SpikingBrainPretrainedConfig)
    assert read.settings == config
    assert (read.eos_token_id, read.num_hidden_layers, read.num_attention_heads) == (7, config.num_layers, 4)
    assert read.settings.replace(window=8) == dataclasses.replace(config, window=8)


def test_transformers_config_refuses_unknown_fields():
    with pytest.raises(InputError, match=r"unknown fields \['windwo'\]"):
        SpikingBrainPretrainedConfig(tiny_7b(), windwo=3)


def test_released_config_there_and_back():
    config = tiny_7b(max_position_embeddings=4096)
    fields = to_released(config)
    assert fields["model_type"] == "gla_swa"
    assert fields["attn_layers"] == [1, 3]
    assert from_released(fields) == config
    spiking = tiny_7b(max_position_embeddings=4096, spiking="as-released", gate="full", group_size=128)
    assert from_released(to_released(spiking), spiking="as-released") == spiking


def test_what_the_released_config_cannot_say():
    with pytest.raises(InputError, match=r"no such \['layers', 'gate', 'feature_map', 'num_sinks'\]"):
        to_released(tiny_76b())
    fields = to_released(tiny_7b(max_position_embeddings=64))
    with pytest.raises(InputError, match=r"missing fields \['attn_layers'\]"):
        from_released({k: v for k, v in fields.items() if k != "attn_layers"})
    with pytest.raises(InputError, match="use_short_conv"):
        from_released(fields | {"use_short_conv": True})
    with pytest.raises(InputError, match="expected attn_layers within 0 to 3"):
        from_released(fields | {"attn_layers": [1, 4]})
    with pytest.warns(UserWarning, match=r"not used: \['surprise'\]"):
        from_released(fields | {"surprise": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("use_cache", 0.5), ("use_cache", "yes"), ("output_attentions", 3), ("eos_token_id", "a")),
        *(("pad_token_id", [1]), ("bos_token_id", 1.5), ("hidden_size", -64), ("hidden_size", "64"), ("num_heads", 0)),
        *(("num_kv_heads", 3), ("num_kv_heads", True), ("tie_word_embeddings", 1), ("qkv_bias", None), ("window", 1e9)),
        *(("aux_loss_weight", True), ("norm_eps", "x"), ("layers", [5]), ("layers", 5), ("gate", [])),
    ],
)
@pytest.mark.usefixtures("as_users")
def test_a_value_of_the_wrong_kind_is_an_error_with_its_field(field, value):
    with pytest.raises(InputError, match=rf"Config\.{field}: expected .*, got"):
        SpikingBrainPretrainedConfig(**{**tiny_7b().to_dict(), field: value})


@pytest.mark.parametrize("change", [{"num_hidden_layers": "4"}, {"num_hidden_layers": -1}, {"attn_layers": 1}])
def test_released_fields_of_the_wrong_kind(change):
    with pytest.raises(InputError, match=f"expected {next(iter(change))} "):
        from_released({**to_released(tiny_7b()), **change})
