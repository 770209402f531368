"""The trains of layers, as a raster shows them: of several calls behind each other, and in other codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..coding import Encoder, SpikeTrain, decode
from ..coding.checks import fitted_to, train_of
from ..errors import InputError
from ..models import Recording
from ..models.layers import check_matches
from ..models.layers.settings import check_patterns, matches_any
from ..models.recording.record import start_in
from ..registry import label

# A raster is for eyes: more rows of pictures than this are no longer one picture, and more places fill the memory.
MOST_LAYERS = 8
MOST_PLACES = 2 * 10**8


@dataclass(frozen=True)
class Calls:
    """The trains of one layer, a train for each call, and what they were made from if that was kept."""

    name: str
    code: str
    trains: list[SpikeTrain]
    counts: list[Tensor] | None
    ratios: list[Tensor] | None

    @property
    def num_neurons(self) -> int:
        """Neurons of the layer."""
        return self.trains[0].spikes.shape[2]

    @property
    def num_tokens(self) -> int:
        """Tokens of all calls."""
        return sum(train.spikes.shape[1] for train in self.trains)


def calls_of_train(train: SpikeTrain) -> Calls:
    """Return one train, [T, tokens, neurons], as the only call of a layer without a name."""
    if train.spikes.ndim != 3 or 0 in train.spikes.shape:
        raise InputError(f"raster: expected spikes [T, tokens, neurons], got shape {tuple(train.spikes.shape)}.")
    return Calls("", "", [train], None, None)


def calls_of_recording(recording: Recording, patterns: tuple[str, ...]) -> list[Calls]:
    """Return the calls of each layer that matches a pattern; see `raster` for what raises an InputError."""
    check_patterns(patterns, "layers")
    check_matches("layers", patterns, recording.layers)
    names = [name for name in recording.layers if matches_any(name, patterns)]
    if len(names) > MOST_LAYERS:
        raise InputError(
            f"layers: expected at most {MOST_LAYERS} layers in one raster, got {len(names)}, {names[0]!r} to "
            f"{names[-1]!r}. Name fewer, such as {names[len(names) // 2]!r}."
        )
    silent = [name for name in names if not recording.trains.get(name)]
    if silent:
        why = "did not run" if recording.layers[silent[0]].num_tokens == 0 else "has no trains in this recording"
        raise InputError(f"layers: {silent[0]!r} {why}. Use record(model, keep_trains=True), and run the model.")
    return [_of_layer(recording, name) for name in names]


def _of_layer(recording: Recording, name: str) -> Calls:
    inputs = recording.inputs.get(name)
    code = recording.layers[name].encoder
    if inputs is None:
        lossy = code.endswith(", lossy")
        counts = None if lossy else [decode(train) for train in recording.trains[name]]
        return Calls(name, code, recording.trains[name], counts, None)
    ratios = [given.x.double() / given.threshold.double() for given in inputs]
    return Calls(name, code, recording.trains[name], [given.count for given in inputs], ratios)


def recoded(calls: Calls, encoder: Encoder, index: Tensor) -> list[SpikeTrain]:
    """Return the shown neurons' trains in another code, each as long as its whole call needs."""
    if calls.counts is None:
        raise InputError(
            f"encoders: expected the counts of {calls.name!r}, which its lossy code does not carry. Use record(..., "
            "keep_trains=True, keep_inputs=True), or leave out `encoders`."
        )
    trains = []
    for count in calls.counts:
        suited, length = fitted_to(encoder, *(int(v) for v in count.aminmax()))
        num_places = length * len(count) * len(index)
        if num_places > MOST_PLACES:
            raise InputError(
                f"encoders: {label(encoder)} takes {length:,} timesteps for the counts of {calls.name!r}: "
                f"{num_places:,} places, more than the {MOST_PLACES:,} that a raster holds. Show fewer tokens or "
                "neurons, or another code."
            )
        trains.append(train_of(suited, count[:, index.to(count.device)], length))
    return trains


def aligned(trains: list[SpikeTrain]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return spikes [N, L, T], weights [L, T] and timesteps [L, T] of trains behind each other.

    Shorter trains stand where their weights are those of the longest: codes of digits at its end, others at its begin.
    """
    longest = max(trains, key=lambda train: train.num_timesteps)
    num_timesteps, num_neurons = longest.num_timesteps, longest.spikes.shape[2]
    num_tokens = sum(train.spikes.shape[1] for train in trains)
    if num_neurons * num_tokens * num_timesteps > MOST_PLACES:
        raise InputError(
            f"num_neurons: expected at most {MOST_PLACES:,} places, got {num_neurons:,} neurons x {num_tokens:,} "
            f"tokens x {num_timesteps:,} timesteps. Show fewer."
        )
    spikes = np.zeros((num_neurons, num_tokens, num_timesteps), np.int8)
    weights = np.zeros((num_tokens, num_timesteps), np.int64)
    timesteps = np.full((num_tokens, num_timesteps), -1, np.int64)
    token = 0
    for train in trains:
        length, weight = train.num_timesteps, train.timestep_weight.cpu()
        front = start_in(longest.timestep_weight.cpu().abs(), weight.abs()) or 0
        rows, columns = slice(token, token + train.spikes.shape[1]), slice(front, front + length)
        spikes[:, rows, columns] = train.spikes.cpu().permute(2, 1, 0).numpy()
        weights[rows, columns] = weight.numpy()
        timesteps[rows, columns] = np.arange(length)
        token = rows.stop
    return spikes, weights, timesteps
