"""What each ingredient of a conversion costs: perplexity of a Transformer and of what becomes of it, part by part.

    python benchmarks/convert_parts.py --text BOOK.txt [BOOK.txt ...] --test TEXT [--model smollm2] [--out FILE.json]
        [--calibrate N] [--test-tokens N] [--window N] [--rows NAME ...]

The books are what calibration fits; the test text is only measured, in windows of --window tokens without overlap, in
float32. Nothing is trained. Prints perplexity, its ratio to the Transformer's and the seconds of the conversion.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from distill_parts import perplexity
from timing import write_json

import spikebrain as sb
from spikebrain.models.conversion import from_transformer

# Settings of the 76B for a plan in every layer.
TIED = {"gate": "tied", "feature_map": "sigmoid"}
# By name: the plan of every layer or a layout, whether it is calibrated, and other arguments of `from_transformer`.
ROWS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "window attention in every layer": ("swa", False, {}),
    "full attention in every layer": ("full", False, {}),
    "experts in every layer": ("full/moe", False, {"num_experts": 16}),
    "128 sinks": ("full", False, {"num_sinks": 128}),
    "128 sinks, fitted": ("full", True, {"num_sinks": 128}),
    "linear beside full attention, norms with norm_eps": ("gla+full", True, {**TIED, "head_norm_eps": 1e-5}),
    "linear beside full attention": ("gla+full", False, TIED),
    "linear beside window attention": ("gla+swa", False, TIED),
    "7b": ("7b", False, {}),
    "7b, columns": ("7b", True, {"fit": "columns"}),
    "7b, output projections": ("7b", True, {"fit": "o-proj"}),
    "7b, layers": ("7b", True, {}),
    "7b, layers, placed by measurement": ("7b", True, {"placement": "measured"}),
    "76b": ("76b", False, {}),
    "76b, calibrated": ("76b", True, {}),
}


def main() -> None:
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = sb.load(options.model)
    assert tokenizer is not None
    teacher: Any = model.float().to(device)

    def encode(path: Path) -> torch.Tensor:
        return torch.tensor(tokenizer.encode(path.read_text("utf-8"), verbose=False))

    share = options.calibrate // len(options.text)
    books = torch.cat([encode(path)[options.skip :][:share] for path in options.text])
    rows = books[: len(books) // 512 * 512].view(-1, 512).to(device)
    test = encode(options.test)[: options.test_tokens]
    found: list[dict[str, Any]] = []

    def measure(name: str, of: Any, seconds: float) -> None:
        value = perplexity(of, test, options.window, options.batch_tokens)
        found.append({"name": name, "perplexity": value, "seconds": seconds})
        ratio = value / found[0]["perplexity"]
        print(f"{name:52} {value:12,.2f} {ratio:10,.3f} x {seconds:7.1f} s", flush=True)

    measure("the Transformer", teacher, 0.0)
    for name in options.rows or ROWS:
        plan, is_calibrated, choices = ROWS[name]
        layout = plan if plan in ("7b", "76b") else ",".join([plan] * teacher.config.num_hidden_layers)
        start = time.perf_counter()
        student = from_transformer(teacher, layout, calibration=rows if is_calibrated else None, **choices)
        if device.type == "cuda":
            torch.cuda.synchronize()
        measure(name, student, time.perf_counter() - start)
        del student
    conditions = {key: str(value) for key, value in vars(options).items()}
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    write_json(options.out, found, device=where, options=conditions)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="the Transformer: whatever spikebrain.load takes")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="books to calibrate on")
    parser.add_argument("--test", type=Path, required=True, help="text whose perplexity is taken")
    parser.add_argument("--skip", type=int, default=8000, help="tokens at the start of each book that are left out")
    parser.add_argument("--calibrate", type=int, default=16384, help="tokens")
    parser.add_argument("--window", type=int, default=1024, help="of the perplexity")
    parser.add_argument("--test-tokens", type=int, default=None, help="all if left out")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of the perplexity")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=None, help="all if left out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
