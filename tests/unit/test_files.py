"""Reading and writing files: whatever is wrong is an error that says where; what is written is there whole or not."""

import errno
import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

import spikebrain.chip.description as chips
import spikebrain.energy.table as tables
from spikebrain import files
from spikebrain.chip import load_description
from spikebrain.energy import LayerCounts, ModelCounts, OperationCounts, load_table
from spikebrain.errors import CheckpointError, InputError
from spikebrain.jobs.energy import read_counts

pytestmark = pytest.mark.usefixtures("as_users")
TABLE = (tables._FOLDER / "horowitz_45nm.toml").read_bytes()
CHIP = (chips._FOLDER / "loihi.toml").read_bytes()
COUNTS = ModelCounts(
    {
        "layers.*.q_proj": LayerCounts(
            "projection",
            OperationCounts(num_spikes=12, num_synops=96, num_add_int32=96),
            OperationCounts(num_mac_int8=64),
            OperationCounts(num_mac_fp16=64),
            weight_count=64,
            accumulator_bits=17,
        ),
        "norm": LayerCounts("norm", *(OperationCounts(num_mul_fp32=8) for _ in range(3)), weight_count=8),
    },
    num_tokens=4,
    model="Tiny",
    neuron="AdaptiveThreshold(k=3.0)",
    encoder="Ternary()",
)
REPORT = json.dumps({"kind": "report", "format": 1, "energy": {"counts": COUNTS.to_dict()}}, indent=1).encode()


def written(tmp_path, content, name="it.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


NOT_JSON = {
    "nothing": ("", "expected JSON"),
    "cut short": ('{"a": [1,', "expected JSON"),
    "deep lists": ("[" * 100_000, "nests deeper"),
    "deep and whole": ("[" * 70 + "]" * 70, "expected at most 64 levels"),
    "deep objects": ('{"a":' * 500 + "1" + "}" * 500, "expected at most 64 levels"),
    "thousands of digits": ('{"a": ' + "9" * 5000 + "}", "expected JSON.*limit"),
    "no float": ('{"a": {"b": [0, ' + "9" * 400 + "]}}", r"a\.b\[1\]: expected a number below 1e308"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "expected UTF-8 text.*Save the file as UTF-8"),
    "Latin-1": (b'{"a": "\xe9"}', "expected UTF-8 text"),
}


@pytest.mark.parametrize(("content", "message"), NOT_JSON.values(), ids=NOT_JSON.keys())
def test_json_that_is_none(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(CheckpointError, match=rf"it\.json: .*{message}"):
        files.read_json(path, CheckpointError)


def test_json_that_is_fine(tmp_path):
    assert files.read_json(written(tmp_path, b'\xef\xbb\xbf{"a": [1, -2.5, null]}')) == {"a": [1, -2.5, None]}
    deep = "[" * 64 + "]" * 64
    assert files.parse_json(deep, "x") == json.loads(deep)
    assert files.parse_json(str(10**300), "x") == 10**300  # transformers writes 10^30 as a length


def test_a_folder_and_no_file_in_the_place_of_one(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        files.read_json(tmp_path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(InputError, match=r"a\.toml: cannot be read: Is a directory"):
        load_table(tmp_path / "a.toml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = written(tmp_path, "{}")
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        files.read_json(path)


@pytest.mark.parametrize("name", [3, None, "nope", "a\0b", "x" * 5000, b"horowitz_45nm", "../tables", ""])
@pytest.mark.parametrize("load", [load_table, load_description])
def test_names_of_nothing(load, name):
    with pytest.raises(InputError, match=r"expected one of .*, or the path of a \.toml file; got"):
        load(name)


_OF_A_NUMBER = r"(1 fault\(s\):\s+\S+pj: expected a number from 0 to 1e\+12|.*4300 digits|\S+: expected a number below)"


@pytest.mark.parametrize(
    "pj", ["1e308", "inf", "nan", "-1", "-inf", "1e400", "9" * 400, "9" * 5000, "0x" + "f" * 5000, "true", '"1"', "[]"]
)
def test_energies_that_are_none(tmp_path, pj):
    path = written(tmp_path, TABLE.replace(b"pj = 0.03\n", f"pj = {pj}\n".encode(), 1), "it.toml")
    with pytest.raises(InputError, match=rf"it\.toml: {_OF_A_NUMBER}"):
        load_table(path)
    chip = CHIP.replace(b"update_pj = { value = 21.6", f"update_pj = {{ value = {pj}".encode())
    path = written(tmp_path, chip, "it.toml")
    with pytest.raises(InputError, match=rf"it\.toml: {_OF_A_NUMBER}"):
        load_description(path)


def test_a_bandwidth_at_which_a_packet_takes_forever():
    content = load_description("async-45nm").to_dict()
    content["link"]["bandwidth_bits_per_ns"]["value"] = 1e-300
    with pytest.raises(InputError, match=r"link\.bandwidth_bits_per_ns: expected at least 1e-06"):
        chips.Description.from_dict(content)


# The counts of a report


def changed(tmp_path, change):
    content = json.loads(REPORT)
    change(content["energy"]["counts"])
    return written(tmp_path, json.dumps(content), "report.json")


def test_counts_come_back(tmp_path):
    assert read_counts(written(tmp_path, REPORT)) == COUNTS


Q = "layers.*.q_proj"
CHANGES = {
    "deleted": (lambda c: c["layers"][Q]["spiking"].pop("num_spikes"), r"layers\.layers\.\*\.q_proj: .*sha256"),
    "raised": (lambda c: c["layers"][Q]["spiking"].update(num_spikes=13), r"layers\.layers\.\*\.q_proj: .*sha256"),
    "negative": (lambda c: c["layers"][Q]["int8"].update(num_mac_int8=-1), r"q_proj\.int8: .*num_mac_int8: expected"),
    "a float": (lambda c: c["layers"][Q]["int8"].update(num_mac_int8=64.0), r"q_proj\.int8: .*got 64\.0"),
    "a text": (lambda c: c["layers"]["norm"]["fp16"].update(num_mul_fp32="8"), r"norm\.fp16: .*num_mul_fp32"),
    "unknown": (lambda c: c["layers"]["norm"]["fp16"].update(num_mull=8), r"layers\.norm\.fp16: .*num_mull"),
    "a layer less": (lambda c: c["layers"].pop("norm"), "counts: .*sha256"),
    "another name": (lambda c: c["layers"].update(other=c["layers"].pop("norm")), "counts: .*sha256"),
    "another kind": (lambda c: c["layers"]["norm"].update(kind="projection"), r"layers\.norm: .*sha256"),
    "tokens": (lambda c: c.update(num_tokens=5), "counts: .*sha256"),
    "no tokens": (lambda c: c.update(num_tokens=-4), "num_tokens: expected an integer >= 0, got -4"),
    "bits": (lambda c: c["layers"][Q].update(accumulator_bits=None), r"accumulator_bits: expected an integer >= 0"),
    "no checksum": (lambda c: c.pop("sha256"), "sha256"),
    "a list": (lambda c: c.update(layers=[]), "expected what to_dict wrote"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_counts_that_were_changed(tmp_path, change, message):
    with pytest.raises(InputError, match=rf"report\.json: .*{message}.*Run spikebrain report again"):
        read_counts(changed(tmp_path, change))


# Writing


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(tmp_path, monkeypatch, call):
    path = written(tmp_path, "old")
    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(CheckpointError, match=r"it\.json: cannot be written: No space left on device"):
        files.write_whole(path, "new", CheckpointError)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("it.json", "old")]


def test_a_writer_that_fails(tmp_path):
    def fail():
        with files.whole_file(tmp_path / "a") as partial:
            partial.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - its own
        fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError, match="a: cannot be written: "):
        files.write_json(tmp_path / "a", {})
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        files.make_folder(written(tmp_path, "") / "x")
    with pytest.raises(InputError, match="cannot be written: No such file"):
        files.write_json(tmp_path / "nowhere" / "x", {})


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_user(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write_json(tmp_path / "a", {})
        with files.whole_file(tmp_path / "b") as partial:
            save_file({"x": torch.ones(2)}, partial)  # makes files that nobody else can read
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o666 & ~mask}
