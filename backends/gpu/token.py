"""Triton kernels for the begin and the end of a decoder's token: embedding and rotation, the best guess and the state.

A few dozen bytes each; as operators of PyTorch they were twenty launches, which took as long as a layer.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .job import cdiv, power_of_two

# Logits of a program of `best_of_blocks`, and channels of one of `begin_token`.
_LOGITS, _CHANNELS = 1024, 1024


class TokenPlan(NamedTuple):
    """What a token begins and ends with.

    Attributes:
        state: int64, [3, 1]: the token, its position, and whether a layer of the last token failed.
        embedding: [vocabulary, channels].
        frequencies: of the rotary embedding, [head_dim / 2].
        scaling: of cosines and sines.
        hidden: filled with the token's row, [1, channels].
        cos: filled, [1, head_dim].
        sin: filled, [1, head_dim].
        logits: [1, vocabulary].
        best: scratch, float32, [blocks].
        best_at: scratch, int32, [blocks].
        failed: int32, [stages + 1], the last for a token that is not in the vocabulary.
        cache: int64, [3], whose last is the number of tokens before this one.
    """

    state: Tensor
    embedding: Tensor
    frequencies: Tensor
    scaling: float
    hidden: Tensor
    cos: Tensor
    sin: Tensor
    logits: Tensor
    best: Tensor
    best_at: Tensor
    failed: Tensor
    cache: Tensor

    def begin(self) -> None:
        """Fill hidden, cos and sin."""
        channels = self.hidden.shape[1]
        half = len(self.frequencies)
        begin_token[cdiv(channels, _CHANNELS),](
            self.state,
            self.embedding,
            self.frequencies,
            self.hidden,
            self.cos,
            self.sin,
            self.failed,
            channels,
            len(self.embedding),
            len(self.failed) - 1,
            half,
            self.scaling,
            CHANNELS=_CHANNELS,
            HALF=power_of_two(half),
        )

    def end(self) -> None:
        """Put the most likely next token, its position and whether a stage failed into the state; count the token."""
        blocks = num_blocks(self.logits)
        best_of_blocks[blocks,](self.logits, self.best, self.best_at, self.logits.shape[1], BLOCK=_LOGITS)
        end_token[1,](
            self.best,
            self.best_at,
            self.failed,
            self.state,
            self.cache,
            blocks,
            len(self.failed),
            BLOCKS=power_of_two(blocks),
            STAGES=power_of_two(len(self.failed)),
        )


def num_blocks(logits: Tensor) -> int:
    """Return how long the scratch memory of a plan must be."""
    return cdiv(logits.shape[1], _LOGITS)


@triton.jit
def begin_token(
    state_ptr,
    embedding_ptr,
    frequency_ptr,
    hidden_ptr,
    cos_ptr,
    sin_ptr,
    failed_ptr,
    channels,
    num_tokens,
    num_stages,
    half,
    scaling,
    CHANNELS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Copy CHANNELS channels of the token's embedding, and find the rotation of its position; grid [blocks]."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    token = tl.load(state_ptr)
    is_known = (token >= 0) & (token < num_tokens)
    row = tl.load(embedding_ptr + token * channels + channel, mask=(channel < channels) & is_known, other=0)
    tl.store(hidden_ptr + channel, row, mask=channel < channels)
    if tl.program_id(0) == 0:
        tl.store(failed_ptr + num_stages, (is_known == 0).to(tl.int32))
        place = tl.arange(0, HALF)
        frequency = tl.load(frequency_ptr + place, mask=place < half, other=0).to(tl.float32)
        angle = frequency * tl.load(state_ptr + 1).to(tl.float32)
        cos = (tl.cos(angle) * scaling).to(cos_ptr.dtype.element_ty)
        sin = (tl.sin(angle) * scaling).to(cos_ptr.dtype.element_ty)
        tl.store(cos_ptr + place, cos, mask=place < half)
        tl.store(cos_ptr + half + place, cos, mask=place < half)
        tl.store(sin_ptr + place, sin, mask=place < half)
        tl.store(sin_ptr + half + place, sin, mask=place < half)


@triton.jit
def best_of_blocks(logits_ptr, best_ptr, best_at_ptr, num_logits, BLOCK: tl.constexpr):
    """Find the largest of BLOCK logits, and where it is; grid [blocks]."""
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + at, mask=at < num_logits, other=float("-inf")).to(tl.float32)
    best, best_at = tl.max(logits, 0, return_indices=True)
    tl.store(best_ptr + block, best)
    tl.store(best_at_ptr + block, block * BLOCK + best_at)


@triton.jit
def end_token(
    best_ptr,
    best_at_ptr,
    failed_ptr,
    state_ptr,
    cache_ptr,
    num_blocks,
    num_stages,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Find the largest logit of all blocks, and bring the state forward; grid [1]."""
    block, stage = tl.arange(0, BLOCKS), tl.arange(0, STAGES)
    best = tl.load(best_ptr + block, mask=block < num_blocks, other=float("-inf"))
    at = tl.load(best_at_ptr + block, mask=block < num_blocks, other=0)
    _, first = tl.max(best, 0, return_indices=True)
    failed = tl.load(failed_ptr + stage, mask=stage < num_stages, other=0)
    tl.store(state_ptr, tl.sum(tl.where(block == first, at, 0), 0).to(tl.int64))
    tl.store(state_ptr + 1, tl.load(state_ptr + 1) + 1)
    tl.store(state_ptr + 2, tl.max(failed, 0).to(tl.int64))
    tl.store(cache_ptr + 2, tl.load(cache_ptr + 2) + 1)
