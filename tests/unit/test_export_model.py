"""A Transformer on spikes as a folder or a file, by one command; and the tools of others on that folder."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from llama_type import MODELS
from task_files import write_tasks
from transformers import AutoModelForCausalLM

import spikebrain as sb
from spikebrain import jobs
from spikebrain.models import spiking_layers

IDS = torch.arange(12)[None]
# Another process: without this package on its path nothing opens the folder; nothing is fetched.
FRESH = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HF_HUB_OFFLINE": "1"}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def folder(model_folder, tokenizer, tmp_path, monkeypatch):
    """A folder that was exported, of a model with a chat template."""
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    tokenizer.save_pretrained(model_folder)
    jobs.export(jobs.ExportSettings(str(model_folder)), tmp_path / "spiking")
    return tmp_path / "spiking"


OPTIONS = {
    "usual": ((), sb.SpikeSettings()),
    "neuron": (("--neuron", "integrate-and-fire"), sb.SpikeSettings(neuron="integrate-and-fire")),
    "k, code, backend, groups": (
        ("--k", "*down_proj=4", "--k", 2, "--encoder", "ternary", "--backend", "cpu", "--group-size", 8),
        sb.SpikeSettings(
            neuron={"*down_proj": sb.AdaptiveThreshold(4.0), "*": sb.AdaptiveThreshold(2.0)},
            encoder="ternary",
            backend="cpu",
            group_size=8,
        ),
    ),
    "4 bits, some layers": (
        ("--weights", "int4", "--layers", "*mlp*", "--skip", "*.0.*"),
        sb.SpikeSettings(weights="int4", layers=("*mlp*",), skip=("*.0.*",)),
    ),
}


@pytest.mark.parametrize(("typed", "settings"), OPTIONS.values(), ids=OPTIONS.keys())
def test_the_command_writes_what_save_does(run, model_folder, tiny_llama, tmp_path, typed, settings):
    code, shown, err = run("export", model_folder, *typed, "--out", tmp_path / "llama-3.2-1b")
    assert code == 0, err
    expected = sb.to_spiking(tiny_llama, settings)
    assert f"Exported a model folder: {len(spiking_layers(expected))} spiking layers." in shown
    assert "from_pretrained" in shown.splitlines()[-1]
    folder = tmp_path / "llama-3.2-1b"
    for model in (AutoModelForCausalLM.from_pretrained(folder), sb.load(folder).model):
        assert model.conversion.settings == settings
        assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mistral, wide heads"])
def test_other_architectures(tmp_path, name):
    model = MODELS[name]().eval()
    model.save_pretrained(tmp_path / "float")
    jobs.export(jobs.ExportSettings(str(tmp_path / "float"), k=2.5), tmp_path / "spiking")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "spiking")
    assert type(opened) is type(model)
    assert torch.equal(logits(opened), logits(sb.to_spiking(model, sb.SpikeSettings(neuron=sb.AdaptiveThreshold(2.5)))))


@pytest.mark.slow
def test_one_file_and_integers_for_other_tools(run, model_folder, tiny_llama, tmp_path):
    code, shown, err = run("export", model_folder, "--k", 2, "--out", tmp_path / "it.safetensors")
    assert code == 0, err
    assert shown.splitlines()[-1].startswith("Next: spikebrain report ")
    spiking = sb.load(tmp_path / "it.safetensors").model
    # A model that spikes keeps its settings: the file becomes a folder.
    code, _, err = run("export", tmp_path / "it.safetensors", "--out", tmp_path / "it")
    assert code == 0, err
    assert torch.equal(logits(sb.load(tmp_path / "it").model), logits(spiking))
    code, shown, err = run("export", model_folder, "--format", "compressed-tensors", "--out", tmp_path / "it.int8")
    assert code == 0, err
    assert "Exported a model folder: 14 INT8 layers." in shown
    config = json.loads((tmp_path / "it.int8" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    found = sb.load(tmp_path / "it.int8").model
    torch.testing.assert_close(logits(found), logits(sb.to_dense(sb.to_spiking(tiny_llama))))


def test_what_cannot_be(run, model_folder, text, tmp_path):
    out = ("--out", tmp_path / "out")
    for option in (("--text", text), ("--num-tokens", 9), ("--trains",), ("--device", "cpu")):
        for target in (
            out,
            ("--out", tmp_path / "it.safetensors"),
            ("--out", tmp_path / "x.y", "--format", "spikebrain"),
        ):
            code, _, err = run("export", model_folder, *option, *target)
            assert code == 2
            assert f"error: {option[0]}: has no effect on {target[1].name}, a model that does not run." in err
    faults = {
        ("--format", "gguf"): "--format: expected spikebrain or compressed-tensors; got 'gguf'.",
        ("--format", "compressed-tensors", "--weights", "int4"): "compressed-tensors",
        ("--k", "2", "--neuron", "integrate-and-fire"): "--k: has no effect on --neuron IntegrateAndFire",
        ("--skip", "*"): "--layers: expected a linear layer that matches",
    }
    for typed, message in faults.items():
        code, _, err = run("export", model_folder, *typed, *out)
        assert code == 2
        assert message in err, err
        assert not (tmp_path / "out").exists()
    code, _, err = run("export", model_folder, "--out", tmp_path / "it.safetensors", "--format", "spikebrain")
    assert "--format: has no effect on it.safetensors, which is no folder" in err
    assert "is a model that is read, which would be lost" in run("export", model_folder, "--out", model_folder)[2]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "holds mine.txt already. Name a new folder, or pass --force" in run("export", model_folder, *out)[2]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert run("export", model_folder, *out, "--force")[0] == 0
    sb.load(tmp_path / "out")


@pytest.mark.slow
def test_a_fresh_process_has_the_same_logits(folder, tiny_llama, tmp_path):
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM
assert "spikebrain" not in sys.modules
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
torch.save(model(torch.arange(12)[None]).logits, {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], env=FRESH, check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(sb.to_spiking(tiny_llama)))


TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
num_fewshot: 0
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.mark.slow
def test_lm_eval_from_its_own_command_line(folder, model_folder, tmp_path):
    pytest.importorskip("lm_eval", reason="pip install 'spikebrain[eval]'")
    data = write_tasks(tmp_path / "data")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(TASK.replace("FILE", str(data / "arc_easy" / "arc_easy.jsonl")))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "mine", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder},trust_remote_code=True,max_length=64"]
    command += ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "scores")]
    where = {**FRESH, "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    [scores] = (tmp_path / "scores").rglob("results_*.json")
    theirs = json.loads(scores.read_text())["results"]["mine"]
    ours = jobs.evaluate(jobs.EvalSettings(str(model_folder), ("arc_easy",), data, device="cpu"), tmp_path / "eval")[
        "tasks"
    ]["arc_easy"]["metrics"]
    for metric in ("acc", "acc_norm"):
        assert theirs[f"{metric},none"] == pytest.approx(ours[metric]["k=3"]["value"])


@pytest.mark.slow
def test_transformers_serves_it(folder):
    for needed in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(needed, reason="pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--trust-remote-code", "--device", "cpu"]
    server = subprocess.Popen([*command, "--port", str(port)], env=FRESH)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health")
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.5)
        asked = {"model": str(folder), "max_tokens": 5, "messages": [{"role": "user", "content": "What is it?"}]}
        request = urllib.request.Request(
            f"http://localhost:{port}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            said = json.load(answer)
    finally:
        server.kill()
        server.wait()
    assert said["choices"][0]["message"]["role"] == "assistant"
    assert said["usage"]["prompt_tokens"] == len("What is it?")
    assert 1 <= said["usage"]["completion_tokens"] <= 5
