"""Decoding far into a text on the CPU: a hybrid of Llama-3.2-1B's shapes beside the same shapes with full attention.

    python benchmarks/long_context_cpu.py [--lengths N ...] [--peers NAME ...] [--threads N] [--out FILE.json]

The hybrid has the layout of SpikingBrain-7B: linear and window attention in turns, window 4096; it is on spikes, with
4-bit weights in groups of 32, head too, and INT8 keys and values. Weights are random. So are the states, keys and
values, which are filled in and not read from a text: 256k tokens of prompt would take hours. Speed does not depend on
their values, and `tests/unit/spikingbrain/test_filled.py` shows that decoding goes on from them as from a text.

The peers have full attention in all 16 layers:
  int8       the same spiking model, INT8 keys and values
  float32    Llama of transformers with the same spiking layers in this project's decoder, float32 keys and values
  llama_cpp  llama.cpp, Q4_0, 16-bit keys and values; needs llama-cpp-python and gguf
  llama_fused  the same with its fused kernel (flash attention)
  llama_q8   the same with that kernel and 8-bit keys and values (q8_0)
  sdpa       Llama of transformers in bfloat16, its attention by SDPA, a static cache; weights are 16-bit

First the hybrid runs alone at all lengths, for its memory. Then each peer is measured in turns with it, so that both
meet the same busy moments; the ratio is that of the medians, its spread the quartiles of the ratios turn by turn. A
token is a call of the model and argmax. Memory is that of the process, and that of the cache. A peer that would need
more than --memory is left out. The last row of a length is no peer but a bound: the hybrid's own time, and the time to
read 16-bit keys and values as fast as PyTorch's product of a matrix and a vector read in the same turns.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from long_context_llama_cpp import HEAD_DIM, KEY_HEADS, LAYERS
from long_context_models import POSITIONS, dense_llama, spiking, spiking_llama
from timing import environment, write_json
from transformers import DynamicCache, StaticCache

import spikebrain as sb
from spikebrain.models.spikingbrain.filled import filled_cache

LENGTHS = [2**12, 2**16, 2**17, 2**18]
# Of the SpikingBrain report, for its 1B model beside Llama-3.2-1B (Q4_0, llama.cpp).
TARGETS = {2**16: 4.04, 2**17: 7.52, 2**18: 15.39}
# Bytes that a cached number takes, and how much more than its cache a peer needs, in bytes.
PEERS = {
    "int8": (1 + 4 / HEAD_DIM, 0.9e9),
    "float32": (4, 4.5e9),
    "llama_cpp": (2, 1.5e9),
    "llama_fused": (2, 1.5e9),
    "llama_q8": (34 / 32, 1.5e9),
    "sdpa": (2, 2.7e9),
}
# Tokens whose keys and values are made at once.
_PORTION = 2**14

# Caches of llama.cpp's peers.
LLAMA_CACHES = {"llama_cpp": "f16-plain", "llama_fused": "f16", "llama_q8": "q8_0"}

# Runs a number of tokens, and returns the seconds of each.
Steps = Callable[[int], list[float]]


class Model:
    """A model with a filled cache, in this process."""

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor], cache_bytes: Callable[[], int]) -> None:
        self._call, self.cache_bytes = call, cache_bytes
        self._token = torch.tensor([[5]])

    def steps(self, num: int) -> list[float]:
        seconds = []
        with torch.inference_mode():
            for _ in range(num):
                start = time.perf_counter()
                logits = self._call(self._token)
                self._token = logits[:, -1:].argmax(-1)
                seconds.append(time.perf_counter() - start)
        return seconds


def of_spikingbrain(model: Any, length: int) -> Model:
    cache = filled_cache(model, length)
    return Model(lambda ids: model(ids, cache=cache).logits, lambda: cache.num_bytes)


def of_spiking_llama(length: int) -> Model:
    generator = torch.Generator().manual_seed(0)
    return _of_llama(spiking_llama(generator), DynamicCache(), torch.float32, length, generator)


def of_sdpa(length: int) -> Model:
    generator = torch.Generator().manual_seed(0)
    model = dense_llama(torch.bfloat16, generator)
    cache = StaticCache(config=model.config, max_cache_len=length + 256)
    return _of_llama(model, cache, torch.bfloat16, length, generator)


def _of_llama(model: Any, cache: Any, dtype: torch.dtype, length: int, generator: torch.Generator) -> Model:
    for layer in range(LAYERS):
        for first in range(0, length, _PORTION):
            num = min(_PORTION, length - first)
            cache.update(*(_rows(num, dtype, generator) for _ in "kv"), layer)

    def call(ids: torch.Tensor) -> torch.Tensor:
        return model(ids, past_key_values=cache, use_cache=True).logits

    return Model(call, lambda: sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values)))


def _rows(num: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Return random keys or values of a layer."""
    return torch.randn(1, KEY_HEADS, num, HEAD_DIM, generator=generator).to(dtype)


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, name: str, length: int, file: Path) -> None:
        script = Path(__file__).with_name("long_context_llama_cpp.py")
        command = [sys.executable, script, file, length, torch.get_num_threads(), LLAMA_CACHES[name]]
        self._process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.resident = int(self._line())
        per_number = PEERS[name][0]
        self.cache_bytes = lambda: int(2 * LAYERS * KEY_HEADS * HEAD_DIM * length * per_number)

    def steps(self, num: int) -> list[float]:
        assert self._process.stdin is not None
        print(num, file=self._process.stdin, flush=True)
        return [float(word) for word in self._line().split()]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"llama.cpp ended with {self._process.wait()}. Leave it out with --peers.")
        return line


@contextlib.contextmanager
def peer_of(name: str, length: int, file: Path, hybrid: Any) -> Iterator[Any]:
    """Make a peer at a length, and free its memory; `int8` shares the hybrid's layers."""
    if name in LLAMA_CACHES:
        peer = LlamaCpp(name, length, file)
        yield peer
        peer.close()
        return
    if name == "int8":
        yield of_spikingbrain(spiking("full", torch.Generator().manual_seed(0), hybrid), length)
    else:
        yield of_spiking_llama(length) if name == "float32" else of_sdpa(length)


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def in_turns(ours: Steps, theirs: Steps, repeats: int, num: int) -> tuple[list[float], list[float]]:
    """Return the seconds of tokens of both, after some that are not counted; the hybrid's in pairs with the peer's."""
    ours(3)
    theirs(2)
    pairs: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        # As many tokens of each; a median of each turn, as a token may be interrupted.
        pairs[0].append(statistics.median(ours(num)))
        pairs[1].append(statistics.median(theirs(num)))
    return pairs


def reading_speed() -> float:
    """Return the bytes a second that a product of a float32 matrix of 256 MiB and a vector reads."""
    matrix, vector = torch.ones(2**14, 2**12), torch.ones(2**12)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mv(matrix, vector)
        seconds.append(time.perf_counter() - start)
    return matrix.nbytes / statistics.median(seconds)


def row_of(name: str, length: int, hybrid: list[float], peer: list[float], **memory: int) -> dict[str, Any]:
    """Return what was measured of a pair, and print it."""
    ratios = [b / a for a, b in zip(hybrid, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    ratio = statistics.median(peer) / statistics.median(hybrid)
    row = {"peer": name, "length": length, "ratio": ratio, "ratio_low": low, "ratio_high": high}
    for who, seconds in (("hybrid", hybrid), ("peer", peer)):
        row |= {f"{who}_ms": 1e3 * statistics.median(seconds), f"{who}_ms_all": [1e3 * s for s in seconds]}
    row |= memory
    target = f", the report's {TARGETS[length]}" if length in TARGETS else ""
    print(
        f"{length:>7} {name:10} {row['peer_ms']:9.1f} ms ({1e3 * min(peer):.1f} to {1e3 * max(peer):.1f}), cache "
        f"{memory['peer_cache_bytes'] / 1e6:,.0f} MB; hybrid {row['hybrid_ms']:.1f} ms ({1e3 * min(hybrid):.1f} to "
        f"{1e3 * max(hybrid):.1f}); {ratio:.2f}x ({low:.2f} to {high:.2f}){target}",
        flush=True,
    )
    return row


def run_alone(hybrid: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return time and memory of the hybrid at all lengths."""
    alone = []
    for length in options.lengths:
        ours = of_spikingbrain(hybrid, length)
        ours.steps(4)
        ms = 1e3 * statistics.median(ours.steps(options.tokens * options.repeats))
        alone.append({"length": length, "ms": ms, "state_bytes": ours.cache_bytes(), "resident_bytes": resident()})
        memory = f"state {ours.cache_bytes():,} bytes, process {resident() / 1e6:,.0f} MB"
        print(f"{length:>7} hybrid alone: {ms:.1f} ms, {memory}", flush=True)
    return alone


def run_peers(hybrid: Any, peers: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each length and peer."""
    rows = []
    for length in options.lengths:
        ours, own, speeds = of_spikingbrain(hybrid, length), [], []
        for name in peers:
            per_number, more = PEERS[name]
            needed = 2 * LAYERS * KEY_HEADS * HEAD_DIM * length * per_number
            # Ours copies the cache once into memory with spare rows, and frees the first.
            needed = needed * (2 if name in ("int8", "float32") else 1) + more + resident()
            if needed > 1e9 * options.memory:
                print(f"{length:>7} {name}: left out, needs about {needed / 1e9:.0f} GB")
                continue
            with peer_of(name, length, options.gguf, hybrid) as peer:
                seconds = in_turns(ours.steps, peer.steps, options.repeats, options.tokens)
                memory = {"peer_cache_bytes": peer.cache_bytes(), "hybrid_state_bytes": ours.cache_bytes()}
            rows.append(row_of(name, length, *seconds, **memory))
            own += seconds[0]
            del peer
            gc.collect()
            speeds.append(reading_speed())
        if own:
            num_bytes = 2 * 2 * LAYERS * KEY_HEADS * HEAD_DIM * length
            bound = [statistics.median(own) + num_bytes / speed for speed in speeds]
            memory = {"peer_cache_bytes": num_bytes, "hybrid_state_bytes": ours.cache_bytes()}
            rows.append(row_of("reading", length, [statistics.median(own)] * len(bound), bound, **memory))
            rows[-1]["reading_bytes_per_s"] = speeds
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--tokens", type=int, default=3, help="of a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", type=float, default=15.5, help="GB that both models may take together")
    parser.add_argument("--gguf", type=Path, default=Path(tempfile.gettempdir()) / "llama-1b-random-q4_0.gguf")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if wrong := [length for length in options.lengths if not 1 <= length < POSITIONS - 256]:
        parser.error(
            f"--lengths: expected 1 to {POSITIONS - 257} tokens, as the models have {POSITIONS} positions: {wrong}"
        )
    torch.set_num_threads(options.threads)
    missing = [name for name in ("llama_cpp", "gguf") if importlib.util.find_spec(name) is None]
    peers = [name for name in options.peers if not (missing and name in LLAMA_CACHES)]
    if peers != options.peers:
        print(f"not installed: {missing}; so no llama.cpp")
    found = {name: version(name) for name in ("transformers", "llama-cpp-python") if name[:5] != "llama" or not missing}
    print(environment() | found)
    hybrid = spiking("hybrid", torch.Generator().manual_seed(0))
    print(sb.describe_decoding(hybrid))
    alone = run_alone(hybrid, options)
    rows = run_peers(hybrid, peers, options)
    case = {"tokens": options.tokens, "repeats": options.repeats, "filled": "random states, no prefill", "k": 3.0}
    write_json(options.out, rows, **found, hybrid=alone, targets=TARGETS, **case)


if __name__ == "__main__":
    main()
