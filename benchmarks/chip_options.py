"""What each option of a chip saves: energy and latency per token of SmolLM2 on async-45nm, with each and with all.

    python benchmarks/chip_options.py TEXT [--num-tokens N] [--mode decode] [--out FILE.json]

The numbers of an option are those of the preset sliced-45nm, for cores of 128 KB; its file says where they are from.
Energies are simulated; nothing is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from timing import write_json

from spikebrain import SpikeSettings, load, to_spiking
from spikebrain.chip import Description, load_description
from spikebrain.simulation import simulate_model, survey_model
from spikebrain.simulation.stages import Survey

# 0.8 mW of async-45nm's 1 mW are its memory, 0.1 mW its 32 adders, 0.05 mW its router.
SLEEP = {"core.sleep_share": 0.187, "core.off_share": 0.145, "core.wake_pj": 1056.0, "core.wake_ns": 10.0}
REGISTERS = {"core.register_accumulators": 512, "core.register_pj": 2.0}
QUEUES = {"core.receive_pj": 2.5, "core.send_pj": 2.5}
# 16 slices of 8 KB and 8 adders: 96 adders more leak 0.3 mW, wires to 16 slices take 14.1 pJ a packet.
SLICES = {
    "core.block_bytes": 128,
    "core.lanes": 128,
    "core.access_pj": 160.0,
    "core.leakage_mw": 1.3,
    "core.receive_pj": 24.1,
}
LINKS = {"link.bandwidth_bits_per_ns": 64.0}
ROOM = {"mesh.columns": 35, "mesh.rows": 35}
# All of them in one core: 512 registers leak 0.05 mW.
ALL = {**SLICES, **SLEEP, **REGISTERS, **QUEUES, **LINKS, **ROOM, "core.receive_pj": 16.6, "core.leakage_mw": 1.35}
ALL |= {"core.sleep_share": 0.164, "core.off_share": 0.133}


def variants(chip: Description) -> list[tuple[str, Description, bool]]:
    """Return name, chip, and whether the output head spikes, of each variant."""
    alone = [
        ("idle cores sleep or are off", SLEEP),
        ("sums in registers", REGISTERS),
        ("queues in registers", QUEUES),
        ("memories of 8 KB beside 8 adders each", SLICES),
        ("links of 64 wires", LINKS),
    ]
    return [
        ("async-45nm", chip, False),
        *((name, chip.varied(values), False) for name, values in alone),
        ("head on spikes, 35 x 35 cores", chip.varied(ROOM), True),
        ("all of these", chip.varied(ALL), True),
        ("all, in cores of 256 KB: sliced-45nm", load_description("sliced-45nm"), True),
        ("sliced-45nm, its head left dense", load_description("sliced-45nm"), False),
    ]


def row_of(name: str, chip: Description, model: torch.nn.Module, ids: torch.Tensor, mode: str, kept: Survey) -> dict:
    """Simulate a variant and return its figures."""
    found = simulate_model(model, ids, chip, mode=mode, surveyed=kept)
    energy = {part: pj / len(ids) / 1e6 for part, pj in found.energy_pj.items()}
    return {
        "variant": name,
        "num_cores": sum(len(layer.placement.cores) for layer in found.layers.values()),
        "token_us": float(found.end_ps[-1]) / len(ids) / 1e6,
        "energy_uj": energy,
        "total_uj": sum(energy.values()),
        "pj_per_mac": sum(found.energy_pj.values()) / found.activity.num_macs,
        "num_macs": found.activity.num_macs // len(ids),
        "num_mismatches": sum(layer.num_mismatches for layer in found.layers.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--num-tokens", type=int, default=8)
    parser.add_argument("--mode", default="decode")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, tokenizer, _ = load("smollm2")
    ids = torch.tensor(tokenizer.encode(options.text.read_text()[:10_000], verbose=False))[: options.num_tokens]
    on_spikes: dict[bool, Any] = {}
    for head in (False, True):
        spiking = to_spiking(model, SpikeSettings(include_head=head))
        on_spikes[head] = spiking, survey_model(spiking, ids)
    rows = []
    for name, chip, head in variants(load_description("async-45nm")):
        spiking, kept = on_spikes[head]
        row = row_of(name, chip, spiking, ids, options.mode, kept)
        rows.append(row)
        parts = ", ".join(f"{part} {uj:.1f}" for part, uj in row["energy_uj"].items())
        print(
            f"{name}: {row['num_cores']} cores, {row['token_us']:.0f} us, {row['total_uj']:.0f} uJ a token ({parts}), "
            f"{row['pj_per_mac']:.2f} pJ for each of {row['num_macs'] / 1e6:.1f} M MACs, "
            f"{row['num_mismatches']} mismatches",
            flush=True,
        )
    write_json(options.out, rows, num_tokens=len(ids), mode=options.mode)


if __name__ == "__main__":
    main()
