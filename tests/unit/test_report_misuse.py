"""The main job from the command line: every way it can be misused."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from spikebrain import to_spiking
from spikebrain.analysis import measure_perplexity, split_windows
from spikebrain.cli.app import main
from spikebrain.errors import ActivationError, InputError
from spikebrain.jobs.resume import FILE_NAME


def fails(capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["spikebrain", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "nowhere.txt"], "--text nowhere.txt: cannot be read: No such file"),
        (["--k", "0"], "--k: expected a finite number > 0, got 0.0"),
        (["--k", "-2"], "--k: expected a finite number > 0, got -2.0"),
        (["--k", "nan"], "--k: expected a finite number > 0, got nan"),
        (["--k", "three"], "Invalid value for '--k'"),
        (["--encoder", "morse"], "--encoder: expected one of binary"),
        (["--backend", "tpu"], "--backend: expected one of auto, "),
        (
            ["--context", "65", "--num-tokens", "200"],
            "A window of 65 tokens: expected at most the model's 64 positions. Lower --context (--num-tokens where",
        ),
        (["--context", "1"], "--context: expected at least 2 tokens"),
        (
            ["--num-tokens", "10"],
            "--num-tokens: expected at least one window of 40 tokens, got 10. Raise --num-tokens or lower --context.",
        ),
        (
            ["--layers", "*.conv"],
            "--layers: expected a linear layer that matches ('*.conv',), found none. 'model.embed_tokens': Embedding",
        ),
        (["--seed", "-1"], "--seed: expected an integer >= 0, got -1"),
        (["--group-size", "0"], "--group-size: expected an integer >= 1 or None, got 0"),
        (["--device", "tpu"], "--device: expected auto, cpu or cuda, got 'tpu'"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(capsys, monkeypatch, model_folder, text, tmp_path, options, message):
    usual = ["--text", text, "--context", "40", "--num-tokens", "80", "--out", tmp_path / "out"]
    assert message in fails(capsys, monkeypatch, "report", model_folder, *usual, *options)


def test_bad_texts(capsys, monkeypatch, model_folder, tmp_path):
    path = tmp_path / "text.txt"
    usual = ["report", model_folder, "--text", path, "--context", "40", "--num-tokens", "80", "--out", tmp_path / "out"]
    path.write_text("short")
    assert "--text: expected at least 40 tokens for one window, got 5" in fails(capsys, monkeypatch, *usual)
    path.write_bytes(b"caf\xe9 " * 30)
    assert "expected UTF-8 text, got invalid continuation byte at byte 3" in fails(capsys, monkeypatch, *usual)
    assert "Is a directory" in fails(capsys, monkeypatch, *usual[:3], tmp_path, *usual[4:])


@pytest.mark.parametrize("name", ["missing.gguf", "no/such/folder/here", "smollm3", "[/x]", "$x_{$"])
def test_missing_models(capsys, monkeypatch, name):
    assert f"{name}: no such file or folder" in fails(capsys, monkeypatch, "report", name)


def test_model_without_tokenizer(capsys, monkeypatch, model_folder, text, tmp_path):
    for file in model_folder.glob("*token*"):
        file.unlink()
    said = fails(capsys, monkeypatch, "report", model_folder, "--text", text, "--out", tmp_path / "out")
    assert "expected a model with a tokenizer" in said


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        # A weight of a norm multiplies its output beyond float32.
        (
            "model.layers.1.input_layernorm.weight",
            3e38,
            "model.layers.1.input_layernorm (LlamaRMSNorm): expected finite activations",
        ),
        # A weight that is not finite is refused when it is loaded.
        ("model.layers.0.mlp.up_proj.weight", float("nan"), "got nan at (0, 0) of model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_not_finite_values_are_named(capsys, monkeypatch, model_folder, text, tmp_path, tensor, value, message):
    weights = load_file(model_folder / "model.safetensors")
    weights[tensor].fill_(value)
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    usual = ["--text", text, "--context", "40", "--num-tokens", "80", "--out", tmp_path / "out"]
    said = fails(capsys, monkeypatch, "report", model_folder, *usual)
    assert message in said


def test_not_finite_activations_of_a_spiking_layer(tiny_llama):
    tiny_llama.model.layers[1].input_layernorm.weight.data.fill_(3e38)
    tiny_llama.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    model = to_spiking(tiny_llama)
    with pytest.raises(ActivationError, match=r"SpikeLinear 'model\.layers\.1\.self_attn\.q_proj'.*finite"):
        measure_perplexity(model, [torch.arange(10)])


def test_windows():
    assert [len(w) for w in split_windows(torch.arange(10), 4)] == [4, 4, 2]
    # A single token predicts nothing.
    assert [len(w) for w in split_windows(torch.arange(9), 4)] == [4, 4]
    with pytest.raises(InputError, match="got 3"):
        split_windows(torch.arange(3), 4)


def test_tokenizer_of_another_model(capsys, monkeypatch, model_folder, text, tmp_path, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([f"<{i}>" for i in range(9)] + ["neuron"])  # id 267; the model has 258
    tokenizer.save_pretrained(model_folder)
    usual = ["--text", text, "--context", "40", "--num-tokens", "80", "--out", tmp_path / "out"]
    said = fails(capsys, monkeypatch, "report", model_folder, *usual)
    assert "expected token ids below 258, got 267: the tokenizer is not this model's" in said


def test_logits_that_are_far_too_large(capsys, monkeypatch, model_folder, text, tmp_path):
    weights = load_file(model_folder / "model.safetensors")
    weights["model.norm.weight"].fill_(1e6)
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    usual = ["--text", text, "--context", "40", "--num-tokens", "80", "--out", tmp_path / "out"]
    assert "mean negative log-likelihood up to 709" in fails(capsys, monkeypatch, "report", model_folder, *usual)


@pytest.mark.slow
def test_output_that_cannot_be_written(capsys, monkeypatch, model_folder, text, tmp_path):
    (tmp_path / "out" / "report.json").mkdir(parents=True)
    usual = ["--text", text, "--context", "40", "--num-tokens", "80", "--out", tmp_path / "out"]
    assert "cannot be written" in fails(capsys, monkeypatch, "report", model_folder, *usual)
    # What was measured is not lost.
    assert (tmp_path / "out" / FILE_NAME).exists()


def test_a_full_disk_while_measuring(capsys, monkeypatch, model_folder, text, tmp_path):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spikebrain.files.os.replace", full)
    usual = ["--text", text, "--context", "40", "--num-tokens", "80", "--out", tmp_path / "out"]
    said = fails(capsys, monkeypatch, "report", model_folder, *usual)
    assert "unfinished.json: cannot be written: No space left on device" in said
    assert not list(tmp_path.glob("out/*"))
