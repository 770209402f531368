"""Experts that are equal after conversion: one set of weights in memory and in every kind of file, until training."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from spikebrain import from_transformer, to_spiking, unshare_experts
from spikebrain.errors import CheckpointError, InputError
from spikebrain.jobs import ConvertSettings
from spikebrain.models.io import load, save
from spikebrain.models.layers import spiking_layers
from spikebrain.models.training import DistillSettings, Stage, distill

PLANS = "gla,gla+full/moe"
SIZES = {"num_experts": 3, "num_experts_per_token": 2, "num_sinks": 2, "num_shared": 1}
PREFIX = "model.layers.1.mlp."


@pytest.fixture
def student(teacher):
    return from_transformer(teacher, PLANS, **SIZES)


@pytest.fixture
def ids():
    return torch.randint(0, 32, (2, 9))


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def experts_in(names):
    return sorted({name.removeprefix(PREFIX).rsplit(".", 2)[0] for name in names if ".mlp." in name} - {"router"})


def test_one_set_of_weights_stands_for_all(teacher, student, ids):
    apart = from_transformer(teacher, PLANS, equal_experts=False, **SIZES)
    expert = sum(p.numel() for p in apart.model.layers[1].mlp.experts[0].parameters())
    sizes = [sum(p.numel() for p in model.parameters()) for model in (apart, student)]
    assert sizes[0] - sizes[1] == 3 * expert  # of three routed experts and a shared one, one is kept
    assert torch.equal(logits(student, ids), logits(apart, ids))
    assert student.settings == apart.settings.replace(equal_experts=True)
    assert not from_transformer(teacher, "gla,swa").settings.equal_experts


def test_unsharing_changes_no_result_and_separates_the_experts(student, ids):
    before = logits(student, ids)
    assert unshare_experts(student) is student
    assert torch.equal(logits(student, ids), before)
    assert student.settings.equal_experts is student.config.equal_experts is False
    mlp = student.model.layers[1].mlp
    assert (len(mlp.experts), len(mlp.shared)) == (3, 1)
    parts = {id(p) for expert in (*mlp.experts, *mlp.shared) for p in expert.parameters()}
    assert len(parts) == 4 * 3
    assert unshare_experts(student) is student  # there is nothing left to do
    with torch.no_grad():
        mlp.experts[1].up_proj.weight.zero_()
    assert mlp.experts[0].up_proj.weight.any()


def test_equal_experts_refuse_to_train(student, ids):
    student.train()
    with pytest.raises(InputError, match=r"its 4 experts are one set of weights.*Call unshare_experts\(model\)"):
        student(ids, labels=ids)
    logits(student, ids)  # without gradients they run
    for parameter in student.model.layers[1].mlp.experts.parameters():
        parameter.requires_grad_(False)
    student(ids, labels=ids).loss.backward()
    student.requires_grad_(True)
    unshare_experts(student)(ids, labels=ids).loss.backward()


def test_distill_separates_them(teacher, student, tokens):
    stage = Stage(objective="logits", steps=2, context=20, learning_rate=0.02, warmup=1)
    distill(student, teacher, tokens, DistillSettings(stages=(stage,)))
    mlp = student.model.layers[1].mlp
    assert not student.settings.equal_experts
    assert not torch.equal(mlp.experts[0].up_proj.weight, mlp.shared[0].up_proj.weight)


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("equal", [False, True])
def test_folders_hold_them_once_and_both_kinds_open(student, ids, tmp_path, equal, spikes):
    student = student if equal else unshare_experts(student)
    model = to_spiking(student) if spikes else student
    save(model, tmp_path / "model")
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    expected = ["experts.0"] if equal else ["experts.0", "experts.1", "experts.2", "shared.0"]
    assert [name for name in experts_in(index["weight_map"]) if "layers.0" not in name] == expected
    assert json.loads((tmp_path / "model/config.json").read_text())["equal_experts"] is equal
    for found in (load(tmp_path / "model").model, AutoModelForCausalLM.from_pretrained(tmp_path / "model")):
        assert torch.equal(logits(found, ids), logits(model, ids))
        assert found.settings == model.settings
        assert len(spiking_layers(found)) == len(spiking_layers(model))


@pytest.mark.parametrize("equal", [False, True])
def test_other_files(student, ids, tmp_path, equal):
    spiking = to_spiking(student if equal else unshare_experts(student))
    save(spiking, tmp_path / "model.safetensors")
    assert torch.equal(logits(load(tmp_path / "model.safetensors").model, ids), logits(spiking, ids))
    save(spiking, tmp_path / "dense", format="compressed-tensors")
    index = json.loads((tmp_path / "dense/model.safetensors.index.json").read_text())
    assert any(".experts.1." in name for name in index["weight_map"]) == (not equal)


def test_folders_without_the_note_have_experts_of_their_own(student, ids, tmp_path):
    save(unshare_experts(student), tmp_path / "old")
    change_note(tmp_path / "old", None)
    assert torch.equal(logits(load(tmp_path / "old").model, ids), logits(student, ids))


@pytest.mark.parametrize(
    ("note", "error", "match"),
    [
        ("yes", InputError, "equal_experts: expected True or False, got 'yes'"),
        (3, InputError, "equal_experts: expected True or False, got 3"),
        (None, CheckpointError, r"missing: .*experts\.1\.down_proj"),
        (False, CheckpointError, r"missing: .*shared\.0\.up_proj"),
    ],
)
def test_a_note_that_is_damaged_or_does_not_fit(student, tmp_path, as_users, note, error, match):
    save(student, tmp_path / "model")
    change_note(tmp_path / "model", note)
    with pytest.raises(error, match=match):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"num_experts": 0}, r'num_experts: expected at least 1, as a layer is "moe", got 0'),
        (
            {"num_experts": 2, "num_experts_per_token": 3},
            "num_experts_per_token: expected at most num_experts = 2, got 3",
        ),
        ({"expert_intermediate_size": 7}, r"\['expert_intermediate_size'\] cannot be chosen"),
        ({"num_experts": 2, "num_shared": -1}, "num_shared: expected an integer >= 0, got -1"),
    ],
)
def test_experts_that_no_mixture_has(teacher, choices, match):
    with pytest.raises(InputError, match=match):
        from_transformer(teacher, PLANS, **choices)


def test_the_command_refuses_no_experts_before_it_reads_a_model():
    with pytest.raises(InputError, match="num_experts: expected 1 or more, got 0"):
        ConvertSettings("no/such/model", layout="76b", num_experts=0)


def test_spiking_experts_do_not_separate(student):
    with pytest.raises(InputError, match="before to_spiking"):
        unshare_experts(to_spiking(student))


def change_note(folder, note):
    """Write another note into config.json, or none, and forget the checksum of the file."""
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name != "equal_experts"}
    (folder / "config.json").write_text(json.dumps(config | ({} if note is None else {"equal_experts": note})))
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["metadata"]["sha256"].pop("config.json")
    file.write_text(json.dumps(index))
