"""Compare SmolLM2 with figures made independently of this project: perplexity and spike statistics for five k.

    python benchmarks/golden_smollm2.py GOLDEN.json TEXT [--out FILE] [--k 3 ...]

GOLDEN.json is smollm2_wikitext2.json from the golden vectors, TEXT the wiki.test.raw of WikiText-2 that it names.
Prints each figure next to its golden value, and exits with 1 if any is outside its tolerance: perplexity 0.5 % (spiking
1 %, since rounding ties can change), statistics 0.5 %, max_count 1 %. Takes about 5 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path

import torch

import spikebrain as sb
from spikebrain.analysis import code_statistics, measure_perplexity, spike_statistics, split_windows

STATISTICS = ("mean_spikes", "mean_count", "silent_fraction", "fraction_le_7", "fraction_gt_16", "window3_sparsity")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--k", nargs="+", help="only these k")
    options = parser.parse_args()
    content = json.loads(options.golden.read_text())
    golden = content["texts"]["wikitext2_test"]
    text = options.text.read_bytes()
    if hashlib.sha256(text).hexdigest() != golden["sha256"]:
        sys.exit(
            f"{options.text}: expected SHA-256 {golden['sha256']}, the text that the golden figures were made from"
        )

    model, tokenizer, _ = sb.load("smollm2")
    assert tokenizer is not None
    ids = torch.tensor(tokenizer.encode(text.decode(), verbose=False))[: content["tokens"]]
    assert ids[:8].tolist() == golden["first_ids"], "another tokenizer"
    windows = split_windows(ids, content["context"])
    rows: list[dict] = []

    def compare(what: str, found: float, expected: float, tolerance: float) -> None:
        difference = found / expected - 1
        row = {"what": what, "found": found, "golden": expected, "difference": difference, "tolerance": tolerance}
        rows.append(row | {"ok": abs(difference) <= tolerance})
        mark = "ok" if rows[-1]["ok"] else "OUTSIDE"
        print(
            f"{what:32} {found:12.6f} {expected:12.6f} {difference:+10.4%}  (within {tolerance:.1%}) {mark}", flush=True
        )

    print(f"{'':32} {'found':>12} {'golden':>12} {'difference':>10}")
    compare("float perplexity", measure_perplexity(model, windows), golden["float_perplexity"], 0.005)
    rounded = sb.to_dense(sb.to_spiking(model))
    compare("INT8 weights perplexity", measure_perplexity(rounded, windows), golden["w8_perplexity"], 0.005)
    del rounded
    for k, expected in golden["k"].items():
        if options.k and float(k) not in map(float, options.k):
            continue
        spiking = sb.to_spiking(model, sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k=float(k))))
        with sb.record(spiking, block_bytes=()) as recording:  # no weight reads are compared
            perplexity = measure_perplexity(spiking, windows)
        layers = recording.layers.values()
        statistics = spike_statistics(layers)
        compare(f"k={k} spiking perplexity", perplexity, expected["perplexity"], 0.01)
        for name in STATISTICS:
            compare(f"k={k} {name}", getattr(statistics, name), expected[name], 0.005)
        signed_digit = code_statistics(layers, sb.SignedDigit())
        assert signed_digit is not None
        found = signed_digit.mean_spikes
        compare(f"k={k} mean_spikes signed digit", found, expected["mean_spikes_signed_digit"], 0.005)
        compare(f"k={k} max_count", statistics.max_count, expected["max_count"], 0.01)

    num_outside = sum(not row["ok"] for row in rows)
    print(f"{len(rows)} figures, {num_outside} outside their tolerance")
    if options.out:
        environment = {"python": platform.python_version(), "torch": torch.__version__, "device": platform.machine()}
        options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    return min(num_outside, 1)


if __name__ == "__main__":
    sys.exit(main())
