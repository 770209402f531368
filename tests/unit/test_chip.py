"""The chip by hand: descriptions and their faults, mapping, a layer in numbers."""

import json
import tomllib
from dataclasses import fields, make_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import spikebrain
from spikebrain.chip import (
    COMPONENTS,
    Activity,
    Description,
    InOrder,
    MinimalTraffic,
    Together,
    load_description,
    num_packet_hops,
    plan,
    simulate_layer,
)
from spikebrain.chip.description import PARTS, parse_description
from spikebrain.chip.mapping import check_registers, route
from spikebrain.errors import InputError

PRESETS = Path(spikebrain.__file__).parent / "chip" / "presets"
ASYNC = load_description("async-45nm")


def content(name="async-45nm"):
    return tomllib.loads((PRESETS / f"{name}.toml").read_text())


def changed(chip, **parts):
    return replace(chip, **{part: replace(getattr(chip, part), **values) for part, values in parts.items()})


@pytest.mark.parametrize("name", ["ideal-45nm", "async-45nm", "loihi", "sliced-45nm"])
def test_every_number_of_a_preset_has_a_source(name):
    chip = load_description(name)
    for part in PARTS:
        for key in vars(getattr(chip, part)):
            process, source = chip.sources[f"{part}.{key}"]
            assert process.endswith("nm"), key
            assert source.strip(), key


@pytest.mark.parametrize(
    ("part", "key", "entry", "message"),
    [
        ("core", "add_nj", {"value": 1.0, "source": "x"}, "core.add_nj: unknown; the unit is wrong: expected add_"),
        ("core", "lane", {"value": 1, "source": "x"}, "core.lane: unknown; did you mean lanes?"),
        ("core", "add_pj", None, "core.add_pj: missing"),
        ("core", "add_pj", {"value": -0.1, "source": "x"}, "add_pj: expected a number from 0 to 1e+12, got -0.1"),
        ("core", "add_pj", {"value": True, "source": "x"}, "add_pj: expected a number from 0 to 1e+12, got True"),
        ("core", "add_pj", {"value": 0.1, "source": " "}, "core.add_pj: expected a source, got ' '"),
        ("core", "add_pj", 0.1, "core.add_pj: expected { value = ..., source ="),
        ("core", "add_ns", {"value": 0.0001, "source": "x"}, "core.add_ns: expected a multiple of 0.001 ns"),
        ("core", "off_share", {"value": 1.5, "source": "x"}, "core.off_share: expected a number from 0 to 1, got 1.5"),
        ("core", "off_pj", {"value": 1.0, "source": "x"}, "core.off_pj: unknown; the unit is wrong: expected off_"),
        ("core", "lanes", {"value": 0, "source": "x"}, "core.lanes: expected an integer in [1, 2^31), got 0"),
        ("packet", "payload", {"value": "float", "source": "x"}, "packet.payload: expected one of spike, count"),
        ("handshake", "phases", {"value": 3, "source": "x"}, "handshake.phases: expected one of 2, 4, got 3"),
        ("barrier", "tiles", {"value": [1], "source": "x"}, "barrier: expected rising tiles and as many ns"),
    ],
)
def test_faults_of_a_description_name_key_and_file(part, key, entry, message):
    given = content()
    if entry is None:
        del given[part][key]
    else:
        given[part][key] = entry
    with pytest.raises(InputError) as error:
        parse_description(given, "mine", "mine.toml")
    assert "mine.toml" in str(error.value)
    assert message in str(error.value)


def test_all_faults_at_once_and_unknown_parts():
    given = content()
    del given["dram"]
    given["fpga"] = {}
    given["core"]["lanes"]["value"] = 1.5
    with pytest.raises(InputError, match=r"3 fault\(s\)"):
        parse_description(given, "mine", "mine.toml")
    with pytest.raises(InputError, match="expected one of async-45nm, ideal-45nm, loihi, sliced-45nm, or the path"):
        load_description("truenorth")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"expected 'format = 1' at the top of the file, but it has no format version.*async-45nm.toml and add"),
        ({"format": 2}, "expected 'format = 1', got format = 2: the file is for another version of spikebrain"),
        ({"format": "1"}, "expected 'format = 1', got format = '1'"),
    ],
)
def test_other_formats_are_refused_before_anything_else(given, message):
    without = {key: value for key, value in content().items() if key not in ("format", "core")}
    with pytest.raises(InputError, match=f"^mine.toml: {message}") as error:
        parse_description(without | given, "mine", "mine.toml")
    assert "[core]" not in str(error.value)


@pytest.mark.parametrize("name", ["ideal-45nm", "async-45nm", "loihi", "sliced-45nm"])
def test_a_description_travels_whole(name):
    chip = changed(load_description(name), core={"add_pj": 0.25}, barrier={"tiles": (1, 4), "ns": (2.0, 3.5)})
    chip = changed(chip, packet={"payload": "spike"})
    again = Description.from_dict(json.loads(json.dumps(chip.to_dict())))
    assert again == chip
    assert hash(again) == hash(chip)
    assert again.sources == chip.sources
    assert again != changed(chip, core={"add_pj": 0.5})
    # Chips are equal as part of other settings.
    holder = make_dataclass("Holder", [("chip", Description)], frozen=True)
    assert holder(again) == holder(chip)
    with pytest.raises(InputError, match=r"core\.add_pj have none"):
        replace(chip, sources={key: s for key, s in chip.sources.items() if key != "core.add_pj"}).to_dict()
    with pytest.raises(InputError, match="expected a text as 'name', got None"):
        Description.from_dict(content(name))


def test_energy_components_use_every_energy_of_a_chip_once():
    counts = {f.name for f in fields(Activity)}
    used = [key for component in COMPONENTS.values() for _, *keys in component.terms for key in keys]
    for component in COMPONENTS.values():
        for count, *keys in component.terms:
            assert count in counts, (component.name, count)
            assert all(ASYNC.value(key) is not None for key in keys)
            assert keys[-1].endswith("_mw" if count.endswith("_ps") else "_pj"), (component.name, keys)
    energies = [f"{part}.{f.name}" for part, kind in PARTS.items() for f in fields(kind)]
    energies = [key for key in energies if key.endswith(("_pj", "_mw"))]
    # A core leaks awake, asleep and switched off.
    expected = sorted([*energies, "core.leakage_mw", "core.leakage_mw"])
    assert sorted(key for key in used if key.endswith(("_pj", "_mw"))) == expected
    shares = [f"{part}.{f.name}" for part, kind in PARTS.items() for f in fields(kind) if f.name.endswith("_share")]
    assert sorted(key for key in used if key.endswith("_share")) == sorted(shares)
    for key in ("core.add_nj", "fpga.add_pj", "core"):
        with pytest.raises(InputError, match=r"expected a key such as 'core\.add_pj'"):
            ASYNC.value(key)


def test_energy_by_hand():
    chip = changed(ASYNC, handshake={"phases": 4, "transition_pj": 0.5}, core={"leakage_mw": 2.0, "add_pj": 0.25})
    done = Activity(num_synops=8, num_handshakes=3, leaking_core_ps=1000)
    found = {name: energy for name, energy in done.energy_pj(chip).items() if energy}
    # 8 additions of 0.25 pJ; 3 handshakes of 4 transitions of 0.5 pJ; 2 mW for 1 ns are 2 pJ.
    assert found == {"compute": 2.0, "handshakes": 6.0, "leakage": 2.0}
    # 2 mW for 1 ns awake; a quarter of it for 4 ns asleep, an eighth for 16 ns switched off; 3 cores woken.
    chip = changed(chip, core={"sleep_share": 0.25, "off_share": 0.125, "wake_pj": 5.0})
    done += Activity(sleeping_core_ps=4000, off_core_ps=16000, num_wakes=3)
    assert done.energy_pj(chip)["leakage"] == 2.0 + 2.0 + 4.0 + 15.0


OPTIONAL = ("register_accumulators", "register_pj", "sleep_share", "off_share", "wake_pj", "wake_ns")


def test_files_without_the_keys_that_came_later_go_on_loading():
    given = content()
    for key in OPTIONAL:
        del given["core"][key]
    old = parse_description(given, ASYNC.name, "old.toml")
    assert replace(old, sources=ASYNC.sources) == ASYNC
    assert old.sources["core.off_share"] == ("45 nm", "not in the file: no core is switched off")
    assert Description.from_dict(old.to_dict()).sources == old.sources
    # A description made in Python without them: no source is asked for where nothing was said.
    made = replace(old, sources={key: s for key, s in old.sources.items() if key.partition(".")[2] not in OPTIONAL})
    assert Description.from_dict(made.to_dict()) == old
    with pytest.raises(InputError, match=r"every number; core\.sleep_share have none"):
        changed(made, core={"sleep_share": 0.5}).to_dict()


def test_routes_go_along_rows_first():
    assert route((2, 0), (0, 1)) == [((2, 0), (1, 0)), ((1, 0), (0, 0)), ((0, 0), (0, 1))]


def test_cuts_by_hand():
    # A core holds 100 rows of columns with 4 + 4 bytes of sums a bank, 2 banks: 2000 // (100 + 16) = 17 columns.
    chip = changed(ASYNC, core={"sram_bytes": 2000})
    placement = InOrder().place(100, 40, chip)
    assert [len(block) for block in placement.output_blocks] == [14, 13, 13]
    assert placement.num_input_blocks == 1
    # One core a tile, at most 4 rows: a column of 3 tiles; home in the corner.
    assert (placement.columns, placement.rows, placement.home) == (1, 3, (0, 0))
    # 100 channels cross both links of the tree; 13 sums one link, 13 two.
    assert num_packet_hops(placement) == 200 + 13 + 26
    # From the tile in the middle: two links for spikes as well, 14 + 13 sums over one link each.
    assert num_packet_hops(replace(placement, home=(0, 1))) == 200 + 14 + 13
    # Least traffic: three blocks of inputs are 100 + 40 * 3 packets, three blocks of outputs 100 * 3 + 40.
    assert MinimalTraffic().cut(100, 40, chip) == (3, 1)


def test_accumulators_in_registers_by_hand():
    # As above, but a core has 20 accumulators, so 10 outputs of 2 tokens: four blocks of 40 outputs instead of three.
    chip = changed(ASYNC, core={"sram_bytes": 2000, "register_accumulators": 20, "register_pj": 2.5})
    placement = InOrder().place(100, 40, chip)
    assert [len(block) for block in placement.output_blocks] == [10, 10, 10, 10]
    # Only the sums that meet need memory: 4 bytes for each of 2 tokens. 2000 // (100 + 8) = 18 columns instead of 17.
    wide = changed(chip, core={"register_accumulators": 1000})
    assert [len(block) for block in InOrder().place(100, 36, wide).output_blocks] == [18, 18]
    assert len(InOrder().place(100, 36, changed(wide, core={"register_accumulators": 0})).cores) == 3
    # Two packets read and write ten accumulators each, at 2.5 pJ.
    spikes = np.zeros((1, 1, 100), np.int8)
    spikes[0, 0, [3, 70]] = 1
    run = (np.ones(1), np.ones((100, 40), np.int8))
    found = simulate_layer(spikes, *run, chip, placement)
    assert (found.activity.num_updates, found.activity.num_register_updates) == (0, 80)
    assert found.energy_pj["accumulators"] == 200.0
    assert found.sums.tolist() == [[2] * 40]
    # Nothing but these updates differs from the same cores with their sums in memory.
    memory = simulate_layer(spikes, *run, changed(chip, core={"register_accumulators": 0}), placement)
    assert memory.energy_pj == {**found.energy_pj, "accumulators": 800.0}
    assert np.array_equal(memory.end_ps, found.end_ps)
    for stream in (True, False):
        for cut in plan({"up": (100, 40)}, chip, InOrder(), stream=stream)["up"].output_blocks:
            assert len(cut) <= 10


def test_registers_that_are_too_few():
    chip = changed(ASYNC, core={"register_accumulators": 10, "register_pj": 2.5})
    wide = InOrder().place(4, 6, ASYNC)
    for check in (
        lambda: check_registers(wide, chip, "layers.0.up"),
        lambda: plan({"layers.0.up": (4, 6)}, chip, Wide()),
    ):
        with pytest.raises(
            InputError, match=r"^layers\.0\.up: .*(needs 12 accumulators in registers|12 accumulators)"
        ) as error:
            check()
        assert "10" in str(error.value)
    with pytest.raises(
        InputError, match=r"^simulate_layer: a core needs 12 .* core\.register_accumulators = 10\. Enlarge"
    ):
        simulate_layer(np.ones((1, 1, 4), np.int8), np.ones(1), np.ones((4, 6), np.int8), chip, wide)
    one = changed(chip, core={"register_accumulators": 1})
    message = r"^down: an output needs 2 accumulators in registers.* has core\.register_accumulators = 1\. Enlarge them"
    for stream in (True, False):
        with pytest.raises(InputError, match=message):
            plan({"down": (4, 6)}, one, InOrder(), stream=stream)
    few = changed(chip, mesh={"columns": 2, "rows": 2})
    with pytest.raises(InputError, match=r"needs 20 cores of 131,072 bytes and 10 accumulators in registers"):
        InOrder().place(4, 100, few)
    given = content()
    given["core"]["register_accumulators"]["value"] = 64
    del given["core"]["register_pj"]
    with pytest.raises(InputError, match=r"core\.register_pj: missing, since core\.register_accumulators says"):
        parse_description(given, "mine", "mine.toml")


class Wide(InOrder):
    """A mapping of somebody else, which knows nothing of registers."""

    def cut(self, in_features, out_features, chip):
        return 1, 1


def test_a_plan_gives_every_layer_tiles_of_its_own():
    chip = changed(ASYNC, core={"sram_bytes": 2000}, mesh={"columns": 6, "rows": 5})
    layers = {f"layer {i}": shape for i, shape in enumerate([(100, 40), (100, 10), (30, 100), (100, 60), (10, 10)])}
    placed = plan(layers, chip, InOrder())
    used = [core.tile for p in placed.values() for core in p.cores]
    assert len(set(used)) == len(used)
    assert all(0 <= x < 6 and 0 <= y < 5 for x, y in used)
    needed = sum(len(p.cores) for p in placed.values())
    with pytest.raises(InputError, match=rf"5 layers need {needed} cores of 2,000 bytes.*the chip has 4 cores"):
        plan(layers, changed(chip, mesh={"columns": 2, "rows": 2}), InOrder())
    with pytest.raises(InputError, match="needs 26 cores of 2,000 bytes, the chip has 4"):
        InOrder().place(100, 440, changed(chip, mesh={"columns": 2, "rows": 2}))
    assert plan(layers, changed(chip, mesh={"columns": 2, "rows": 2}), InOrder(), stream=True).keys() == layers.keys()


def test_blocks_of_memory_by_hand():
    # Rows of 3 bytes in blocks of 4: row 0 in block 0, row 1 in blocks 0 and 1, row 2 in 1 and 2, row 3 in 2.
    chip = changed(ASYNC, core={"block_bytes": 4})
    placement = InOrder().place(4, 3, chip)
    weight = np.ones((4, 3), np.int8)
    for active, expected in (([1, 1, 1, 1], 3), ([0, 1, 0, 0], 2), ([1, 0, 0, 1], 2), ([0, 0, 0, 0], 0)):
        spikes = np.array([[active]], np.int8)
        found = simulate_layer(spikes, np.ones(1), weight, chip, placement)
        assert found.activity.num_sram_blocks == expected
    # Streamed, the same blocks come from DRAM.
    chip = changed(chip, dram={"block_bytes": 4})
    placement = InOrder().place(4, 3, chip, streamed=True)
    found = simulate_layer(np.array([[[0, 1, 0, 0]]], np.int8), np.ones(1), weight, chip, placement)
    assert (found.activity.num_dram_blocks, found.activity.num_sram_blocks) == (2, 0)


def test_a_layer_in_numbers():
    """Two channels with counts 3 (two spikes, weights 2 and 1) and -1, two outputs, one core."""
    spikes = np.array([[[1, 0]], [[1, -1]]], np.int8)
    weight = np.array([[10, 1], [20, 2]], np.int8)
    placement = InOrder().place(2, 2, ASYNC)
    found = simulate_layer(spikes, np.array([2, 1]), weight, ASYNC, placement)
    assert found.sums.tolist() == [[10, 1]]
    a = found.activity
    # Three spikes of two outputs; one of them shifted. Two packets read and write two sums each.
    assert (a.num_synops, a.num_shifts, a.num_updates) == (6, 2, 4)
    # Two rows of two bytes in one block of 32. Packets at the core: two and an end; two sums to the digital unit.
    assert (a.num_sram_blocks, a.num_received, a.num_sent, a.num_spikes) == (1, 3 + 2, 2, 2)
    assert (a.num_east_west, a.num_north_south, a.num_partial_adds) == (0, 0, 0)
    # Handed on: 3 packets to the core, 2 sums sent, 2 collected.
    assert a.num_handshakes == 3 + 2 + 2
    energy = found.energy_pj
    assert energy["compute"] == pytest.approx(6 * 0.1 + 2 * 0.03)
    assert energy["accumulators"] == pytest.approx(4 * 10)
    assert energy["weight reads"] == pytest.approx(80)
    assert energy["encoding"] == pytest.approx(2 * 0.9 + 14.8 + 2 * 4.6 + 2 * 0.1)
    # Spike by spike: three packets, and the row of the first channel is still there for its second spike.
    chip = changed(ASYNC, packet={"payload": "spike"})
    found = simulate_layer(spikes, np.array([2, 1]), weight, chip, placement)
    assert (found.activity.num_synops, found.activity.num_updates, found.activity.num_spikes) == (6, 6, 3)


@pytest.mark.slow
def test_a_large_layer():
    """The widest layer of SpikingBrain-7B: 3584 x 18944 on the 32 x 32 cores of async-45nm."""
    rng = np.random.default_rng(0)
    spikes = rng.choice(np.array([-1, 0, 0, 0, 1], np.int8), (3, 2, 3584))
    weight = rng.integers(-127, 128, (3584, 18944), np.int8)
    timestep_weight = np.array([1, 2, 4])
    placement = InOrder().place(3584, 18944, ASYNC)
    found = simulate_layer(spikes, timestep_weight, weight, ASYNC, placement)
    value = np.tensordot(timestep_weight, spikes, 1)
    # Exact in float64: sums stay below 7 * 127 * 3584 < 2^53.
    assert np.array_equal(found.sums, (value.astype(float) @ weight.astype(float)).astype(np.int64))
    assert found.activity.num_synops == np.count_nonzero(spikes) * 18944
    assert found.activity.num_macs == 2 * 3584 * 18944


def test_times_that_do_not_fit():
    placement = InOrder().place(2, 2, ASYNC)
    run = (np.ones((1, 1, 2), np.int8), np.ones(1), np.ones((2, 2), np.int8), ASYNC, placement)
    with pytest.raises(InputError, match=r"^chip: expected times below"):
        simulate_layer(*run, arrival_ps=np.array([2**62]))


def test_bits_of_packets():
    spikes = np.ones((1, 1, 4), np.int8)
    placement = InOrder().place(4, 1, ASYNC)
    for packet, message in (
        ({"address_bits": 1}, "can't address 4 channels. Set it to 2"),
        ({"payload_bits": 3}, "Set it to 4"),
    ):
        with pytest.raises(InputError, match=message):
            simulate_layer(spikes, np.array([7]), np.ones((4, 1), np.int8), changed(ASYNC, packet=packet), placement)


def test_channels_that_fire_together_share_blocks():
    # Channels 0 and 2 fire for even tokens, 1 and 3 for odd ones; two rows a block.
    active = np.array([[1, 0, 1, 0], [0, 1, 0, 1]] * 3, bool)
    chip = changed(ASYNC, core={"block_bytes": 2})
    placement = InOrder().place(4, 1, chip)
    run = (active[None].astype(np.int8), np.ones(1), np.ones((4, 1), np.int8), chip, placement)
    assert simulate_layer(*run, overlap=False).activity.num_sram_blocks == 12
    order = Together().order(active)
    assert sorted(order[:2].tolist()) in ([0, 2], [1, 3])
    assert simulate_layer(*run, order=order, overlap=False).activity.num_sram_blocks == 6
