"""Greedy generation by a whole spiking SmolLM2 with a KV cache on the CPU: tokens per second, compared with peers.

    python benchmarks/decode_tokens.py [--tokens N] [--repeats N] [--only NAME ...] [--also FOLDER ...] [--agree]
                                       [--profile] [--out FILE]

The peers are the same model in transformers in FP32, BF16 and dynamic INT8 (torch.ao), and the same file in llama.cpp
if llama-cpp-python is installed. Ours has INT8 rows, or the file's own 4-bit rows ("stored"); each with a dense FP32
head and with one that spikes. All run with the same prompt and threads, in turns, so that a busy moment of the machine
affects all of them. Only tokens after the first are timed, so reading the prompt is left out. No token ends the text:
transformers would else look for it among all logits, for every row but llama.cpp.

`--agree` prints how many of 64 tokens the compiled decoder has in common with the layers one by one and those with the
separate steps (neuron, encoder, backend, rescaling), on five prompts: they may part where a ratio lies on a rounding's
edge. `--profile` prints where the layers one by one spend their time. `--also` takes folders with SmolLM2 on spikes,
such as `spikebrain calibrate` writes.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timing import Clock, environment, write_json
from torch import nn

import spikebrain as sb
from spikebrain.models.io import smollm2
from spikebrain.models.layers.observing import observing

PROMPT = "A neuron fires when its membrane potential reaches the threshold. After that,"
PROMPTS = (
    PROMPT,
    "The capital of France is",
    "Once upon a time, a small robot",
    "To make a good cup of tea, first",
    "The most important law of physics",
)
NAMES = {
    "fp32": "transformers FP32",
    "bf16": "transformers BF16",
    "int8": "dynamic INT8 (torch.ao)",
    "llama_cpp": "llama.cpp, the file's own weights",
    "spiking": "spikebrain, INT8 rows, FP32 head",
    "spiking_head": "spikebrain, INT8 rows, head too",
    "stored": "spikebrain, 4-bit rows, FP32 head",
    "stored_head": "spikebrain, 4-bit rows, head too",
    "coarse": "spikebrain, 4-bit rows, counts up to 6 read 2 bits, FP32 head",
    "coarse_head": "spikebrain, 4-bit rows, counts up to 6 read 2 bits, head too",
}
# k = 8, silent below a fifth of the mean.
COARSE = {"weights": "stored", "coarse": ((2, 6),), "neuron": sb.DeadZoneThreshold(8.0, dead_zone=0.2)}


def generate(model: nn.Module, prompt: dict[str, Any], num_tokens: int) -> tuple[list[int], float]:
    clock = Clock()
    ids = model.generate(**prompt, max_new_tokens=num_tokens, do_sample=False, streamer=clock)  # pyright: ignore[reportCallIssue]
    return ids[0].tolist(), 1 / clock.seconds_per_token


def models_to_compare(model: Any, wanted: list[str]) -> dict[str, nn.Module]:
    def int8() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)  # pyright: ignore

    def spiking(**settings: Any) -> nn.Module:
        return sb.to_spiking(model, sb.SpikeSettings(**settings))

    make = {
        "fp32": lambda: model,
        "bf16": lambda: copy.deepcopy(model).to(torch.bfloat16),
        "int8": int8,
        "spiking": spiking,
        "spiking_head": lambda: spiking(include_head=True),
        "stored": lambda: spiking(weights="stored"),
        "stored_head": lambda: spiking(weights="stored", include_head=True),
        "coarse": lambda: spiking(**COARSE),
        "coarse_head": lambda: spiking(**COARSE, include_head=True),
    }
    return {name: make[name]() for name in make if name in wanted}


def llama_cpp(prompt: list[int]) -> LlamaCpp | None:
    """Return the peer, or None where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: no llama.cpp")
        return None
    return LlamaCpp(smollm2.download(), prompt)


def layer_by_layer(model: nn.Module) -> nn.Module:
    """Return a model with the same layers that does not use the compiled decoder."""
    plain = copy.copy(model)
    plain.__dict__ = {name: value for name, value in vars(model).items() if name != "forward"}
    return plain


class LlamaCpp:
    """The model's file in llama.cpp, in a process of its own; see llama_cpp_peer.py."""

    def __init__(self, path: Path, prompt: list[int]) -> None:
        script = Path(__file__).with_name("llama_cpp_peer.py")
        command = [sys.executable, script, path, torch.get_num_threads(), *prompt]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def rate(self, num_tokens: int) -> float:
        """Return the tokens a second after the first one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(num_tokens, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"llama.cpp ended with {self.process.wait()}. Uninstall llama-cpp-python to compare without it.")
        return float(line)


def in_common(first: list[int], second: list[int]) -> int:
    """Return how many tokens are equal before the first that differs."""
    return next((i for i, pair in enumerate(zip(first, second, strict=True)) if len({*pair}) > 1), len(first))


def agreement(model: nn.Module, tokenizer: Any, num_tokens: int) -> list[dict[str, int]]:
    """Return for each prompt how many tokens the decoder, and the separate steps, share with the layers one by one."""
    plain = layer_by_layer(model)
    layers = [module for module in model.modules() if isinstance(module, sb.SpikeLinear)]
    found = []
    for text in PROMPTS:
        prompt = dict(tokenizer(text, return_tensors="pt"))
        before = prompt["input_ids"].shape[1]
        tokens, _ = generate(plain, prompt, num_tokens)
        decoded, _ = generate(model, prompt, num_tokens)
        with observing(layers, lambda layer, step: None):
            stepwise, _ = generate(plain, prompt, num_tokens)
        found.append({"decoder": in_common(tokens, decoded) - before, "steps": in_common(tokens, stepwise) - before})
    return found


def profile(model: nn.Module, prompt: dict[str, Any], num_tokens: int) -> dict[str, float]:
    """Return the milliseconds of a decoding step, per token and by part of the model."""
    seconds = {"spiking layers": 0.0, "head": 0.0}
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    started: list[float] = []
    handles = []
    for module in model.modules():
        if isinstance(module, sb.SpikeLinear) or module is head:
            what = "head" if module is head else "spiking layers"

            def before(module, inputs):
                started.append(time.perf_counter())

            def after(module, inputs, output, what=what):
                taken = time.perf_counter() - started.pop()
                seconds[what] += taken if inputs[0].shape[-2] == 1 else 0.0  # without the prompt

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    _, rate = generate(model, prompt, num_tokens)
    for handle in handles:
        handle.remove()
    milliseconds = {what: 1e3 * value / (num_tokens - 1) for what, value in seconds.items()}
    return {**milliseconds, "the rest of transformers": 1e3 / rate - sum(milliseconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--also", nargs="+", default=[], help="folders with the same model on spikes")
    parser.add_argument("--agree", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    print(environment() | {"transformers": version("transformers")})
    loaded, tokenizer, _ = sb.load("smollm2")
    assert tokenizer is not None
    model: Any = loaded
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    prompt = dict(tokenizer(PROMPT, return_tensors="pt"))
    rates: dict[str, list[float]] = {}
    agreements, parts = {}, {}
    with torch.inference_mode():
        models = models_to_compare(model, options.only)
        for folder in options.also:
            own: Any = sb.load(folder).model
            own.generation_config.eos_token_id = None
            models[folder], NAMES[folder] = own, Path(folder).name
        ours = [name for name in models if name.startswith(("spiking", "stored", "coarse")) or name in options.also]
        for name in ours:
            print(f"{NAMES[name]}: {sb.describe_decoding(models[name])}")
            if options.agree:
                agreements[name] = agreement(models[name], tokenizer, 64)
                print(f"  of 64 tokens after five prompts, in common with the layers one by one: {agreements[name]}")
        for candidate in models.values():
            generate(candidate, prompt, 4)
        llama = llama_cpp(prompt["input_ids"][0].tolist()) if "llama_cpp" in options.only else None
        for _ in range(options.repeats):
            for name, candidate in models.items():
                rates.setdefault(name, []).append(generate(candidate, prompt, options.tokens)[1])
            if llama is not None:
                rates.setdefault("llama_cpp", []).append(llama.rate(options.tokens))
        if options.profile:
            parts = {name: profile(layer_by_layer(models[name]), prompt, options.tokens) for name in ours}
    rows = []
    base = statistics.median(rates.get("llama_cpp") or rates[next(iter(rates))])
    for name, found in rates.items():
        median, low, high = statistics.median(found), min(found), max(found)
        rows.append({"name": NAMES[name], "tokens_per_s": median, "low": low, "high": high, "ratio": median / base})
        print(f"{NAMES[name]:36} {median:7.1f} tokens/s ({low:6.1f} to {high:6.1f})  {median / base:5.2f}x")
    for name, part in parts.items():
        print(f"{NAMES[name]}, layer by layer, ms per token: " + ", ".join(f"{k} {ms:.2f}" for k, ms in part.items()))
    case = {"tokens": options.tokens, "repeats": options.repeats, "prompt": PROMPT, "model": "SmolLM2-135M-Instruct"}
    write_json(options.out, rows, transformers=version("transformers"), profile_ms=parts, agree=agreements, **case)


if __name__ == "__main__":
    main()
