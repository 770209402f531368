"""One layer on a chip: from a spike train and weights to sums, times and energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from . import engine, simpy_engine
from .activity import Activity, activity_of, utilization
from .barrier import barrier_ps, simple_ps, updated
from .description import Description
from .mapping import Placement, check_groups, check_registers
from .network import KIND_NAMES, LINK, Network, build_network
from .outcome import Outcome
from .traffic import Traffic, build_traffic
from .weights import CoarseRows, with_coarse

IMPLEMENTATIONS: dict[str, Callable[..., Outcome]] = {"engine": engine.simulate, "simpy": simpy_engine.simulate}


@dataclass(frozen=True)
class LayerSimulation:
    """What a chip did with some tokens of a layer.

    Attributes:
        chip, placement, network, traffic: what was simulated.
        outcome: counts and times of the stations and cores.
        sums: exact, int64 [tokens, out_features]; of weights in groups the sums of all groups, without their scales;
            with coarse rows in halves.
        group_sums: exact sums of each group, integers [tokens, groups, out_features]; None without groups.
        begin_ps, end_ps: of each token, from encoding to the last collected sum, int64 [tokens].
        activity: totals of the layer, with the leakage of its own cores.
        changes: on a chip with a barrier, which outputs change in each timestep, bool [tokens, T, out_features].
    """

    chip: Description
    placement: Placement
    network: Network
    traffic: Traffic
    outcome: Outcome
    sums: np.ndarray
    begin_ps: np.ndarray
    end_ps: np.ndarray
    activity: Activity
    changes: np.ndarray | None = None
    group_sums: np.ndarray | None = None

    @property
    def latency_ps(self) -> np.ndarray:
        """Time that each token spent in the layer, int64 [tokens]."""
        return self.end_ps - self.begin_ps

    @property
    def energy_pj(self) -> dict[str, float]:
        """Picojoules by component; see `components.COMPONENTS`."""
        return self.activity.energy_pj(self.chip)

    @property
    def simple_ps(self) -> np.ndarray:
        """Time of each timestep by SANA-FE's `simple` timing, int64 [tokens, T]; see `barrier.simple_ps`.

        Raises:
            InputError: the chip has no barrier.
        """
        if self.changes is None:
            raise InputError(f"simple_ps: expected a chip with a barrier, {self.chip.name} has none.")
        return simple_ps(self.changes, self.traffic, self.network, self.chip, self.placement.num_tiles)

    @property
    def utilization(self) -> np.ndarray:
        """Share of the time during which each core was adding, [cores]."""
        return utilization(self.outcome, self.network)

    def packets_on_links(self) -> dict[str, int]:
        """Return how many packets crossed each link, by its name."""
        return {self.network.names[s]: int(self.outcome.num_served[s]) for s in self.network.of_kind(LINK)}

    def queues(self) -> dict[str, tuple[float, int]]:
        """Return the mean (over time) and the maximum length of each queue, by the name of its station."""
        time = max(int(self.outcome.end_ps.max(initial=0)), 1)
        lengths = zip(self.network.names, self.outcome.queue_ps.tolist(), self.outcome.queue_most.tolist(), strict=True)
        return {name: (integral / time, most) for name, integral, most in lengths}

    def critical_path_ps(self) -> dict[str, int]:
        """Return how long each kind of station held up the last token, from its arrival or first service to its end.

        Walks back from the end of the last token: each service began because another ended. "wire" is the latency of
        links; "wait" is what lies before the first service (an arrival). The parts add up to the end of the simulation.

        Raises:
            InputError: the simulation kept no trace.
        """
        trace = self.outcome.trace
        if trace is None or trace.last < 0:
            raise InputError("critical_path_ps: expected a simulation with trace=True by the engine.")
        parts: dict[str, int] = dict.fromkeys((*KIND_NAMES, "wire", "wait"), 0)
        record, upper = trace.last, int(trace.end_ps[trace.last])
        while record >= 0:
            begin, end = int(trace.begin_ps[record]), int(trace.end_ps[record])
            parts[KIND_NAMES[self.network.kind[trace.station[record]]]] += end - begin
            parts["wire"] += upper - end
            upper, record = begin, int(trace.cause[record])
        parts["wait"] += upper
        return parts


def simulate_layer(
    spikes: np.ndarray,
    timestep_weight: np.ndarray,
    weight: np.ndarray,
    chip: Description,
    placement: Placement,
    *,
    network: Network | None = None,
    order: np.ndarray | None = None,
    coarse: Sequence[CoarseRows] = (),
    overlap: bool = True,
    arrival_ps: np.ndarray | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    trace: bool = False,
    implementation: str = "engine",
) -> LayerSimulation:
    """Run a spike train through a layer on a chip.

    Args:
        spikes: -1, 0 or 1, int8 [T, tokens, in_features].
        timestep_weight: integer [T].
        weight: int8 [in_features, out_features].
        chip: the chip.
        placement: of the layer; it says how wide weights are, and which channels share scales.
        network: its stations, if they have been built before.
        order: channels in the order in which they lie in memory, groups whole; None for 0, 1, 2, ...
        coarse: rows of fewer bits that some channels of some tokens read instead of the layer's own.
        overlap: True lets a token begin before the previous one has ended, as in prefill; False runs one by one.
        arrival_ps: time at which each token's input arrives, never falling; None for 0.
        jitter: services last longer by a random share up to this one; changes times, never sums.
        seed: random seed of the jitter.
        trace: keep every service, for the critical path and the timeline.
        implementation: "engine" (compiled) or "simpy" (short and slow); both give the same.
    Raises:
        InputError: arguments do not match, packets have too few bits, or registers do not hold a core's accumulators.
    """
    _, num_tokens, num_inputs = spikes.shape
    _check(spikes, weight, placement, num_tokens, arrival_ps, jitter, seed, implementation)
    check_groups(placement.weights, chip)
    check_registers(placement, chip, "simulate_layer")
    network, groups = network or build_network(placement, chip), None
    if not overlap:
        network = replace(network, num_banks=1)
    rows, kind = with_coarse(weight, placement.weights.bits, coarse, num_tokens)
    if order is not None:
        if not np.array_equal(np.sort(order), np.arange(num_inputs)):
            raise InputError(f"order: expected a permutation of {num_inputs} channels, got {order!r}.")
        groups = placement.weights.groups_in(order)
        spikes, rows = spikes[:, :, order], rows.reshape(-1, num_inputs, weight.shape[1])[:, order].reshape(rows.shape)
        kind = kind[:, order] if coarse else kind
    timestep_weight = np.asarray(timestep_weight, np.int64)
    kind_bits = [one.bits for one in coarse]
    traffic = build_traffic(spikes, timestep_weight, placement, network, chip, kind, kind_bits)
    arrival = np.zeros(num_tokens, np.int64) if arrival_ps is None else np.asarray(arrival_ps, np.int64)
    parts = traffic.num_tokens // num_tokens  # timesteps with a barrier after each, or the whole token
    simulate = IMPLEMENTATIONS[implementation]
    outcome = simulate(network, traffic, rows, arrival.repeat(parts), jitter=jitter, seed=seed, trace=trace)
    # Barriers come between the timesteps, which do not overlap.
    barrier = barrier_ps(chip, placement.num_tiles)
    begin = outcome.begin_ps[::parts] + barrier * parts * np.arange(num_tokens)
    end = outcome.end_ps[parts - 1 :: parts] + barrier * parts * np.arange(1, num_tokens + 1)
    by_part = outcome.sums.reshape(num_tokens, parts, -1)
    sums = by_part.sum(1)
    activity = activity_of(outcome, network, traffic, placement, chip, num_tokens)
    changes = None
    if chip.barrier.tiles:
        changes = updated(spikes, by_part)
        activity += Activity(num_updated=int(changes.sum()))
    duration = int(end[-1] - begin[0])
    activity += Activity(leaking_core_ps=len(placement.cores) * duration)
    group_sums = outcome.group_sums if placement.weights.in_groups else None
    if group_sums is not None and groups is not None:
        group_sums = group_sums[:, np.argsort(groups)]
    return LayerSimulation(chip, placement, network, traffic, outcome, sums, begin, end, activity, changes, group_sums)


def check_jitter(jitter: float, seed: int) -> None:
    """Raise an InputError unless jitter and seed are in range."""
    if not 0 <= jitter <= 100:
        raise InputError(f"jitter: expected a share between 0 and 100, got {jitter!r}.")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: expected an integer in [0, 2^64), got {seed!r}.")


def _check(spikes, weight, placement, num_tokens, arrival_ps, jitter, seed, implementation) -> None:
    expected = (placement.cores[-1].inputs.stop, placement.cores[-1].outputs.stop)
    if weight.shape != expected or spikes.shape[2] != expected[0]:
        raise InputError(
            f"simulate_layer: expected weights {expected} and spikes [T, tokens, {expected[0]}] here, got "
            f"{weight.shape} and {spikes.shape}."
        )
    placement.weights.check(weight)
    if num_tokens == 0:
        raise InputError("simulate_layer: expected at least one token, got none.")
    if arrival_ps is not None and (len(arrival_ps) != num_tokens or (np.diff(arrival_ps, prepend=0) < 0).any()):
        raise InputError(f"arrival_ps: expected {num_tokens} times >= 0 that don't fall, got {arrival_ps!r}.")
    check_jitter(jitter, seed)
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"implementation: expected one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}.")
