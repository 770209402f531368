"""Timelines for Perfetto: what the stations of a chip do, and which layers of a model spike when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..chip import LayerSimulation
from ..chip.network import KIND_NAMES, SEND, SOURCE, Network
from ..coding import SpikeTrain
from ..errors import InputError
from ..models import Recording
from .trace_file import TraceFile, trace_file

# A timestep of a recording, which has no time of its own, is drawn as long as this.
TIMESTEP_NS = 1000


def write_chip_timeline(simulations: Mapping[str, LayerSimulation], path: str | Path) -> int:
    """Write every service of every station of simulated layers, a track a station.

    Arrows follow each spike from its encoder over the links to the cores. Counters say how many stations of a kind are
    busy. Simulated times are whole picoseconds and those of the format whole nanoseconds: each is rounded down, which
    keeps the order, and every slice has its `begin_ps` and `duration_ps` exactly.

    Args:
        simulations: by the name of the layer, each with a trace.
        path: *.pftrace to write.
    Returns:
        The number of services.
    Raises:
        InputError: a simulation kept no trace, the file cannot be written, or the package of the extra `timeline` is
            not installed.
    """
    traces = {name: simulation.outcome.trace for name, simulation in simulations.items()}
    for name, trace in traces.items():
        if trace is None:
            raise InputError(f"write_chip_timeline: expected a simulation with trace=True, {name!r} has none.")
    with trace_file(Path(path)) as file:
        num_flows = 0
        for name, simulation in simulations.items():
            _write_layer(file, name, simulation, num_flows)
            num_flows += len(simulation.traffic.num_adds)
    return sum(len(trace.station) for trace in traces.values() if trace is not None)


def _write_layer(file: TraceFile, name: str, simulation: LayerSimulation, first_flow: int) -> None:
    """Write the services of one layer; its flows have the numbers after `first_flow`."""
    trace, network = simulation.outcome.trace, simulation.network
    assert trace is not None
    in_order = np.lexsort((trace.begin_ps, trace.station))
    root = file.track(f"{name} on {simulation.chip.name}")
    # The last station is the encoder, where spikes begin.
    tracks = {s: file.track(network.names[s], root) for s in reversed(range(network.num_stations))}
    columns = (trace.station, trace.word, trace.begin_ps, trace.end_ps)
    for s, word, begin, end in zip(*(column[in_order].tolist() for column in columns), strict=True):
        what, details, flow = _service(simulation, s, word)
        details |= {"begin_ps": begin, "duration_ps": end - begin}
        file.begin(tracks[s], begin // 1000, what, details, first_flow + flow if flow else 0)
        file.end(tracks[s], end // 1000)
    for kind in np.unique(network.kind).tolist():
        is_of_kind = network.kind[trace.station] == kind
        counter = file.track(f"busy: {KIND_NAMES[kind]}", root, unit="stations")
        _count_busy(file, counter, trace.begin_ps[is_of_kind], trace.end_ps[is_of_kind])


def _service(simulation: LayerSimulation, station: int, word: int) -> tuple[str, dict[str, int | float | str], int]:
    """Return what a station serves, its details, and the flow that it is part of."""
    network, traffic = simulation.network, simulation.traffic
    num_outputs = simulation.sums.shape[1]
    if _serves_spikes(network, station):
        if traffic.num_adds[word] < 0:
            return "end of token", {}, 0
        return f"channel {traffic.position[word]}", {"count": int(traffic.value[word])}, word + 1
    if network.kind[station] == SEND:
        return f"sums of token {word}", {}, 0
    return f"output {word % num_outputs}", {"token": word // num_outputs}, 0


def _serves_spikes(network: Network, station: int) -> bool:
    name = network.names[station]
    return bool(network.kind[station] == SOURCE) or name.startswith(("spike link", "accumulate"))


def _count_busy(file: TraceFile, counter: int, begin_ps: np.ndarray, end_ps: np.ndarray) -> None:
    times = np.concatenate([begin_ps, end_ps]) // 1000
    steps = np.concatenate([np.ones_like(begin_ps), -np.ones_like(end_ps)])
    at, where = np.unique(times, return_inverse=True)
    change = np.zeros(len(at), np.int64)
    np.add.at(change, where, steps)
    for time_ns, busy, changed in zip(at.tolist(), change.cumsum().tolist(), change.tolist(), strict=True):
        if changed:
            file.count(counter, time_ns, busy)


def write_recording_timeline(recording: Recording, path: str | Path, tokens: Sequence[str] | None = None) -> int:
    """Write which layers spiked when: tokens as slices, spikes per timestep as counters.

    The layers of a call stand behind each other in the order in which they ran, the tokens of a layer, too, and a
    timestep is drawn as a microsecond: a recording has an order and no times.

    Args:
        recording: with `keep_trains`.
        path: *.pftrace to write.
        tokens: text of each token, in the order in which they ran; they count for the layers that saw all of them.
    Returns:
        The number of trains.
    Raises:
        InputError: no train was kept, the file cannot be written, or the package of the extra `timeline` is not
            installed.
    """
    names = [name for name in recording.order if recording.trains.get(name)]
    names += [name for name in recording.trains if name not in names]
    if not names:
        raise InputError("write_recording_timeline: expected trains, got none. Use record(model, keep_trains=True).")
    num_trains = [len(recording.trains[name]) for name in names]
    with trace_file(Path(path)) as file:
        root = file.track(f"{recording.model}: 1 µs is a timestep, and layers stand in the order in which they ran")
        calls = file.track("calls of the model", root)
        layers = {name: file.track(name or "layer", root) for name in names}
        counters = {name: file.track("spikes", layers[name], unit="spikes in a timestep") for name in names}
        now, token = 0, dict.fromkeys(names, 0)
        for i in range(max(num_trains)):
            of_call = {name: recording.trains[name][i] for name in names if i < len(recording.trains[name])}
            num_spikes = sum(train.num_spikes for train in of_call.values())
            if min(num_trains) == max(num_trains):  # else experts, which are not all in every call
                file.begin(calls, now, f"call {i}", {"spikes": num_spikes})
            for name, train in of_call.items():
                total = sum(other.spikes.shape[1] for other in recording.trains[name])
                texts = tokens if tokens is not None and len(tokens) == total else None
                now = _write_train(file, layers[name], counters[name], now, train, token[name], texts)
                token[name] += train.spikes.shape[1]
            if min(num_trains) == max(num_trains):
                file.end(calls, now)
    return sum(num_trains)


def _write_train(
    file: TraceFile, track: int, counter: int, now: int, train: SpikeTrain, first: int, texts: Sequence[str] | None
) -> int:
    """Write the tokens of a train from a time on; return when they end."""
    num_timesteps, num_tokens = train.spikes.shape[:2]
    counts = (train.spikes != 0).sum(2).t().tolist()  # [tokens][T]
    num_places = train.spikes[:, 0].numel() if num_tokens else 1
    details = {"tokens": num_tokens, "timesteps": num_timesteps, "spikes": train.num_spikes}
    file.begin(track, now, f"{num_tokens} token" + ("s" if num_tokens != 1 else ""), details)
    before = -1
    for i, of_token in enumerate(counts):
        label = f"token {first + i}" + ("" if texts is None else f" {texts[first + i]!r}")
        num_spikes = sum(of_token)
        file.begin(track, now, label, {"spikes": num_spikes, "firing rate": num_spikes / max(num_places, 1)})
        for t, count in enumerate(of_token):
            if count != before:
                file.count(counter, now + t * TIMESTEP_NS, count)
                before = count
        now += num_timesteps * TIMESTEP_NS
        file.end(track, now)
    file.count(counter, now, 0)
    file.end(track, now)
    return now
