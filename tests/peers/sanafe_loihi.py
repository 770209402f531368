"""Two-layer nets in SANA-FE: a chip from `LoihiCosts`, sources and outputs on its cores, one result per timestep."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from loihi_equations import LoihiCosts


def description(
    costs: LoihiCosts, *, columns: int, rows: int, cores_per_tile: int, num_inputs: int, num_axon_units: int = 1
) -> str:
    """Write the chip as SANA-FE's YAML, in its units J and s. An input unit holds the train of one source."""

    def of(pj: float, ns: float, energy: str, latency: str) -> str:
        return f"energy_{energy}: {pj * 1e-12!r}, latency_{latency}: {ns * 1e-9!r}"

    def same(pj: float, ns: float, name: str) -> str:
        return of(pj, ns, name, name)

    hops = ", ".join(
        (
            same(costs.north_pj, costs.north_south_ns, "north_hop"),
            same(costs.south_pj, costs.north_south_ns, "south_hop"),
            same(costs.east_pj, costs.east_west_ns, "east_hop"),
            same(costs.west_pj, costs.east_west_ns, "west_hop"),
        )
    )
    soma = ", ".join(
        (
            same(costs.access_pj, costs.access_ns, "access_neuron"),
            same(costs.update_pj, costs.update_ns, "update_neuron"),
            same(costs.spike_pj, costs.spike_ns, "spike_out"),
        )
    )
    free = ", ".join(same(0.0, 0.0, name) for name in ("access_neuron", "update_neuron", "spike_out"))
    barrier = ", ".join(f"{tiles}: {ns * 1e-9!r}" for tiles, ns in costs.barrier_ns.items())
    axons = f"[0..{num_axon_units - 1}]" if num_axon_units > 1 else ""
    synapse, dendrite = (
        same(costs.synapse_pj, costs.synapse_ns, "process_spike"),
        same(costs.dendrite_pj, costs.dendrite_ns, "update"),
    )
    return f"""
architecture:
  name: mesh
  attributes: {{topology: mesh, width: {columns}, height: {rows}, link_buffer_size: 16,
               sync_model: table, latency_sync: {{{barrier}}}}}
  tile:
    - name: tile[0..{columns * rows - 1}]
      attributes: {{{hops}}}
      core:
        - name: core[0..{cores_per_tile - 1}]
          attributes: {{buffer_position: soma, buffer_inside_unit: false, max_neurons_supported: 1024}}
          axon_in:
            - name: receiver{axons}
              attributes: {{{same(costs.receive_pj, costs.receive_ns, "message_in")}}}
          synapse:
            - name: synapses
              attributes: {{model: current_based, {synapse}}}
          dendrite:
            - name: dendrites
              attributes: {{model: accumulator, {dendrite}}}
          soma:
            - name: neurons
              attributes: {{model: leaky_integrate_fire, {soma}}}
            - name: input[0..{num_inputs - 1}]
              attributes: {{model: input, {free}}}
          axon_out:
            - name: sender{axons}
              attributes: {{{same(costs.send_pj, costs.send_ns, "message_out")}}}
"""


def load_chip(chip_yaml: str, weight: np.ndarray, spikes: np.ndarray, *layers: Any, **more: Any) -> Any:
    """Build chip and net and load one onto the other. Arguments after the first as those of `build_net`."""
    architecture = read_architecture(chip_yaml)
    return load(empty_chip(architecture), build_net(architecture, weight, spikes, *layers, **more))


def read_architecture(chip_yaml: str) -> Any:
    """Let SANA-FE read a description, which it takes from files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "chip.yaml")
        path.write_text(chip_yaml)
        return importlib.import_module("sanafe").load_arch(path)


def empty_chip(architecture: Any) -> Any:
    """Build all tiles, cores and units."""
    with silenced():
        return importlib.import_module("sanafe").SpikingChip(architecture)


def load(chip: Any, net: Any) -> Any:
    """Put the net on the chip, which keeps a copy of it."""
    with silenced():
        chip.load(net)
    return chip


def build_net(
    architecture: Any,
    weight: np.ndarray,
    spikes: np.ndarray,
    source_core: Sequence[int],
    output_core: Sequence[int],
    *,
    threshold: float = np.inf,
    sources_cost: bool = False,
) -> Any:
    """Build groups `sources` and `outputs`, connect them and map them. Arguments as those of `loihi_expected`."""
    net = importlib.import_module("sanafe").Network()
    units = {"default_synapse_hw_name": "synapses", "default_dendrite_hw_name": "dendrites"}
    # A neuron that costs fires at once when a bias of 1 is switched on, and rests at 0 after it.
    sources = net.create_neuron_group("sources", len(source_core), **units, model_attributes={"threshold": 0.5})
    # The largest threshold stands for none: 2**53 is beyond every sum of a test.
    attributes = {"threshold": float(min(threshold, 2.0**53)), "reset_mode": "hard", "leak_decay": 1.0}
    outputs = net.create_neuron_group(
        "outputs", len(output_core), **units, soma_hw_name="neurons", model_attributes=attributes
    )
    cores = architecture.cores()
    for i, core in enumerate(source_core):
        if sources_cost:
            sources[i].set_attributes(soma_hw_name="neurons")
        else:
            train = {"spikes": [bool(s) for s in spikes[:, i]]}
            sources[i].set_attributes(soma_hw_name=f"input[{i}]", model_attributes=train)
        sources[i].map_to_core(cores[core])
    for j, core in enumerate(output_core):
        outputs[j].map_to_core(cores[core])
    sources.connect_neurons_dense(outputs, {"weight": weight.astype(float).ravel().tolist()})
    return net


def simulate(chip: Any, spikes: np.ndarray, *, sources_cost: bool = False) -> list[dict[str, Any]]:
    """Run a timestep for every row of spikes, with `simple` timing on one thread; return SANA-FE's results."""
    results = []
    with silenced():
        for row in spikes:
            if sources_cost:
                # Only `model_attributes` reaches a mapped neuron; `soma_attributes` is taken and does nothing.
                for neuron, spike in zip(chip.mapped_neuron_groups["sources"], row, strict=True):
                    neuron.set_attributes(model_attributes={"bias": float(spike)})
            results.append(chip.sim(1, timing_model="simple", processing_threads=1))
    return results


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Send what compiled code prints, which it does on every call, to nowhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)
