"""What encoders return, checked where it enters; see `neuro.checks`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..neuro.checks import Untouched, asking, checks_all, describe_tensor, needs_check, refuse
from ..neuro.once import Once
from .base import Encoder, decode
from .train import SpikeTrain

# Tokens whose train is decoded and compared, beside those of the largest and the smallest count.
_SAMPLED_TOKENS = 6
_encoded = Once()


def fitted_to(encoder: Encoder, low: int, high: int) -> tuple[Encoder, int]:
    """Return `encoder.fitted(low, high)`, checked if the encoder is not of this package.

    Raises:
        InputError: the encoder returned something else than an encoder and a number of timesteps >= 1.
    """
    if not needs_check(encoder):
        return encoder.fitted(low, high)
    with asking(encoder, "timesteps_for"):
        found = encoder.fitted(low, high)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Encoder):
        raise refuse(encoder, "fitted", "an encoder and a number of timesteps", repr(found))
    if type(found[1]) is not int or found[1] < 1:
        raise refuse(encoder, "timesteps_for", "an integer >= 1", repr(found[1]))
    return found


def promise_train(encoder: Encoder, count: Tensor, num_timesteps: int, make: Callable[[], SpikeTrain | None]) -> None:
    """Let `train_of` use a train that is known already, such as some tokens of another one; see `Once.promise`."""
    _encoded.promise(count, (encoder, num_timesteps), make)


def train_of(encoder: Encoder, count: Tensor, num_timesteps: int) -> SpikeTrain:
    """Return `encoder.encode(count, num_timesteps)`, checked if the encoder is not of this package.

    The train is decoded and compared with the counts at a few tokens, those of the largest and the smallest count among
    them; inside `checking_plugins()` at all tokens.

    Args:
        encoder: the encoder.
        count: spike counts, [*tokens, N].
        num_timesteps: length of the train.
    Raises:
        InputError: the encoder returned something else than a train of these counts, or changed them in place.
        EncodingError: see `Encoder.encode`.
    """
    if not needs_check(encoder):
        return _encoded.get(count, (encoder, num_timesteps), lambda: encoder.encode(count, num_timesteps))
    untouched = Untouched(count)
    with asking(encoder, "encode"):
        train = encoder.encode(count, num_timesteps)
    if not isinstance(train, SpikeTrain):
        raise refuse(encoder, "encode", "a SpikeTrain", describe_tensor(train))
    expected = (num_timesteps, *count.shape)
    if train.spikes.shape != expected or train.spikes.device != count.device:
        raise refuse(encoder, "encode", f"spikes of shape {expected} on {count.device}", describe_tensor(train.spikes))
    if untouched.was_changed():
        raise refuse(encoder, "encode", "counts as they were given", "counts changed in place")
    if count.numel():
        _compare(encoder, count, train)
    return train


def _compare(encoder: Encoder, count: Tensor, train: SpikeTrain) -> None:
    """Raise an InputError if the train does not decode to the counts, or that of a lossy code to no counts at all."""
    num_channels = count.shape[-1] if count.ndim else 1
    flat = count.reshape(-1, num_channels)
    spikes = train.spikes.reshape(train.num_timesteps, *flat.shape)
    tokens = torch.arange(len(flat), device=count.device)
    if not checks_all() and len(flat) > _SAMPLED_TOKENS:
        extremes = torch.stack([flat.argmax(), flat.argmin()]) // num_channels
        tokens = torch.cat([tokens[:: -(-len(flat) // _SAMPLED_TOKENS)], extremes])
    decoded = decode(SpikeTrain(spikes[:, tokens], train.timestep_weight, train.zero_point))
    if encoder.lossy:
        return
    differs = decoded != flat[tokens]
    if bool(differs.any()):
        token, channel = (int(i) for i in differs.nonzero()[0])
        raise refuse(
            encoder,
            "encode",
            f"a train that decodes to the counts, {int(flat[tokens[token], channel])} at token {int(tokens[token])}, "
            f"channel {channel}",
            f"{int(decoded[token, channel])} in {train.num_timesteps} timesteps",
        )
