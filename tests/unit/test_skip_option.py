"""`--skip` of the commands that choose layers."""

import json

import pytest
from typer.testing import CliRunner

from spikebrain import jobs
from spikebrain.cli.app import app
from spikebrain.errors import InputError


@pytest.fixture
def report(model_folder, tmp_path):
    def report(*options):
        text = tmp_path / "text.txt"
        text.write_text("It reports firing rates. " * 4)
        arguments = ["report", str(model_folder), "--text", str(text), "--num-tokens", "40", "--context", "40"]
        result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--out", str(tmp_path / "out"), *options])
        if result.exception:
            raise result.exception
        return json.loads((tmp_path / "out" / "report.json").read_text())

    return report


@pytest.mark.slow
def test_report_leaves_layers_out(report):
    found = report("--skip", "*self_attn*", "--skip", "*.1.mlp.down_proj")
    assert found["settings"]["skip"] == ["*self_attn*", "*.1.mlp.down_proj"]
    # Of 2 blocks, gate, up and down remain, but for one down_proj.
    assert found["model"]["num_spiking_layers"] == 5


def test_a_pattern_that_matches_nothing(as_users, report):
    with pytest.raises(InputError, match=r"^--skip 'self_attn': .* Patterns that match: \*self_attn\*\."):
        report("--skip", "self_attn")


def test_simulate_takes_it(as_users):
    settings = jobs.SimulateSettings(skip=("*self_attn*",))
    assert settings.spike_settings().skip == ("*self_attn*",)
    assert "--skip" in CliRunner().invoke(app, ["simulate", "--help"], env={"COLUMNS": "200"}).output
