"""Conversion: equal where it can be, close where it is calibrated, experts equal to the dense part, refusals."""

import copy
import itertools

import pytest
import torch
from converted import SIZES, llama, logits, qwen
from transformers import MistralConfig, MistralForCausalLM

from spikebrain.errors import InputError
from spikebrain.models.conversion import calibrate, from_transformer
from spikebrain.models.conversion.calibrate import TIME_CONSTANTS, gate_bias
from spikebrain.models.conversion.layerwise import Surroundings, trace
from spikebrain.models.spikingbrain import LayerPlan, layout

TEACHERS = {
    "llama": llama,
    "qwen2": qwen,
    "other head size and base": lambda: llama(
        head_dim=10, rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rope_theta=500.0
    ),
}


@pytest.fixture(params=TEACHERS)
def teacher(request):
    return TEACHERS[request.param]()


@pytest.fixture
def ids():
    return torch.randint(0, 97, (2, 40))


@pytest.mark.parametrize("plans", ["full,full", "swa,swa", "full,swa"])
def test_softmax_layers_give_the_same_logits(teacher, ids, plans):
    student = from_transformer(teacher, plans, window=39)
    torch.testing.assert_close(logits(student, ids), logits(teacher, ids), atol=2e-5, rtol=1e-5)
    if "swa" in plans:
        # A window of 38 and the token itself: the last token does not see the first any more.
        shorter = from_transformer(teacher, plans, window=38)
        difference = (logits(shorter, ids) - logits(teacher, ids)).abs().amax((0, 2))
        assert float(difference[:-1].max()) < 2e-5
        assert float(difference[-1]) > 1e-3


def test_a_batch_with_padding_too(teacher, ids):
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    student = from_transformer(teacher, "full,full")
    with torch.no_grad():
        found, expected = (model(ids, attention_mask=mask).logits[0, 9:] for model in (student, teacher))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_weights_are_copies_and_tied_stays_tied(ids):
    teacher = llama()
    before = logits(teacher, ids)
    student = from_transformer(teacher, "7b")
    assert student.lm_head.weight is student.model.embeddings.weight
    assert student.settings.tie_word_embeddings
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(logits(teacher, ids), before)
    assert from_transformer(qwen(), "7b").lm_head.weight is not student.model.embeddings.weight


def test_what_is_carried_over():
    teacher = qwen(torch_dtype=torch.bfloat16).to(torch.bfloat16)
    student = from_transformer(teacher, "7b", window=16)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert not student.training
    assert student.config.eos_token_id == 5
    assert student.settings.layers == layout("7b", 2)
    assert student.settings.qkv_bias
    assert not from_transformer(llama(), "7b").settings.qkv_bias
    same = from_transformer(llama(), (LayerPlan(("gla",)), LayerPlan(("full",))))
    assert same.settings == from_transformer(llama(), "gla,full").settings
    assert [str(plan) for plan in same.settings.layers] == ["gla", "full"]


def test_the_seed_decides():
    teacher = llama()
    first, second, other = (from_transformer(teacher, "7b", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [n for n in first if not torch.equal(first[n], other[n])] == ["model.layers.0.attn.gk_proj.0.weight"]


def test_gate_starts_with_one_decay_for_all(ids):
    # logsigmoid(b) / 16 = -1 / 4 for a time constant of 4 tokens: after 4 tokens the state is 1 / e of what it was.
    bias = torch.tensor(gate_bias(4.0, 16.0), dtype=torch.float64)
    assert float(4 * torch.nn.functional.logsigmoid(bias) / 16) == pytest.approx(-1.0)
    for gate in ("low-rank", "full"):
        attention = from_transformer(llama(), "7b", gate=gate).model.layers[0].attn
        x = torch.randn(1, 5, 24)
        q, k = torch.randn(1, 5, 4, 6), torch.randn(1, 5, 2, 6)
        log_decay = attention.linear_inputs(x, q, k)[2]
        torch.testing.assert_close(log_decay, torch.full((1, 5, 2, 6), -1 / 64))


@pytest.mark.parametrize(("num_experts", "per_token", "num_shared"), [(4, 1, 1), (4, 2, 1), (3, 2, 0), (5, 1, 2)])
def test_experts_equal_the_dense_part_for_every_routing(num_experts, per_token, num_shared):
    sizes = {"num_experts": num_experts, "num_experts_per_token": per_token, "num_shared": num_shared}
    teacher = llama()
    moe = from_transformer(teacher, "full,full/moe", equal_experts=False, **sizes).model.layers[1].mlp
    x = torch.randn(1, 6, 24)
    with torch.no_grad():
        expected = teacher.model.layers[1].mlp(x)
        torch.testing.assert_close(moe(x)[0], expected, atol=1e-5, rtol=1e-4)
        for chosen in itertools.combinations(range(num_experts), per_token):
            # A first channel of 1 and a router that reads it alone: these experts are just ahead of the others.
            x[..., 0] = 1.0
            moe.router.weight.zero_()
            moe.router.weight[list(chosen), 0] = 1e-5
            seen = []
            handles = [
                e.register_forward_hook(lambda *_, i=i, seen=seen: seen.append(i)) for i, e in enumerate(moe.experts)
            ]
            torch.testing.assert_close(moe(x)[0], teacher.model.layers[1].mlp(x), atol=1e-5, rtol=1e-4)
            assert tuple(seen) == chosen
            for handle in handles:
                handle.remove()


def test_fresh_routers_part_the_tokens():
    moe = from_transformer(llama(), "full,full/moe", num_experts=4).model.layers[1].mlp
    x = torch.randn(1, 200, 24)
    share = moe.router(x).softmax(-1).argmax(-1).flatten().bincount(minlength=4)
    assert int(share.min()) > 5


def test_76b_choices_and_sinks(ids):
    student = from_transformer(llama(num_hidden_layers=4), "76b")
    settings = student.settings
    assert [str(plan) for plan in settings.layers] == ["gla+swa"] * 3 + ["gla+swa/moe"]
    assert (settings.gate, settings.feature_map, settings.num_sinks, settings.num_experts) == (
        "tied",
        "sigmoid",
        128,
        16,
    )
    rows = {tuple(row) for row in student.model.embeddings.weight.tolist()}
    assert torch.equal(student.model.sinks[0], student.model.embeddings.weight[3])  # bos_token_id is 3
    assert all(tuple(row) in rows for row in student.model.sinks.tolist())
    assert len(student.model.sinks.unique(dim=0)) > 40
    assert torch.isfinite(logits(student, ids)).all()


def test_columns_by_least_squares():
    """Without the Transformer's own scale the factor of each column is <u, z> / <z, z>, worked out apart."""
    teacher, texts = llama(), torch.randint(0, 97, (3, 30))
    plain = from_transformer(teacher, "gla,full")
    fitted = copy.deepcopy(plain)
    calibrate(fitted, teacher, texts, fit="columns")
    attention = fitted.model.layers[0].attn
    zz, uz = torch.zeros(24), torch.zeros(24)
    for text in texts.split(1):
        found = trace(teacher, text)[0]
        around = Surroundings(fitted, text, torch.float32)
        seen = {}
        attention.o_proj.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.__setitem__("z", args[0][0].detach())
        )
        with torch.no_grad():
            attention(found.normed, around.context)
        zz, uz = zz + seen["z"].square().sum(0), uz + (seen["z"] * found.heads[0]).sum(0)
    expected = plain.model.layers[0].attn.o_proj.weight * (uz / zz)
    torch.testing.assert_close(attention.o_proj.weight, expected, atol=1e-5, rtol=1e-4)
    biases = attention.gk_proj[1].bias.view(2, 6)
    allowed = torch.tensor([gate_bias(constant, 16.0) for constant in TIME_CONSTANTS])
    assert all(bool((allowed == head[0]).any()) and bool((head == head[0]).all()) for head in biases)


@pytest.mark.slow
def test_calibration_tells_its_progress():
    steps: dict[str, list[int]] = {}

    def progress(title, total):
        steps[title] = [total, 0]
        return lambda done: steps[title].__setitem__(1, steps[title][1] + done)

    # Two texts are too long to be shown to the layers together.
    texts = torch.randint(0, 97, (2, 1100))
    from_transformer(llama(), "gla,gla", calibration=texts, fit="o-proj", progress=progress)
    assert steps == {"time constants": [4, 4], "columns": [4, 4], "o_proj": [4, 4]}


def test_layers_of_softmax_alone_are_not_calibrated(ids):
    teacher = llama()
    student = from_transformer(teacher, "full,swa", calibration=ids)
    torch.testing.assert_close(logits(student, ids), logits(teacher, ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: llama(attention_bias=True), "o_proj.bias.* have no place"),
        (lambda: llama(mlp_bias=True), "mlp.*bias.* have no place"),
        (lambda: llama(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (
            lambda: llama(
                rope_scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            ),
            "rotary embedding is scaled",
        ),
        (
            lambda: qwen(use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "sliding-window attention",
        ),
        (lambda: MistralForCausalLM(MistralConfig(**SIZES)), r"model_type in \('llama', 'qwen2'\).*mistral"),
        (lambda: torch.nn.Linear(2, 2), "got Linear"),
        (lambda: llama().model, "lm_head|are missing"),
    ],
)
def test_models_that_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        from_transformer(build(), "full,full")


def test_arguments_that_are_refused(ids):
    teacher = llama()
    for arguments, message in [
        ({"layout": "gla"}, "expected 2 plans, one per layer, got 1"),
        ({"layout": (LayerPlan(("gla",)),)}, "expected 2 plans, one per layer, got 1"),
        ({"hidden_size": 8}, r"\['hidden_size'\] cannot be chosen"),
        ({"spiking": "as-described"}, r"\['spiking'\] cannot be chosen"),
        ({"windows": 8}, r"unknown fields \['windows'\]"),
        ({"window": 0}, "window: expected an integer >= 1, got 0"),
        ({"layout": "gla/moe,swa"}, "num_experts: expected at least 1"),
        ({"calibration": ids, "fit": "best"}, "calibrate.fit: expected one of"),
        ({"calibration": ids, "steps": 0}, "calibrate.steps: expected an integer >= 1, got 0"),
        ({"num_sinks": 129}, "num_sinks: expected at most 128, as many as positions, got 129"),
        ({"calibration": ids[:, :1]}, "expected int64 token ids"),
        ({"calibration": ids + 90}, "expected ids from 0 to 96"),
    ]:
        with pytest.raises(InputError, match=message):
            from_transformer(teacher, **arguments)
