"""What is no model is refused by each public function that takes one.

The functions are called in a process of their own: the checks of types that tests run with would come first.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, torch
import spikebrain as sb
from spikebrain import analysis, energy, simulation
from spikebrain.errors import InputError

ids, linear = torch.zeros(1, 4, dtype=torch.long), torch.nn.Linear(4, 4)
stages = (sb.Stage(objective="logits", context=4, steps=1, learning_rate=1e-3),)
calls = {
    "describe_decoding": sb.describe_decoding,
    "distill": lambda model: sb.distill(model, model, ids[0], sb.DistillSettings(stages=stages)),
    "from_transformer": lambda model: sb.from_transformer(model, "7b"),
    "measure_perplexity": lambda model: sb.measure_perplexity(model, [ids[0]]),
    "prefill": lambda model: sb.prefill(model, ids),
    "record": lambda model: sb.record(model).__enter__(),
    "save": lambda model: sb.save(model, "never-written"),
    "sequence_prefill": lambda model: sb.sequence_prefill(model, ids),
    "simulate_model": lambda model: sb.simulate_model(model, ids, "async-45nm"),
    "spike_aware": lambda model: sb.spike_aware(model, sb.SpikeSettings()).__enter__(),
    "split_spiking": sb.split_spiking,
    "to_dense": sb.to_dense,
    "to_spiking": sb.to_spiking,
    "unshare_experts": sb.unshare_experts,
    "calibrate": lambda model: sb.models.calibrate(model, linear, ids),
    "choose_layers": lambda model: sb.models.choose_layers(model, sb.SpikeSettings()),
    "learn_orders": lambda model: simulation.learn_orders(model, ids[0], None),
    "neurobench_counts": lambda model: energy.neurobench_counts(model, ids),
    "neurobench_results": lambda model: energy.neurobench_results(model, ids),
    "spiking_layers": sb.models.spiking_layers,
    "survey_model": lambda model: simulation.survey_model(model, ids[0]),
    "window_nlls": lambda model: list(analysis.window_nlls(model, [ids[0]])),
}
found = {}
for name, call in calls.items():
    linear = torch.nn.Linear(4, 4)
    loaded = type("Loaded", (), {"model": linear})()
    for kind, given in {"loaded": loaded, "name": "smollm2", "layer": linear}.items():
        try:
            call(given)
        except InputError as error:
            found[f"{name} {kind}"] = str(error)
        except Exception as error:
            found[f"{name} {kind}"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
NAMES = (
    "describe_decoding",
    "distill",
    "from_transformer",
    "measure_perplexity",
    "prefill",
    "record",
    "save",
    "sequence_prefill",
    "simulate_model",
    "spike_aware",
    "split_spiking",
    "to_dense",
    "to_spiking",
    "unshare_experts",
    "calibrate",
    "choose_layers",
    "learn_orders",
    "neurobench_counts",
    "neurobench_results",
    "spiking_layers",
    "survey_model",
    "window_nlls",
)


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=folder, check=True)
    assert not list(Path(folder).iterdir())
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_what_load_returns_and_names_are_no_models(errors, name):
    assert errors[f"{name} loaded"].startswith(f"{name}: expected a ")
    assert "got a Loaded. Pass its attribute model" in errors[f"{name} loaded"]
    assert errors[f"{name} name"].startswith(f"{name}: expected a ")
    assert "got 'smollm2'. spikebrain.load(...).model is" in errors[f"{name} name"]


def test_distil_refuses_students_of_other_libraries(errors):
    assert errors["distill layer"].startswith(
        "distill: expected a PreTrainedModel as student, got a Linear. spike_aware"
    )


@pytest.mark.parametrize("name", ["calibrate", "prefill", "sequence_prefill", "unshare_experts"])
def test_functions_for_spikingbrain_models_refuse_others(errors, name):
    part = "student" if name == "calibrate" else "model"
    expected = f"{name}: expected a SpikingBrainForCausalLM as {part}, got a Linear. from_transformer makes one"
    assert errors[f"{name} layer"].startswith(expected)
