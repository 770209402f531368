"""Layer layouts of the SpikingBrain models at any depth, and presets of complete configurations."""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from .config import LayerPlan, SpikingBrainConfig

LAYOUTS = ("7b", "76b")
# Layers of the 76B with a dense feed-forward part, counted from 1 (report, section 2).
_DENSE_FFN_76B = (1, 2, 3, 5, 7, 9, 11)


def layout(name: str, num_layers: int) -> tuple[LayerPlan, ...]:
    """Return the plans of a published layout, extended to any depth.

    "7b": linear and window attention alternate. "76b": linear and window attention run in parallel in each layer,
    except that every seventh layer has linear and full attention; layers 1, 2, 3, 5, 7, 9 and 11 (counted from 1) have
    dense feed-forward parts, all others mixtures of experts.

    Args:
        name: "7b" or "76b".
        num_layers: depth, at least 1.
    Raises:
        InputError: an unknown name or no layers.

    Source:
        SpikingBrain (arXiv:2509.05276), section 2.

    >>> [str(plan) for plan in layout("76b", 8)][5:]
    ['gla+swa/moe', 'gla+full', 'gla+swa/moe']
    """
    if type(num_layers) is not int or num_layers < 1:
        raise InputError(f"layout: expected num_layers, an integer >= 1, got {num_layers!r}.")
    if name == "7b":
        return tuple(LayerPlan(("swa",) if i % 2 else ("gla",)) for i in range(num_layers))
    if name == "76b":
        return tuple(
            LayerPlan(("gla", "swa" if i % 7 else "full"), "dense" if i in _DENSE_FFN_76B else "moe")
            for i in range(1, num_layers + 1)
        )
    raise InputError(f"layout: expected one of {LAYOUTS}, got {name!r}. parse_layers reads a plan per layer.")


def parse_layers(text: str, num_layers: int | None = None) -> tuple[LayerPlan, ...]:
    """Read a layout: the name of a published one, or plans separated by commas, such as "gla,swa,gla+full/moe".

    Args:
        text: the layout.
        num_layers: depth; required with a name, otherwise checked against the number of plans.
    Raises:
        InputError: an unknown mixer, or a depth that does not fit.
    """
    if text in LAYOUTS:
        if num_layers is None:
            raise InputError(f"parse_layers: expected num_layers with the layout {text!r}.")
        return layout(text, num_layers)
    plans = tuple(LayerPlan.parse(part) for part in text.split(","))
    if num_layers is not None and len(plans) != num_layers:
        raise InputError(f"parse_layers: expected {num_layers} plans, one per layer, got {len(plans)} in {text!r}.")
    return plans


def spikingbrain_7b(**changes: Any) -> SpikingBrainConfig:
    """Return the configuration of SpikingBrain-7B: shapes of Qwen2.5-7B, alternating linear and window attention.

    Args:
        changes: fields to change.
    """
    fields = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "num_heads": 28,
        "num_kv_heads": 4,
        "intermediate_size": 18944,
        "layers": layout("7b", 28),
        "window": 4096,
        "max_position_embeddings": 131072,
    }
    return SpikingBrainConfig.from_dict({**fields, **changes})


def spikingbrain_76b(**changes: Any) -> SpikingBrainConfig:
    """Return the configuration of SpikingBrain-76B-A12B as the report describes it; its code is not public.

    Shapes, window and rotary base, which the report leaves open, are those of the 7B. With experts as wide as the dense
    feed-forward part there are 76.1 billion parameters, 11.9 billion of them active, in agreement with the name.

    Args:
        changes: fields to change.
    """
    fields = {
        "layers": layout("76b", 28),
        "gate": "tied",
        "feature_map": "sigmoid",
        "num_sinks": 128,
        "num_experts": 16,
        "num_experts_per_token": 1,
        "num_shared": 1,
    }
    return spikingbrain_7b(**{**fields, **changes})


_TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 96,
    "window": 16,
    "max_position_embeddings": None,
}


def tiny_7b(**changes: Any) -> SpikingBrainConfig:
    """Return a 7B-style configuration of four layers and 64 channels, for tests.

    Args:
        changes: fields to change.
    """
    return spikingbrain_7b(**{**_TINY, "layers": layout("7b", 4), **changes})


def tiny_76b(**changes: Any) -> SpikingBrainConfig:
    """Return a 76B-style configuration of seven layers, four experts and eight sink tokens, for tests.

    Args:
        changes: fields to change.
    """
    return spikingbrain_76b(**{**_TINY, "layers": layout("76b", 7), "num_experts": 4, "num_sinks": 8, **changes})
