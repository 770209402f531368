"""What each command finds for a tiny model, with the pages; tests share it."""

import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spikebrain import DigitalEnergy, jobs
from spikebrain.jobs.sweep import SweepSettings, sweep

# A folder and a text that would end a script, an attribute or a tag, if a page did not escape them.
NAME = "tiny </title>\"'&lt;<img src=x onerror=hacked=1>"
TEXT = '</script><script>hacked=1</script> a neuron fires & "rests" — ünïcödé 神経 \u2028 ' * 12
JSON_OF = {
    "report": "report.json",
    "energy": "energy.json",
    "simulation": "simulation.json",
    "eval": "eval.json",
    "sweep": "results.json",
}


def make_results(folder, tokenizer):
    """Run every command that writes a page; return the path of each JSON file by kind, and of the raster's page."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, eos_token_id=256)
    ).eval()
    source, text = folder / NAME.replace("/", "∕"), folder / "text.txt"
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    text.write_text(TEXT, encoding="utf-8")
    usual = {"model": str(source), "text": text, "device": "cpu"}
    jobs.report(jobs.ReportSettings(**usual, num_tokens=60, context=30), folder / "report")
    jobs.energy(jobs.EnergySettings(str(folder / "report" / "report.json"), DigitalEnergy()), folder / "energy")
    options = {"model": str(source), "text": text, "num_tokens": 3}
    jobs.simulate(jobs.SimulateSettings(**options, chip="async-45nm", critical_path=True), folder / "simulation")
    evaluated = jobs.EvalSettings(str(source), text=(text,), num_tokens=60, context=20, layer_tokens=20, device="cpu")
    jobs.evaluate(evaluated, folder / "eval")
    sweep(
        SweepSettings({"k": [2.0, 3.0], "encoder": ["ternary"]}, **usual, num_tokens=24, context=24), folder / "sweep"
    )
    jobs.raster(jobs.RasterSettings(**usual, num_tokens=30, num_neurons=20), folder / "raster.html")
    return {kind: folder / kind / name for kind, name in JSON_OF.items()} | {"raster": folder / "raster.html"}


def figures_of(path):
    return json.loads(path.read_text(encoding="utf-8"))
