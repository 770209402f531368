"""The spikes of layers as a raster, in one code or in several side by side; `raster_plot.py` and `pages/` draw it.

A raster is what a picture shows and nothing else: the neurons and timesteps that were chosen, and a note for whatever
was left out.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..coding import ENCODERS, Encoder, SpikeTrain, decode
from ..errors import InputError
from ..models import Recording
from ..registry import label
from .raster_potential import Potential, find_potential
from .raster_trains import Calls, aligned, calls_of_recording, calls_of_train, recoded

# Without a length, each token is cut where this share of its neurons has fired for the last time.
DONE = 0.99


@dataclass(frozen=True)
class Panel:
    """The spikes of one layer in one code: N neurons over L tokens of T timesteps.

    Attributes:
        layer: name of the layer.
        code: in words.
        neurons: numbers of the neurons that are shown, [N].
        num_neurons: of the layer.
        spikes: -1, 0 or 1, int8, [N, L, T]; 0 in places that no train has.
        counts: what each neuron's spikes add up to over its whole train, int64, [N, L].
        weights: timestep weight of each place, [L, T]; 0 where there is none, since a call with smaller counts has a
            shorter train than the longest.
        timesteps: number of each timestep in its train, [L, T]; -1 where there is none.
        notes: what was left out of the panel, a sentence each.
        potential: of one neuron, if its train in this code is that of an integrate-and-fire neuron.
    """

    layer: str
    code: str
    neurons: np.ndarray
    num_neurons: int
    spikes: np.ndarray
    counts: np.ndarray
    weights: np.ndarray
    timesteps: np.ndarray
    notes: tuple[str, ...] = ()
    potential: Potential | None = None

    @property
    def padded(self) -> np.ndarray:
        """Places of each token that no train has, bool [L, T]."""
        return self.timesteps < 0

    @property
    def num_spikes(self) -> tuple[int, int]:
        """Spikes of +1 and of -1 that are shown."""
        plus, minus = (int((self.spikes == sign).sum()) for sign in (1, -1))
        return plus, minus

    @property
    def firing_rate(self) -> np.ndarray:
        """Spikes of +1 and of -1 of each neuron / its places that are shown, [2, N]."""
        num_places = max(int((~self.padded).sum()), 1)
        return np.stack([(self.spikes == sign).sum((1, 2)) / num_places for sign in (1, -1)])

    @property
    def spikes_per_timestep(self) -> np.ndarray:
        """Spikes of +1 and of -1 of the shown neurons in each timestep, [2, L, T]."""
        return np.stack([(self.spikes == sign).sum(0) for sign in (1, -1)])


@dataclass(frozen=True)
class Raster:
    """Panels for the same input: a row for each layer, a column for each code.

    Attributes:
        panels: row by row.
        num_columns: codes.
        tokens: text of each token; None if it is not known.
        calls: in which call of the model each token ran, from 0, [L].
        title: of the picture.
    """

    panels: tuple[Panel, ...]
    num_columns: int
    tokens: tuple[str, ...] | None
    calls: np.ndarray
    title: str = ""

    @property
    def notes(self) -> list[str]:
        """What was left out and what is marked, each said once."""
        notes = list(dict.fromkeys(note for panel in self.panels for note in panel.notes))
        if any(panel.padded.any() for panel in self.panels):
            notes.append("Hatched: the train of a call is only as long as its own counts need.")
        return notes

    def to_data(self) -> dict[str, Any]:
        """Return the raster as JSON values: the form of report.json, and what pages draw.

        "spikes" holds bits, since a raster may have millions of places; `spikes_of` reads them.
        """
        return {
            "title": self.title,
            "columns": self.num_columns,
            "tokens": None if self.tokens is None else [visible(token) for token in self.tokens],
            "calls": self.calls.tolist(),
            "notes": self.notes,
            "panels": [_panel_data(panel) for panel in self.panels],
        }


def _panel_data(panel: Panel) -> dict[str, Any]:
    potential = panel.potential
    values = [] if potential is None else [None if np.isnan(v) else round(float(v), 4) for v in potential.v.ravel()]
    return {
        "layer": panel.layer,
        "code": panel.code,
        "neurons": panel.neurons.tolist(),
        "num_neurons": panel.num_neurons,
        "num_tokens": panel.spikes.shape[1],
        "num_timesteps": panel.spikes.shape[2],
        "num_spikes": list(panel.num_spikes),
        "spikes": {
            "plus": _bits(panel.spikes > 0),
            "minus": _bits(panel.spikes < 0) if panel.num_spikes[1] else None,
        },
        "counts": panel.counts.tolist(),
        "weights": panel.weights.tolist(),
        "timesteps": panel.timesteps.tolist(),
        "potential": None if potential is None else {"neuron": potential.neuron, "v": values},
    }


def _bits(places: np.ndarray) -> str:
    """Return booleans as Base64, eight of them a byte, the first in its highest bit."""
    return base64.b64encode(np.packbits(places.ravel()).tobytes()).decode()


def spikes_of(panel: Mapping[str, Any]) -> np.ndarray:
    """Return the spikes of a panel of `Raster.to_data`.

    Returns:
        -1, 0 or 1, int8, [neurons, tokens, timesteps].

    >>> train = SpikeTrain(torch.tensor([[[1, 0]], [[-1, 0]]], dtype=torch.int8), torch.tensor([2, 1]))
    >>> data = raster(train).to_data()["panels"][0]
    >>> data["spikes"], spikes_of(data).tolist()
    ({'plus': 'gA==', 'minus': 'QA=='}, [[[1, -1]], [[0, 0]]])
    """
    shape = (len(panel["neurons"]), panel["num_tokens"], panel["num_timesteps"])

    def places(bits: str | None) -> np.ndarray:
        packed = np.frombuffer(base64.b64decode(bits or ""), np.uint8)
        return np.unpackbits(packed, count=math.prod(shape)).reshape(shape).view(np.int8)

    return places(panel["spikes"]["plus"]) - places(panel["spikes"]["minus"])


def visible(text: str) -> str:
    r"""Return a token's text, shortened, with its white space visible.

    >>> visible(" neuron"), visible(" "), visible("a\n")
    ('neuron', '␣', 'a⏎')
    """
    shown = text.replace("\n", "⏎").replace("\t", "→").strip(" ") or "␣"
    return shown if len(shown) <= 14 else shown[:13] + "…"


def raster(
    source: Recording | SpikeTrain,
    *,
    layers: tuple[str, ...] = ("*",),
    encoders: Sequence[Encoder | str | None] | None = None,
    tokens: Sequence[str] | None = None,
    num_neurons: int = 64,
    num_timesteps: int | None = None,
    potential_of: int | None = None,
    title: str = "",
) -> Raster:
    """Collect what a raster shows: the spikes of some layers, in the code that ran or in several codes.

    The tokens of all calls of the model stand behind each other: a prompt, and then the tokens that were generated. A
    call whose train is shorter than the longest is padded, and the picture marks where.

    With `record(..., keep_inputs=True)` the raster has the membrane potential of one neuron: that of an
    integrate-and-fire neuron (`IntegrateAndFire`), which gets the whole activation in the first timestep of a token.
    It is left out of codes whose train is another than this neuron's.

    Args:
        source: a recording with `keep_trains`, or a train with spikes of shape [T, tokens, neurons].
        layers: patterns of the layers to show, of a recording; 8 layers at most.
        encoders: codes to show side by side, objects or registered names, for the same counts; None among them, or in
            their place, for the trains as they ran.
        tokens: text of each token, in the order in which they ran.
        num_neurons: neurons of a layer to show, evenly spread over all of them.
        num_timesteps: timesteps of a token to show; None for all of a code of digits, and of a rate code for as many as
            99 % of the neurons need.
        potential_of: number of the neuron whose potential is shown; None for a shown one that fires at most tokens.
        title: of the picture.
    Raises:
        InputError: nothing was kept, no layer matches, too many do, or a number is out of range.
        EncodingError: a code cannot hold the counts.

    Source:
        SpikingBrain (arXiv:2509.05276), figure 10.

    >>> train = SpikeTrain(torch.tensor([[[1, 0, -1]]], dtype=torch.int8), torch.tensor([1]))
    >>> raster(train).panels[0].spikes.tolist()
    [[[1]], [[0]], [[-1]]]
    """
    for name, value in (("num_neurons", num_neurons), ("num_timesteps", num_timesteps)):
        if value is not None and value < 1:
            raise InputError(f"{name}: expected an integer >= 1, got {value}.")
    codes = None if encoders is None else [ENCODERS.resolve(encoder, "encoders", None) for encoder in encoders]
    if codes == []:
        raise InputError("encoders: expected at least one code, got none. Leave it out for the code that ran.")
    found = [calls_of_train(source)] if isinstance(source, SpikeTrain) else calls_of_recording(source, layers)
    panels = []
    for calls in found:
        shown = _chosen(calls.num_neurons, num_neurons)
        for code in codes or [None]:
            panels.append(_panel(calls, code, shown, num_timesteps, potential_of))
    num_tokens = {panel.spikes.shape[1] for panel in panels}
    if tokens is not None and num_tokens != {len(tokens)}:
        raise InputError(
            f"tokens: expected the texts of {' or '.join(map(str, sorted(num_tokens)))} tokens, got {len(tokens)}."
        )
    if len(num_tokens) > 1:
        sizes = ", ".join(f"{calls.name!r} {calls.num_tokens}" for calls in found)
        raise InputError(f"layers: expected layers that ran on the same tokens, got {sizes}. Name them one by one.")
    first = found[0]
    which_call = np.repeat(np.arange(len(first.trains)), [train.spikes.shape[1] for train in first.trains])
    return Raster(tuple(panels), len(codes or [None]), None if tokens is None else tuple(tokens), which_call, title)


def _chosen(total: int, most: int) -> np.ndarray:
    """Return the numbers of `most` neurons, evenly spread, or of all."""
    shown = min(most, total)
    return np.arange(shown) * total // shown


def _panel(
    calls: Calls, encoder: Encoder | None, shown: np.ndarray, num_timesteps: int | None, potential_of: int | None
) -> Panel:
    index = torch.from_numpy(shown)
    if encoder is None:
        trains = [
            SpikeTrain(t.spikes[:, :, index.to(t.spikes.device)], t.timestep_weight, t.zero_point) for t in calls.trains
        ]
        code = calls.code
    else:
        trains = recoded(calls, encoder, index)
        code = (ENCODERS.name_of(encoder) or label(encoder)) + (", lossy" if encoder.lossy else "")
    lifts = sorted({train.zero_point for train in trains})
    if lifts != [0]:
        # Of the trains: each call of a model has a zero point of its own.
        code = code.partition("(")[0] + f", zero point {lifts[0]}" + (f" to {lifts[-1]}" if len(lifts) > 1 else "")
    code = code.removesuffix("()")
    spikes, weights, timesteps = aligned(trains)
    counts = torch.cat([decode(train) for train in trains]).cpu().numpy()
    kept = _length(spikes, weights) if num_timesteps is None else num_timesteps
    notes = _notes(calls.name, code, shown, calls.num_neurons, spikes, kept)
    potential = find_potential(calls, trains, shown, spikes[:, :, :kept], timesteps[:, :kept], potential_of)
    return Panel(
        calls.name,
        code,
        shown,
        calls.num_neurons,
        np.ascontiguousarray(spikes[:, :, :kept]),
        np.ascontiguousarray(counts.T),
        weights[:, :kept],
        timesteps[:, :kept],
        notes,
        potential,
    )


def _length(spikes: np.ndarray, weights: np.ndarray) -> int:
    """Return the timesteps of a rate code after which at most 1 % of the neurons still fire at a token; else all."""
    if len(np.unique(weights[weights != 0])) > 1:
        return spikes.shape[2]
    fired = spikes != 0
    last = np.where(fired.any(2), spikes.shape[2] - fired[:, :, ::-1].argmax(2), 0)
    return max(1, int(np.quantile(last, DONE, method="inverted_cdf")))


def _notes(name: str, code: str, shown: np.ndarray, total: int, spikes: np.ndarray, kept: int) -> tuple[str, ...]:
    notes = []
    where = f"{name}: " if name else ""
    if len(shown) < total:
        notes.append(f"{where}{len(shown):,} of {total:,} neurons are shown, evenly spread.")
    if kept < spikes.shape[2]:
        num_lost, num_all = np.count_nonzero(spikes[:, :, kept:]), np.count_nonzero(spikes)
        in_code = f"{where.removesuffix(': ')}, {code}: ".removeprefix(", ").removeprefix(": ")
        last = "timestep" if kept + 1 == spikes.shape[2] else f"timesteps {kept + 1:,} to"
        notes.append(
            f"{in_code}{last} {spikes.shape[2]:,} of each token left out, with {num_lost:,} of {num_all:,} spikes."
        )
    return tuple(notes)
