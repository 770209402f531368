"""The command `spikebrain distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...jobs import DistillRun
from ...jobs import distill as run_training
from ..options import Device, folder_for, seed_for, spiking_or_none
from ..progress import on_screen


def distill(
    teacher: Annotated[str, typer.Argument(help="The Transformer that the student was made of.")],
    student: Annotated[Path, typer.Argument(help="Folder that `spikebrain convert` wrote, not spiking.")],
    out: Annotated[Path, folder_for("the trained model and the state of the training")],
    text: Annotated[list[Path] | None, typer.Option(help="UTF-8 text to train on; may be given again.")] = None,
    sample: Annotated[int | None, typer.Option(help="Train on this many tokens that the teacher writes.")] = None,
    minutes: Annotated[float, typer.Option(help="Train for about this many minutes.")] = 10.0,
    context: Annotated[int | None, typer.Option(help="Tokens of a text.", show_default="256; cuda: 512")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts of a batch.", show_default="4; cuda: 32")] = None,
    accumulation: Annotated[int, typer.Option(help="Batches whose gradients make a step.")] = 1,
    attention_steps: Annotated[int | None, typer.Option(help="Steps that match attention outputs; 0: none.")] = None,
    logits_steps: Annotated[int | None, typer.Option(help="Steps that match logits; 0: none.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate for attention outputs.", show_default="1e-3; cuda: 2e-3")
    ] = None,
    logits_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate for logits, as a multiple of that.", show_default="0.1; cuda: 0.3"),
    ] = None,
    spiking: Annotated[
        str, typer.Option(help="Train with spikes in the forward pass: none, as-described or as-released.")
    ] = "none",
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16 for autocast.", show_default="float32; cuda: bfloat16")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option(help="Compute layers again in the backward pass: less memory.")
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, seed_for("the order of texts, and for the tokens that the teacher writes")] = 0,
) -> None:
    """Train a converted model lightly, so that it recovers what it lost. Interrupted, the same command goes on."""
    run = DistillRun(
        teacher=teacher,
        student=student,
        text=tuple(text or ()),
        sample=sample,
        minutes=minutes,
        context=context,
        batch_size=batch_size,
        accumulation=accumulation,
        attention_steps=attention_steps,
        logits_steps=logits_steps,
        learning_rate=learning_rate,
        logits_rate=logits_rate,
        spiking=spiking_or_none(spiking),
        precision=precision,
        checkpointing=checkpointing,
        device=device,
        seed=seed,
    )
    with on_screen() as progress:
        found = run_training(run, out, progress)
    result = found.result
    losses = ", ".join(
        f"{stage.objective} {_mean(of_stage[:10]):.4g} -> {_mean(of_stage[-10:]):.4g}"
        for i, stage in enumerate(found.settings.stages)
        if (of_stage := [point.loss for point in result.losses if point.stage == i])
    )
    print(f"Written to {out}: {result.num_tokens:,} tokens, loss {losses}; {result.seconds / 60:.1f} minutes.")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
