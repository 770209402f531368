"""Which channels of a model fire together, learned from a text, so that they can share blocks of memory on a chip."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from ..backends.chip import ChannelOrder
from ..models import SpikeLinear
from ..models.spike_linear import Step, observing


def learn_orders(model: nn.Module, ids: Tensor, order: ChannelOrder) -> dict[str, np.ndarray]:
    """Return in which order the channels of each spiking layer should lie in memory, from how they fire on a text.

    Args:
        model: converted to spikes.
        ids: token ids of a window, [tokens]; not those that are simulated afterwards, or the result flatters.
        order: decides, layer by layer.
    Returns:
        A permutation by the name of the layer, int64 [N]; layers that no token reaches are left out.
    """
    names = {id(layer): name for name, layer in model.named_modules() if isinstance(layer, SpikeLinear)}
    fired: dict[str, list[np.ndarray]] = defaultdict(list)

    def observe(layer: SpikeLinear, step: Step) -> None:
        fired[names[id(layer)]].append(step.train.spikes.any(dim=0).cpu().numpy())

    layers = [layer for layer in model.modules() if isinstance(layer, SpikeLinear)]
    with observing(layers, observe), torch.inference_mode():
        model(input_ids=ids[None], use_cache=False)
    return {name: order.order(np.concatenate(active)) for name, active in fired.items()}
