"""Traces in Perfetto's own format (ui.perfetto.dev): tracks with slices, counters and flows, written as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..files import whole_file
from ..lazy import optional

TRACE_SUFFIX = ".pftrace"
_SEQUENCE = 1


def require_perfetto(where: str) -> None:
    """Raise an InputError if the package that writes traces is not installed; `where` begins the message."""
    optional("perfetto", "timeline", where)


@contextmanager
def trace_file(path: Path) -> Iterator[TraceFile]:
    """Write a trace in one step.

    Args:
        path: *.pftrace to write.
    Yields:
        What takes tracks and events.
    Raises:
        InputError: the file cannot be written, or the package of the extra `timeline` is not installed.
    """
    require_perfetto(f"{path}")
    with whole_file(path) as partial, partial.open("wb") as file:
        yield TraceFile(file)


class TraceFile:
    """Takes tracks and events of a trace.

    Times are whole nanoseconds. On one track slices nest: each ends before the one that it is in, and events come in
    the order of their times.

    Args:
        file: to write to.

    Source:
        Perfetto, `TracePacket`, `TrackDescriptor` and `TrackEvent` (protos/perfetto/trace).
    """

    def __init__(self, file: IO[bytes]) -> None:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (  # noqa: PLC0415 - of an extra
            TrackDescriptor,
            TrackEvent,
        )
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder  # noqa: PLC0415

        self._builder = StreamingTraceProtoBuilder(file)
        self._event, self._explicit = TrackEvent, TrackDescriptor.EXPLICIT
        self._num_tracks = 0
        self.num_slices = 0

    def track(self, name: str, parent: int = 0, *, unit: str | None = None) -> int:
        """Add a track below those that were added to the same parent before.

        Args:
            name: that is shown.
            parent: track that it is under; 0 for none.
            unit: of a counter's values; None for a track of slices.
        Returns:
            Its number.
        """
        packet = self._builder.create_packet()
        self._num_tracks += 1
        found = packet.track_descriptor
        found.uuid, found.name, found.child_ordering = self._num_tracks, name, self._explicit
        found.sibling_order_rank = self._num_tracks
        if parent:
            found.parent_uuid = parent
        if unit is not None:
            found.counter.unit_name = unit
        self._builder.write_packet(packet)
        return self._num_tracks

    def begin(
        self, track: int, time_ns: int, name: str, details: Mapping[str, int | float | str] | None = None, flow: int = 0
    ) -> None:
        """Begin a slice.

        Args:
            track: that it is on.
            time_ns: when.
            name: that is shown.
            details: by name.
            flow: number that joins slices by arrows, in the order of their times; 0 for none.
        """
        packet, event = self._new(track, time_ns, self._event.TYPE_SLICE_BEGIN)
        event.name = name
        if flow:
            event.flow_ids.append(flow)
        for key, value in (details or {}).items():
            note = event.debug_annotations.add()
            note.name = key
            if isinstance(value, str):
                note.string_value = value
            elif isinstance(value, int):
                note.int_value = value
            else:
                note.double_value = value
        self._builder.write_packet(packet)
        self.num_slices += 1

    def end(self, track: int, time_ns: int) -> None:
        """End the slice of a track that began last."""
        packet, _ = self._new(track, time_ns, self._event.TYPE_SLICE_END)
        self._builder.write_packet(packet)

    def count(self, track: int, time_ns: int, value: int) -> None:
        """Set a counter, until it is set again."""
        packet, event = self._new(track, time_ns, self._event.TYPE_COUNTER)
        event.counter_value = value
        self._builder.write_packet(packet)

    def _new(self, track: int, time_ns: int, kind: Any) -> tuple[Any, Any]:
        packet = self._builder.create_packet()
        packet.timestamp, packet.trusted_packet_sequence_id = time_ns, _SEQUENCE
        packet.track_event.type, packet.track_event.track_uuid = kind, track
        return packet, packet.track_event
