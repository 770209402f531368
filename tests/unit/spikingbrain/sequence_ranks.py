"""A rank of test_sequence.py: python sequence_ranks.py FOLDER RANK SIZE [dies]."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import spikebrain as sb
from spikebrain.errors import InputError, RankError
from spikebrain.models.layers import SplitSpikeLinear, split_spiking
from spikebrain.models.spikingbrain import (
    SpikingBrainForCausalLM,
    parse_layers,
    prefill,
    sequence_prefill,
    tiny_7b,
    tiny_76b,
)

CASES = {
    "windows shorter and longer than a part": (tiny_7b, {"layers": parse_layers("gla,swa,gla,swa"), "window": 10}, 32),
    "window over all parts": (tiny_7b, {"layers": parse_layers("swa,gla"), "window": 64}, 24),
    "full": (tiny_7b, {"layers": parse_layers("full,gla+full,gla+swa"), "window": 5}, 16),
    "a token a rank": (tiny_7b, {"layers": parse_layers("gla,swa,full"), "window": 2}, 4),
    "sinks and experts": (tiny_76b, {"window": 6}, 24),
}


@torch.no_grad()
def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size, timeout=timedelta(seconds=20)
    )
    if sys.argv[4:] == ["dies"]:
        die(rank)
    for name, (preset, changes, length) in CASES.items():
        for spiking in (False, True):
            torch.manual_seed(0)
            model = SpikingBrainForCausalLM(preset(**changes)).eval()
            if spiking:
                model = sb.to_spiking(model)
            ids = torch.randint(256, (2, length), generator=torch.Generator().manual_seed(1))
            found, expected = sequence_prefill(model, ids), prefill(model, ids)
            tolerance = {"atol": 1e-5, "rtol": 1e-4} if not spiking else {"atol": 0.02, "rtol": 0.02}
            torch.testing.assert_close(found.logits, expected.logits, **tolerance, msg=lambda m, n=name: f"{n}: {m}")
            assert (found.cache is not None) == (rank == size - 1)
            if found.cache is not None:
                assert found.cache.num_tokens == length
                assert found.cache.num_bytes == expected.cache.num_bytes
                after, right = (model(ids[:, :3], cache=one.cache).logits for one in (found, expected))
                torch.testing.assert_close(after, right, **tolerance)
    with pytest.raises(InputError, match=f"a multiple of {size}"):
        sequence_prefill(model, ids[:, : size + 1])
    split_layers()
    print("passed")


def split_layers() -> None:
    """Compare split layers and a split model with whole ones, bit for bit."""
    torch.manual_seed(0)
    for k, shape in ((3.0, (5, 2, 37)), (3e6, (2, 37)), (2.0, (0, 37))):
        linear = torch.nn.Linear(37, 11)
        layer = sb.SpikeLinear.from_linear(linear, neuron=sb.AdaptiveThreshold(k), name="some.layer")
        x = torch.randn(shape).to(torch.bfloat16 if k == 2 else torch.float32)
        assert torch.equal(SplitSpikeLinear(layer)(x), layer(x))
    with pytest.raises(InputError, match=r"some.layer.*expected activations"):
        SplitSpikeLinear(layer)(torch.zeros(2, 36))
    with pytest.raises(InputError, match=r"at least \d input channels"):
        SplitSpikeLinear(sb.SpikeLinear.from_linear(torch.nn.Linear(1, 4)))
    with pytest.raises(InputError, match="weight groups of 8 channels"):
        SplitSpikeLinear(sb.SpikeLinear.from_linear(linear, group_size=8))
    model = sb.to_spiking(SpikingBrainForCausalLM(tiny_7b()).eval())
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = model(ids).logits
    assert torch.equal(split_spiking(model)(ids).logits, expected)


def die(rank: int) -> None:
    model = SpikingBrainForCausalLM(tiny_7b()).eval()
    if rank == 1:
        sys.exit(3)
    try:
        sequence_prefill(model, torch.zeros(1, 8, dtype=torch.int64))
    except RankError as error:
        print("RankError:", str(error)[:90])
        sys.exit(4)


if __name__ == "__main__":
    main()
