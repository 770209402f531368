"""Greedy generation by a whole spiking SmolLM2 with a KV cache on the CPU: tokens per second, compared with peers.

    python benchmarks/decode_tokens.py [--tokens N] [--repeats N] [--profile] [--out FILE]

The peers are the same model in transformers in FP32, BF16 and dynamic INT8 (torch.ao), and the same file in llama.cpp
if llama-cpp-python is installed. All run with the same prompt and threads, in turns, so that a busy moment of the
machine affects all of them. Only tokens after the first are timed, so reading the prompt
is left out. Before anything is timed, the tokens of the layers one by one are compared with those from separate steps
(neuron, encoder, backend, rescaling), and those of the compiled decoder with both: they may part where a ratio lies on
a rounding's edge. `--profile` prints where the layers one by one spend their time.
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
from timing import environment, write_json
from torch import nn

import spikebrain as sb
from spikebrain.models.io import smollm2
from spikebrain.models.layers.spike_linear import observing

PROMPT = "A neuron fires when its membrane potential reaches the threshold. After that,"
NAMES = {
    "fp32": "transformers FP32",
    "bf16": "transformers BF16",
    "int8": "dynamic INT8 (torch.ao)",
    "llama_cpp": "llama.cpp, the file's own weights",
    "spiking": "spikebrain, FP32 head",
    "spiking_head": "spikebrain, head spikes too",
    "layers": "the same layer by layer, FP32 head",
    "layers_head": "the same layer by layer, head spikes too",
}


class Clock:
    """A streamer that notes when `generate` passes it each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def tokens_per_second(self) -> float:
        first, last = self.times[1], self.times[-1]  # the prompt comes before the first token
        return (len(self.times) - 2) / (last - first)


def generate(model: nn.Module, prompt: dict[str, Any], num_tokens: int) -> tuple[list[int], float]:
    clock = Clock()
    settings = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens, "do_sample": False}
    ids = model.generate(**prompt, **settings, streamer=clock)  # pyright: ignore[reportCallIssue]
    return ids[0].tolist(), clock.tokens_per_second


def models_to_compare(model: nn.Module) -> dict[str, nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        int8 = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    assert isinstance(int8, nn.Module)
    spiking, head = sb.to_spiking(model), sb.to_spiking(model, sb.SpikeSettings(include_head=True))
    return {
        "fp32": model,
        "bf16": copy.deepcopy(model).to(torch.bfloat16),
        "int8": int8,
        "spiking": spiking,
        "spiking_head": head,
        "layers": layer_by_layer(spiking),
        "layers_head": layer_by_layer(head),
    }


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


def check(model: nn.Module, compiled: nn.Module, prompt: dict[str, Any], num_tokens: int) -> tuple[list[int], int]:
    """Return the generated tokens, or exit if the separate steps, which observed layers take, give other tokens.

    Also return how many tokens, those of the prompt included, the compiled decoder has in common with them.
    """
    tokens, _ = generate(model, prompt, num_tokens)
    layers = [module for module in model.modules() if isinstance(module, sb.SpikeLinear)]
    with observing(layers, lambda layer, step: None):
        stepwise, _ = generate(model, prompt, num_tokens)
    if tokens != stepwise:
        sys.exit(f"tokens differ from those of the separate steps: {tokens} and {stepwise}. Nothing is timed.")
    others, _ = generate(compiled, prompt, num_tokens)
    return tokens, next((i for i, pair in enumerate(zip(tokens, others, strict=True)) if len({*pair}) > 1), len(tokens))


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
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    print(environment() | {"transformers": version("transformers")})
    model, tokenizer, _ = sb.load("smollm2")
    assert tokenizer is not None
    prompt = dict(tokenizer(PROMPT, return_tensors="pt"))
    rates: dict[str, list[float]] = {}
    with torch.inference_mode():
        models = models_to_compare(model)
        common = {}
        for name, compiled in (("layers", "spiking"), ("layers_head", "spiking_head")):
            tokens, common[name] = check(models[name], models[compiled], prompt, options.tokens)
            print(f"{NAMES[compiled]}: {tokenizer.decode(tokens)!r}, as step by step")
            print(f"  of {len(tokens)} tokens the compiled decoder has the first {common[name]} in common")
        print(sb.describe_decoding(models["spiking"]))
        for candidate in models.values():
            generate(candidate, prompt, 4)
        llama = llama_cpp(prompt["input_ids"][0].tolist())
        for _ in range(options.repeats):
            for name, candidate in models.items():
                rates.setdefault(name, []).append(generate(candidate, prompt, options.tokens)[1])
            if llama is not None:
                rates.setdefault("llama_cpp", []).append(llama.rate(options.tokens))
        parts = {}
        if options.profile:
            parts = {name: profile(models[name], prompt, options.tokens) for name in ("layers", "layers_head")}
    rows = []
    base = statistics.median(rates["fp32"])
    for name, found in rates.items():
        median, low, high = statistics.median(found), min(found), max(found)
        rows.append({"name": NAMES[name], "tokens_per_s": median, "low": low, "high": high, "ratio": median / base})
        print(f"{NAMES[name]:30} {median:7.1f} tokens/s ({low:6.1f} to {high:6.1f})  {median / base:5.2f}x")
    for name, part in parts.items():
        print(f"{NAMES[name]}, ms per token: " + ", ".join(f"{what} {ms:.2f}" for what, ms in part.items()))
    case = {"tokens": options.tokens, "repeats": options.repeats, "prompt": PROMPT, "model": "SmolLM2-135M-Instruct"}
    write_json(options.out, rows, transformers=version("transformers"), profile_ms=parts, common_tokens=common, **case)


if __name__ == "__main__":
    main()
