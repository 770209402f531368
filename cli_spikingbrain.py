"""The commands for SpikingBrain models: `spikebrain convert`, `spikebrain distill` and `spikebrain generate`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import TextStreamer

from .analysis import plot_losses, spike_statistics
from .analysis.progress import progress_bars
from .errors import InputError
from .models import SpikeLinear, load, record
from .models.spikingbrain import (
    DistillSettings,
    SpikingBrainCache,
    SpikingBrainForCausalLM,
    Stage,
    distill,
    from_transformer,
    sample_from,
    save_folder,
    to_spiking,
)
from .models.spikingbrain.config import SPIKING

_OUT = typer.Option(help="Folder to write to.")


def convert_command(
    model: Annotated[str, typer.Argument(help="A Llama or Qwen2 model: whatever `spikebrain report` takes.")],
    out: Annotated[Path, _OUT],
    layout: Annotated[str, typer.Option(help='"7b", "76b", or a plan per layer: "gla,swa,gla+full/moe".')] = "7b",
    window: Annotated[int, typer.Option(help="Tokens that window attention looks back.")] = 4096,
    num_sinks: Annotated[int | None, typer.Option(help="Sink tokens.", show_default="0; 76b: 128")] = None,
    num_experts: Annotated[int | None, typer.Option(help="Experts.", show_default="76b: 16")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="UTF-8 text that new parameters are fitted to.")] = None,
    calibrate_tokens: Annotated[int, typer.Option(help="Tokens from the start of that text.")] = 4096,
    fit: Annotated[str, typer.Option(help="What is fitted: columns or o-proj.")] = "columns",
    spiking: Annotated[str, typer.Option(help="none, as-described or as-released.")] = "none",
    k: Annotated[float, typer.Option(help="Thresholds that the mean |x| of a token is worth.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of the random numbers in gates and routers.")] = 0,
) -> None:
    """Convert a Transformer into a SpikingBrain model, on spikes or not."""
    if spiking not in ("none", *SPIKING):
        raise InputError(f"--spiking: expected none, {' or '.join(SPIKING)}; got {spiking!r}.")
    console = _console()
    teacher, tokenizer, source = load(model, console=console)
    tokens = None
    if calibrate is not None:
        ids = _tokens(calibrate, tokenizer, source)[:calibrate_tokens]
        context = min(512, len(ids))
        tokens = ids[: len(ids) // max(context, 1) * context].view(-1, max(context, 1))
        console.print(f"Fitting {tokens.numel():,} tokens of {calibrate.name}")
    choices = {"window": window, "num_sinks": num_sinks, "num_experts": num_experts}
    choices = {name: value for name, value in choices.items() if value is not None}
    student = from_transformer(teacher, layout, calibration=tokens, fit=fit, seed=seed, **choices)
    if spiking != "none":
        student = to_spiking(student, spiking, k=k, inplace=True)
    save_folder(student, out, tokenizer)
    _print(f"Written to {out}: {student.settings.num_layers} layers, {_size(student)}, spiking: {spiking}.")


def distill_command(
    teacher: Annotated[str, typer.Argument(help="The Transformer that the student was made of.")],
    student: Annotated[Path, typer.Argument(help="Folder that `spikebrain convert` wrote, not spiking.")],
    out: Annotated[Path, _OUT],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to train on.")] = None,
    sample: Annotated[int | None, typer.Option(help="Train on so many tokens that the teacher writes.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; the same command goes on.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of a text.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Texts at the same time.")] = 8,
    attention_steps: Annotated[int, typer.Option(help="Steps that match attention outputs; 0 for none.")] = 500,
    logits_steps: Annotated[int, typer.Option(help="Steps that match logits; 0 for none.")] = 1000,
    learning_rate: Annotated[float, typer.Option(help="Of the logits; that of attention is three times it.")] = 3e-4,
    spiking: Annotated[str, typer.Option(help="Train with spikes in the forward pass: a setting, or none.")] = "none",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 for autocast.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the order of texts, and of samples.")] = 0,
) -> None:
    """Train a converted model lightly, so that it recovers what it lost."""
    if (text is None) == (sample is None):
        raise InputError("spikebrain distill: expected either --text FILE or --sample N, got both or neither.")
    common: dict[str, Any] = {"context": context, "batch_size": batch_size}
    stages = (
        [
            Stage(
                objective="attention",
                steps=attention_steps,
                learning_rate=3 * learning_rate,
                trainable="attention",
                **common,
            )
        ]
        if attention_steps
        else []
    ) + ([Stage(objective="logits", steps=logits_steps, learning_rate=learning_rate, **common)] if logits_steps else [])
    settings = DistillSettings(
        stages=tuple(stages),
        spiking=None if spiking == "none" else spiking,
        precision=precision,
        seed=seed,
        budget_s=None if minutes is None else 60 * minutes,
    )
    console = _console()
    old, tokenizer, source = load(teacher, console=console)
    new: Any = _load_ours(student, console)[0]
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no GPU that PyTorch can use. Leave the option out.")
    old, new = old.to(device), new.to(device)
    if text is not None:
        tokens = _tokens(text, tokenizer, source)
    else:
        console.print(f"Sampling {sample:,} tokens")
        tokens = sample_from(old, sample or 0, length=context, seed=seed)
    with progress_bars(console, "steps") as add:
        result = distill(new, old, tokens, settings, out, add)
    save_folder(new, out, tokenizer)
    if result.losses:
        plot_losses(result, settings.stages, out / "loss.png")
    losses = ", ".join(
        f"{stage.objective} {found[0]:.4g} -> {found[-1]:.4g}"
        for i, stage in enumerate(settings.stages)
        if (found := [point.loss for point in result.losses if point.stage == i])
    )
    state = "finished" if result.finished else "stopped by --minutes; the same command goes on"
    _print(f"Written to {out}: {result.num_tokens:,} tokens, loss {losses or 'unknown'}; {state}.")


def generate_command(
    model: Annotated[Path, typer.Argument(help="Folder of a SpikingBrain model.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
) -> None:
    """Write text as it comes, and say how fast, with how much state and how many spikes."""
    if max_new_tokens < 1 or temperature < 0:
        raise InputError("spikebrain generate: expected --max-new-tokens >= 1 and --temperature >= 0.")
    loaded, tokenizer = _load_ours(model, _console())
    ids = torch.tensor([tokenizer.encode(prompt)], dtype=torch.int64)
    if ids.shape[1] == 0:
        raise InputError("spikebrain generate: expected a prompt of at least one token, got none.")
    streamer = TextStreamer(tokenizer)
    streamer.put(ids)
    start = time.perf_counter()
    cache, written = _write(loaded, ids, max_new_tokens, temperature, seed, streamer)
    seconds = time.perf_counter() - start
    streamer.end()
    num_new = written.shape[1] - ids.shape[1]
    _print(f"\n{num_new} tokens, {num_new / seconds:.1f} tokens/s (prompt included); state {cache.num_bytes:,} bytes")
    if any(isinstance(module, SpikeLinear) for module in loaded.modules()):
        # In a pass of its own, since counting takes time.
        with torch.inference_mode(), record(loaded) as recording:
            loaded(written, use_cache=False)
        layers = list(recording.layers.values())
        num_tokens = max(layer.num_tokens for layer in layers)
        per_token = sum(layer.num_spikes for layer in layers) / num_tokens
        mean = spike_statistics(layers).mean_spikes
        _print(f"{per_token:,.0f} spikes a token, {mean:.3f} a channel, in all spiking layers over {num_tokens} tokens")


@torch.inference_mode()
def _write(
    model: SpikingBrainForCausalLM, ids: Tensor, limit: int, temperature: float, seed: int, streamer: TextStreamer
) -> tuple[SpikingBrainCache, Tensor]:
    """Return the state after the text, and prompt and text, [1, L]."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    cache, generator, new = SpikingBrainCache(model.settings), torch.Generator().manual_seed(seed), ids
    for _ in range(limit):
        logits = model(new, cache=cache, logits_to_keep=1).logits[:, -1].float()
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, new], 1)
        if int(new) in ends:
            break
        streamer.put(new[0])
    return cache, ids


def _load_ours(path: Path, console: Console) -> tuple[SpikingBrainForCausalLM, Any]:
    model, tokenizer, source = load(path, console=console)
    if not isinstance(model, SpikingBrainForCausalLM):
        raise InputError(
            f"{source}: expected a SpikingBrain model, got {type(model).__name__}. Use spikebrain convert."
        )
    if tokenizer is None:
        raise InputError(f"{source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    return model, tokenizer


def _tokens(path: Path, tokenizer: Any, source: str) -> Tensor:
    if tokenizer is None:
        raise InputError(f"{source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}. Name a text file.") from error
    return torch.tensor(tokenizer.encode(text, verbose=False), dtype=torch.int64)


def _size(model: SpikingBrainForCausalLM) -> str:
    num_bytes = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    return f"{num_bytes / 2**20:,.0f} MiB"


def _console() -> Console:
    return Console(stderr=True, markup=False)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
