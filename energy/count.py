"""From a recording to the operations of a whole model."""

from __future__ import annotations

from collections.abc import Iterable

from ..coding import ENCODERS, Encoder
from ..errors import InputError
from ..models import Recording
from ..models.recording.modules import UNCOUNTED
from ..registry import label
from .count_dense import count_dense_part, count_scores
from .count_spiking import count_spiking_layer
from .counts import ModelCounts
from .recode import as_run, recode


def count_operations(
    recording: Recording,
    *,
    encoder: Encoder | str | None = None,
    block_bytes: int = 64,
    shared_tokens: int = 1,
) -> ModelCounts:
    """Count what a recorded run did, and what dense models do on the same tokens (see `LayerCounts`).

    Args:
        recording: of a model that ran.
        encoder: count as if the layers had run in this code; None for the code that ran.
        block_bytes: bytes that the weight memory gives at a time; one for which reads were recorded.
        shared_tokens: tokens for which a read of weights serves; one for which reads were recorded.
    Raises:
        InputError: reads were not recorded for these numbers, or the code takes more than 65,536 timesteps.
    """
    code: Encoder | None = ENCODERS.resolve(encoder, "count_operations.encoder", None)
    records = list(recording.layers.values())
    counts, same_channels = {}, True
    for layer in records:
        spikes = as_run(layer) if code is None else recode(layer, code)
        if spikes is None:
            raise InputError(f"{layer.name}: its largest count takes too long a train in {code}. Use a bitwise code.")
        same_channels &= spikes.num_active_channels == layer.num_active_channels
        counts[layer.name] = count_spiking_layer(layer, spikes, block_bytes, shared_tokens)
    for name, part in recording.modules.items():
        if part.kind != UNCOUNTED and (part.num_tokens or part.kind == "linear"):
            counts[name] = count_dense_part(part, shared_tokens)
            if part.sizes.get("integer"):
                counts[scores_of(name)] = count_scores(part)
    assumptions = [
        "the INT8 model quantises activations per token (largest magnitude), as the spiking one counts them per token",
        "norms, attention, gates, embedding and head are the same in all models, matrix products there in FP16",
        "keys and values are read once for each token that sees them, states of linear attention once a token",
    ]
    if any(part.sizes.get("integer") for part in recording.modules.values()):
        assumptions.append(
            "attention on counts: spikes of queries, in the code that ran, add keys of INT8; keys and values are kept, "
            "and read, as INT8 with a scale each; the dense INT8 and FP16 models have FP16 there"
        )
    if code is not None:
        ran = _names(layer.encoder for layer in records)
        assumptions.append(f"spikes are those of {label(code)}, fitted to each layer once; the run had {ran}")
    if not same_channels:
        assumptions.append("other channels fire than in the run: every memory block is taken to be read")
    return ModelCounts(
        counts,
        num_tokens=max((layer.num_tokens for layer in records), default=0),
        model=recording.model,
        neuron=_names(layer.neuron for layer in records),
        encoder=label(code) if code is not None else _names(layer.encoder for layer in records),
        unsupported=recording.unsupported,
        uncounted_macs=sum(part.num_pairs for part in recording.modules.values() if part.kind == UNCOUNTED),
        assumptions=tuple(assumptions),
    )


def scores_of(name: str) -> str:
    """Return what the scores of a part of attention on counts are called among the counts."""
    return f"{name} scores"


def _names(values: Iterable[str]) -> str:
    """Return the different values, in order; layers of a model may have different neurons and codes."""
    return ", ".join(dict.fromkeys(values))
