"""In which order the channels of a layer lie in memory: silent ones that share a block cost nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ..registry import Registry


class ChannelOrder(ABC):
    """Decides from a recording which channels are neighbours. To add one, write `order`."""

    @abstractmethod
    def order(self, active: np.ndarray) -> np.ndarray:
        """Return the channels in the order in which they lie in memory and are sent.

        Args:
            active: which channels fired for which token, bool [tokens, N].
        Returns:
            A permutation, int64 [N].
        """


ORDERS: Registry[ChannelOrder] = Registry("channel order", ChannelOrder)


@ORDERS.register("as-given")
class AsGiven(ChannelOrder):
    """As the model has them."""

    def order(self, active: np.ndarray) -> np.ndarray:
        """Return 0 to N - 1."""
        return np.arange(active.shape[1])


@ORDERS.register("by-rate")
class ByRate(ChannelOrder):
    """The most active first: blocks of rare channels are often wholly silent."""

    def order(self, active: np.ndarray) -> np.ndarray:
        """Return the channels by falling number of tokens for which they fired."""
        return np.argsort(-active.sum(0), kind="stable")


@ORDERS.register("together")
class Together(ChannelOrder):
    """Channels that fire for the same tokens side by side: each next one is the most similar of those that are left.

    Similar means that the fewest tokens tell the two apart. The first channel is the most active. Takes time and
    memory of N^2.
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
