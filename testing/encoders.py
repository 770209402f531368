"""What must hold for an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import Reference
from ..coding import ENCODERS, AEREvents, BidirectionalBitwise, ChannelEvents, Encoder, PackedTrain, SpikeTrain, decode
from ..coding.base import MAX_LOSSLESS_COUNT
from ..coding.checks import fitted_to, train_of
from ..errors import EncodingError
from ..models import SpikeLinear
from ..neuro.checks import asking, checking_plugins
from .laws import check_settings, random_tensor, require, strategies, try_law

# Longest train in which large counts are tried.
_LONGEST = 2**12


def check_encoder(encoder: Encoder | str, *, examples: int = 100) -> None:
    """Check what must hold for an encoder, on random counts of any shape.

    Every count that fits comes back from its train, unless the class says that it is `lossy`; one that does not fit
    raises. A token has the same train in every batch and memory layout, and so has, in an exact code, a channel. Silent
    channels of codes without a zero point are silent. Trains survive packing and address events; a layer computes in an
    exact code what it computes in any other.

    Args:
        encoder: an object, or a name.
        examples: random inputs for each law.
    Raises:
        InputError: a law is broken; the message names the class and the method.
    """
    code: Encoder = ENCODERS.resolve(encoder, "check_encoder.encoder")
    st = strategies()
    check_settings(ENCODERS, code)
    seed, largest = st.integers(0, 2**32), st.sampled_from([0, 1, 7, 8, 100, 3570])
    shape = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    with checking_plugins():
        try_law(lambda **drawn: _round_trip(code, **drawn), examples, shape=shape, largest=largest, seed=seed)
        wide = st.tuples(st.integers(1, 4), st.sampled_from([1, 31, 32, 33, 100]))
        try_law(lambda **drawn: _tokens(code, **drawn), examples, shape=wide, largest=largest, seed=seed)
        try_law(lambda **drawn: _packed(code, **drawn), max(1, examples // 2), shape=wide, largest=largest, seed=seed)
    try_law(lambda **drawn: _range(code, **drawn), examples, count=st.integers(-(2**31), 2**31 - 1))
    _extremes(code)
    _layer(code)


def fit(code: Encoder, count: Tensor, extra: int = 0) -> tuple[Encoder, int, SpikeTrain]:
    """Return the code and the length that hold some counts, and their train."""
    low, high = (int(v) for v in count.aminmax()) if count.numel() else (0, 0)
    suited, num_timesteps = fitted_to(code, low, high)
    return suited, num_timesteps + extra, train_of(suited, count, num_timesteps + extra)


def _round_trip(code: Encoder, shape: tuple[int, ...], largest: int, seed: int) -> None:
    count = random_tensor("counts", shape, seed, largest)
    suited, num_timesteps, train = fit(code, count, seed % 4)
    again = suited.encode(count.to(torch.int64), num_timesteps)
    same = torch.equal(again.spikes, train.spikes) and torch.equal(again.timestep_weight, train.timestep_weight)
    require(same, code, "encode", "the same train of the same counts, whatever their dtype", "another one")
    require(0 <= train.firing_rate <= 1, code, "encode", "a firing rate from 0 to 1", str(train.firing_rate))
    events = AEREvents.from_train(train)
    require(len(events) == train.num_spikes, code, "encode", "an address event for each spike", f"{len(events)}")
    require(torch.equal(events.to_train().spikes, train.spikes), code, "encode", "the train of its events", "another")
    if train.zero_point == 0:
        fired = int(train.spikes[:, count == 0].count_nonzero())
        require(fired == 0, code, "encode", "no spikes of silent channels without a zero point", f"{fired} spikes")
    if not code.lossy and count.ndim:
        order = torch.randperm(count.shape[-1], generator=torch.Generator().manual_seed(seed))
        permuted = suited.encode(count[..., order], num_timesteps)
        same = torch.equal(train.spikes[..., order], permuted.spikes)
        require(same, code, "encode", "permuted trains of permuted channels", "others")


def _tokens(code: Encoder, shape: tuple[int, int], largest: int, seed: int) -> None:
    count = random_tensor("counts", shape, seed, largest)
    suited, num_timesteps, train = fit(code, count)
    token = seed % len(count)
    alone = suited.encode(count[token : token + 1].contiguous(), num_timesteps)
    same = torch.equal(train.spikes[:, token : token + 1], alone.spikes)
    require(same, code, "encode", "the train of a token that it has alone", "another one beside other tokens")
    strided = suited.encode(count.unsqueeze(-1).expand(*count.shape, 2)[..., 0], num_timesteps)
    require(torch.equal(train.spikes, strided.spikes), code, "encode", "one train in every memory layout", "another")
    if not code.lossy:
        last = suited.encode(count[:, -1:].contiguous(), num_timesteps)
        same = torch.equal(train.spikes[..., -1:], last.spikes)
        require(same, code, "encode", "the train of a channel that it has alone", "another one beside other channels")


def _packed(code: Encoder, shape: tuple[int, ...], largest: int, seed: int) -> None:
    count = random_tensor("counts", shape, seed, largest)
    suited, num_timesteps, _ = fit(code, count)
    check_packing(suited, count, num_timesteps)


def check_packing(code: Encoder, count: Tensor, num_timesteps: int) -> PackedTrain:
    """Check that a code packs what it encodes, and return the packed train.

    Raises:
        InputError: it packs another train.
    """
    train = train_of(code, count, num_timesteps)
    with asking(code, "pack"):
        packed = code.pack(count, num_timesteps)
    expected = PackedTrain.from_train(train, len(packed.negative))
    same = all(torch.equal(getattr(packed, n), getattr(expected, n)) for n in ("fired", "negative", "timestep_weight"))
    same &= (packed.num_channels, packed.zero_point) == (expected.num_channels, expected.zero_point)
    same &= torch.equal(packed.to_train().spikes, train.spikes) and packed.num_spikes == train.num_spikes
    require(same, code, "pack", "the train of encode, packed", "another one")
    # What kernels wrote passes the checks of a train made by hand.
    PackedTrain(packed.fired, packed.negative, packed.timestep_weight, packed.num_channels, packed.zero_point)
    events, plain = ChannelEvents.from_packed(packed), ChannelEvents.from_packed_plainly(packed)
    same = all(torch.equal(getattr(events, n), getattr(plain, n)) for n in ("indptr", "channel", "count"))
    require(same, code, "pack", "a train whose events kernels list as Python does", "another one")
    return packed


def _range(code: Encoder, count: int) -> None:
    """A count beyond a short train raises, or comes back."""
    one = torch.tensor([[count]], dtype=torch.int64)
    try:
        with asking(code, "encode"):
            train = code.encode(one, 2)
    except EncodingError:
        return
    if not code.lossy:
        got = int(decode(train)[0, 0])
        require(got == count, code, "encode", f"an EncodingError, or a train of the count {count}", f"one of {got}")


def _extremes(code: Encoder) -> None:
    """Large counts, as far as their trains are not too long; all that `lossless` promises."""
    for largest in (2**15, 2**20 if code.lossy else MAX_LOSSLESS_COUNT):
        count = torch.tensor([[largest, -largest, 0, 1, -1]])
        if fitted_to(code, -largest, largest)[1] <= _LONGEST:
            fit(code, count)
    if code.lossless:
        count = torch.tensor([[300, -300, 0, 5]])
        train = fit(code, count)[2]
        require(torch.equal(decode(train), count), code, "lossless", "every count back", str(decode(train).tolist()))


def _layer(code: Encoder) -> None:
    weight, x = random_tensor("weights", (7, 12), 0), random_tensor("activations", (5, 12), 1)
    scale = torch.ones(7, 1)

    def run(**settings: Any) -> Tensor:
        return SpikeLinear(weight, scale, **settings)(x)

    with torch.no_grad():
        y = run(encoder=code, backend=Reference())
        require(torch.equal(run(encoder=code), y), code, "encode", "the same outputs on every backend", "others")
        expected = y if code.lossy else run(encoder=BidirectionalBitwise(), backend=Reference())
    require(torch.equal(y, expected), code, "encode", "the outputs of a layer in another exact code", "others")
