"""llama.cpp as a peer of decode_tokens.py, in a process of its own: it and PyTorch bring OpenMP libraries that clash.

    python benchmarks/llama_cpp_peer.py FILE.gguf THREADS TOKEN [TOKEN ...]

Each line on standard input is a number of tokens to write; each line on standard output the tokens a second after the
first one.
"""

from __future__ import annotations

import sys
import time


def main() -> None:
    from llama_cpp import Llama  # noqa: PLC0415 - an optional peer  # pyright: ignore[reportMissingImports]

    path, num_threads, *prompt = sys.argv[1:]
    model = Llama(path, n_ctx=1024, n_threads=int(num_threads), verbose=False)
    tokens = [int(token) for token in prompt]
    for line in sys.stdin:
        model.reset()
        times = []
        for _ in model.generate(tokens, top_k=1, temp=0.0):
            times.append(time.perf_counter())
            if len(times) == int(line):
                break
        print((len(times) - 1) / (times[-1] - times[0]), flush=True)


if __name__ == "__main__":
    main()
