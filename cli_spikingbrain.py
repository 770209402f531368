"""The commands for SpikingBrain models: `spikebrain convert`, `spikebrain distill` and `spikebrain generate`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
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
from .models.files import write_whole
from .models.spikingbrain import (
    DistillSettings,
    SpikingBrainCache,
    SpikingBrainForCausalLM,
    Stage,
    distill,
    fit_steps,
    from_transformer,
    sample_from,
    save_folder,
    to_spiking,
)
from .models.spikingbrain.config import SPIKING

# Parts of --minutes. Few steps are best spent on attention outputs.
_SHARES = {"attention": 0.5, "logits": 0.5}
# Options of `convert` that say what becomes of a Transformer.
_OF_TRANSFORMERS = ("layout", "window", "num_sinks", "num_experts", "calibrate", "calibrate_tokens", "fit", "seed")
_OUT = typer.Option(help="Folder to write to.")


def convert_command(
    context: typer.Context,
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
    """Convert a Transformer into a SpikingBrain model, on spikes or not.

    With --spiking it also puts a SpikingBrain model on spikes, one that was distilled, say.
    """
    _check_spiking(spiking)
    console = _console()
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
            ids = _tokens(calibrate, tokenizer, source)[:calibrate_tokens]
            length = min(512, len(ids))
            tokens = ids[: len(ids) // max(length, 1) * length].view(-1, max(length, 1))
            console.print(f"Fitting {tokens.numel():,} tokens of {calibrate.name} (SmolLM2 on a CPU: two minutes)")
        else:
            console.print("Without --calibrate the model writes noise until it has been trained.")
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
    minutes: Annotated[float, typer.Option(help="As many steps as take about so long.")] = 10.0,
    context: Annotated[int, typer.Option(help="Tokens of a text.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Texts at the same time.")] = 4,
    attention_steps: Annotated[int | None, typer.Option(help="Steps that match attention outputs; 0: none.")] = None,
    logits_steps: Annotated[int | None, typer.Option(help="Steps that match logits; 0: none.")] = None,
    learning_rate: Annotated[float, typer.Option(help="For attention outputs; for logits a tenth of it.")] = 1e-3,
    spiking: Annotated[str, typer.Option(help="Train with spikes in the forward pass: a setting, or none.")] = "none",
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 for autocast.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the order of texts, and of samples.")] = 0,
) -> None:
    """Train a converted model lightly, so that it recovers what it lost. Interrupted, the same command goes on."""
    if (text is None) == (sample is None):
        raise InputError("spikebrain distill: expected either --text FILE or --sample N, got both or neither.")
    _check_spiking(spiking)
    if not 0 < minutes < float("inf"):
        raise InputError(f"--minutes: expected a number > 0, got {minutes:g}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no GPU that PyTorch can use. Leave the option out.")
    wanted = {"attention": attention_steps, "logits": logits_steps}
    stages = {
        name: Stage(
            objective=name,
            context=context,
            steps=wanted[name] or 1,
            batch_size=batch_size,
            learning_rate=learning_rate * (1.0 if name == "attention" else 0.1),
            trainable="attention" if name == "attention" else "all",
        )
        for name in wanted
        if wanted[name] != 0
    }
    settings = DistillSettings(
        stages=tuple(stages.values()), spiking=None if spiking == "none" else spiking, precision=precision, seed=seed
    )
    console = _console()
    old, tokenizer, source = load(teacher, console=console)
    new: Any = _load_ours(student, console)[0]
    old, new = old.to(device), new.to(device)
    if text is not None:
        tokens = _tokens(text, tokenizer, source)
    else:
        tokens = _sampled(old, sample or 0, context, seed, out, console)
    if None in [wanted[name] for name in stages]:
        settings = _planned(new, old, tokens, settings, wanted, minutes, out, console)
    with progress_bars(console, "steps") as add:
        result = distill(new, old, tokens, settings, out, add)
    save_folder(new, out, tokenizer)
    plot_losses(result, settings.stages, out / "loss.png")
    losses = ", ".join(
        f"{stage.objective} {_mean(found[:10]):.4g} -> {_mean(found[-10:]):.4g}"
        for i, stage in enumerate(settings.stages)
        if (found := [point.loss for point in result.losses if point.stage == i])
    )
    _print(f"Written to {out}: {result.num_tokens:,} tokens, loss {losses}; {result.seconds / 60:.1f} minutes.")


def _planned(
    student: Any,
    teacher: Any,
    tokens: Tensor,
    settings: DistillSettings,
    wanted: dict[str, int | None],
    minutes: float,
    out: Path,
    console: Console,
) -> DistillSettings:
    """Return the settings with steps that fit the time: those of plan.json, if an earlier call wrote one."""
    names = [stage.objective for stage in settings.stages]
    plan = out / "plan.json"
    if plan.exists():
        try:
            steps = {name: int(json.loads(plan.read_text())[name]) for name in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{plan}: is no plan of these stages: {error}. Delete it to start again.") from error
        console.print(f"Going on with the steps of {plan}: {steps}")
    else:
        console.print("Timing a few steps")
        shares = tuple(_SHARES[name] if len(names) > 1 else 1.0 for name in names)
        fitted = fit_steps(student, teacher, tokens, settings, 60 * minutes, shares)
        steps = {name: wanted[name] or stage.steps for name, stage in zip(names, fitted.stages, strict=True)}
        _write_text(plan, json.dumps(steps) + "\n")
    stages = tuple(replace(stage, steps=steps[stage.objective]) for stage in settings.stages)
    return replace(settings, stages=stages)


def _sampled(teacher: Any, num_tokens: int, context: int, seed: int, out: Path, console: Console) -> Tensor:
    """Return tokens that the teacher writes: those of an earlier call, if it wrote as many."""
    path = out / "samples.json"
    job = {"num_tokens": num_tokens, "length": context, "seed": seed}
    if path.exists():
        try:
            kept = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}. Delete it to sample again.") from error
        if kept.get("job") == job:
            return torch.tensor(kept["tokens"], dtype=torch.int64)
    console.print(f"Sampling {num_tokens:,} tokens")
    tokens = sample_from(teacher, num_tokens, length=context, seed=seed)
    _write_text(path, json.dumps({"job": job, "tokens": tokens.tolist()}) + "\n")
    return tokens


def _write_text(path: Path, text: str) -> None:
    """Write a file in one step, and its folder if there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}. Name another folder.") from error


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
    return model, _required(tokenizer, source)


def _required(tokenizer: Any, source: str) -> Any:
    if tokenizer is None:
        raise InputError(f"{source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    return tokenizer


def _tokens(path: Path, tokenizer: Any, source: str) -> Tensor:
    tokenizer = _required(tokenizer, source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}. Name a text file.") from error
    return torch.tensor(tokenizer.encode(text, verbose=False), dtype=torch.int64)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _size(model: SpikingBrainForCausalLM) -> str:
    num_bytes = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    return f"{num_bytes / 2**20:,.0f} MiB"


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_spiking(spiking: str) -> None:
    if spiking not in ("none", *SPIKING):
        raise InputError(f"--spiking: expected none, {' or '.join(SPIKING)}; got {spiking!r}.")


def _console() -> Console:
    return Console(stderr=True, markup=False)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
