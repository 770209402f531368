"""Tables of energies: what comes with the package, and every fault of a file."""

import pytest
from made_counts import counts_with

from spikebrain.energy import (
    DigitalEnergy,
    PaperEnergy,
    load_table,
    table_names,
)
from spikebrain.errors import InputError


def test_horowitz():
    table = load_table()
    # A MAC is a multiplication and an addition.
    for kind, mac in (("int8", 0.23), ("fp16", 1.5), ("fp32", 4.6)):
        assert table[f"{kind}_mac"] == pytest.approx(table[f"{kind}_mul"] + table[f"{kind}_add"]) == pytest.approx(mac)
    assert (table["int8_add"], table["int32_add"], table["int32_mul"]) == (0.03, 0.1, 3.1)
    # 64 bits an access: 10, 20 and 100 pJ are 1.25, 2.5 and 12.5 pJ a byte.
    assert [table.entry(f"sram_{n}").pj_per_byte for n in ("8kb", "32kb", "1mb")] == [1.25, 2.5, 12.5]
    assert "45 nm" in table.process
    assert table.sram(8192) == "sram_8kb"
    with pytest.raises(InputError, match="at most 1,048,576 bytes, got 2,000,000"):
        table.sram(2_000_000)


@pytest.mark.parametrize("name", table_names())
def test_every_table_has_sources(name):
    table = load_table(name)
    assert all(entry.source and entry.node and entry.bits for entry in table.entries.values())
    if "int8_add" in table:
        DigitalEnergy(table)
    else:
        assert "synop" in table
        with pytest.raises(InputError, match=f"{name}: lacks .*int8_add.*SynopEnergy"):
            DigitalEnergy(table)


def test_what_stands_in_for_a_missing_entry():
    report = DigitalEnergy(load_table("jouppi_7nm"), accumulator_width=16).estimate(counts_with(113))
    assert any("16-bit additions cost as much as 32-bit ones" in text for text in report.assumptions)
    assert any("a shift costs as much as an addition" in text for text in report.assumptions)
    assert "dram" not in report.unverified
    assert "sram_32kb" in report.unverified


GOOD = """
format = 1
process = "7 nm"
source = "a paper"
version = "1"
convention = "64 bits"
[sources]
a = "a paper"
[entries.int8_add]
pj = 0.007
bits = 8
node = "7 nm"
source = "a"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('process = "7 nm"', "", "process: expected a text, got None"),
        ('convention = "64 bits"', "convention = ' '", "convention: expected a text, got ' '"),
        ('version = "1"', "version = 1", "version: expected a text, got 1"),
        ('a = "a paper"', 'a = ""', r"sources\.a"),
        ("bits = 8\n", "", r"entries\.int8_add\.bits: expected an integer from 1 to 2\^50, got None"),
        ("pj = 0.007", "pj = -1", r"entries\.int8_add\.pj: expected a number from 0 to 1e\+12, in picojoules, got -1"),
        ("pj = 0.007", "pj = nan", r"entries\.int8_add\.pj"),
        ("pj = 0.007", "pj = '1'", r"entries\.int8_add\.pj"),
        ("pj = 0.007", "joule = 1", r"entries\.int8_add\.joule: unknown; expected one of pj, bits"),
        ('source = "a"\n', "", r"entries\.int8_add\.source: expected one of a, as in \[sources\], got None"),
        ('source = "a"\n', 'source = "b"\n', r"one of a, as in \[sources\], got 'b'"),
        ('node = "7 nm"', "node = 7", r"entries\.int8_add\.node"),
        ("[entries.int8_add]", "[entries.sram_x]", r"entries\.sram_x\.capacity_bytes"),
        ("[entries.int8_add]", "[other]", r"2 fault\(s\):\n  other: unknown.*\n  entries: expected a table"),
        ("format = 1", "", r"expected 'format = 1' at the top.*horowitz_45nm.toml and add the line"),
        ("format = 1", "format = 2", "got format = 2: the file is for another version of spikebrain"),
        ("format = 1", "format = true", "got format = True"),
        ("pj = 0.007", "pj = ", "TOML"),
    ],
)
def test_bad_tables(tmp_path, old, new, message):
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    assert load_table(path)["int8_add"] == 0.007
    with pytest.raises(InputError, match="expected an entry 'fp16_mac'"):
        PaperEnergy(load_table(path)).estimate(counts_with())
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        load_table(path)
    assert "own.toml" in str(error.value)


def test_all_faults_of_a_table_at_once(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(GOOD.replace("pj = 0.007", "pj = -1").replace("bits = 8\n", "").replace('version = "1"', ""))
    with pytest.raises(InputError, match=r"3 fault\(s\)") as error:
        load_table(path)
    assert all(f"\n  {key}: expected" in str(error.value) for key in ("version", "entries.int8_add.pj"))
    assert "\n  entries.int8_add.bits: expected an integer from 1 to 2^50, got None" in str(error.value)


def test_unknown_table_and_options(as_users):
    with pytest.raises(InputError, match="horowitz_45nm"):
        load_table("horowitz_3nm")
    for options, name in (
        ({"reads_per": "row"}, "reads_per"),
        ({"sums_in": "dram"}, "sums_in"),
        ({"accumulator_width": 24}, "accumulator_width"),
        ({"leakage_w": -1.0}, "leakage_w"),
        ({"sram_bytes": 0}, "sram_bytes"),
        ({"sram_bytes": 2**30}, "SRAM"),
    ):
        with pytest.raises(InputError, match=name):
            DigitalEnergy(**options)
    free = load_table().scaled("fp16_mac", 0.0)
    with pytest.raises(InputError, match="expected fp16_mac > 0"):
        PaperEnergy(free).estimate(counts_with())
    odd = load_table().scaled("int32_add", 0.1)
    with pytest.raises(InputError, match="int32_add >= int8_add"):
        DigitalEnergy(odd).estimate(counts_with())
