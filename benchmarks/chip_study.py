"""What an architect would ask: one token of SmolLM2 on variants of async-45nm, energy and latency of each.

    python benchmarks/chip_study.py TEXT [--num-tokens N] [--out FILE.json]

Every variant changes one thing of the preset. Energies are simulated, nothing is measured.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from timing import write_json

from spikebrain import Policy, convert, load
from spikebrain.analysis.chip_simulation import simulate_model
from spikebrain.backends.chip import COMPONENTS, Description, MinimalTraffic, load_description


def changed(chip: Description, **parts: dict) -> Description:
    """Return a chip with some values of its parts replaced."""
    return replace(chip, **{part: replace(getattr(chip, part), **values) for part, values in parts.items()})


def variants(chip: Description) -> list[tuple[str, Description, dict]]:
    """Return name, chip and options of each variant."""
    found: list[tuple[str, Description, dict]] = [
        ("as it is: a packet per active channel", chip, {}),
        ("a packet per spike", changed(chip, packet={"payload": "spike"}), {}),
        ("minimal traffic", chip, {"mapping": MinimalTraffic()}),
    ]
    for size in (8, 256, 2048):  # 20 pJ per 8 bytes, as 32 bytes take 80
        found.append(
            (f"blocks of {size} bytes", changed(chip, core={"block_bytes": size, "access_pj": 2.5 * size}), {})
        )
    for depth in (1, 2, 32):
        queues = {"link": {"queue_packets": depth}, "core": {"queue_packets": depth}}
        found.append((f"queues of {depth}", changed(chip, **queues), {}))
    for kib, side in ((64, 45), (256, 23), (512, 17)):
        mesh = {"columns": side, "rows": side}
        # A core leaks with its memory.
        core = {"sram_bytes": 1024 * kib, "leakage_mw": kib / 128}
        found.append((f"cores of {kib} KiB, {side} x {side}", changed(chip, core=core, mesh=mesh), {}))
    registers = changed(chip, core={"accumulator_pj": 0.5})
    found.append(("sums in registers (0.5 pJ, assumed)", registers, {}))
    found.append(("weights from DRAM", chip, {"stream": True}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--num-tokens", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, tokenizer, _ = load("smollm2")
    spiking = convert(model, Policy(), inplace=True).model
    ids = torch.tensor(tokenizer.encode(options.text.read_text()[:10_000], verbose=False))[: options.num_tokens]
    n, rows = len(ids), []
    simulate_model(spiking, ids[:1], load_description("async-45nm"))  # compiles
    for name, chip, how in variants(load_description("async-45nm")):
        began = time.perf_counter()
        found = simulate_model(spiking, ids, chip, **how)
        seconds = time.perf_counter() - began
        energy = {part: value / n / 1e6 for part, value in found.energy_pj.items()}
        row = {
            "variant": name,
            "num_cores": sum(len(layer.placement.cores) for layer in found.layers.values()),
            "token_us": float(found.end_ps[-1]) / n / 1e6,
            "energy_uj": energy,
            "total_uj": sum(energy.values()),
            "pj_per_mac": sum(found.energy_pj.values()) / found.activity.num_macs,
            "num_mismatches": sum(layer.num_mismatches for layer in found.layers.values()),
            "synops_per_s": found.activity.num_synops / seconds,
            "seconds_per_token": seconds / n,
        }
        rows.append(row)
        shown = ", ".join(f"{part} {energy[part]:.1f}" for part in COMPONENTS)
        print(
            f"{name}: {row['num_cores']} cores, {row['token_us']:.0f} us, {row['total_uj']:.0f} uJ a token ({shown}), "
            f"{row['pj_per_mac']:.1f} pJ a MAC, {row['num_mismatches']} mismatches, "
            f"{row['seconds_per_token']:.2f} s a token, {row['synops_per_s'] / 1e6:.0f} M synaptic operations/s",
            flush=True,
        )
    write_json(options.out, rows, num_tokens=n)


if __name__ == "__main__":
    main()
