"""Bytes of state while decoding: a Transformer's KV cache, the 7B layout (float and INT8) and the 76B layout.

    python benchmarks/state_memory.py [--out FILE] [--lengths 1024 8192 65536]

The size of the state depends on heads, channels per head, window and layers, but not on the hidden size, which is small
here so that a CPU can run the model. Heads, channels and window (4096) are the 7B's. The model itself fills two layers
of the 7B and seven of the 76B (one period of each), in portions, and `num_bytes` of the cache is read. It is scaled to
28 layers, which is exact since all periods are equal. It includes one extra byte per token and layer of softmax
attention, which marks text.

The Transformer is the same model with full attention in each layer, at two bytes per number as in float16. All models
run up to --measured tokens. Beyond that, windows are full and only the columns of full attention grow, by one per
token; their size is extrapolated from the measured one. Float states of linear attention are float32; keys and values
of float models are bfloat16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from spikebrain import spikingbrain_settings
from spikebrain.models.conversion import to_spiking
from spikebrain.models.spikingbrain import (
    SpikingBrainCache,
    SpikingBrainConfig,
    SpikingBrainForCausalLM,
    layout,
    parse_layers,
    spikingbrain_7b,
)

_LAYERS = 28
_PORTION = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192, 65536])
    parser.add_argument("--measured", type=int, default=6144, help="tokens that run; more than the window")
    options = parser.parse_args()
    small = {"vocab_size": 16, "hidden_size": 16, "head_dim": 128, "intermediate_size": 16}
    # One query head per key/value head, since queries leave no state.
    small |= {"num_heads": 4, "num_kv_heads": 4}
    sinks = {"gate": "tied", "feature_map": "sigmoid", "num_sinks": 128}
    rows = {
        "Transformer, float16 KV cache": (spikingbrain_7b(**small, layers=parse_layers("full")), None),
        "7B layout, float": (spikingbrain_7b(**small, layers=layout("7b", 2)), None),
        "7B layout, spiking, INT8": (spikingbrain_7b(**small, layers=layout("7b", 2)), "as-described"),
        "76B layout, float": (spikingbrain_7b(**small, **sinks, layers=parse_layers(_dense_76b())), None),
        "76B layout, spiking, INT8": (
            spikingbrain_7b(**small, **sinks, layers=parse_layers(_dense_76b())),
            "as-described",
        ),
    }
    found = {
        name: measure(config, setting, options.lengths, options.measured) for name, (config, setting) in rows.items()
    }
    print(f"{'bytes of state, 28 layers, 4 KV heads of 128':45}" + "".join(f"{n:>16,}" for n in options.lengths))
    for name, sizes in found.items():
        print(f"{name:45}" + "".join(f"{size:>16,}" for size in sizes.values()))
    if options.out:
        content = {"num_layers": _LAYERS, "num_kv_heads": 4, "head_dim": 128, "window": 4096, "bytes": found}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


def _dense_76b() -> str:
    """Return the mixers of one period of the 76B; experts have no state."""
    return ",".join("+".join(plan.mixers) for plan in layout("76b", 7))


@torch.inference_mode()
def measure(config: SpikingBrainConfig, setting: str | None, lengths: list[int], measured: int) -> dict[int, int]:
    """Return bytes of state by length, for 28 layers."""
    model = SpikingBrainForCausalLM(config).eval()
    model = to_spiking(model, spikingbrain_settings(setting)) if setting else model.bfloat16()
    # Once windows are full, only the columns of full attention grow, by one per token.
    full = sum(plan.softmax == "full" for plan in config.layers)
    cache, sizes = SpikingBrainCache(config), {}
    for length in sorted(lengths):
        wanted = min(length, measured)
        while cache.num_tokens < wanted:
            portion = min(_PORTION, wanted - cache.num_tokens)
            model(torch.randint(16, (1, portion)), cache=cache, logits_to_keep=1)
        grown = sum(x.columns.tensors[0].shape[2] for x in cache.layers if x.columns and x.columns.limit is None)
        per_token = sum(
            column.numel() * column.element_size() // column.shape[2]
            for x in cache.layers
            if x.columns and x.columns.limit is None
            for column in x.columns.tensors
        )
        assert grown == full * (wanted + config.num_sinks)
        size = cache.num_bytes + (length - wanted) * per_token
        sizes[length] = size * _LAYERS // config.num_layers
    return sizes


if __name__ == "__main__":
    main()
