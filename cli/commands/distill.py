"""The command `spikebrain distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Device, Force, folder_for, seed_for, spiking_or_none
from ..progress import on_screen


def distill(
    teacher: Annotated[str, typer.Argument(help="The Transformer that the student was made of.")],
    student: Annotated[Path, typer.Argument(help="Folder that `spikebrain convert` wrote, not spiking.")],
    out: Annotated[Path, folder_for("the trained model and the state of the training")],
    text: Annotated[list[Path] | None, typer.Option(help="UTF-8 text to train on; may be given again.")] = None,
    sample: Annotated[int | None, typer.Option(help="Train on this many tokens that the teacher writes.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Choose the steps to train for about this many minutes.", show_default="10")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a text.", show_default="256; cuda: 512")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts of a batch.", show_default="4; cuda: 32")] = None,
    accumulation: Annotated[int, typer.Option(help="Batches whose gradients make a step.")] = 1,
    attention_steps: Annotated[
        int | None, typer.Option(help="Steps that match attention outputs; 0: none.", show_default="by the minutes")
    ] = None,
    logits_steps: Annotated[
        int | None, typer.Option(help="Steps that match logits; 0: none.", show_default="by the minutes")
    ] = None,
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
    force: Force = False,
) -> None:
    """Train a converted model lightly, so that it recovers what it lost. Interrupted, the same command goes on.

    There are two stages: attention outputs, then logits. --minutes sets the steps of those whose steps are not given.
    """
    from ... import jobs

    run = jobs.DistillRun(
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
        found = jobs.distill(run, out, progress, force=force)
    result = found.result
    losses = ", ".join(
        f"{stage.objective} {_ends([point.loss for point in result.losses if point.stage == i])}"
        for i, stage in enumerate(found.settings.stages)
    )
    print(f"Written to {out}: {result.num_tokens:,} tokens, loss {losses}; {result.seconds / 60:.1f} minutes.")


def _ends(losses: list[float]) -> str:
    """Return the loss at the start and at the end: means over a tenth of the steps, of ten steps at most."""
    n = min(max(len(losses) // 10, 1), 10)
    return f"{sum(losses[:n]) / n:.4g} -> {sum(losses[-n:]) / n:.4g}"
