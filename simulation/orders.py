"""Which channels of a model fire together, learned from a text, so that they can share blocks of memory on a chip."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from torch import Tensor, nn

from ..chip import ChannelOrder
from ..models.layers.observing import Step
from ..module_check import check_module
from .calls import run_steps
from .layers import layers_of
from .weights import weights_of


def learn_orders(model: nn.Module, ids: Tensor, order: ChannelOrder) -> dict[str, np.ndarray]:
    """Return the order in which the channels of each spiking layer should lie in memory, from how they fire on a text.

    Args:
        model: converted to spikes.
        ids: token ids of a window, [tokens]. They should not be those that are simulated afterwards, on which the
            learned order would look better than it is.
        order: finds the order of one layer.
    Returns:
        A permutation, int64 [in_features], by the name of the layer; layers that no token reaches are left out. The
        channels of a group of weights stay beside each other.
    """
    check_module("learn_orders", model)
    fired: dict[str, list[np.ndarray]] = defaultdict(list)

    def see(name: str, step: Step) -> None:
        fired[name].append(step.train.spikes.any(dim=0).cpu().numpy())

    spiking = layers_of(model)
    run_steps(model, spiking, ids, see)
    weights = weights_of(spiking)
    return {name: weights[name].whole_groups(order.order(np.concatenate(active))) for name, active in fired.items()}
