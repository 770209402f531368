"""Which channels of a model fire together, learned from a text, so that they can share blocks of memory on a chip."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from torch import Tensor, nn

from ..chip import ChannelOrder
from ..models.layers.spike_linear import Step
from .model import run_observed, spiking_layers


def learn_orders(model: nn.Module, ids: Tensor, order: ChannelOrder) -> dict[str, np.ndarray]:
    """Return in which order the channels of each spiking layer should lie in memory, from how they fire on a text.

    Args:
        model: converted to spikes.
        ids: token ids of a window, [tokens]; not those that are simulated afterwards, or the result flatters.
        order: decides, layer by layer.
    Returns:
        A permutation by the name of the layer, int64 [N]; layers that no token reaches are left out.
    """
    fired: dict[str, list[np.ndarray]] = defaultdict(list)

    def see(name: str, step: Step) -> None:
        fired[name].append(step.train.spikes.any(dim=0).cpu().numpy())

    run_observed(model, spiking_layers(model), ids, see)
    return {name: order.order(np.concatenate(active)) for name, active in fired.items()}
