"""Timing on a GPU, with calls captured in one CUDA graph, so that launches cost as much as in a captured model."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from timing import Timing


def measure_in_graph(call: Callable[[int], object], num_variants: int, *, num_replays: int = 50) -> Timing:
    """Capture call(0) ... call(num_variants - 1) in a graph, replay it, and return the seconds of one call.

    Each variant uses its own weights, and together they exceed the caches.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, tunes
        for i in range(num_variants):  # weights may be copied into another order
            call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(num_variants):
            call(i)
    graph.replay()
    seconds = []
    for _ in range(num_replays):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        seconds.append(start.elapsed_time(stop) / 1e3 / num_variants)
    low, median, high = statistics.quantiles(seconds, n=4)
    return Timing(median, low, high, len(seconds) * num_variants)


def copy_bandwidth() -> float:
    """Return bytes read and written per second when a gigabyte is copied on the GPU."""
    source = torch.empty(2**28, device="cuda").uniform_()
    target = torch.empty_like(source)
    ways = [lambda i: target.copy_(source), lambda i: torch.mul(source, 2.0, out=target)]
    return 2 * source.nbytes / min(measure_in_graph(way, 4, num_replays=20).median_s for way in ways)
