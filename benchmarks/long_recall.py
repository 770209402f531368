"""What a converted model makes of a long text, beside its Transformer: loss by position, pass keys, far repetitions.

    python benchmarks/long_recall.py MODEL [MODEL ...] --test TEXT [--length 8192] [--texts N] [--spiking]
        [--out FILE.json]

The first model is the Transformer, the others are converted from it: folders or anything else that `load` takes.

- *Perplexity by position*: over texts of --length tokens without overlap, in bins of positions.
- *Pass key*: five digits in the middle of filler text of several lengths, asked for at its end. All five must be the
  likeliest tokens, each after the right ones before it.
- *Far repetitions*, a cloze on a long document: tokens that occurred before in the text, but not within the last 1024
  tokens, and that make up less than 1 in 1000 of it. How many are the likeliest token?

float32 on a CPU, bfloat16 on a GPU. With --spiking every converted model is measured on spikes, too (`as-described`).
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import write_json
from torch import Tensor

import spikebrain as sb

BINS = (0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
FAR, RARE = 1024, 1e-3
KEYS = 16
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


@torch.no_grad()
def losses(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of every token but the first, and whether it was the likeliest one, [L - 1] each."""
    hidden = model.model(input_ids=ids[None].to(model.device), use_cache=False).last_hidden_state[0, :-1]
    nll, hit = [], []
    for some, following in zip(hidden.split(1024), ids[1:].to(model.device).split(1024), strict=True):
        logits = model.lm_head(some).float()
        nll.append(torch.nn.functional.cross_entropy(logits, following, reduction="none"))
        hit.append(logits.argmax(-1) == following)
    return torch.cat(nll).double().cpu(), torch.cat(hit).cpu()


def far_repetitions(ids: Tensor) -> Tensor:
    """Return which tokens but the first are rare and occurred before, but only long ago; bool [L - 1]."""
    values = ids.tolist()
    count, last, found = Counter(values), dict[int, int](), []
    for i, value in enumerate(values):
        is_far = value in last and i - last[value] > FAR
        found.append(is_far and count[value] < RARE * len(values))
        last[value] = i
    return torch.tensor(found[1:])


def pass_key_text(encode: Callable[[str], list[int]], length: int, seed: int) -> tuple[Tensor, int]:
    """Return a text with a pass key in its middle half and the question at its end, and the tokens of the answer."""
    chance = random.Random(seed)
    key = "".join(chance.choice("0123456789") for _ in range(5))
    start = encode("There is a pass key hidden in the following text. Find it and remember it.\n")
    fact = encode(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
    question, answer = encode("\nWhat is the pass key? The pass key is"), encode(f" {key}")
    room = length - len(start) - len(fact) - len(question) - len(answer)
    filler = encode(FILLER * (room // 10 + 1))[:room]
    place = int(room * chance.uniform(0.25, 0.75))
    return torch.tensor([*start, *filler[:place], *fact, *filler[place:], *question, *answer]), len(answer)


def measure(name: str, model: Any, texts: list[Tensor], encode: Any, lengths: list[int]) -> dict[str, Any]:
    nll, hit = zip(*(losses(model, text) for text in texts), strict=True)
    mean, hits = torch.stack(nll).mean(0), torch.stack(hit)
    length = len(mean) + 1
    edges = [edge for edge in BINS if edge < length] + [length]
    bins = {f"{a}-{b}": float(mean[max(a - 1, 0) : b - 1].mean().exp()) for a, b in itertools.pairwise(edges)}
    far = torch.stack([far_repetitions(text) for text in texts])
    keys = {}
    for size in lengths:
        right = 0
        for seed in range(KEYS):
            ids, digits = pass_key_text(encode, size, seed)
            right += bool(losses(model, ids)[1][-digits:].all())
        keys[str(size)] = right / KEYS
    row = {"name": name, "perplexity": bins, "pass_key": keys, "far": float(hits[far].double().mean())}
    row["num_far"] = int(far.sum())
    print(name)
    print("  perplexity at", ", ".join(f"{place}: {value:.2f}" for place, value in bins.items()))
    print("  pass key", ", ".join(f"{place}: {value:.0%}" for place, value in keys.items()))
    print(f"  far repetitions: {row['far']:.1%} of {row['num_far']:,}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--spiking", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    where: Any = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    tokenizer, texts, rows = None, list[Tensor](), []
    lengths = [size for size in (512, 2048, 4096, 8192, 16384) if size <= options.length]

    def encode(text: str) -> list[int]:
        assert tokenizer is not None
        return tokenizer.encode(text, verbose=False, add_special_tokens=False)

    for name in options.models:
        model, found, _ = sb.load(name)
        tokenizer = tokenizer or found
        texts = texts or list(torch.tensor(encode(options.test.read_text("utf-8"))).split(options.length))
        texts = [text for text in texts[: options.texts] if len(text) == options.length]
        rows.append(measure(name, model.to(*where).eval(), texts, encode, lengths))
        if options.spiking and len(rows) > 1:
            spiking = sb.to_spiking(model, inplace=True)
            rows.append(measure(f"{name}, on spikes", spiking, texts, encode, lengths))
    if options.out:
        device = torch.cuda.get_device_name() if on_gpu else "CPU"
        conditions = {key: str(value) for key, value in vars(options).items()}
        write_json(options.out, rows, device=device, options=conditions)


if __name__ == "__main__":
    main()
