"""The command `spikebrain distill`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..answer import Answer
from ..complete import models, words
from ..options import (
    MODEL,
    CoarseRows,
    CompactScales,
    DeadZone,
    Device,
    Force,
    GroupSize,
    IncludeHead,
    K,
    Skip,
    budget_of,
    checked_budget,
    coarse_of,
    folder_for,
    k_of,
    seed_for,
    spiking_or_none,
)
from ..panels import CHANGE, INPUT, MACHINE, SPIKES, TRAINING
from ..progress import Screen

PANEL = CHANGE
WeightsOfTraining = Annotated[
    str | None,
    typer.Option(
        help="Weights that follow from those that learn: int8, or int4 in groups of 32.",
        show_default="int8",
        autocompletion=words("int8", "int4"),
        rich_help_panel=SPIKES,
    ),
]


def _of_training(help: str, usual: str | None = None, *known: str) -> Any:
    """Return an option of the training, with its usual value and the words that it can be."""
    shown = True if usual is None else usual
    return typer.Option(help=help, show_default=shown, autocompletion=words(*known), rich_help_panel=TRAINING)


def distill(
    screen: Screen,
    teacher: Annotated[
        str,
        typer.Argument(
            help=f"The Transformer that the student was made of, or is: {MODEL}",
            autocompletion=models,
            rich_help_panel=INPUT,
        ),
    ],
    student: Annotated[
        str,
        typer.Argument(
            help="What learns: a folder of `spikebrain convert`, not spiking; a Transformer, such as the teacher, that "
            "learns to run on spikes; or a folder of `spikebrain calibrate`, whose settings hold.",
            autocompletion=models,
            rich_help_panel=INPUT,
        ),
    ],
    out: Annotated[Path, folder_for("the trained model and the state of the training")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="UTF-8 text to train on; may be given several times.", rich_help_panel=INPUT),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(help="Train on this many tokens that the teacher writes beforehand.", rich_help_panel=INPUT),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Train on tokens that the teacher writes meanwhile, none twice.", rich_help_panel=INPUT
        ),
    ] = False,
    minutes: Annotated[float | None, _of_training("Train for about this many minutes.", "10")] = None,
    context: Annotated[int | None, _of_training("Tokens of a text.", "256; cuda: 512")] = None,
    batch_size: Annotated[int | None, _of_training("Texts of a batch.", "4; cuda: 32")] = None,
    accumulation: Annotated[int, _of_training("Batches whose gradients make a step.")] = 1,
    attention_steps: Annotated[
        int | None, _of_training("Steps that match attention outputs; 0: none.", "by the minutes")
    ] = None,
    logits_steps: Annotated[int | None, _of_training("Steps that match logits; 0: none.", "by the minutes")] = None,
    learning_rate: Annotated[
        float | None,
        _of_training(
            "Learning rate for attention outputs; of a Transformer for logits.",
            "1e-3; cuda: 2e-3; a Transformer's: 5e-5; cuda: 1e-4",
        ),
    ] = None,
    logits_rate: Annotated[
        float | None, _of_training("Learning rate for logits, as a multiple of that.", "0.1; cuda: 0.3")
    ] = None,
    only_attention: Annotated[
        bool,
        typer.Option(
            "--only-attention",
            help="Of a SpikingBrain model only attention and what is new learns; equal experts stay equal.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    spiking: Annotated[
        str,
        _of_training(
            "How a SpikingBrain model trains with spikes: none, as-described or as-released.",
            None,
            "none",
            "as-described",
            "as-released",
        ),
    ] = "none",
    growth: Annotated[
        float | None,
        _of_training("Share of the steps in which dead zones and the edges of coarse rows grow from 0.", "0"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="read=VALUE",
            callback=checked_budget,
            help="A penalty on bytes of weights that are read beyond this share of those of dense INT8 layers.",
            autocompletion=words("read="),
            show_default="none",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    k: K = None,
    dead_zone: DeadZone = None,
    weights: WeightsOfTraining = None,
    group_size: GroupSize = None,
    compact_scales: CompactScales = False,
    coarse: CoarseRows = None,
    skip: Skip = None,
    include_head: IncludeHead = False,
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, or bfloat16 for autocast.",
            show_default="float32; cuda: bfloat16",
            autocompletion=words("float32", "bfloat16"),
            rich_help_panel=MACHINE,
        ),
    ] = None,
    checkpointing: Annotated[
        bool,
        typer.Option(help="Compute layers again in the backward pass: less memory.", rich_help_panel=MACHINE),
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, seed_for("the order of texts, and for the tokens that the teacher writes")] = 0,
    parallel: Annotated[
        bool,
        typer.Option(
            "--parallel",
            help="Processes of torchrun train together, each with a part of every batch: torchrun --nproc_per_node=2 "
            "--no_python spikebrain distill TEACHER STUDENT --fresh --parallel.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    force: Force = False,
) -> Answer:
    """Train a model lightly, so that it recovers what conversion or spikes took.

    If it is interrupted, the same command goes on. There are two stages: attention outputs, then logits; a Transformer
    has the second alone. --minutes sets the steps of those whose steps are not given. A Transformer trains with spikes
    in the forward pass, as --k, --dead-zone, --weights, --coarse and the like say, or as the folder on spikes does that
    is given as the student; it is written on spikes, and its float weights into the folder `float`, to train on.
    """
    from ... import jobs

    run = jobs.DistillRun(
        teacher=teacher,
        student=student,
        text=tuple(text or ()),
        sample=sample,
        fresh=fresh,
        minutes=minutes,
        context=context,
        batch_size=batch_size,
        accumulation=accumulation,
        attention_steps=attention_steps,
        logits_steps=logits_steps,
        learning_rate=learning_rate,
        logits_rate=logits_rate,
        only_attention=only_attention,
        spiking=spiking_or_none(spiking),
        k=k_of(k),
        dead_zone=dead_zone,
        weights=weights,
        group_size=group_size,
        compact_scales=compact_scales,
        coarse=coarse_of(coarse),
        skip=tuple(skip) if skip else None,
        include_head=include_head,
        growth=growth,
        budget=None if budget is None else jobs.Budget(*budget_of(budget)),
        precision=precision,
        checkpointing=checkpointing,
        device=device,
        seed=seed,
    )
    if parallel:
        found = jobs.distill_in_parallel(run, out, screen, force=force)
        if found is None:  # another process writes
            raise typer.Exit
    else:
        found = jobs.distill(run, out, screen, force=force)
    result = found.result
    losses = ", ".join(
        f"{stage.objective} {_ends([point.loss for point in result.losses if point.stage == i])}"
        for i, stage in enumerate(found.settings.stages)
    )
    on_spikes = found.settings.spikes is not None
    report = ("spikebrain", "report", out), "its accuracy, spikes and energy"
    written = ("spikebrain", "generate", out, "A neuron fires when"), "text of the trained model"
    following, why = report if on_spikes else written
    stages = [asdict(stage) for stage in found.settings.stages]
    return Answer(
        f"Trained on {result.num_tokens:,} tokens in {result.seconds / 60:.1f} minutes: loss {losses}.",
        {"out": str(out), "stages": stages, **asdict(result)},
        out=out,
        next=following,
        why=why,
    )


def _ends(losses: list[float]) -> str:
    """Return the loss at the start and at the end: means over a tenth of the steps, of ten steps at most."""
    n = min(max(len(losses) // 10, 1), 10)
    return f"{sum(losses[:n]) / n:.4g} -> {sum(losses[-n:]) / n:.4g}"
