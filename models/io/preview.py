"""A model folder without its weights: what a job can check before it loads gigabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from .folder_config import config_json, is_spiking
from .folders import is_spikingbrain, without_weights
from .hub import check_depth, quiet, tokenizer_beside
from .replace_folder import CONFIG
from .shards import Shards


class Preview(NamedTuple):
    """A model without weights.

    Attributes:
        model: all of its modules, on the meta device; those of a model that spikes are float ones.
        tokenizer: its transformers tokenizer, or None if it has none.
        spikes: whether it spikes already.
    """

    model: nn.Module
    tokenizer: Any
    spikes: bool


def preview(name_or_path: str | Path) -> Preview | None:
    """Return a model folder without its weights; None for other sources, and for what `load` will refuse."""
    path = Path(name_or_path)
    if not (path / "config.json").is_file():
        return None
    try:
        with quiet():
            check_depth(config_json(path), len(Shards(path).shapes), path / CONFIG)
            if is_spikingbrain(path) and not is_spiking(config_json(path)):
                model, spikes = without_weights(path)
                return Preview(model, tokenizer_beside(path), spikes)
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return Preview(model, tokenizer_beside(path), is_spiking(config_json(path)))
    except Exception:  # of many kinds: `load` meets the same, and says what is wrong
        return None
