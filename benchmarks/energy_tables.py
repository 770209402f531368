"""Energy of SmolLM2 by k, code and energy table: the tables of docs/results.md, as Markdown.

    python benchmarks/energy_tables.py [--tokens 2048] [--out FOLDER]

Runs the default text of `spikebrain report` once for each k, in windows of 512 tokens, and counts every code from the
same recording. All energies are modelled; nothing is measured. Takes about two minutes on 2 cores. With --out, writes
the waterfall and break-even plots for k = 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import spikebrain as sb
from spikebrain.analysis import plot_break_even, plot_waterfall, split_windows, window_nlls
from spikebrain.coding import ENCODERS
from spikebrain.energy import (
    DigitalEnergy,
    ModelCounts,
    PaperEnergy,
    SynopEnergy,
    break_even,
    count_operations,
    load_table,
    sensitivity,
    table_names,
    waterfall,
)
from spikebrain.jobs.inputs import read_text
from spikebrain.models import Recording

KS = (2.0, 3.0, 4.0)
BLOCKS = (64, 2048)
SHARED = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--out", type=Path, help="folder for plots")
    options = parser.parse_args()
    model, tokenizer, _ = sb.load("smollm2")
    assert tokenizer is not None
    ids = torch.tensor(tokenizer.encode(read_text(None)[0], verbose=False))[: options.tokens]
    recordings = {}
    for k in KS:
        spiking = sb.to_spiking(model, sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k=k)))
        with sb.record(spiking, block_bytes=BLOCKS, shared_tokens=SHARED) as recordings[k]:
            window_nlls(spiking, split_windows(ids, 512), lambda _: None)
        del spiking
    codes(recordings)
    tables(recordings)
    steps(count_operations(recordings[3.0]))
    model_options(recordings[3.0])
    points(count_operations(recordings[3.0]).grouped(), options.out)


def codes(recordings: dict[float, Recording]) -> None:
    print("\n## INT8 / spiking by k and code (Horowitz 45 nm and Jouppi 7 nm)\n")
    print("| k | code | additions a MAC | eq. 24 | 45 nm, all | 45 nm, all, DRAM | 7 nm, all | nJ a token, 45 nm |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for k, recording in recordings.items():
        for name in (name for name in ENCODERS if not ENCODERS.get(name).lossy):
            counts = count_operations(recording, encoder=ENCODERS.create(name))
            done = counts.total("spiking", kind="projection")
            macs = counts.total("int8", kind="projection").num_macs
            full = DigitalEnergy().estimate(counts)
            ratios = [
                PaperEnergy().estimate(counts).ratio_vs_int8,
                full.ratio_vs_int8,
                DigitalEnergy(on_chip_bytes=0).estimate(counts).ratio_vs_int8,
                DigitalEnergy(load_table("jouppi_7nm")).estimate(counts).ratio_vs_int8,
            ]
            shown = " | ".join("" if r is None else f"{r:.3g}" for r in ratios)
            per_token = full.total_pj / counts.num_tokens / 1e3
            print(f"| {k:g} | {name} | {done.num_synops / macs:.3g} | {shown} | {per_token:,.0f} |")


def tables(recordings: dict[float, Recording]) -> None:
    print("\n## All tables, bidirectional bitwise, nJ a token\n")
    print("| table | k | spiking | INT8 | FP16 | INT8 / spiking | FP16 / spiking | what |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in table_names():
        table = load_table(name)
        is_digital = "int8_add" in table
        for k, recording in recordings.items():
            counts = count_operations(recording)
            report = (DigitalEnergy(table) if is_digital else SynopEnergy(table)).estimate(counts)
            values = (report.total_pj, report.int8_total_pj, report.fp16_total_pj)
            row = [f"{v / counts.num_tokens / 1e3:,.0f}" if v else "" for v in values]
            row += ["" if r is None else f"{r:.2f}" for r in (report.ratio_vs_int8, report.ratio_vs_fp16)]
            print(f"| {name} | {k:g} | {' | '.join(row)} | {'all' if is_digital else 'synaptic operations'} |")


def steps(counts: ModelCounts) -> None:
    print("\n## Waterfall, k = 3\n")
    print("| + cost | 45 nm: INT8 / spiking | FP16 / spiking | 7 nm: INT8 / spiking | FP16 / spiking |")
    print("| --- | --- | --- | --- | --- |")
    both = [waterfall(counts, DigitalEnergy(load_table(name))) for name in ("horowitz_45nm", "jouppi_7nm")]
    for a, b in zip(*both, strict=True):
        print(
            f"| {a.name} | {a.ratio_vs_int8:.2f} | {a.ratio_vs_fp16:.2f} "
            f"| {b.ratio_vs_int8:.2f} | {b.ratio_vs_fp16:.2f} |"
        )
    for name in ("horowitz_45nm", "jouppi_7nm"):
        for s in sensitivity(counts.grouped(), DigitalEnergy(load_table(name)))[:4]:
            print(
                f"{name}: {s.ratio_vs_int8:.3f}; {s.entry} doubled {s.ratio_if_doubled:.3f}, "
                f"halved {s.ratio_if_halved:.3f}"
            )


def model_options(recording: Recording) -> None:
    print("\n## Options, k = 3, 45 nm: INT8 / spiking, projections and whole model\n")
    print("| option | whole model | projections only |")
    print("| --- | --- | --- |")
    rows: list[tuple[str, dict[str, Any], dict[str, Any]]]
    rows = [(f"weights per {per}", {"reads_per": per}, {}) for per in ("spike", "channel", "block")]
    rows += [("blocks of 2048 bytes", {"reads_per": "block"}, {"block_bytes": 2048})]
    rows += [(f"per channel, shared by {n} tokens", {}, {"shared_tokens": n}) for n in SHARED[1:]]
    rows += [("shift per spike", {"shifts_per": "spike"}, {}), ("sums in SRAM", {"sums_in": "sram"}, {})]
    rows += [(f"SRAM banks of {n // 1024} KB", {"sram_bytes": n}, {}) for n in (8192, 1048576)]
    rows += [
        ("weights in DRAM", {"on_chip_bytes": 0}, {}),
        ("leakage 1 W, 1 ms a token", {"leakage_w": 1.0, "token_s": 1e-3}, {}),
    ]
    for name, options, how in rows:
        counts = count_operations(recording, **how)
        model = DigitalEnergy(**options)
        walk = waterfall(counts, model)
        projections = next(s for s in walk if s.name.startswith("reading and writing"))
        print(f"| {name} | {walk[-1].ratio_vs_int8:.2f} | {projections.ratio_vs_int8:.2f} |")


def points(counts: ModelCounts, out: Path | None) -> None:
    print("\n## Break-even, k = 3\n")
    print("| layer | spikes | silent | even at, 45 nm | arithmetic alone | even at, 7 nm | arithmetic alone |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    models = [DigitalEnergy(load_table(name)) for name in ("horowitz_45nm", "jouppi_7nm")]
    names = [name for name, layer in counts.layers.items() if layer.spiking.num_spikes]
    for name in names:
        found = [break_even(counts, model, name) for model in models]
        row = [f"{v:.2f}" for p in found for v in (p.even_spikes, p.even_spikes_without_memory)]
        print(
            f"| {name.rpartition('*.')[2]} | {found[0].spikes:.2f} | {found[0].silent_fraction:.1%} "
            f"| {' | '.join(row)} |"
        )
    if out is not None:
        title = "SmolLM2-135M, k = 3, Horowitz 45 nm, weights read per channel"
        plot_break_even([break_even(counts, models[0], name) for name in names], out / "energy_break_even.png", title)
        plot_waterfall(waterfall(counts, models[0]), out / "energy_waterfall.png", title)


if __name__ == "__main__":
    main()
