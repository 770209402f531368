"""Recordings in the files of other tools, and back to equal values; what the command writes."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import spikebrain as sb
from spikebrain import lazy
from spikebrain.energy import count_operations, neurobench_results
from spikebrain.errors import CheckpointError, InputError
from spikebrain.exchange import RECORDING_SUFFIXES, recordings
from spikebrain.models.recording.tables import COLUMNS, recording_of, tables_of

pytestmark = pytest.mark.usefixtures("as_users")
NEEDS = {".h5": "h5py", ".hdf5": "h5py", ".parquet": "pyarrow"}


@pytest.fixture
def recording(tiny_llama):
    """Two calls of one and three tokens; layers of two codes, one that did not run, with trains of both signs."""
    neurons = {"*down_proj": sb.AdaptiveThreshold(9.0), "*": sb.AdaptiveThreshold()}
    spiking = sb.to_spiking(tiny_llama, sb.SpikeSettings(neuron=neurons))
    spiking.model.layers[0].mlp.up_proj.encoder = sb.Binary()
    with sb.record(spiking, keep_trains=True, layers=("*mlp*",)) as found, torch.no_grad():
        spiking(torch.arange(1)[None])
        spiking(torch.arange(3)[None])
    return found


def assert_same(found, expected):
    ours, theirs = tables_of(found), tables_of(expected)
    assert found.layers == expected.layers
    assert (found.modules, found.order, found.unsupported, found.model) == (
        expected.modules,
        expected.order,
        expected.unsupported,
        expected.model,
    )
    for table, kinds in COLUMNS.items():
        for name in kinds:
            np.testing.assert_array_equal(ours[table][name], theirs[table][name])
    for name, trains in expected.trains.items():
        for a, b in zip(found.trains[name], trains, strict=True):
            assert torch.equal(a.spikes, b.spikes)
            assert torch.equal(a.timestep_weight, b.timestep_weight)
            assert a.zero_point == b.zero_point


@pytest.mark.parametrize("suffix", RECORDING_SUFFIXES)
@pytest.mark.parametrize("kind", ["trains", "no trains", "nothing ran"])
def test_back_to_equal_values(tmp_path, recording, tiny_llama, suffix, kind):
    pytest.importorskip(NEEDS.get(suffix, "numpy"), reason="pip install 'spikebrain[exchange]'")
    if kind != "trains":
        spiking = sb.to_spiking(tiny_llama)
        with sb.record(spiking) as other, torch.no_grad():
            if kind == "no trains":
                spiking(torch.arange(3)[None])
        recording = other
    sb.export(recording, tmp_path / f"it{suffix}")
    found = sb.read_recording(tmp_path / f"it{suffix}")
    assert_same(found, recording)
    assert count_operations(found) == count_operations(recording)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [f"it{suffix}"]


def test_tables_by_hand():
    """Threshold 0.5, counts 2, -2, 8 and 0: bidirectional digits of weights 8, 4, 2 and 1."""
    layer = sb.SpikeLinear.from_linear(nn.Linear(4, 2))
    with sb.record(layer, keep_trains=True) as recording, torch.no_grad():
        layer(torch.tensor([[1.0, -1.0, 4.0, 0.0]]))
    tables = {
        table: {name: c.tolist() for name, c in columns.items()} for table, columns in tables_of(recording).items()
    }
    assert tables["histogram"] == {"layer": [0] * 4, "count": [-2, 0, 2, 8], "num_channels": [1] * 4}
    assert tables["weights"] == {"train": [0] * 4, "timestep": [0, 1, 2, 3], "weight": [8, 4, 2, 1]}
    spikes = {"train": [0] * 3, "timestep": [0, 2, 2], "token": [0] * 3, "channel": [2, 0, 1], "value": [1, 1, -1]}
    assert tables["spikes"] == spikes
    assert tables["layers"]["num_spikes"] == [3]


def test_pandas(recording):
    pandas = pytest.importorskip("pandas", reason="pip install 'spikebrain[exchange]'")
    layers = recording.to_pandas()
    assert layers["num_spikes"].tolist() == [layer.num_spikes for layer in recording.layers.values()]
    spikes = recording.to_pandas("spikes")
    assert isinstance(spikes, pandas.DataFrame)
    assert len(spikes) == sum(layers["num_spikes"])
    with pytest.raises(InputError, match=r"Recording\.to_pandas\.table: expected one of layers, .*; got 'no'"):
        recording.to_pandas("no")


def test_parquet_is_one_row_a_layer(tmp_path, recording):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'spikebrain[exchange]'")
    sb.export(recording, tmp_path / "it.parquet")
    rows = parquet.read_table(tmp_path / "it.parquet").to_pylist()
    assert [row["name"] for row in rows] == list(recording.layers)
    first = next(iter(recording.layers.values()))
    assert {row["count"]: row["num_channels"] for row in rows[0]["histogram"]} == dict(first.count_histogram)
    assert sum(len(train["spikes"]) for train in rows[0]["trains"]) == first.num_spikes


def test_a_package_that_is_not_there(tmp_path, recording, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    events = sb.AEREvents.from_train(recording.trains["model.layers.0.mlp.up_proj"][0])
    export, to_nir = sb.export, sb.to_nir  # imported before
    monkeypatch.setattr(lazy, "import_module", missing)
    for call in (
        lambda: export(recording, tmp_path / "it.h5"),
        lambda: export(recording, tmp_path / "it.parquet"),
        recording.to_pandas,
        events.to_pandas,
        lambda: to_nir([]),
    ):
        with pytest.raises(InputError, match=r"needs \S+, which cannot.*Run pip install '\S+\[exchange\]'"):
            call()
    assert not list(tmp_path.glob("it*"))


def test_names_of_no_format(tmp_path, recording):
    for path in ("it", "it.csv", "it.npz.gz"):
        with pytest.raises(InputError, match=rf"export\.path \S*{path}: expected a name that ends in \.npz, \.h5"):
            sb.export(recording, tmp_path / path)
        with pytest.raises(InputError, match=r"read_recording\.path"):
            sb.read_recording(tmp_path / path)
    with pytest.raises(CheckpointError, match=r"it\.npz: cannot be read: No such file"):
        sb.read_recording(tmp_path / "it.npz")
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(CheckpointError, match=r"d\.npz: cannot be (read|written): Is a directory"):
        sb.read_recording(tmp_path / "d.npz")
    with pytest.raises(CheckpointError, match=r"d\.npz: cannot be written"):
        sb.export(recording, tmp_path / "d.npz")


CHANGES = {
    "another count": (lambda t: t["layers"]["num_spikes"].__setitem__(0, 1), "another checksum"),
    "no column": (lambda t: t["spikes"].pop("value"), "expected a table 'spikes' with the columns train, timestep"),
    "one more": (lambda t: t["spikes"].update(x=t["spikes"]["value"]), "expected a table 'spikes'"),
    "floats": (lambda t: t["layers"].update(num_tokens=t["layers"]["num_tokens"] * 1.5), "expected a table 'layers'"),
    "below 0": (lambda t: t["trains"]["num_tokens"].__setitem__(0, -1), "expected a table 'trains'"),
    "shorter": (lambda t: t["weights"].update(weight=t["weights"]["weight"][1:]), "columns of one length"),
    "format": (lambda t: t["run"]["format"].__setitem__(0, 1), "expected a recording in format 2, got format 1"),
    "no format": (lambda t: t.pop("run"), "got no format version"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_what_was_changed(tmp_path, recording, monkeypatch, change, message):
    tables = tables_of(recording)
    change(tables)
    with pytest.raises(InputError, match=f"^x: .*{message}"):
        recording_of(tables, "x", recordings.MAX_BYTES)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".parquet"])
def test_claims_are_checked_before_they_take_memory(tmp_path, recording, suffix):
    pytest.importorskip(NEEDS.get(suffix, "numpy"), reason="pip install 'spikebrain[exchange]'")
    sb.export(recording, tmp_path / f"it{suffix}")
    with pytest.raises(CheckpointError, match="at most max_bytes=99, the file claims"):
        sb.read_recording(tmp_path / f"it{suffix}", max_bytes=99)
    tables = tables_of(recording)
    tables["trains"]["num_tokens"][0] = 10**17
    with pytest.raises(InputError, match=r"trains of 3?\d{18,},?.*|another checksum"):
        recording_of(tables, "x", recordings.MAX_BYTES)


def test_trains_that_claim_too_much(recording, monkeypatch):
    tables = tables_of(recording)
    tables["trains"]["num_tokens"][0] = 10**17
    monkeypatch.setattr("spikebrain.models.recording.tables._checksum", lambda found: found["run"]["sha256"][0])
    with pytest.raises(InputError, match=r"trains of [\d,]{20,} bytes, more than max_bytes=8,589,934,592"):
        recording_of(tables, "x", recordings.MAX_BYTES)


def test_an_array_that_claims_more_than_its_file_has(tmp_path):
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000000,), }"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    recordings.zipfile.ZipFile(tmp_path / "it.npz", "w").writestr("run/format.npy", content)
    with pytest.raises(CheckpointError, match=r"it\.npz: expected columns .* claims 8,000,000,000,000,000,000"):
        sb.read_recording(tmp_path / "it.npz")


def test_hdf5_that_claims_more_than_its_file_has(tmp_path):
    h5py = pytest.importorskip("h5py", reason="pip install 'spikebrain[exchange]'")
    with h5py.File(tmp_path / "it.h5", "w") as file:
        file.create_dataset("run/format", (10**17,), "int64", chunks=(1024,))
    with pytest.raises(CheckpointError, match=r"it\.h5: expected columns .* the file claims 800,000,000,000,000,000"):
        sb.read_recording(tmp_path / "it.h5")


# NeuroBench


def test_neurobench_results_by_hand():
    """Counts 2, -2, 8, 0 of one token in ternary: 12 spikes; of two outputs, one weight is 0."""
    weight = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.int8)
    net = nn.Sequential(sb.SpikeLinear(weight, torch.ones(2, 1), encoder=sb.Ternary()), nn.Linear(2, 3, bias=False))
    with sb.record(net, keep_trains=True) as recording, torch.no_grad():
        net(torch.tensor([[1.0, -1.0, 4.0, 0.0]]))
    found = neurobench_results(net, recording)
    assert found == {
        "Footprint": 8 + 8 + 24,  # INT8 weights, two scales and six float weights
        "ConnectionSparsity": round(1 / 14, 4),
        "ActivationSparsity": 1 - 12 / 32,
        "SynapticOperations": {"Effective_MACs": 6.0, "Effective_ACs": 24.0 - 2, "Dense": 64.0 + 6},
        "MembraneUpdates": 16.0,
        "Sample": {"of": "token", "num_samples": 1},
    }
    assert neurobench_results(net, recording, 4, "text")["MembraneUpdates"] == 4.0
    with pytest.raises(InputError, match=r"neurobench_results\.sample"):
        neurobench_results(net, recording, 4)


# The command


@pytest.mark.slow
def test_the_command(run, model_folder, text, tmp_path):
    pytest.importorskip("nir", reason="pip install 'spikebrain[exchange]'")
    short = ("--text", text, "--num-tokens", 20, "--device", "cpu")
    code, shown, err = run("export", model_folder, "--out", tmp_path / "it.parquet", "--trains", *short)
    assert code == 0, err
    assert "Exported a recording with its trains: 14 spiking layers, 20 tokens." in " ".join(shown.split())
    found = sb.read_recording(tmp_path / "it.parquet")
    assert found.to_pandas("spikes")["train"].nunique() == 14
    code, _, err = run("export", model_folder, "--out", tmp_path / "it.parquet", *short)
    assert code == 2
    assert "is there already. Name another file, or pass --force to write over it." in err
    assert run("export", model_folder, "--out", tmp_path / "it.parquet", "--force", *short)[0] == 0
    assert not sb.read_recording(tmp_path / "it.parquet").trains
    code, shown, err = run("export", model_folder, "--out", tmp_path / "it.json", *short)
    assert code == 0, err
    assert json.loads((tmp_path / "it.json").read_text())["Sample"] == {"of": "token", "num_samples": 20}
    code, shown, err = run("export", model_folder, "--out", tmp_path / "it.nir")
    assert code == 0, err
    assert "Not said by it:" in shown
    code, _, err = run("export", model_folder, "--out", tmp_path / "it.csv", *short)
    assert code == 2
    assert "error: --out" in err
    assert "expected a name that ends in .npz, .h5, .hdf5, .parquet, .pftrace, .json, .nir, .safetensors; or" in err
    assert "or a --format, for the folder of a model." in err
