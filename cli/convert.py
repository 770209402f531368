"""The commands for SpikingBrain models: `spikebrain convert` and `spikebrain generate`; `distill` is in cli_distill."""

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

from ..analysis import spike_statistics
from ..backends import device_of
from ..errors import InputError
from ..jobs.progress import progress_bars
from ..models import SpikeLinear, spikingbrain_settings
from ..models.conversion import from_transformer, to_spiking
from ..models.io import load, save
from ..models.layers.settings import ATTENTION as SPIKING
from ..models.recording import record
from ..models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM

# Options of `convert` that say what becomes of a Transformer.
_OF_TRANSFORMERS = (
    "layout",
    "window",
    "num_sinks",
    "num_experts",
    "calibrate",
    "calibrate_tokens",
    "fit",
    "device",
    "seed",
)
OUT = typer.Option(help="Folder to write to.")
DEVICE = typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")


def convert_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A Llama or Qwen2 model: whatever `spikebrain report` takes.")],
    out: Annotated[Path, OUT],
    layout: Annotated[str, typer.Option(help='"7b", "76b", or a plan per layer: "gla,swa,gla+full/moe".')] = "7b",
    window: Annotated[int, typer.Option(help="Tokens that window attention looks back.")] = 4096,
    num_sinks: Annotated[int | None, typer.Option(help="Sink tokens.", show_default="0; 76b: 128")] = None,
    num_experts: Annotated[int | None, typer.Option(help="Experts.", show_default="76b: 16")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="UTF-8 text that new parameters are fitted to.")] = None,
    calibrate_tokens: Annotated[int, typer.Option(help="Tokens from the start of that text.")] = 4096,
    fit: Annotated[str, typer.Option(help="What is fitted: columns or o-proj.")] = "columns",
    spiking: Annotated[str, typer.Option(help="none, as-described or as-released.")] = "none",
    k: Annotated[float, typer.Option(help="Thresholds that the mean |x| of a token is worth.")] = 3.0,
    device: Annotated[str, typer.Option(help="Where it is calibrated: cpu, cuda, or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the random numbers in gates and routers.")] = 0,
) -> None:
    """Convert a Transformer into a SpikingBrain model, on spikes or not.

    With --spiking it also puts a SpikingBrain model on spikes, one that was distilled, say.
    """
    check_spiking(spiking)
    if out.exists() and Path(model).exists() and out.resolve() == Path(model).resolve():
        raise InputError(f"--out {out}: is the model's own folder, which would be lost. Name another.")
    console, where = new_console(), device_of(device)
    teacher, tokenizer, source = load(model, console=console)
    if isinstance(teacher, SpikingBrainForCausalLM):
        given = [f"--{name.replace('_', '-')}" for name in _OF_TRANSFORMERS if _is_given(context, name)]
        if spiking == "none" or given:
            raise InputError(
                f"{source}: is a SpikingBrain model already. Convert it with --spiking as-described or as-released, "
                f"--k and --out alone; got {', '.join(given) or '--spiking none'}."
            )
        _required(tokenizer, source)
        student = teacher
    else:
        tokens = None
        if calibrate is not None:
            if calibrate_tokens < 2:
                raise InputError(f"--calibrate-tokens: expected 2 or more, got {calibrate_tokens}.")
            ids = tokens_of(calibrate, tokenizer, source)[:calibrate_tokens]
            length = min(512, len(ids))
            tokens = ids[: len(ids) // max(length, 1) * length].view(-1, max(length, 1))
            console.print(f"Fitting {tokens.numel():,} tokens of {calibrate.name} on {where}")
        else:
            console.print("Without --calibrate the model writes noise until it has been trained.")
        choices = {"window": window, "num_sinks": num_sinks, "num_experts": num_experts}
        choices = {name: value for name, value in choices.items() if value is not None}
        with progress_bars(console, "parts") as add:
            student = from_transformer(
                teacher.to(where), layout, calibration=tokens, fit=fit, seed=seed, progress=add, **choices
            ).cpu()
    if spiking != "none":
        student = to_spiking(student, spikingbrain_settings(spiking, k=k), inplace=True)
    save(student, out, tokenizer)
    print_line(f"Written to {out}: {student.settings.num_layers} layers, {_size(student)}, spiking: {spiking}.")


def generate_command(
    model: Annotated[Path, typer.Argument(help="Folder of a SpikingBrain model.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    device: Annotated[str, DEVICE] = "auto",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
) -> None:
    """Write text as it comes, and say how fast, with how much state and how many spikes."""
    if max_new_tokens < 1 or not 0 <= temperature < float("inf") or not 0 <= seed < 2**63:
        raise InputError(
            "spikebrain generate: expected --max-new-tokens >= 1, a finite --temperature >= 0 and --seed from 0 to "
            f"2^63 - 1; got {max_new_tokens}, {temperature:g} and {seed}."
        )
    where = device_of(device)
    console = new_console()
    found: Any
    found, tokenizer = load_ours(model, console)
    loaded: SpikingBrainForCausalLM = found.to(where)
    ids = torch.tensor([tokenizer.encode(prompt)], dtype=torch.int64, device=where)
    if ids.shape[1] == 0:
        raise InputError("spikebrain generate: expected a prompt of at least one token, got none.")
    if where == "cuda":
        # The first call of a shape compiles kernels and times their launch settings, which is not the model's speed.
        with console.status("Preparing kernels for this GPU, up to minutes the first time ..."):
            _write(loaded, ids, 2, temperature, seed)
    streamer = TextStreamer(tokenizer)
    streamer.put(ids.cpu())
    start = time.perf_counter()
    cache, written = _write(loaded, ids, max_new_tokens, temperature, seed, streamer)
    seconds = time.perf_counter() - start
    streamer.end()
    num_new = written.shape[1] - ids.shape[1]
    print_line(
        f"\n{num_new} tokens, {num_new / seconds:.1f} tokens/s (prompt included); state {cache.num_bytes:,} bytes"
    )
    if any(isinstance(module, SpikeLinear) for module in loaded.modules()):
        # In a pass of its own, since counting takes time.
        with torch.inference_mode(), record(loaded) as recording:
            loaded(written, use_cache=False)
        layers = list(recording.layers.values())
        num_tokens = max(layer.num_tokens for layer in layers)
        per_token = sum(layer.num_spikes for layer in layers) / num_tokens
        mean = spike_statistics(layers).mean_spikes
        print_line(
            f"{per_token:,.0f} spikes a token, {mean:.3f} a channel, in all spiking layers over {num_tokens} tokens"
        )


@torch.inference_mode()
def _write(
    model: SpikingBrainForCausalLM,
    ids: Tensor,
    limit: int,
    temperature: float,
    seed: int,
    streamer: TextStreamer | None = None,
) -> tuple[SpikingBrainCache, Tensor]:
    """Return the state after the text, and prompt and text, [1, L]."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    cache, generator, new = SpikingBrainCache(model.settings), torch.Generator(ids.device).manual_seed(seed), ids
    for _ in range(limit):
        logits = model(new, cache=cache, logits_to_keep=1).logits[:, -1].float()
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            # At most 0, and float64, so that however low a temperature leaves the most likely token.
            below = (logits - logits.amax(-1, keepdim=True)).double()
            new = torch.multinomial((below / temperature).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, new], 1)
        if int(new) in ends:
            break
        if streamer:
            streamer.put(new[0].cpu())
    return cache, ids


def load_ours(path: Path, console: Console) -> tuple[SpikingBrainForCausalLM, Any]:
    """Return a SpikingBrain model and its tokenizer."""
    model, tokenizer, source = load(path, console=console)
    if not isinstance(model, SpikingBrainForCausalLM):
        raise InputError(
            f"{source}: expected a SpikingBrain model, got {type(model).__name__}. Use spikebrain convert."
        )
    return model, _required(tokenizer, source)


def _required(tokenizer: Any, source: str) -> Any:
    if tokenizer is None:
        raise InputError(f"{source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    return tokenizer


def tokens_of(path: Path, tokenizer: Any, source: str) -> Tensor:
    """Return the ids of a text file."""
    tokenizer = _required(tokenizer, source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}. Name a text file.") from error
    return torch.tensor(tokenizer.encode(text, verbose=False), dtype=torch.int64)


def _size(model: SpikingBrainForCausalLM) -> str:
    num_bytes = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    return f"{num_bytes / 2**20:,.0f} MiB"


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_spiking(spiking: str) -> None:
    """Refuse what --spiking cannot be."""
    if spiking not in ("none", *SPIKING):
        raise InputError(f"--spiking: expected none, {' or '.join(SPIKING)}; got {spiking!r}.")


def new_console() -> Console:
    """Return the console of progress and remarks; results go to stdout."""
    return Console(stderr=True, markup=False)


def print_line(text: str) -> None:
    """Write a result."""
    sys.stdout.write(text + "\n")
