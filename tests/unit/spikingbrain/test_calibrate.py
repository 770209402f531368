"""What calibration reaches: layers near the Transformer's, branches that begin as softmax attention, placed layers."""

import copy

import pytest
import torch
from converted import error_of, llama, logits, qwen
from fast_first import fast_first

from spikebrain.errors import InputError
from spikebrain.models.conversion import from_transformer, to_spiking
from spikebrain.models.conversion.calibrate import calibrate
from spikebrain.models.conversion.divergence import divergence
from spikebrain.models.conversion.fit_sinks import fit_sinks
from spikebrain.models.conversion.layerwise import trace
from spikebrain.models.conversion.placement import least_sensitive, sensitivities
from spikebrain.models.spikingbrain import LayerPlan, SpikingBrainConfig, parse_layers

SINKS = {"gate": "tied", "feature_map": "sigmoid", "num_sinks": 3}


@pytest.fixture
def texts():
    return torch.randint(0, 97, (4, 60))


@pytest.mark.parametrize("choices", fast_first([SINKS, {}, {"gate": "full"}]))
@pytest.mark.parametrize("fit", ["o-proj", "layers"])
def test_fitting_more_than_columns_comes_nearer(choices, fit, texts):
    teacher = qwen()
    errors = [
        error_of(from_transformer(teacher, "gla,swa", calibration=texts, **choices, **options), teacher, texts)
        for options in ({"fit": "columns"}, {"fit": fit})
    ]
    assert 1.0 > errors[0] > errors[1]  # giving nothing at all has an error of 1


def test_more_steps_come_nearer(texts):
    teacher = llama()
    few, many = (from_transformer(teacher, "gla,full", calibration=texts, steps=steps) for steps in (2, 30))
    assert error_of(many, teacher, texts) < error_of(few, teacher, texts)


def test_fitting_a_layer_leaves_the_others(texts):
    teacher = llama()
    fitted = from_transformer(teacher, "gla,full", calibration=texts, steps=2)
    plain = from_transformer(teacher, "gla,full")
    changed = {
        name
        for (name, ours), theirs in zip(fitted.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(ours, theirs)
    }
    assert {".".join(name.split(".")[1:4]) for name in changed} == {"layers.0.attn"}
    assert len(changed) == 8  # q, k, v, o, the gate's two matrices and bias, g_norm


def test_a_half_precision_model_is_fitted_in_float32(texts):
    teacher = llama().to(torch.bfloat16)
    before = error_of(from_transformer(teacher, "gla,full", calibration=texts, fit="columns"), teacher, texts)
    student = from_transformer(teacher, "gla,full", calibration=texts, steps=10)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert error_of(student, teacher, texts) < before


@pytest.mark.parametrize("plans", ["gla+full,gla+swa", "gla+swa/moe,full"])
@pytest.mark.parametrize("make", [llama, qwen])
def test_parallel_layers_begin_as_the_transformer(plans, make, texts):
    teacher = make()
    moe = {"num_experts": 4} if "moe" in plans else {}
    student = from_transformer(teacher, plans, gate="tied", feature_map="sigmoid", **moe)
    expected = logits(teacher, texts)
    near = float((logits(student, texts) - expected).norm() / expected.norm())
    report = from_transformer(teacher, plans, gate="tied", feature_map="sigmoid", head_norm_eps=1e-6, **moe)
    far = float((logits(report, texts) - expected).norm() / expected.norm())
    assert near < 0.1 < far  # a norm that takes the magnitudes away is far off


def test_the_epsilon_is_above_what_heads_give(texts):
    for teacher in (llama(), qwen()):
        settings = from_transformer(teacher, "gla+full,gla+swa").settings
        squares = [
            float(layer.heads.unflatten(2, (4, -1)).square().mean((0, 1, 3)).max()) for layer in trace(teacher, texts)
        ]
        assert settings.head_norm_eps is not None
        assert settings.head_norm_eps >= max(squares)
    assert from_transformer(llama(), "full,swa").settings.head_norm_eps is None
    assert from_transformer(llama(), "gla,swa").settings.head_norm_eps == 1.0
    assert from_transformer(llama(), "gla,swa", head_norm_eps=0.5).model.layers[0].attn.g_norm.eps == 0.5


def test_scales_put_the_outputs_where_the_norm_bends(texts):
    teacher = llama()
    student = from_transformer(teacher, "gla,full", calibration=texts, fit="columns")
    seen = {}
    student.model.layers[0].attn.g_norm.register_forward_pre_hook(
        lambda _, args: seen.__setitem__("x", args[0].detach())
    )
    logits(student, texts)
    torch.testing.assert_close(seen["x"].square().mean((0, 1, 3)), torch.ones(4), atol=1e-4, rtol=1e-4)


def test_fitted_sinks_take_less_from_the_text(texts):
    teacher = llama()
    student = from_transformer(teacher, "full,full", num_sinks=30)
    before = copy.deepcopy(student)
    steps = []
    fit_sinks(student, teacher, texts, 12, steps.append)
    assert len(steps) == 12
    with torch.no_grad():
        assert float(divergence(student, teacher, texts)) < 0.9 * float(divergence(before, teacher, texts))
    for (name, ours), theirs in zip(student.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs) != (name == "model.sinks")
        assert ours.requires_grad


def test_sensitivities_are_those_of_single_layers(texts):
    teacher = llama()
    linear = from_transformer(teacher, "gla,gla", calibration=texts, fit="columns")
    found = sensitivities(linear, from_transformer(teacher, "full,full"), teacher, texts)
    for i, plans in enumerate(("gla,full", "full,gla")):
        alone = from_transformer(teacher, plans)
        alone.model.layers[i].attn = linear.model.layers[i].attn
        with torch.no_grad():
            assert found[i] == pytest.approx(float(divergence(alone, teacher, texts)), rel=1e-4)
        assert found[i] > 0


def test_placing_swaps_mixers_and_leaves_feed_forward_parts(texts):
    plans = parse_layers("gla/moe,swa,full,gla")
    found = least_sensitive(plans, (9.0, 1.0, 2.0, 3.0))
    assert [str(plan) for plan in found] == ["swa/moe", "gla", "gla", "full"]
    teacher = llama(num_hidden_layers=4)
    student = from_transformer(teacher, "7b", calibration=texts, placement="measured", steps=2)
    assert sum(plan.mixers == ("gla",) for plan in student.settings.layers) == 2
    assert {plan.mixers for plan in student.settings.layers} == {("gla",), ("swa",)}
    with_sinks = from_transformer(teacher, "7b", calibration=texts, placement="measured", steps=2, num_sinks=1)
    assert with_sinks.settings.layers == student.settings.layers
    again = from_transformer(teacher, student.settings.layers, calibration=texts, steps=2)
    torch.testing.assert_close(logits(again, texts), logits(student, texts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"placement": "best"}, "placement: expected one of"),
        ({"placement": "measured", "calibration": None}, "expected `calibration` tokens"),
        ({"placement": "measured", "layout": "gla,gla"}, "needs a layout with layers of linear attention alone and"),
        ({"placement": "measured", "layout": "gla+swa,swa"}, "got gla\\+swa, swa"),
        ({"placement": "measured", "layout": "swa,full"}, "got swa, full"),
        ({"placement": "measured", "layout": "gla/moe,gla", "num_experts": 2}, "got gla/moe, gla"),
    ],
)
def test_placements_that_are_refused(arguments, message, texts):
    with pytest.raises(InputError, match=message):
        from_transformer(llama(), **{"calibration": texts, **arguments})


def test_a_spiking_model_or_a_wrong_epsilon_is_refused(texts):
    teacher = llama()
    student = to_spiking(from_transformer(teacher, "gla,swa"))
    with pytest.raises(InputError, match="expected a float model"):
        calibrate(student, teacher, texts)
    for eps in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="head_norm_eps: expected a finite number > 0 or None"):
            SpikingBrainConfig(
                vocab_size=8,
                hidden_size=8,
                num_heads=2,
                num_kv_heads=2,
                intermediate_size=8,
                layers=(LayerPlan(("gla",)),),
                head_norm_eps=eps,
            )


def test_sinks_are_fitted_with_all_or_not_at_all(texts):
    teacher = llama()
    plain = from_transformer(teacher, "full,full", num_sinks=4)
    scaled = from_transformer(teacher, "full,full", num_sinks=4, calibration=texts, fit="columns")
    fitted = from_transformer(teacher, "full,full", num_sinks=4, calibration=texts)
    assert torch.equal(scaled.model.sinks, plain.model.sinks)
    assert not torch.equal(fitted.model.sinks, plain.model.sinks)
