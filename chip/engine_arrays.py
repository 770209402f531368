"""What the compiled loop of `engine.py` works on, by name: fields of stations and cores, and arrays of a layer."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import numpy as np

from .network import Network
from .outcome import CoreCounts, StationCounts, int64_fields
from .traffic import Traffic

# What a station has at hand: its queue, who waits for a place in it, the packet in service, the packet on its way out,
# and what is left to serve of a token. With it go the counts that an `Outcome` has per station.
STATE = int64_fields(
    *("length", "head", "changed", "wait_length", "wait_head"),
    *("word", "value", "route", "serial", "record", "idle"),
    *("out_word", "out_value", "out_route", "pending", "since"),
    *("cursor", "stop", "token"),
    *(field.name for field in fields(StationCounts)),
)
# A core's counts, and the group and token to whose sums it adds, and when the unit that rescales them is free again.
CORES = int64_fields("group", "token", "free_ps", *(field.name for field in fields(CoreCounts)))
QUEUED = int64_fields("word", "value", "route", "there_ps", "record")
SERVICES = int64_fields("station", "word", "begin_ps", "end_ps", "entered_ps", "taken_ps", "cause")


class LayerArrays(NamedTuple):
    """What the loop needs of a `Network`; see there. `row_ps` is how long a core takes to add one row of weights."""

    kind: np.ndarray
    depth: np.ndarray
    service_ps: np.ndarray
    latency_ps: np.ndarray
    unit: np.ndarray
    next_first: np.ndarray
    next_num: np.ndarray
    next_station: np.ndarray
    num_ends: np.ndarray
    core_inputs: np.ndarray
    core_outputs: np.ndarray
    sum_route: np.ndarray
    result_route: int
    num_partial: int
    block_bytes: int
    block_ps: int
    group_size: int
    parameter_bits: int
    rescale_ps: np.ndarray
    free_ends: bool
    keeps_sums: bool
    num_banks: int
    row_ps: np.ndarray

    @classmethod
    def of(cls, network: Network) -> LayerArrays:
        """Take the arrays of a network."""
        row_ps = -(-np.diff(network.core_outputs)[:, 0] // network.lanes) * network.add_ps
        return cls(*(getattr(network, name) for name in cls._fields if name != "row_ps"), row_ps=row_ps)


class PacketArrays(NamedTuple):
    """What the loop needs of a `Traffic`; see there."""

    first: np.ndarray
    position: np.ndarray
    row: np.ndarray
    read_bits: np.ndarray
    value: np.ndarray
    num_adds: np.ndarray
    num_shifts: np.ndarray
    route: np.ndarray
    service_ps: np.ndarray
    planes: np.ndarray

    @classmethod
    def of(cls, traffic: Traffic) -> PacketArrays:
        """Take the arrays of a traffic."""
        return cls(*(getattr(traffic, name) for name in cls._fields))
