"""What a user's neuron, encoder or backend returns is checked where it enters, and the error names the class."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import spikebrain as sb
from spikebrain.backends import Backend
from spikebrain.energy.recode import recode
from spikebrain.errors import InputError

pytestmark = pytest.mark.usefixtures("as_users")
X = torch.tensor([[1.0, -1.0, 4.0, 0.0], [2.0, 0.5, -0.25, 1.0], [-3.0, 1.0, 0.0, 2.0]])


class OwnNeuron(sb.AdaptiveThreshold):
    """Runs `change` on what the adaptive threshold returns."""

    def change(self, spikes, x):
        return spikes

    def step(self, x, state=None):
        return self.change(super().step(x)[0], x), None


class OwnEncoder(sb.BidirectionalBitwise):
    def change(self, train, count):
        return train

    def encode(self, count, num_timesteps):
        return self.change(super().encode(count, num_timesteps), count)


class OwnBackend(sb.Reference):
    def change(self, sums, weight):
        return sums

    def _accumulate(self, spikes, timestep_weight, weight):
        return self.change(super()._accumulate(spikes, timestep_weight, weight), weight)


def own(base, change):
    return type("Mine", (base,), {"change": lambda self, *values: change(*values)})()


def layer(**settings):
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3, bias=False)
    linear.weight.data = torch.randn(3, 4, generator=generator)
    return sb.SpikeLinear.from_linear(linear, **settings)


NEURONS = {
    "nothing": (lambda s, x: None, "a SpikeCount"),
    "counts alone": (lambda s, x: s.count, "a SpikeCount"),
    "counts as float": (lambda s, x: replace(s, count=s.count.float()), "counts of int32"),
    "counts as bool": (lambda s, x: replace(s, count=s.count > 0), "counts of int32"),
    "fewer tokens": (lambda s, x: replace(s, count=s.count[:1]), r"got torch.int32 of shape \(1, 4\)"),
    "fewer channels": (lambda s, x: replace(s, count=s.count[:, :1]), r"got torch.int32 of shape \(3, 1\)"),
    "another device": (lambda s, x: replace(s, count=s.count.to("meta")), "on meta"),
    "one threshold": (lambda s, x: replace(s, threshold=s.threshold[:1]), "one threshold a token"),
    "a number": (lambda s, x: replace(s, threshold=1.0), "one threshold a token"),
    "a scalar": (lambda s, x: replace(s, threshold=torch.tensor(1.0)), "one threshold a token"),
    "one a channel": (lambda s, x: replace(s, threshold=s.threshold.expand(3, 4)), "one threshold a token"),
    "integers": (lambda s, x: replace(s, threshold=s.threshold.int() + 1), "one threshold a token"),
    "NaN": (lambda s, x: replace(s, threshold=s.threshold * torch.nan), r"finite thresholds > 0, got nan at index \(0"),
    "infinity": (lambda s, x: replace(s, threshold=s.threshold / 0), "finite thresholds > 0, got inf"),
    "zero": (lambda s, x: replace(s, threshold=s.threshold * 0), "finite thresholds > 0, got 0.0"),
    "negative": (lambda s, x: replace(s, threshold=-s.threshold), "finite thresholds > 0, got -"),
    "another source": (lambda s, x: replace(s, source=x[:1]), "as `source`"),
    "input changed": (lambda s, x: (x.mul_(2), s)[1], "x changed in place"),
}


def in_inference(**settings):
    with torch.inference_mode():
        layer(**settings)(X * 1)


def in_training(neuron):
    model = nn.Sequential(nn.Linear(4, 3))
    with sb.spike_aware(model, sb.SpikeSettings(neuron=neuron)):
        model(X.clone())


def recoded(encoder):
    spiking = nn.Sequential(layer())
    with sb.record(spiking) as recording:
        spiking(X)
    recode(recording.layers["0"], encoder)


@pytest.mark.parametrize(("change", "message"), NEURONS.values(), ids=NEURONS.keys())
@pytest.mark.parametrize(
    "run",
    [
        lambda neuron: layer(neuron=neuron)(X.clone()),
        lambda neuron: in_inference(neuron=neuron),
        lambda neuron: sb.pack_activations(X.clone(), neuron, sb.Ternary()),
        in_training,
    ],
    ids=["layer", "inference", "pack", "training"],
)
def test_what_a_neuron_returns(change, message, run):
    neuron = own(OwnNeuron, change)
    with pytest.raises(InputError, match=rf"Mine\.step: expected .*{message}"):
        run(neuron)


def test_a_step_without_state():
    class Mine(sb.AdaptiveThreshold):
        def step(self, x, state=None):
            return super().step(x)[0]

    with pytest.raises(InputError, match=r"Mine\.step: expected a SpikeCount and the next state"):
        layer(neuron=Mine())(X)


def zeros(train, count):
    return sb.SpikeTrain(torch.zeros_like(train.spikes), train.timestep_weight)


def clamped(train, count):
    return sb.BidirectionalBitwise().encode(count.clamp(-3, 3), train.num_timesteps)


ENCODERS = {
    "nothing": (lambda t, c: None, "a SpikeTrain, got None"),
    "a tensor": (lambda t, c: t.spikes, "a SpikeTrain, got torch.int8"),
    "packed": (lambda t, c: sb.PackedTrain.from_train(t), "a SpikeTrain, got a PackedTrain"),
    "fewer tokens": (lambda t, c: sb.SpikeTrain(t.spikes[:, :1], t.timestep_weight), r"spikes of shape \(4, 3, 4\)"),
    "no tokens": (lambda t, c: sb.SpikeTrain(t.spikes[:, :0], t.timestep_weight), r"spikes of shape \(4, 3, 4\)"),
    "fewer timesteps": (lambda t, c: sb.SpikeTrain(t.spikes[1:], t.timestep_weight[1:]), r"spikes of shape \(4, 3, 4"),
    "zeros": (zeros, "decodes to the counts"),
    "weights": (lambda t, c: sb.SpikeTrain(t.spikes, t.timestep_weight.flip(0)), "decodes to the counts"),
    "zero point": (lambda t, c: sb.SpikeTrain(t.spikes, t.timestep_weight, 1), "decodes to the counts"),
    "clamped": (clamped, r"decodes to the counts, 8 at token 0, channel 2, got 3"),
    "counts changed": (lambda t, c: (c.neg_(), t)[1], "counts changed in place"),
}


# At k = 3 token 0, with a mean |x| of 1.5, has the counts 2, -2, 8 and 0: four binary digits.
@pytest.mark.parametrize(("change", "message"), ENCODERS.values(), ids=ENCODERS.keys())
@pytest.mark.parametrize(
    "run",
    [
        lambda encoder: layer(encoder=encoder)(X),
        lambda encoder: in_inference(encoder=encoder),
        lambda encoder: sb.pack_activations(X, sb.AdaptiveThreshold(), encoder),
    ],
    ids=["layer", "inference", "pack"],
)
def test_what_an_encoder_returns(change, message, run):
    encoder = own(OwnEncoder, change)
    with pytest.raises(InputError, match=rf"Mine\.encode: expected .*{message}"):
        run(encoder)


@pytest.mark.parametrize("change", [change for change, _ in ENCODERS.values()], ids=ENCODERS.keys())
def test_what_an_encoder_returns_for_recorded_counts(change):
    encoder = own(OwnEncoder, change)
    with pytest.raises(InputError, match=r"Mine\.encode: expected "):
        recoded(encoder)


@pytest.mark.parametrize("found", [0, -1, 2.0, "3", None])
def test_a_length_that_is_none(found):
    class Mine(OwnEncoder):
        def timesteps_for(self, max_count):
            return found

    with pytest.raises(InputError, match=r"Mine\.timesteps_for: expected an integer >= 1"):
        layer(encoder=Mine())(X)


def test_counts_beyond_the_range_of_a_code():
    class Mine(OwnEncoder):
        def timesteps_for(self, max_count):
            return 2

        def encode(self, count, num_timesteps):
            return sb.BidirectionalBitwise().encode(count.clamp(-3, 3), num_timesteps)

    with pytest.raises(InputError, match=r"Mine\.encode: expected a train that decodes to the counts, 8 at token 0"):
        layer(encoder=Mine())(X)


BACKENDS = {
    "nothing": (lambda s, w: None, "_accumulate: expected int32 or int64"),
    "float": (lambda s, w: s.float(), "_accumulate: expected int32 or int64"),
    "fewer tokens": (lambda s, w: s[:1], r"_accumulate: expected int32 or int64 of shape \(3, 3\)"),
    "zeros": (lambda s, w: s * 0, "accumulate: expected the exact sum"),
    "one too many": (lambda s, w: s + 1, "accumulate: expected the exact sum"),
    "weights changed": (lambda s, w: (w.add_(1), s)[1], "accumulate: expected weights as they were given"),
}


@pytest.mark.parametrize(("change", "message"), BACKENDS.values(), ids=BACKENDS.keys())
def test_what_a_backend_returns(change, message):
    with pytest.raises(InputError, match=rf"Mine\.{message}"):
        layer(backend=own(OwnBackend, change))(X)


@pytest.mark.parametrize("wrong", [lambda y: y[:1], lambda y: y.double(), lambda y: [y]])
def test_what_a_whole_layer_of_a_backend_returns(wrong):
    class Mine(sb.Cpu):
        def fused(self, *arguments):
            return wrong(super().fused(*arguments))

    with pytest.raises(InputError, match=r"Mine\.fused: expected None, or outputs torch\.float32 of shape \(3, 3\)"):
        layer(backend=Mine())(X)


def test_plug_ins_that_keep_their_contract_give_what_ours_give():
    class Strided(OwnEncoder):
        def encode(self, count, num_timesteps):
            train = super().encode(count, num_timesteps)
            return replace(train, spikes=train.spikes.transpose(-1, -2).contiguous().transpose(-1, -2))

    def strided(spikes, x):
        return replace(spikes, count=spikes.count.t().contiguous().t().long())

    class Mine(Backend):
        def _accumulate(self, spikes, timestep_weight, weight):
            return torch.einsum("t,tki,oi->ko", timestep_weight, spikes.long(), weight.long())

    expected = layer()(X)
    for backend in (sb.Reference(), sb.Cpu(), Mine()):
        mine = layer(neuron=own(OwnNeuron, strided), encoder=Strided(), backend=backend)
        torch.testing.assert_close(mine(X), expected, rtol=0, atol=0)
        with torch.inference_mode(), sb.checking_plugins():
            torch.testing.assert_close(mine(X), expected, rtol=0, atol=0)


def test_the_whole_check_sees_what_the_cheap_one_may_miss():
    x = torch.linspace(-1, 1, 64 * 4).reshape(64, 4)

    def one_wrong(train, count):
        spikes = train.spikes.clone()
        spikes[:, 5, 1] = 0  # neither among the tokens that are always compared nor an extreme count
        return replace(train, spikes=spikes)

    mine = layer(encoder=own(OwnEncoder, one_wrong))
    mine(x)
    with sb.checking_plugins(), pytest.raises(InputError, match=r"at token 5, channel 1, got 0 in"):
        mine(x)
    with sb.checking_plugins():  # ours, in separate steps
        torch.testing.assert_close(layer()(x), layer()(x), rtol=0, atol=0)


def test_ours_are_not_checked(monkeypatch):
    def fail(*arguments):
        raise AssertionError

    monkeypatch.setattr("spikebrain.neuro.checks.Untouched", fail)
    layer()(X)
    sb.pack_activations(X, sb.AdaptiveThreshold(), sb.Ternary())
