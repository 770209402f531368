"""The command `spikebrain export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..answer import Answer
from ..options import (
    Attention,
    BackendName,
    DeviceIfRun,
    EncoderName,
    FolderFormat,
    GroupSize,
    K,
    Layers,
    Model,
    NeuronName,
    Skip,
    TextFile,
    Weights,
    k_of,
    named,
    tokens_if_run,
)
from ..panels import FILES, OUTPUT
from ..progress import Screen

PANEL = FILES
# How Python reads the file, by its suffix.
_READERS = {
    ".nir": "import nir; print(*nir.read({}).nodes, sep='\\n')",
    ".json": "import json; print(*json.load(open({})), sep='\\n')",
}
_OPEN = "from transformers import AutoModelForCausalLM as Auto; print(Auto.from_pretrained({}, trust_remote_code=True))"
_READER = "import spikebrain; print(spikebrain.read_recording({}))"


def export(
    screen: Screen,
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .parquet, .h5, .hdf5, .npz, .json, .pftrace or .nir; or a folder, or a .safetensors "
            "file, for the model on spikes.",
            rich_help_panel=OUTPUT,
        ),
    ],
    text: TextFile = None,
    num_tokens: Annotated[int | None, tokens_if_run("512")] = None,
    trains: Annotated[
        bool, typer.Option("--trains", help="Also keep every spike, in a recording.", rich_help_panel=OUTPUT)
    ] = False,
    neuron: NeuronName = None,
    k: K = None,
    encoder: EncoderName = None,
    backend: BackendName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    group_size: GroupSize = None,
    attention: Attention = None,
    format: FolderFormat = None,
    device: DeviceIfRun = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.", rich_help_panel=OUTPUT)] = False,
) -> Answer:
    """Write a recording, results, layers or a model on spikes for other tools.

    .parquet, .h5, .hdf5 and .npz hold what the layers did on a text; .json the results of that run in NeuroBench's
    form, per token; .pftrace which layers spiked when, for ui.perfetto.dev; .nir the layers themselves. A name without
    an ending is a folder with the model on spikes, which transformers and lm_eval open with trust_remote_code, and
    .safetensors is the same in one file for spikebrain. --format is for a folder; --text, --num-tokens, --trains and
    --device do not count for models and .nir, nor do --backend and --attention for .nir. A model that spikes keeps its
    own settings.
    """
    from ... import backends, coding, jobs, neuro

    settings = jobs.ExportSettings(
        model=model,
        text=text,
        num_tokens=num_tokens,
        trains=trains or None,
        neuron=named(neuro.NEURONS, neuron),
        k=k_of(k),
        encoder=named(coding.ENCODERS, encoder),
        backend=named(backends.BACKENDS, backend, "auto"),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        group_size=group_size,
        attention=attention,
        format=format,
        device=device,
    )
    found = jobs.export(settings, out, screen, force=force)
    ran = f", {found.num_tokens:,} tokens" if found.num_tokens else ""
    kind = "INT8" if format == "compressed-tensors" else "spiking"
    listed = "\n".join(f"- {sentence}" for sentence in found.left_out)
    if out.suffix.lower() == ".pftrace":
        following, why = ("python", "-m", "webbrowser", "https://ui.perfetto.dev"), "open the file there"
    elif out.is_dir():
        following, why = ("python", "-c", _OPEN.format(json.dumps(str(out)))), "as transformers has it"
    elif out.suffix.lower() == ".safetensors":
        following, why = ("spikebrain", "report", out), "its accuracy, spikes and energy"
    else:
        read = _READERS.get(out.suffix.lower(), _READER).format(json.dumps(str(out)))
        following, why = ("python", "-c", read), "what is in it"
    return Answer(
        f"Exported a {found.what}: {found.num_layers} {kind} layers{ran}.",
        {"out": str(out), **found._asdict()},
        (lambda console: console.print(f"Not said by it:\n{listed}")) if listed else None,
        out=out,
        next=following,
        why=why,
    )
