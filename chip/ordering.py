"""Orders of the channels of a layer in memory: a block costs nothing if all of its channels are silent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ..registry import Registry


class ChannelOrder(ABC):
    """Orders channels by what fired in a recording. To add an order, write `order`."""

    @abstractmethod
    def order(self, active: np.ndarray) -> np.ndarray:
        """Return the channels in the order in which they lie in memory and are sent.

        Args:
            active: whether a channel fired for a token, bool [tokens, N].
        Returns:
            A permutation, int64 [N].
        """


ORDERS: Registry[ChannelOrder] = Registry("order", ChannelOrder)


@ORDERS.register("as-given")
@dataclass(frozen=True)
class AsGiven(ChannelOrder):
    """As the model has them."""

    def order(self, active: np.ndarray) -> np.ndarray:
        """Return 0 to N - 1."""
        return np.arange(active.shape[1])


@ORDERS.register("by-rate")
@dataclass(frozen=True)
class ByRate(ChannelOrder):
    """The most active first: blocks of rare channels are often wholly silent."""

    def order(self, active: np.ndarray) -> np.ndarray:
        """Return the channels by falling number of tokens for which they fired."""
        return np.argsort(-active.sum(0), kind="stable")


@ORDERS.register("together")
@dataclass(frozen=True)
class Together(ChannelOrder):
    """Channels that fire for the same tokens lie side by side: each is followed by the most similar of those left.

    The most similar channel is the one that differs for the fewest tokens. The first channel is the most active one.
    Time and memory grow with N^2.
    """

    def order(self, active: np.ndarray) -> np.ndarray:
        """Return a chain of nearest neighbours."""
        num_tokens, num_channels = active.shape
        if num_tokens == 0 or num_channels == 0:
            return np.arange(num_channels)
        fired = active.T.astype(np.float32)
        both = fired @ fired.T
        rate = fired.sum(1)
        differ = rate[:, None] + rate[None, :] - 2 * both
        left = np.ones(num_channels, bool)
        chain = [int(rate.argmax())]
        left[chain[0]] = False
        for _ in range(num_channels - 1):
            distance = np.where(left, differ[chain[-1]], np.inf)
            chain.append(int(distance.argmin()))
            left[chain[-1]] = False
        return np.array(chain)
