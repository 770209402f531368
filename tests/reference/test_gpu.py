"""On a real GPU (`pytest -m gpu`): the same integers as on the CPU."""

import pytest
import torch

from spikebrain import AdaptiveThreshold, SpikeLinear, record, to_spiking
from spikebrain.backends import Cpu, Triton, auto
from spikebrain.coding import ENCODERS
from spikebrain.errors import BackendUnavailableError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]


@pytest.mark.parametrize("code", list(ENCODERS))
def test_accumulate(code):
    x = torch.randn(5, 63).cuda()
    spikes = AdaptiveThreshold()(x)
    encoder, num_timesteps = ENCODERS.create(code).fitted(*(int(v) for v in spikes.count.aminmax()))
    train = encoder.encode(spikes.count, num_timesteps)
    weight = torch.randint(-127, 128, (17, 63), dtype=torch.int8).cuda()
    found = auto(x.device, 5, weight.numel()).accumulate(train, weight)
    on_cpu = encoder.encode(spikes.count.cpu(), num_timesteps)
    assert torch.equal(train.spikes.cpu(), on_cpu.spikes)
    assert torch.equal(found.cpu(), Cpu().accumulate(on_cpu, weight.cpu()))
    with pytest.raises(BackendUnavailableError, match="on a CPU only"):
        Cpu().accumulate(train, weight)


@pytest.mark.parametrize("group_size", [None, 7])
def test_weights_are_rounded_alike(group_size):
    linear = torch.nn.Linear(577, 300)
    cpu = SpikeLinear.from_linear(linear, group_size=group_size)
    gpu = SpikeLinear.from_linear(linear.cuda(), group_size=group_size)
    assert torch.equal(gpu.weight.cpu(), cpu.weight)
    assert torch.equal(gpu.scale.cpu(), cpu.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model(tiny_llama, dtype):
    model = to_spiking(tiny_llama.to(dtype)).cuda()
    ids = torch.arange(20, device="cuda")[None]
    with torch.no_grad(), record(model) as recording:
        logits = model(ids).logits
    assert isinstance(auto(logits.device, 20, 24 * 40), Triton)
    assert bool(logits.isfinite().all())
    assert sum(layer.num_spikes for layer in recording.layers.values()) > 0
    if dtype == torch.float32:
        with torch.no_grad():
            torch.testing.assert_close(logits.cpu(), model.cpu()(ids.cpu()).logits, rtol=0.02, atol=0.02)
