"""What a simulation of a layer returns: integers, times and counters, the same from both implementations."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Trace:
    """Every service of every station, in the order in which they began.

    Attributes:
        station: number of the station, int64 [services].
        word: what was served: for spikes the number of the packet in the traffic, else token * outputs + output; int64.
        begin_ps, end_ps: times of the service, int64.
        entered_ps, taken_ps: when its packet came into the station's queue and left it, int64; both are the time of the
            service for what no queue held (of a source, and of a sender all sums of a token but the first).
        cause: number of the service whose end let this one begin, or -1; int64. Only a wire's latency lies between.
        last: number of the service that ended the last token.
    """

    station: np.ndarray
    word: np.ndarray
    begin_ps: np.ndarray
    end_ps: np.ndarray
    entered_ps: np.ndarray
    taken_ps: np.ndarray
    cause: np.ndarray
    last: int


@dataclass(frozen=True, kw_only=True)
class StationCounts:
    """What happened at each of S stations; all int64 [S].

    Attributes:
        num_served: packets that passed the station, or left it (source, send).
        num_ends: packets among them that only say that a token is done.
        busy_ps: time in service.
        blocked_ps: time with a packet that no queue had room for.
        queue_ps: integral of the length of the queue over time.
        queue_most: greatest length of the queue.
    """

    num_served: np.ndarray
    num_ends: np.ndarray
    busy_ps: np.ndarray
    blocked_ps: np.ndarray
    queue_ps: np.ndarray
    queue_most: np.ndarray


@dataclass(frozen=True, kw_only=True)
class CoreCounts:
    """What happened in each of C cores; all int64 [C].

    Attributes:
        num_synops: additions of a weight.
        num_shifts: additions of a shifted weight; they are among num_synops.
        num_updates: accumulators read and written: one per packet and output, and one per output when a group is done.
        num_blocks: accesses to weight memory.
        num_rescaled: sums of groups that were rescaled.
    """

    num_synops: np.ndarray
    num_shifts: np.ndarray
    num_updates: np.ndarray
    num_blocks: np.ndarray
    num_rescaled: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Outcome(StationCounts, CoreCounts):
    """A simulated layer of L tokens and M outputs, with the counts of its stations and cores.

    Attributes:
        sums: exact, int64 [L, M]; of weights in groups, what came of the sums of all groups without their scales.
        group_sums: of weights in groups, exact, integers [L, G, M], G groups in the order of the positions; of others
            empty.
        begin_ps, end_ps: when a token's encoding began, and when its last sum had been collected; int64 [L].
        trace: every service, if it was asked for.
    """

    sums: np.ndarray
    group_sums: np.ndarray
    begin_ps: np.ndarray
    end_ps: np.ndarray
    trace: Trace | None = None


def int64_fields(*names: str) -> np.dtype:
    """Return the type of an array whose elements have these int64 fields."""
    return np.dtype([(name, np.int64) for name in names])


def outcome_of(
    sums: np.ndarray,
    group_sums: np.ndarray,
    begin_ps: np.ndarray,
    end_ps: np.ndarray,
    stations: np.ndarray,
    cores: np.ndarray,
    trace: Trace | None = None,
) -> Outcome:
    """Return an outcome; counts are taken by name from arrays with fields for stations, [S], and for cores, [C]."""
    counts = {f.name: np.ascontiguousarray(stations[f.name]) for f in fields(StationCounts)}
    counts |= {f.name: np.ascontiguousarray(cores[f.name]) for f in fields(CoreCounts)}
    return Outcome(sums=sums, group_sums=group_sums, begin_ps=begin_ps, end_ps=end_ps, trace=trace, **counts)
