"""Plug-ins by name wherever one is taken, and names for those that are not registered."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spikebrain as sb
from spikebrain.analysis.stats import code_statistics
from spikebrain.backends import Backend, Chip
from spikebrain.chip import InOrder, load_description
from spikebrain.errors import InputError
from spikebrain.jobs import EnergySettings, ReportSettings, SimulateSettings
from spikebrain.registry import describe, label

pytestmark = pytest.mark.usefixtures("as_users")
X = torch.tensor([[1.0, -1.0, 4.0, 0.0], [2.0, 0.5, -0.25, 1.0]])


def spiking(**settings):
    return sb.SpikeLinear.from_linear(nn.Linear(4, 3), **settings)


def recording():
    model = nn.Sequential(spiking())
    with sb.record(model) as found:
        model(X)
    return found


def with_attribute(name, value):
    layer = spiking()
    setattr(layer, name, value)
    return getattr(layer, name)


# What takes a plug-in, by its kind, and returns the object that it makes of a name (or one like it).
TAKERS = {
    "neuron": [
        lambda neuron: sb.SpikeSettings(neuron=neuron).neuron,
        lambda neuron: sb.SpikeSettings(neuron={"*": neuron}).neuron["*"],
        lambda neuron: spiking(neuron=neuron).neuron,
        lambda neuron: with_attribute("neuron", neuron),
        lambda neuron: (sb.pack_activations(X, neuron, "ternary"), sb.AdaptiveThreshold())[1],
    ],
    "encoder": [
        lambda encoder: sb.SpikeSettings(encoder=encoder).encoder,
        lambda encoder: sb.spikingbrain_settings(encoder=encoder).encoder,
        lambda encoder: spiking(encoder=encoder).encoder,
        lambda encoder: with_attribute("encoder", encoder),
        lambda encoder: ReportSettings(encoder=encoder).encoder,
        lambda encoder: EnergySettings(encoder=encoder).encoder,
        lambda encoder: SimulateSettings(encoder=encoder).encoder,
        lambda encoder: (sb.pack_activations(X, "adaptive-threshold", encoder), sb.Ternary())[1],
        lambda encoder: (sb.count_operations(recording(), encoder=encoder), sb.Ternary())[1],
        lambda encoder: (code_statistics(recording().layers.values(), encoder), sb.Ternary())[1],
    ],
    "backend": [
        lambda backend: sb.SpikeSettings(backend=backend).backend,
        lambda backend: sb.spikingbrain_settings(backend=backend).backend,
        lambda backend: spiking(backend=backend).backend,
        lambda backend: with_attribute("backend", backend),
        lambda backend: ReportSettings(backend=backend).backend,
        lambda backend: EnergySettings(backend=backend).backend,
    ],
    "mapping": [
        lambda mapping: SimulateSettings(mapping=mapping).mapping,
        lambda mapping: Chip(mapping=mapping).mapping,
    ],
}
RIGHT = {
    "neuron": ("adaptive-threshold", sb.AdaptiveThreshold()),
    "encoder": ("ternary", sb.Ternary()),
    "backend": ("reference", sb.Reference()),
    "mapping": ("in-order", InOrder()),
}
WRONG = ["nope", "Ternary", 3.0, 0, "", sb.Ternary, sb.AdaptiveThreshold, sb.Cpu, InOrder, [], b"ternary", "async-45nm"]


@pytest.mark.parametrize("kind", TAKERS)
def test_a_name_works_everywhere(kind):
    name, expected = RIGHT[kind]
    assert [take(name) for take in TAKERS[kind]] == [expected] * len(TAKERS[kind])


@pytest.mark.parametrize("kind", TAKERS)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_anything_else_is_refused_where_it_is_given(kind, wrong):
    for take in TAKERS[kind]:
        with pytest.raises(
            InputError, match=rf"{kind}.*: expected an object such as \w+\(\), or one of the names .*; got"
        ):
            take(wrong)


def test_a_class_is_no_object():
    with pytest.raises(InputError, match=r"expected an object such as Ternary\(\).*got the class Ternary"):
        sb.SpikeSettings(encoder=sb.Ternary)
    with pytest.raises(InputError, match=r"order: expected an object such as"):
        SimulateSettings(order="nope")
    assert SimulateSettings(order="together").order is not None


def test_chips_and_tables_by_name_or_whole():
    chip = load_description("loihi")
    assert load_description(chip) is chip
    assert Chip("loihi").chip == Chip(chip).chip
    table = sb.load_table("jouppi_7nm")
    assert sb.DigitalEnergy("jouppi_7nm").table == table == sb.DigitalEnergy(table).table
    assert sb.PaperEnergy("horowitz_45nm") == sb.PaperEnergy()
    assert sb.SynopEnergy("loihi_14nm") == sb.SynopEnergy()
    for take in (sb.DigitalEnergy, sb.PaperEnergy, sb.SynopEnergy, Chip):
        for wrong in (3, None, "nope"):
            with pytest.raises(InputError, match=r"expected one of .*, or the path of a \.toml file; got"):
                take(wrong)
    for wrong in ("3", None, True, [3]):
        with pytest.raises(InputError, match=r"AdaptiveThreshold\.k: expected a number, got"):
            sb.neuron_with_k(wrong)


# Names of classes that are not registered


class Code(sb.Ternary):
    """No dataclass of its own: its repr does not show `limit`."""

    def __init__(self, limit=3):
        object.__setattr__(self, "limit", limit)


@dataclass(frozen=True)
class Hidden(sb.AdaptiveThreshold):
    tables: object = field(default=None, repr=False)


class Plain(Backend):
    __slots__ = ("depth",)

    def __init__(self, depth):
        self.depth = depth

    def _accumulate(self, spikes, timestep_weight, weight):
        return (spikes * timestep_weight[:, None, None]).sum(0) @ weight.T.long()


OF_OTHERS = [
    *(len, [].append, range(3), range(4), torch.int8, torch.int16, slice(1), slice(2), Path("a"), Path("b")),
    *(np.float32(1), np.float32(2), np.arange(2), np.arange(3), Fraction(1, 2), Fraction(1, 3)),
    *(date(2020, 1, 1), date(2020, 1, 2), partial(max, 1), partial(max, 2), re.compile("a"), re.compile("b")),
    *(Code(3).timesteps_for, Code(4).timesteps_for, nn.ReLU(), nn.Dropout(0.2)),
]
DIFFERENT = [
    *(Code(limit) for limit in (3, 4, 3.0, "3", None, (3,), [3], {"a": 3}, {3})),
    *(Hidden(tables=tables) for tables in (None, torch.ones(2), torch.ones(2, dtype=torch.int32), torch.zeros(2))),
    *(Hidden(tables=tables) for tables in (sb.Ternary(), Code(3), Code(4), print, lambda x: x, lambda x: x + 1)),
    *(
        Hidden(tables=tables)
        for tables in (len, [].append, range(3), range(4), torch.int8, torch.int16, slice(1), slice(2))
    ),
    *(
        Hidden(tables=tables)
        for tables in (np.float32(1), np.float32(2), np.arange(2), np.arange(3), Path("a"), Path("b"))
    ),
    *(Hidden(tables=tables) for tables in (Fraction(1, 2), Fraction(1, 3), date(2020, 1, 1), date(2020, 1, 2))),
    *(Hidden(tables=tables) for tables in (partial(max, 1), partial(max, 2), re.compile("a"), re.compile("b"))),
    *(Hidden(tables=tables) for tables in (Code(3).timesteps_for, Code(4).timesteps_for, nn.ReLU(), nn.Dropout(0.2))),
    Hidden(k=2.0),
    Plain(1),
    Plain(2),
    Chip("loihi", on_simulation=print),
    Chip("async-45nm", on_simulation=print),
    sb.Ternary(),
    sb.AdaptiveThreshold(),
    sb.AdaptiveThreshold(k=2.0),
]


def test_different_settings_have_different_names():
    assert len({describe(value) for value in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.slow
def test_equal_settings_have_the_same_name_without_addresses():
    holder = Code()
    object.__setattr__(holder, "itself", holder)
    for value in (*DIFFERENT, holder):
        assert "0x" not in describe(value)
        assert describe(value) == describe(value)
    assert describe(Code(7)) == describe(Code(7)) == label(Code(7))
    assert label(Code(7)).startswith("Code(limit=7) #")
    assert describe(Plain(1)) == describe(Plain(1))
    assert describe(Hidden(tables=torch.ones(2))) == describe(Hidden(tables=torch.ones(2)))
    assert label(sb.AdaptiveThreshold()) == "AdaptiveThreshold(k=3.0, floor=1e-05, ceiling=10000.0)"


SCRIPT = """
import spikebrain as sb
from spikebrain.registry import describe
class Own(sb.Ternary):
    def __init__(self): object.__setattr__(self, "parts", frozenset(["a", "b", "c"]))
    def timesteps_for(self, max_count): return max(LEAST, max_count)
print(describe(Own()))
"""


@pytest.mark.slow
def test_the_name_is_the_same_in_another_process_until_the_class_is_edited():
    def name(script):
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    first = name(SCRIPT.replace("LEAST", "1"))
    assert first.startswith("Own(")
    assert name("# another line\n" + SCRIPT.replace("LEAST", "1")) == first
    assert name(SCRIPT.replace("LEAST", "2")) != first
