"""Codes that do not carry every count: what they carry, who says so, and who refuses them."""

import json

import pytest
import torch
from torch import nn

import spikebrain as sb
from spikebrain.analysis.exactness import ExactnessCheck
from spikebrain.coding import Delta, Latency, Poisson, Ternary, WeightedPhase, decode
from spikebrain.energy.recode import recode
from spikebrain.errors import EncodingError, InputError

pytestmark = pytest.mark.usefixtures("as_users")


def carried(code, counts):
    count = torch.tensor(counts)
    suited, num_timesteps = code.fitted(min(counts), max(counts))
    return decode(suited.encode(count, num_timesteps)).tolist()


def test_what_each_carries():
    # A spike of the last but one timestep is worth e - 1 = 1.7, the one before e^2 - 1 = 6.4, then 19.1.
    assert carried(Latency(curve="log"), [0, 1, 3, 4, 7, -20]) == [0, 2, 2, 6, 6, -19]
    # 7 units of 3 hold 20: 20 / 3 = 6.7 is nearest to 7, 4 / 3 to 1.
    assert carried(Latency(step=3), [0, 4, 20, -20]) == [0, 3, 21, -21]
    assert carried(Latency(), [0, 1, -5, 9]) == [0, 1, -5, 9]
    assert carried(WeightedPhase(step=4), [3, 4, 11, -13]) == [0, 4, 8, -12]
    assert carried(Delta(step=3, threshold=2), [1, 2, 9, -9]) == [0, 3, 3, -3]
    assert carried(Poisson(), [5, -5, 0]) == [5, -5, 0]  # every timestep fires with a probability of 1


def test_poisson_has_the_count_as_its_mean():
    # 4 spikes expected in 8 timesteps with probability 1/2: variance 2, of a mean of 500 draws 0.004.
    values = [decode(Poisson(seed=s).encode(torch.tensor([[4, 8]]), 8))[0].tolist() for s in range(500)]
    mean = sum(v[0] for v in values) / 500
    assert abs(mean - 4) < 0.26
    assert {v[1] for v in values} == {8}
    assert len({v[0] for v in values}) > 5


def test_a_seed_and_a_token_have_one_train():
    count = torch.randint(-9, 10, (40, 30))
    train = Poisson(seed=3).encode(count, 12)
    assert torch.equal(train.spikes[:, 7:9], Poisson(seed=3).encode(count[7:9], 12).spikes)
    assert not torch.equal(train.spikes, Poisson(seed=4).encode(count, 12).spikes)
    two = Poisson().encode(torch.tensor([[4, 1], [4, 2]]).repeat(1, 40), 8).spikes
    assert not torch.equal(two[:, 0, ::2], two[:, 1, ::2])  # other tokens draw other numbers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Poisson(step=0), r"Poisson\.step: expected an integer >= 1, got 0"),
        (lambda: Poisson(seed=-1), r"Poisson\.seed"),
        (lambda: Latency(curve="square"), r"Latency\.curve: expected one of linear, log, charge"),
        (lambda: Delta(threshold=0), r"Delta\.threshold"),
        (lambda: WeightedPhase(step=1.5), r"WeightedPhase\.step"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("code", [Poisson(), Latency(), Latency(curve="log"), WeightedPhase()], ids=repr)
def test_counts_that_do_not_fit(code):
    with pytest.raises(EncodingError, match=r"expected -[0-9]+ <= count <= [0-9]+ for num_timesteps = 3, got 100"):
        code.encode(torch.tensor([1, 100]), 3)


def layer(**settings):
    torch.manual_seed(0)
    return sb.SpikeLinear.from_linear(nn.Linear(16, 8), **settings)


X = torch.randn(6, 16)


def test_checks_compare_with_what_the_train_carries():
    lossy = layer(encoder=WeightedPhase(step=4))
    check = ExactnessCheck()
    with check.watch(lossy):
        lossy(X)
    assert check.sums.num_checked == check.code.num_checked > 0
    assert check.sums.num_mismatches == 0
    assert check.code.num_mismatches > 0
    again = ExactnessCheck()
    again.restore(json.loads(json.dumps(check.state())))
    assert again.state() == check.state()
    exact = layer(encoder=Ternary())
    with again.watch(exact):
        exact(X)
    assert again.code.num_checked == check.code.num_checked


def test_minima_are_multiplied_by_what_the_train_carries():
    four_bits = {"weight_bits": 4, "group_size": 8}
    lossy, exact = layer(encoder=WeightedPhase(step=4), **four_bits), layer(encoder=Ternary(), **four_bits)
    spikes = exact.neuron(X)
    kept = decode(WeightedPhase(step=4).encode(spikes.count, 12)).float() * spikes.threshold
    expected = kept @ exact.dequantized_weight().T + exact.bias
    with torch.no_grad():
        torch.testing.assert_close(lossy(X), expected, rtol=1e-4, atol=1e-4)


def test_where_counts_must_be_exact_they_are_refused(tiny_llama):
    settings = sb.SpikeSettings(encoder="poisson")
    message = "expected an exact code, since .*; got the lossy"
    with pytest.raises(InputError, match=rf"spike_aware\.settings: {message}"), sb.spike_aware(tiny_llama, settings):
        pass
    with pytest.raises(InputError, match=rf"SpikeSettings\.encoder: {message}"):
        sb.spikingbrain_settings(encoder="latency")
    model = nn.Sequential(layer())
    with sb.record(model) as recording:
        model(X)
    with pytest.raises(InputError, match=message):
        recode(recording.layers["0"], Poisson())
    assert "whose spikes must be added" in sb.describe_decoding(sb.to_spiking(tiny_llama, settings))
    with pytest.raises(InputError, match="expected lossless or lossy"):
        type("Both", (Ternary,), {"lossless": True, "lossy": True})


@pytest.mark.slow
def test_a_report_says_that_a_code_is_lossy(run, model_folder, text, tmp_path):
    short = ("--text", text, "--num-tokens", 32, "--context", 16, "--out", tmp_path / "r")
    code, out, err = run("report", model_folder, "--encoder", "delta", *short)
    assert code == 0, err
    said = " ".join(out.split())
    assert "code delta (lossy)" in said
    assert "sampled outputs differ from those of the counts" in said
    found = json.loads((tmp_path / "r" / "report.json").read_text())
    assert found["settings"]["lossy_code"] is True
    assert found["exactness"]["num_mismatches"] == 0
    assert found["exactness"]["code"]["num_mismatches"] > 0
    assert "delta" not in found["codes"]
