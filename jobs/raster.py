"""The spikes of some layers of a model on a text, as a picture or a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import analysis, pages
from ..analysis import Raster
from ..coding import ENCODERS, Encoder
from ..errors import InputError
from ..exchange import check_suffix
from ..models import SpikeSettings, record, spiking_layers
from ..models.layers import check_matches
from ..neuro import NEURONS, Neuron
from ..paths import model_name
from .given import K, refuse, spike_settings, usual
from .inputs import load_spiking, require_writable
from .progress import SILENT, Progress

SUFFIXES = (".png", ".svg", ".html")
# As in figure 10 of the SpikingBrain report.
_CODES = ("binary", "ternary", "bitwise-bidirectional")
_TOKENS = 12


@dataclass(frozen=True)
class RasterSettings:
    """What is drawn.

    A setting that would have no effect is refused, so None stands for "not given".

    Attributes:
        model: anything that `load` takes.
        text: a UTF-8 file; None for the text of the standard library's pydoc_data.topics.
        prompt: a text itself, in the place of a file; all its tokens are drawn.
        num_tokens: tokens from the start of the file; None for 12.
        max_new_tokens: tokens that the model writes after the text; those that it read again to go on are drawn, too.
        layers: pattern of the layers that are drawn, at most 8; None for the one in the middle of the model.
        encoders: codes that are drawn side by side, objects or registered names, None for the trains as they ran; if
            empty, binary, ternary and bitwise-bidirectional.
        num_neurons: neurons of a layer that are drawn, evenly spread over all.
        num_timesteps: timesteps of a token that are drawn; None for as many as 99 % of its neurons need.
        potential_of: number of the neuron whose membrane potential is drawn; None for one that fires at most tokens.
        neuron: turns activations into counts, an object or a registered name; None for `AdaptiveThreshold`.
        k: of the neuron, if it has one: mean |x| of a token divided by its threshold, or one for each pattern of layer
            names; None for its own.
        skip: patterns of the names of layers that stay dense; None for none.
        weights: "int8", "int4", or "stored" for those of a GGUF file as they are; None for "int8".
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
    """

    model: str = "smollm2"
    text: Path | None = None
    prompt: str | None = None
    num_tokens: int | None = None
    max_new_tokens: int = 0
    layers: str | None = None
    encoders: tuple[Encoder | str | None, ...] = ()
    num_neurons: int = 64
    num_timesteps: int | None = None
    potential_of: int | None = None
    neuron: Neuron | str | None = None
    k: K | None = None
    skip: tuple[str, ...] | None = None
    weights: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Put objects in the place of names; raise an InputError if there is no such name, or a setting is in vain."""
        object.__setattr__(self, "neuron", NEURONS.resolve(self.neuron, "neuron", None))
        encoders = tuple(ENCODERS.resolve(encoder, "encoder", None) for encoder in self.encoders or _CODES)
        object.__setattr__(self, "encoders", encoders)
        if self.max_new_tokens < 0:
            raise InputError(f"max_new_tokens: expected an integer >= 0, got {self.max_new_tokens}.")
        if self.prompt is not None:
            if not self.prompt:
                raise InputError("prompt: expected a text of at least one token, got an empty one.")
            refuse(self, ("text", "num_tokens"), "beside `prompt`, which is the whole text")

    def of_model(self) -> _OfModel:
        """Return what says how a model spikes that does not spike already."""
        return _OfModel(self.neuron, self.k, self.skip, self.weights)


@dataclass(frozen=True)
class _OfModel:
    neuron: Any
    k: K | None
    skip: tuple[str, ...] | None
    weights: str | None

    def spike_settings(self) -> SpikeSettings:
        return spike_settings(self)


class Drawn(NamedTuple):
    """What `raster` drew.

    Attributes:
        raster: all that the picture shows.
        text: that the model wrote after the prompt.
        source: file, folder or hub id that the model is from.
    """

    raster: Raster
    text: str
    source: str


def raster(settings: RasterSettings, out: Path, progress: Progress = SILENT, *, force: bool = False) -> Drawn:
    """Draw the spikes of some layers, in several codes side by side.

    Args:
        settings: what is drawn.
        out: *.png or *.svg for a picture, *.html for a page with zoom, where each place says what it is.
        progress: told what happens.
        force: write over a file that is there.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    check_suffix(out, "out", SUFFIXES)
    require_writable(out.parent)
    if out.exists() and not force:
        raise InputError(f"out {out}: is there already. Name another file, or pass force=True to write over it.")
    num_tokens = usual(settings.num_tokens, _TOKENS) if settings.prompt is None else None
    inputs = {"num_tokens": num_tokens, "context": num_tokens or 1, "prompt": settings.prompt, "progress": progress}
    found = load_spiking(settings.model, settings.text, settings.of_model(), device=settings.device, **inputs)
    names = list(spiking_layers(found.model))
    pattern = names[len(names) // 2] if settings.layers is None else settings.layers
    check_matches("layers", (pattern,), names)
    progress.say(f"Recording {pattern}")
    with record(found.model, layers=(pattern,), keep_trains=True, keep_inputs=True) as recording:
        ids = _run(found.model, found.ids, settings.max_new_tokens)
    drawn = analysis.raster(
        recording,
        encoders=settings.encoders,
        tokens=_texts(found.tokenizer, ids[: max(len(found.ids), len(ids) - 1)], recording.trains),
        num_neurons=settings.num_neurons,
        num_timesteps=settings.num_timesteps,
        potential_of=settings.potential_of,
        title=f"{model_name(found.source)}: spikes into {pattern}",
    )
    if out.suffix.lower() == ".html":
        pages.write_raster_page(drawn, out)
    else:
        analysis.plot_raster(drawn, out)
    return Drawn(drawn, str(found.tokenizer.decode(ids[len(found.ids) :])), found.source)


@torch.inference_mode()
def _run(model: Any, ids: Tensor, max_new_tokens: int) -> Tensor:
    """Run a model on a text and let it go on; return the ids of both."""
    ids = ids[None].to(next(model.parameters()).device)
    if max_new_tokens == 0:
        model(input_ids=ids, use_cache=False)
        return ids[0].cpu()
    ends = getattr(model.generation_config, "eos_token_id", None)
    padding = ends[0] if isinstance(ends, list) else ends
    return model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding)[0].cpu()


def _texts(tokenizer: Any, ids: Tensor, trains: dict[str, list]) -> list[str] | None:
    """Return the text of each token that ran; None where a layer sees others than those of the text, as experts do."""
    texts = [str(tokenizer.decode([i])) for i in ids.tolist()]
    num_ran = {sum(train.spikes.shape[1] for train in of_layer) for of_layer in trains.values()}
    num_before = min(num_ran, default=0) - len(texts)  # sink tokens, which run before the text
    if len(num_ran) != 1 or num_before < 0:
        return None
    return ["sink"] * num_before + texts
