"""What `print` shows of a result: a table that a person reads, and no wall of fields."""

import torch

from spikebrain import (
    AdaptiveThreshold,
    DigitalEnergy,
    PaperEnergy,
    SpikeSettings,
    count_operations,
    record,
    to_spiking,
)
from spikebrain.chip import load_description
from spikebrain.energy import EnergyReport
from spikebrain.models.training.settings import DistillResult, LossPoint
from spikebrain.text_table import kind_of, text_table

IDS = torch.arange(12)[None]
WALL = 2500  # characters


def test_columns():
    assert text_table(("a", "b"), [("long name", "1"), ("c", "1,000")]) == (
        "a              b\nlong name      1\nc          1,000"
    )
    assert text_table(("a", "b"), []) == "a  b"


def test_kinds_of_layers():
    names = ["model.layers.11.mlp.up_proj", "h.0", "experts.3 (norm)", "lm_head", "conv1.weight2"]
    assert [kind_of(name) for name in names] == [
        "model.layers.*.mlp.up_proj",
        "h.*",
        "experts.* (norm)",
        "lm_head",
        "conv1.weight2",
    ]


def test_an_energy_report():
    report = EnergyReport(
        "by hand",
        {"a": {"additions": 1000.0}, "b": {"additions": 2000.0, "weights": 5000.0}},
        {"a": {"additions": 16000.0}},
        num_tokens=2,
        table="t",
        process="45 nm",
        source="nobody",
        assumptions=("one",),
    )
    # In nJ a token: additions 3 / 2, weights 5 / 2; INT8 16 / 2.
    assert str(report).splitlines() == [
        "by hand (2 tokens)",
        "nJ a token  spiking  INT8",
        "additions       1.5     8",
        "weights         2.5     0",
        "total             4     8",
        "INT8 / spiking: 2",
        "Table t (45 nm): nobody",
        "Modelled; 1 assumptions, left out: 0 costs.",
    ]
    assert str(EnergyReport("nothing", {})).splitlines()[0] == "nothing"


def test_a_conversion_counts_and_estimates(tiny_llama):
    neurons = {"*down_proj": AdaptiveThreshold(k=4.0), "*": AdaptiveThreshold(k=3.0)}
    model = to_spiking(tiny_llama, SpikeSettings(neuron=neurons, skip=("*k_proj",)))
    shown = str(model.conversion)
    assert shown.splitlines()[0] == "12 layers on spikes, code BidirectionalBitwise(), weights int8"
    row = next(line for line in shown.splitlines() if "down_proj" in line)
    assert row.split()[:2] == ["model.layers.*.mlp.down_proj", "2"]
    assert "k=4.0" in row
    assert "stays dense: model.layers.*.self_attn.k_proj (2): a pattern of skip matches" in shown
    with record(model) as recording, torch.inference_mode():
        model(IDS)
    counts = count_operations(recording)
    for found in (
        model.conversion,
        recording,
        counts,
        DigitalEnergy().estimate(counts),
        PaperEnergy().estimate(counts),
    ):
        lines = str(found).splitlines()
        assert len(lines) > 4
        assert len(str(found)) < WALL
        assert not any(name in str(found) for name in ("Counter({", "LayerRecord(", "OperationCounts("))


def test_others_are_short():
    assert len(repr(load_description("async-45nm"))) < WALL
    losses = tuple(LossPoint(0, i, 2.0 - i / 1000, 1e-3) for i in range(1001))
    assert repr(DistillResult(losses, True, 61.0, 4000)) == "1,001 steps on 4,000 tokens in 61 s, loss 2 -> 1"
    assert repr(DistillResult((), False, 0.0, 0)) == "0 steps on 0 tokens in 0 s, not finished"
