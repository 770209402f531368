"""What a study is of: a study of another model, text or spec must not go on as if it were the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...backends import BACKENDS
from ...coding import ENCODERS
from ...errors import InputError
from ...fingerprint import fingerprint
from ...models.io.checksums import of_tensor, of_text
from ...neuro import NEURONS
from ...version import __version__
from ..eval_tasks import Documents
from ..resume import digest
from .keys import split_key
from .settings import Range, SweepSettings

_PLUG_INS = {"neuron": NEURONS, "encoder": ENCODERS, "backend": BACKENDS}
# Of a configuration that says nothing about what the model computes.
_NOT_COMPUTED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


def identity_of(
    settings: SweepSettings, model: nn.Module, ids: Tensor, device: str, tasks: Sequence[Documents] = ()
) -> dict[str, Any]:
    """Return all that the figures of a study depend on, as JSON values.

    Args:
        settings: of the sweep.
        model: as it was loaded.
        ids: tokens of the text that are run.
        device: that they run on.
        tasks: documents that are run.
    """
    return {
        "model": fingerprint_of(model),
        "text": of_tensor(ids)[:16],
        "version": __version__,
        "device": device,
        **{f"task {task.task}": digest(task.documents)[:16] for task in tasks},
        **{f"spec.{name}": value for name, value in _spec(settings).items()},
    }


def fingerprint_of(model: nn.Module) -> str:
    """Return a checksum of all tensors and the configuration of a model, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {of_tensor(tensor)}".encode())
    config: Any = getattr(model, "config", None)
    if config is not None:
        content = {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPUTED}
        found.update(json.dumps(content, sort_keys=True, default=str).encode())
    conversion: Any = getattr(model, "conversion", None)
    if conversion is not None:
        found.update(repr(conversion.settings).encode())
    return found.hexdigest()[:16]


def _spec(settings: SweepSettings) -> dict[str, Any]:
    swept = {name: asdict(v) if isinstance(v, Range) else v for name, v in settings.swept.items()}
    files, plug_ins = {}, {}
    for name in settings.options:
        base = split_key(name)[0]
        for value in settings.values_of(base):
            if isinstance(value, str) and value.endswith(".toml"):
                files[value] = of_text(Path(value).read_text(encoding="utf-8"))[:16]
            elif base in _PLUG_INS and value in _PLUG_INS[base]:
                plug_ins[f"{base} {value}"] = fingerprint(_PLUG_INS[base].create(value))
    return {
        "objectives": list(settings.objectives),
        "method": settings.method,
        "points": settings.num_points,
        "seed": settings.seed or 0,
        "num_tokens": settings.num_tokens,
        "context": settings.context,
        **swept,
        **settings.fixed,
        **files,
        **plug_ins,
    }


def check_identity(there: dict[str, Any], here: dict[str, Any], where: str) -> None:
    """Raise an InputError that lists what differs between a study and a sweep that was to go on with it."""
    if there == here:
        return
    lines = [
        f"{name}: {_shown(there, name)} there, {_shown(here, name)} here"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name) or (name in there) != (name in here)
    ]
    raise InputError(
        f"{where}: holds another study:\n  "
        + "\n  ".join(lines)
        + "\nGo on with what it was begun with, or name another "
        "folder (`out`), or another `study` of the database."
    )


def _shown(content: dict[str, Any], name: str) -> str:
    return json.dumps(content[name]) if name in content else "nothing"
