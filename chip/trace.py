"""A simulated layer as a timeline that Chrome (chrome://tracing) and Perfetto (ui.perfetto.dev) show."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import write_json
from .layer import LayerSimulation
from .network import SEND, SOURCE


def write_timeline(simulation: LayerSimulation, path: Path, name: str) -> int:
    """Write every service of every station, a track per station, in the trace event format.

    Args:
        simulation: with a trace.
        path: *.json to write.
        name: of the layer.
    Returns:
        The number of services.
    Raises:
        InputError: the simulation kept no trace.

    Source:
        Trace Event Format, Google; "X" events with times in microseconds.
    """
    trace, network, traffic = simulation.outcome.trace, simulation.network, simulation.traffic
    if trace is None:
        raise InputError("write_timeline: expected a simulation with trace=True.")
    events: list[dict] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": f"{name} on {simulation.chip.name}"}}
    ]
    for s, station in enumerate(network.names):
        events.append({"ph": "M", "pid": 0, "tid": s, "name": "thread_name", "args": {"name": station}})
        order = network.num_stations - s  # from the encoder down
        events.append({"ph": "M", "pid": 0, "tid": s, "name": "thread_sort_index", "args": {"sort_index": order}})
    num_outputs = simulation.sums.shape[1]
    columns = (trace.station, trace.word, trace.begin_ps, trace.end_ps)
    spike_networks = {s for s, station in enumerate(network.names) if station.startswith(("spike link", "accumulate"))}
    for s, word, begin, end in zip(*(column.tolist() for column in columns), strict=True):
        if network.kind[s] == SOURCE or s in spike_networks:
            is_end = traffic.num_adds[word] < 0
            what = "end of token" if is_end else f"channel {traffic.position[word]}"
            details = {} if is_end else {"count": int(traffic.value[word])}
        elif network.kind[s] == SEND:
            what, details = f"sums of token {word}", {}
        else:
            what, details = f"output {word % num_outputs}", {"token": word // num_outputs}
        span = {"ts": begin / 1e6, "dur": (end - begin) / 1e6}
        events.append({"ph": "X", "pid": 0, "tid": s, "name": what, **span, "args": details})
    write_json(path, {"traceEvents": events, "displayTimeUnit": "ns"}, indent=None)
    return len(trace.station)
