"""What a simulation of a layer returns: integers, times and counters, the same from both implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Trace:
    """Every service of every station, in the order in which they began.

    Attributes:
        station: which one, int64 [services].
        word: what was served: number of the packet in the traffic for spikes, else token * outputs + output; int64.
        begin_ps, end_ps: of the service, int64.
        cause: service whose end let this one begin, or -1; int64. Between lies nothing but a wire's latency.
        last: service that ended the last token.
    """

    station: np.ndarray
    word: np.ndarray
    begin_ps: np.ndarray
    end_ps: np.ndarray
    cause: np.ndarray
    last: int


@dataclass(frozen=True)
class Outcome:
    """A simulated layer: L tokens, M outputs, S stations, C cores.

    Attributes:
        sums: exact, int64 [L, M].
        begin_ps, end_ps: when a token's encoding began, and when its last sum had been collected; int64 [L].
        num_served: packets that passed a station, or left it (source, send); int64 [S].
        num_ends: those of them that only say that a token is done, int64 [S].
        busy_ps: time in service, int64 [S].
        blocked_ps: time with a packet that no queue had room for, int64 [S].
        queue_ps: integral of the length of the queue over time, int64 [S].
        queue_most: greatest length of the queue, int64 [S].
        num_synops: additions of a weight, int64 [C].
        num_shifts: those of them with a shifted weight, int64 [C].
        num_updates: accumulators read and written, one per packet and output; int64 [C].
        num_blocks: accesses to weight memory, int64 [C].
        trace: every service, if it was asked for.
    """

    sums: np.ndarray
    begin_ps: np.ndarray
    end_ps: np.ndarray
    num_served: np.ndarray
    num_ends: np.ndarray
    busy_ps: np.ndarray
    blocked_ps: np.ndarray
    queue_ps: np.ndarray
    queue_most: np.ndarray
    num_synops: np.ndarray
    num_shifts: np.ndarray
    num_updates: np.ndarray
    num_blocks: np.ndarray
    trace: Trace | None = None


def outcome_of(sums: np.ndarray, columns: Sequence[np.ndarray], trace: Trace | None = None) -> Outcome:
    """Return an outcome from its arrays, in the order of their fields."""
    names = [f.name for f in fields(Outcome) if f.name not in ("sums", "trace")]
    return Outcome(sums=sums, trace=trace, **dict(zip(names, columns, strict=True)))
