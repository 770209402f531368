"""llama.cpp as a peer of long_context_cpu.py, in its own process: it and PyTorch bring OpenMP libraries that clash.

    python benchmarks/long_context_llama_cpp.py FILE.gguf LENGTH THREADS CACHE

FILE is written first, with the shapes of Llama-3.2-1B and random 4-bit weights (Q4_0), if it is not there. The cache of
keys and values is `f16`, `q8_0`, or `f16-plain` for attention without the fused kernel. It is filled through the
function that restores a saved state, in portions, with random numbers. Each line on standard input is a number of
tokens to write; each line on standard output the seconds of each token. The line before them is the memory of this
process, in bytes.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, LAYERS, HEADS, KEY_HEADS, HEAD_DIM, INNER, VOCABULARY = 2048, 16, 32, 8, 64, 8192, 128256
# Of ggml: number of the type, bytes that 32 numbers take, and whether attention runs in the kernel for long texts.
CACHES = {"f16": (1, 64, True), "f16-plain": (1, 64, False), "q8_0": (8, 34, True)}
# Cells that are filled by one call.
_PORTION = 8192


def write_model(path: Path) -> None:
    """Write a model with random weights."""
    import gguf  # noqa: PLC0415 - an optional peer

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2**20)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(0)

    def add(name: str, num_outputs: int, num_inputs: int) -> None:
        blocks = random.integers(0, 256, (num_outputs, num_inputs // 32, 18), dtype=np.uint8)
        scale = random.uniform(0.75, 1.25, blocks.shape[:2]) * num_inputs**-0.5 / 4.6
        blocks[:, :, :2] = scale.astype(np.float16)[..., None].view(np.uint8)
        writer.add_tensor(name, blocks.reshape(num_outputs, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    add("token_embd.weight", VOCABULARY, HIDDEN)  # the head too
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    wide, keys = HEADS * HEAD_DIM, KEY_HEADS * HEAD_DIM
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
        sizes = {"attn_q": (wide, HIDDEN), "attn_k": (keys, HIDDEN), "attn_v": (keys, HIDDEN)}
        sizes |= {"attn_output": (HIDDEN, wide), "ffn_down": (HIDDEN, INNER)}
        sizes |= dict.fromkeys(("ffn_gate", "ffn_up"), (INNER, HIDDEN))
        for name, (num_outputs, num_inputs) in sizes.items():
            add(f"blk.{layer}.{name}.weight", num_outputs, num_inputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Peer:
    """A context of llama.cpp with a filled cache."""

    def __init__(self, path: Path, length: int, num_threads: int, cache: str) -> None:
        import llama_cpp  # noqa: PLC0415 - an optional peer  # pyright: ignore[reportMissingImports]

        self.api: Any = llama_cpp
        self.api.llama_log_set(_QUIET, None)
        self.api.llama_backend_init()
        self.model = self.api.llama_model_load_from_file(str(path).encode(), self.api.llama_model_default_params())
        params = self.api.llama_context_default_params()
        kind, _, fused = CACHES[cache]
        params.n_ctx, params.n_batch, params.n_ubatch = length + 256, 64, 64
        params.n_threads = params.n_threads_batch = num_threads
        params.type_k = params.type_v = kind
        params.flash_attn_type = int(fused)
        params.n_seq_max, params.kv_unified = 2, True  # a second sequence, to fill the first in portions
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.cpp made no context for {length} tokens.")
        self._fill(length, cache)

    def _fill(self, length: int, cache: str) -> None:
        api, memory = self.api, self.api.llama_get_memory(self.context)
        self.step()
        header = self._state()[:8]  # what this version begins a state with
        api.llama_memory_clear(memory, True)
        kind, block, fused = CACHES[cache]
        row_bytes = KEY_HEADS * HEAD_DIM // 32 * block
        random = np.random.default_rng(0)
        for first in range(0, length, _PORTION):
            num = min(_PORTION, length - first)
            rows = _rows(random, num, cache)
            cells = np.stack([np.arange(first, first + num), np.ones(num), np.zeros(num)], 1).astype("<i4")
            keys = struct.pack("<iQ", kind, row_bytes) + rows
            # Without the fused kernel values lie channel by channel, each number with its size.
            values = keys if fused else struct.pack("<iII", kind, block // 32, KEY_HEADS * HEAD_DIM) + rows
            state = header + struct.pack("<II", 1, num) + cells.tobytes() + struct.pack("<II", not fused, LAYERS)
            state += keys * LAYERS + values * LAYERS
            buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            if api.llama_state_seq_set_data(self.context, buffer, len(state), 1) != len(state):
                sys.exit("This version of llama.cpp has states in another format.")
            api.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            api.llama_memory_seq_rm(memory, 1, -1, -1)
        assert api.llama_memory_seq_pos_max(memory, 0) == length - 1

    def _state(self) -> bytes:
        size = self.api.llama_state_seq_get_size(self.context, 0)
        buffer = (ctypes.c_uint8 * size)()
        self.api.llama_state_seq_get_data(self.context, buffer, size, 0)
        return bytes(buffer)

    def step(self, token: int = 5) -> int:
        """Run a token, and return the most likely next one."""
        batch = self.api.llama_batch_get_one((self.api.llama_token * 1)(token), 1)
        if self.api.llama_decode(self.context, batch) != 0:
            sys.exit("llama.cpp could not decode.")
        logits = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (VOCABULARY,))
        return int(logits.argmax())


def _rows(random: np.random.Generator, num: int, cache: str) -> bytes:
    """Return random keys or values of so many tokens as a cache has them."""
    numbers = random.standard_normal((num, KEY_HEADS * HEAD_DIM // 32, 32), dtype=np.float32)
    if cache != "q8_0":
        return numbers.astype(np.float16).tobytes()
    scale = (np.abs(numbers).max(-1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(numbers / scale).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.int8), codes], -1).tobytes()


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _QUIET(level: int, text: bytes, data: object) -> None:
    pass


def main() -> None:
    path, length, num_threads, cache = Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]
    if not path.exists():
        write_model(path)
    peer, token = Peer(path, length, num_threads, cache), 5
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    print(1024 * int(resident.split()[1]), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            token = peer.step(token)
            seconds.append(time.perf_counter() - start)
        print(*seconds, flush=True)


if __name__ == "__main__":
    main()
