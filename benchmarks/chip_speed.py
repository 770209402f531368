"""Synaptic operations per second of chip simulators, and bytes per synapse, on one dense 512 × 512 layer.

    python benchmarks/chip_speed.py [--threads N] [--runs N] [--rate R] [--out FILE.json]

All simulators get the same integers, spikes and cores: 512 sources on core 0, 512 outputs on the cores in
`OUTPUT_CORES`, with Loihi's costs. SANA-FE (pip install sanafe) runs with `simple` timing, its fastest, without traces,
on a chip of 4 tiles with 4 cores each, since its full Loihi takes 1.6 GB before the first synapse. Building is timed
separately. Each simulator runs in its own process, so that its memory can be measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timing import write_json

PEERS = Path(__file__).parents[1] / "tests" / "peers"
SIZE = 512
OUTPUT_CORES = (1, 2, 3, 4)
MESH = {"columns": 2, "rows": 2, "cores_per_tile": 4}
TIMESTEPS_PER_RUN = 128


@dataclass(frozen=True)
class Layer:
    """The input of every simulator: weight [N0, N1], spikes [T, N0], and the core of each neuron."""

    weight: np.ndarray
    spikes: np.ndarray
    source_core: list[int]
    output_core: list[int]

    def num_synops(self, start: int, stop: int) -> int:
        """Count the synaptic operations in timesteps start to stop - 1."""
        return int(self.spikes[start:stop].sum()) * self.weight.shape[1]


def random_layer(rate: float, num_runs: int) -> Layer:
    """Draw INT8 weights, and spikes for one warm-up run and the timed runs."""
    rng = np.random.default_rng(0)
    return Layer(
        weight=rng.integers(-127, 128, (SIZE, SIZE)),
        spikes=rng.random(((num_runs + 1) * TIMESTEPS_PER_RUN, SIZE)) < rate,
        source_core=[0] * SIZE,
        output_core=[OUTPUT_CORES[j * len(OUTPUT_CORES) // SIZE] for j in range(SIZE)],
    )


def measure_sana_fe(layer: Layer, num_threads: int) -> dict[str, Any]:
    """Build and run the layer in SANA-FE; each run continues with the next timesteps of the train."""
    sys.path.insert(0, str(PEERS))
    from loihi_equations import LoihiCosts  # noqa: PLC0415 - the tests' folder is not a package
    from sanafe_loihi import (  # noqa: PLC0415
        build_net,
        description,
        empty_chip,
        load,
        read_architecture,
        silenced,
    )

    architecture = read_architecture(description(LoihiCosts(), **MESH, num_inputs=SIZE))
    chip = empty_chip(architecture)
    before, start = resident_bytes(), time.perf_counter()
    net = build_net(architecture, layer.weight, layer.spikes, layer.source_core, layer.output_core)
    built, built_at = resident_bytes(), time.perf_counter()
    load(chip, net)
    loaded, loaded_at = resident_bytes(), time.perf_counter()

    rates, shares = [], []
    for first in range(0, len(layer.spikes), TIMESTEPS_PER_RUN):
        with silenced():
            wall, cpu = time.perf_counter(), time.process_time()
            result = chip.sim(TIMESTEPS_PER_RUN, timing_model="simple", processing_threads=num_threads)
            seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        expected = layer.num_synops(first, first + TIMESTEPS_PER_RUN)
        if result["spikes"] != expected:
            raise RuntimeError(f"chip_speed: expected {expected} synaptic operations, SANA-FE made {result['spikes']}")
        rates.append(expected / seconds)
        shares.append(cpu_seconds / seconds)
    num_synapses = layer.weight.size
    return {
        "simulator": f"SANA-FE {importlib.metadata.version('sanafe')}",
        "num_threads": num_threads,
        **spread(rates[1:]),  # the first warms up
        "cpu_seconds_per_second": statistics.median(shares[1:]),
        "build_s": built_at - start,
        "load_s": loaded_at - built_at,
        "net_bytes_per_synapse": (built - before) / num_synapses,
        "chip_bytes_per_synapse": (loaded - built) / num_synapses,
        "bytes_per_synapse": (loaded - before) / num_synapses,
    }


def measure_ours(layer: Layer, num_threads: int) -> dict[str, Any]:
    """Build and run the layer on our Loihi, event by event with queues and routes, one simulation per thread."""
    from spikebrain.chip import CoreTile, Placement, load_description, simulate_layer  # noqa: PLC0415
    from spikebrain.chip.network import build_network  # noqa: PLC0415

    chip = load_description("loihi")
    before, start = resident_bytes(), time.perf_counter()
    weight = layer.weight.astype(np.int8)
    outputs = [[j for j, core in enumerate(layer.output_core) if core == c] for c in OUTPUT_CORES]
    tiles = [(core // MESH["cores_per_tile"], 0) for core in OUTPUT_CORES]
    held = [CoreTile(t, range(SIZE), range(o[0], o[-1] + 1)) for t, o in zip(tiles, outputs, strict=True)]
    placement = Placement((0, 0), 2, 2, (0, 0), tuple(held), 1)
    network = build_network(placement, chip)
    built_at = time.perf_counter()

    def run(first: int) -> int:
        spikes = layer.spikes[first : first + TIMESTEPS_PER_RUN, None].astype(np.int8)
        ones = np.ones(TIMESTEPS_PER_RUN, np.int64)
        return simulate_layer(spikes, ones, weight, chip, placement, network=network).activity.num_synops

    run(0)  # compiles, or reads compiled code from the cache
    after = resident_bytes()
    rates = []
    with ThreadPoolExecutor(num_threads) as pool:
        for first in range(0, len(layer.spikes), TIMESTEPS_PER_RUN):
            expected = layer.num_synops(first, first + TIMESTEPS_PER_RUN)
            began = time.perf_counter()
            found = list(pool.map(run, [first] * num_threads))
            seconds = time.perf_counter() - began
            if found != [expected] * num_threads:
                raise RuntimeError(f"chip_speed: expected {expected} synaptic operations, ours made {found}")
            rates.append(num_threads * expected / seconds)
    return {
        "simulator": f"spikebrain {importlib.metadata.version('spikebrain')}",
        "num_threads": num_threads,
        **spread(rates[1:]),
        "build_s": built_at - start,
        "load_s": 0.0,
        "net_bytes_per_synapse": weight.nbytes / weight.size,
        "chip_bytes_per_synapse": 0.0,
        "bytes_per_synapse": weight.nbytes / weight.size,
        "resident_bytes": after - before,
    }


def spread(rates: list[float]) -> dict[str, Any]:
    """Return the median and extremes of synaptic operations per second."""
    return {
        "synops_per_s": statistics.median(rates),
        "low_synops_per_s": min(rates),
        "high_synops_per_s": max(rates),
        "num_runs": len(rates),
    }


def resident_bytes() -> int:
    """Return this process's resident memory in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def compare(num_threads: int = 1, num_runs: int = 7, rate: float = 0.25) -> dict[str, dict[str, Any]]:
    """Measure every simulator on the same layer.

    Args:
        num_threads: threads of each simulator.
        num_runs: timed runs of 128 timesteps after one warm-up run; medians are over the timed runs.
        rate: share of the sources that fire in a timestep.
    """
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # inherited by the processes below
    layer = random_layer(rate, num_runs)
    results = {}
    for name, measure in {"sana_fe": measure_sana_fe, "spikebrain": measure_ours}.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            results[name] = process.submit(measure, layer, num_threads).result()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--rate", type=float, default=0.25, help="share of the sources that fire in a timestep")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = compare(options.threads, options.runs, options.rate)
    for result in results.values():
        print(
            f"{result['simulator']}, {result['num_threads']} thread(s): "
            f"{result['synops_per_s'] / 1e6:.1f} M synaptic operations/s "
            f"({result['low_synops_per_s'] / 1e6:.1f} to {result['high_synops_per_s'] / 1e6:.1f}, "
            f"{result['num_runs']} runs), build {result['build_s']:.2f} s, load {result['load_s']:.2f} s, "
            f"{result['bytes_per_synapse']:.0f} bytes a synapse "
            f"(net {result['net_bytes_per_synapse']:.0f}, chip {result['chip_bytes_per_synapse']:.0f})"
        )
    ratio = results["spikebrain"]["synops_per_s"] / results["sana_fe"]["synops_per_s"]
    print(f"spikebrain / SANA-FE: {ratio:.1f}x")
    write_json(options.out, list(results.values()), rate=options.rate, size=SIZE)


if __name__ == "__main__":
    main()
