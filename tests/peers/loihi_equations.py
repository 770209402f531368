"""Energy and `simple` time of a two-layer net on Loihi, as SANA-FE computes them: the equations, by themselves.

Written from experiments with sanafe 2.2.9 (a net of one spike and one synapse, then one change at a time); no code of
SANA-FE, which is under the GPL, is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class LoihiCosts:
    """What each event costs, in pJ and ns. The defaults are SPICE figures of Davies et al., IEEE Micro 38(1), 2018.

    A barrier of {2: 1000, 4: 1400} takes 1000 ns for 2 or 3 tiles and 1400 ns from 4 tiles on.
    """

    north_pj: float = 4.2  # one hop to a tile of larger y
    south_pj: float = 4.2
    east_pj: float = 3.0  # one hop to a tile of larger x
    west_pj: float = 3.0
    north_south_ns: float = 6.5  # no part of `simple` time
    east_west_ns: float = 4.1
    receive_pj: float = 0.0  # a packet at the core it goes to
    receive_ns: float = 16.0
    synapse_pj: float = 35.5  # one spike at one synapse, dense format
    synapse_ns: float = 3.8
    dendrite_pj: float = 0.0  # the same, adding to the neuron's input
    dendrite_ns: float = 0.0
    access_pj: float = 51.2  # a neuron, every timestep
    access_ns: float = 6.0
    update_pj: float = 21.6  # on top of access
    update_ns: float = 3.7
    spike_pj: float = 69.3  # on top of both
    spike_ns: float = 30.0
    send_pj: float = 111.0  # a packet at the core it comes from
    send_ns: float = 5.1
    barrier_ns: dict[int, float] = field(default_factory=lambda: {1: 600.0, 2: 1000.0, 4: 1400.0, 29: 1800.0})


@dataclass(frozen=True)
class LoihiExpectation:
    """Per timestep: energy of each part, pJ [T]; time, ns [T]; spikes of the output neurons [T, N1]."""

    synapse_pj: np.ndarray
    dendrite_pj: np.ndarray
    soma_pj: np.ndarray
    network_pj: np.ndarray  # hops, packets received, packets sent
    time_ns: np.ndarray
    fired: np.ndarray
    num_packets: np.ndarray
    num_synops: np.ndarray

    @property
    def total_pj(self) -> np.ndarray:
        return self.synapse_pj + self.dendrite_pj + self.soma_pj + self.network_pj


def loihi_expected(
    weight: np.ndarray,
    spikes: np.ndarray,
    source_core: Sequence[int],
    output_core: Sequence[int],
    costs: LoihiCosts,
    *,
    mesh_rows: int,
    cores_per_tile: int,
    threshold: float = np.inf,
    sources_cost: bool = False,
) -> LoihiExpectation:
    """Work out energy and time of N0 sources and N1 output neurons that are connected densely.

    In timestep t, with f = spikes[t], D the cores that hold outputs, and n[d] the outputs on core d:

    - packets: one from every source that fires to every core of D, its own included. A weight of 0 is a synapse too.
    - hops: first along x, then along y; core c is on tile c // cores_per_tile, tile i at x = i // mesh_rows,
      y = i % mesh_rows. Within a tile there are none.
    - network = packets * (send + receive) + hops by direction.
    - synapse, dendrite = sum(f) * N1 * (synapse, dendrite).
    - outputs: u[t] = W sum of the spikes of t - 1 (what arrives in a timestep is used in the next one);
      v[t] = v[t-1] + u[t]; a neuron fires if v[t] > threshold, then v[t] = 0.
    - soma = access for every neuron in every timestep, + update if a spike arrived in t - 1 (though u be 0) or
      v[t-1] != 0, + spike if it fires. Sources that cost are updated and spike when they fire, and are accessed else.
    - time = max over cores of max(generation, processing) + barrier, where generation of a core = its soma operations
      one after the other + its packets sent * send, and processing = packets received * receive + its synaptic
      operations * (synapse + dendrite). Hops take no `simple` time. The barrier depends on the number of tiles with a
      neuron: the entry of the largest key up to it, not an interpolation.

    Known faults of SANA-FE and what they mean here:

    - Energy of axons counts the last unit of a core only, with the packets of that one (packets go to the first). Loihi
      has one each way, so nothing differs; with two, what SANA-FE calls network lacks all received or sent packets.
    - A unit's latency trace holds its energy. Totals are not touched; the time of a unit can't be compared.
    - The count of updated neurons includes sources that fire, which cost nothing as inputs.
    - A spike has no payload and no sign: a signed train needs two sources per channel, with weights W and -W.

    Args:
        weight: integers [N0, N1], W[i, j] from source i to output j.
        spikes: 0 or 1, [T, N0].
        source_core: core of each source [N0].
        output_core: core of each output [N1].
        costs: of each event.
        mesh_rows: tiles along y.
        cores_per_tile: cores that share a router.
        threshold: of the output neurons; infinite: they only gather.
        sources_cost: sources are neurons like the outputs; else inputs, which cost their packets only.
    """
    weight, spikes = np.asarray(weight, dtype=np.int64), np.asarray(spikes, dtype=np.int64)
    source_core, output_core = np.asarray(source_core), np.asarray(output_core)
    num_outputs = len(output_core)
    num_cores = 1 + max(source_core.max(), output_core.max())
    outputs_on = np.bincount(output_core, minlength=num_cores)  # [C]
    holds_outputs = outputs_on > 0
    sources_on = np.bincount(source_core, minlength=num_cores)
    num_spikes = spikes.sum(axis=1)  # [T]
    spikes_on = np.stack([np.bincount(source_core, weights=row, minlength=num_cores) for row in spikes])  # [T, C]
    sent = spikes_on * holds_outputs.sum()  # packets [T, C]
    received = num_spikes[:, None] * holds_outputs
    synops = num_spikes[:, None] * outputs_on

    updated, fired = _outputs(weight, spikes, threshold)  # [T, N1] each
    updated_on = np.stack([np.bincount(output_core, weights=row, minlength=num_cores) for row in updated])
    fired_on = np.stack([np.bincount(output_core, weights=row, minlength=num_cores) for row in fired])
    accessed_on = np.broadcast_to(outputs_on, updated_on.shape)
    if sources_cost:
        accessed_on = accessed_on + sources_on
        updated_on, fired_on = updated_on + spikes_on, fired_on + spikes_on

    soma_pj = accessed_on * costs.access_pj + updated_on * costs.update_pj + fired_on * costs.spike_pj
    soma_ns = accessed_on * costs.access_ns + updated_on * costs.update_ns + fired_on * costs.spike_ns
    generation_ns = soma_ns + sent * costs.send_ns
    processing_ns = received * costs.receive_ns + synops * (costs.synapse_ns + costs.dendrite_ns)
    hops_pj = np.array(
        [
            sum(_route_pj(int(s), int(d), costs, mesh_rows, cores_per_tile) for d in np.flatnonzero(holds_outputs))
            for s in range(num_cores)
        ]
    )  # of one spike, to all its cores [C]
    num_tiles = len({int(core) // cores_per_tile for core in (*source_core, *output_core)})
    barrier_ns = max((tiles, ns) for tiles, ns in costs.barrier_ns.items() if tiles <= num_tiles)[1]
    return LoihiExpectation(
        synapse_pj=num_spikes * num_outputs * costs.synapse_pj,
        dendrite_pj=num_spikes * num_outputs * costs.dendrite_pj,
        soma_pj=soma_pj.sum(axis=1),
        network_pj=spikes_on @ hops_pj + sent.sum(axis=1) * costs.send_pj + received.sum(axis=1) * costs.receive_pj,
        time_ns=np.maximum(generation_ns, processing_ns).max(axis=1) + barrier_ns,
        fired=fired,
        num_packets=sent.sum(axis=1).astype(np.int64),
        num_synops=num_spikes * num_outputs,
    )


def _outputs(weight: np.ndarray, spikes: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return which output neurons are updated, and which fire, in each timestep: both [T, N1]."""
    v = np.zeros(weight.shape[1], dtype=np.int64)
    updated = np.zeros((len(spikes), weight.shape[1]), dtype=bool)
    fired = np.zeros_like(updated)
    for t in range(len(spikes)):
        arrived = spikes[t - 1] if t > 0 else np.zeros_like(spikes[0])
        updated[t] = (v != 0) | (arrived.sum() > 0)
        v = v + arrived @ weight
        fired[t] = v > threshold
        v[fired[t]] = 0
    return updated, fired


def _route_pj(source: int, destination: int, costs: LoihiCosts, mesh_rows: int, cores_per_tile: int) -> float:
    """Return the energy of a packet's hops from core to core."""
    x0, y0 = divmod(source // cores_per_tile, mesh_rows)
    x1, y1 = divmod(destination // cores_per_tile, mesh_rows)
    along_x = (x1 - x0) * costs.east_pj if x1 > x0 else (x0 - x1) * costs.west_pj
    along_y = (y1 - y0) * costs.north_pj if y1 > y0 else (y0 - y1) * costs.south_pj
    return along_x + along_y
