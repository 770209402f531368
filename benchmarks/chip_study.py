"""An architect's questions: energy and latency per token of SmolLM2 on variants of async-45nm.

    python benchmarks/chip_study.py TEXT [--num-tokens N] [--out FILE.json] [--plot FILE.png]

Each variant changes one thing in the preset or, if its name is indented, in the variant above it. Energies are
simulated; nothing is measured. Channel orders are learned from the 512 tokens after the simulated ones.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from timing import write_json

from spikebrain import SpikeSettings, load, to_spiking
from spikebrain.analysis.style import save_figure
from spikebrain.chip import COMPONENTS, ORDERS, Description, MinimalTraffic, load_description
from spikebrain.simulation.model import simulate_model
from spikebrain.simulation.orders import learn_orders


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
    for size in (8, 256, 2048):  # 20 pJ per 8 bytes, since 32 bytes take 80 pJ
        blocks = changed(chip, core={"block_bytes": size, "access_pj": 2.5 * size})
        found.append((f"blocks of {size} bytes", blocks, {}))
    found += [(f"  channels {order}", blocks, {"orders": order}) for order in ("by-rate", "together")]
    for depth in (1, 2, 32):
        queues = {"link": {"queue_packets": depth}, "core": {"queue_packets": depth}}
        found.append((f"queues of {depth}", changed(chip, **queues), {}))
    for kib, side in ((32, 66), (64, 45), (256, 24), (512, 18)):
        mesh = {"columns": side, "rows": side}
        # A core's leakage is proportional to its memory.
        core = {"sram_bytes": 1024 * kib, "leakage_mw": kib / 128}
        found.append((f"cores of {kib} KiB, {side} x {side}", changed(chip, core=core, mesh=mesh), {}))
    registers = changed(chip, core={"accumulator_pj": 0.5})
    found.append(("sums in registers (0.5 pJ, assumed)", registers, {}))
    small = changed(registers, core={"sram_bytes": 64 * 1024, "leakage_mw": 0.5}, mesh={"columns": 45, "rows": 45})
    found.append(("  and cores of 64 KiB, 45 x 45", small, {}))
    found.append(("weights from DRAM", chip, {"stream": True}))
    bursts = changed(chip, dram={"block_bytes": 2048, "block_pj": chip.dram.block_pj * 32})
    found.append(("  bursts of 2048 bytes", bursts, {"stream": True}))
    found.append(("    channels together", bursts, {"stream": True, "orders": "together"}))
    return found


def plot(rows: list[dict], path: Path) -> None:
    """Draw energy by component and time per token, with one bar per variant."""
    colors = dict.fromkeys(COMPONENTS, "#999999") | {
        "compute": "#0072b2",
        "accumulators": "#56b4e9",
        "weight reads": "#e69f00",
        "dense rest": "#cc79a7",
        "leakage": "#d55e00",
    }
    labels = {"routing": "packets, routing, handshakes, encoding"}
    shown = [
        row for row in rows if "DRAM" not in row["variant"] and not row["variant"].startswith(("  bursts", "    "))
    ]
    figure = Figure(figsize=(11, 0.36 * len(shown) + 1.6), layout="constrained")
    energy, time_us = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for place, row in enumerate(shown):
        left = 0.0
        for part, value in row["energy_uj"].items():
            label = labels.get(part, None if colors[part] == "#999999" else part) if place == 0 else None
            energy.barh(place, value, left=left, color=colors[part], height=0.7, label=label)
            left += value
        energy.text(left, place, f" {left:,.0f}", va="center", fontsize=9)
        time_us.barh(place, row["token_us"], color="#8c8c8c", height=0.7)
        time_us.text(row["token_us"], place, f" {row['token_us']:,.0f}", va="center", fontsize=9)
    energy.set_yticks(range(len(shown)), [row["variant"] for row in shown])
    energy.invert_yaxis()
    energy.set_xlabel("µJ a token (simulated)")
    time_us.set_xlabel("µs a token (simulated)")
    for axes in (energy, time_us):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--num-tokens", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    model, tokenizer, _ = load("smollm2")
    spiking = to_spiking(model, SpikeSettings(), inplace=True)
    ids = torch.tensor(tokenizer.encode(options.text.read_text()[:10_000], verbose=False))
    ids, following = ids[: options.num_tokens], ids[options.num_tokens :][:512]
    orders = {name: learn_orders(spiking, following, ORDERS.create(name)) for name in ORDERS}
    n, rows = len(ids), []
    simulate_model(spiking, ids[:1], load_description("async-45nm"))  # compiles
    for name, chip, how in variants(load_description("async-45nm")):
        began = time.perf_counter()
        order = orders[how.pop("orders", "as-given")]
        found = simulate_model(spiking, ids, chip, orders=order, **how)
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
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
