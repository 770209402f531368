"""Triton kernels of gated linear attention for many tokens; see `gla` for the formula.

Tokens run in groups of 256, in three passes: the state that each group adds, starting from zeros; the state before each
group, from one to the next; and the outputs of each group, from the state before it. So groups run in parallel, and
only the second pass, which touches one state a group, is in order. Groups run in chunks of 64 tokens.

Within a chunk, let G_i be the sum of log-decays up to token i. Scores are q_i k_j exp(G_i - G_j) for j <= i. They are
one product of q exp(G - m) and k exp(m - G), where m is half of the chunk's sum. If the decay in a chunk is so strong
that these could overflow, each difference is taken by itself.

Source: Yang et al., Gated Linear Attention, arXiv:2312.06635, section 4, for chunks and two levels.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens of a chunk, and of a group.
_CHUNK, _GROUP = 64, 256
# Channels of v in a program.
_MOST_CHANNELS = 64
# The strongest decay of a chunk, as a logarithm, for which a product of q exp(G - m) and k exp(m - G) is used.
_STRONGEST = tl.constexpr(-120.0)


class Inputs(NamedTuple):
    """What linear attention reads. B batch, L tokens, H query and Hk key/value heads, D and Dv channels.

    Attributes:
        q: queries, [B, L, H, D].
        k: keys, [B, L, Hk, D].
        v: values, [B, L, Hk, Dv].
        gate: what the log-decay follows from, [B, L, Hk, D].
        gate_divisor: the log-decay is logsigmoid(gate) / gate_divisor; None if gate is the log-decay.
        feature_map: "none" if q and k are as they are to be; "relu" or "sigmoid" if this is to be applied.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor
    gate_divisor: float | None = None
    feature_map: str = "none"


def run(inputs: Inputs, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return outputs, [B, L, H, Dv] in the dtype of q, and the state after the last token, float32 [B, Hk, D, Dv].

    Args:
        inputs: at least one token.
        state: state after the preceding tokens; None for zeros.
    """
    groups = Groups(inputs)
    after = groups.states_before(state)
    return groups.outputs(), after


class Groups:
    """The states of groups of tokens, kept from pass to pass.

    Args:
        inputs: as for `run`.
    Attributes:
        states: what each group adds to the state, and after `states_before` the state before it, float32
            [B, Hk, groups, D, Dv].
        decay: sum of the log-decay of each group, float32, [B, Hk, groups, D].
    """

    def __init__(self, inputs: Inputs) -> None:
        q, k, v, gate = (_rows(x) for x in inputs[:4])
        self.inputs = inputs._replace(q=q, k=k, v=v, gate=gate)
        batch, num_tokens, num_heads, dim = k.shape
        self.num_groups = -(-num_tokens // _GROUP)
        shape = (batch, num_heads, self.num_groups, dim)
        self.states = torch.empty(*shape, v.shape[-1], dtype=torch.float32, device=k.device)
        self.decay = torch.empty(shape, dtype=torch.float32, device=k.device)
        added_states[self.num_groups, batch * num_heads, triton.cdiv(v.shape[-1], self._block)](
            k, v, gate, self.states, self.decay, *self._sizes(), **self._constants(), num_warps=4, num_stages=2
        )

    @property
    def _block(self) -> int:
        return min(max(triton.next_power_of_2(self.inputs.v.shape[-1]), 16), _MOST_CHANNELS)

    def _sizes(self) -> tuple[int | float, ...]:
        _, k, v, gate, divisor, _ = self.inputs
        strides = (x.stride(i) for x in (k, v, gate) for i in (0, 1))
        return (*strides, k.shape[1], self.num_groups, 1.0 if divisor is None else 1.0 / divisor)

    def _constants(self) -> dict[str, object]:
        q, k, v, _, divisor, feature_map = self.inputs
        return {
            "KEY_HEADS": k.shape[2],
            "DIM": k.shape[3],
            "VALUE_DIM": v.shape[3],
            "WIDE": max(triton.next_power_of_2(k.shape[3]), 16),
            "BLOCK": self._block,
            "MAP": feature_map,
            "GATED": divisor is not None,
            "CHUNK": _CHUNK,
            "GROUP": _GROUP,
            "OPERAND": tl.bfloat16 if q.dtype == torch.bfloat16 else tl.float32,
            "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        }

    def states_before(self, state: Tensor | None) -> Tensor:
        """Turn what groups add into the states before them, and return the state after the last one.

        Args:
            state: before the first group, [B, Hk, D, Dv]; None for zeros.
        """
        batch, num_heads, num_groups, dim, value_dim = self.states.shape
        if state is None:
            state = self.states.new_zeros(batch, num_heads, dim, value_dim)
        state = state.float().contiguous()
        after = torch.empty_like(state)
        block = 128
        scan_states[batch * num_heads, triton.cdiv(dim * value_dim, block)](
            self.states, self.decay, state, after, num_groups, dim, value_dim, BLOCK=block, num_warps=4
        )
        return after

    def start_from(self, state: Tensor) -> None:
        """Add a state before the first group, after `states_before` was given none.

        Args:
            state: float32, [B, Hk, D, Dv].
        """
        so_far = self.decay.cumsum(2) - self.decay  # before each group
        self.states += so_far.exp()[..., None] * state[:, :, None]

    def outputs(self) -> Tensor:
        """Return the outputs of all tokens, [B, L, H, Dv] in the dtype of q."""
        q, k, v, gate, *_ = self.inputs
        batch, num_tokens, num_heads, dim = q.shape
        o = torch.empty(batch, num_tokens, num_heads, v.shape[-1], dtype=q.dtype, device=q.device)
        grid = (self.num_groups, batch * num_heads, triton.cdiv(v.shape[-1], self._block))
        group_outputs[grid](
            k, v, gate, self.states, *self._sizes(), q, o, q.stride(0), q.stride(1), dim**-0.5, **self._constants(),
            PER_KEY=num_heads // k.shape[2], num_warps=4 if dim <= 64 else 8, num_stages=1,
        )  # fmt: skip
        return o


def _rows(x: Tensor) -> Tensor:
    """Return x with adjacent heads and channels."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


@triton.jit
def mapped(x, MAP: tl.constexpr):
    """Return the feature map of x, float32."""
    x = x.to(tl.float32)
    if MAP == "relu":
        x = tl.maximum(x, 0.0)
    elif MAP == "sigmoid":
        x = tl.sigmoid(x)
    return x


@triton.jit
def log_decay_of(gate, inverse_divisor, GATED: tl.constexpr):
    """Return the log-decay, float32."""
    gate = gate.to(tl.float32)
    if GATED:
        gate = (tl.minimum(gate, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(gate)))) * inverse_divisor
    return gate


@triton.jit
def chunk_of(k_ptr, v_ptr, gate_ptr, is_key, is_value, inverse_divisor, MAP: tl.constexpr, GATED: tl.constexpr):
    """Return keys with their feature map, values and log-decays of a chunk, float32, 0 where a mask is False."""
    k = tl.where(is_key, mapped(tl.load(k_ptr, mask=is_key, other=0), MAP), 0.0)
    v = tl.load(v_ptr, mask=is_value, other=0).to(tl.float32)
    gate = tl.load(gate_ptr, mask=is_key, other=0)
    return k, v, tl.where(is_key, log_decay_of(gate, inverse_divisor, GATED), 0.0)


@triton.jit
def added_states(
    k_ptr,  # [B, L, Hk, D], and so on; see `Inputs`
    v_ptr,
    gate_ptr,
    states_ptr,  # float32, [B, Hk, groups, D, Dv], filled
    decay_ptr,  # float32, [B, Hk, groups, D], filled
    k_batch,  # strides of the batch and of tokens
    k_token,
    v_batch,
    v_token,
    gate_batch,
    gate_token,
    num_tokens,
    num_groups,
    inverse_divisor,
    KEY_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WIDE: tl.constexpr,  # DIM, padded
    BLOCK: tl.constexpr,  # channels of v in a program
    MAP: tl.constexpr,
    GATED: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,  # dtype of what is multiplied; sums are float32
    PRECISION: tl.constexpr,
):
    """Add up the state of a group; grid [groups, B * Hk, blocks of Dv]."""
    group, head = tl.program_id(0), tl.program_id(1)
    batch = (head // KEY_HEADS).to(tl.int64)
    channel = tl.arange(0, WIDE)
    value = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_channel, is_value = (channel < DIM)[None, :], (value < VALUE_DIM)[None, :]
    k_row = k_ptr + batch * k_batch + head % KEY_HEADS * DIM + channel[None, :]
    v_row = v_ptr + batch * v_batch + head % KEY_HEADS * VALUE_DIM + value[None, :]
    gate_row = gate_ptr + batch * gate_batch + head % KEY_HEADS * DIM + channel[None, :]
    state = tl.zeros([WIDE, BLOCK], tl.float32)
    sums = tl.zeros([WIDE], tl.float32)
    for first in range(group * GROUP, tl.minimum((group + 1) * GROUP, num_tokens), CHUNK):
        token = (first + tl.arange(0, CHUNK)).to(tl.int64)[:, None]
        is_token = token < num_tokens
        k, v, log_decay = chunk_of(
            k_row + token * k_token, v_row + token * v_token, gate_row + token * gate_token,
            is_token & is_channel, is_token & is_value, inverse_divisor, MAP, GATED,
        )  # fmt: skip
        total = tl.sum(log_decay, 0)
        k = k * tl.exp(total[None, :] - tl.cumsum(log_decay, 0))
        k, v = k.to(OPERAND), v.to(OPERAND)
        state = tl.dot(tl.trans(k), v, state * tl.exp(total)[:, None], input_precision=PRECISION)
        sums += total
    place = head.to(tl.int64) * num_groups + group
    is_state = (channel < DIM)[:, None] & is_value
    tl.store(states_ptr + (place * DIM + channel[:, None]) * VALUE_DIM + value[None, :], state, mask=is_state)
    if tl.program_id(2) == 0:
        tl.store(decay_ptr + place * DIM + channel, sums, mask=channel < DIM)


@triton.jit
def scan_states(
    states_ptr,  # float32, [B * Hk, groups, D, Dv], changed
    decay_ptr,  # float32, [B * Hk, groups, D]
    state_ptr,  # float32, [B * Hk, D, Dv]: before the first group
    after_ptr,  # the same, filled: after the last
    num_groups,
    dim,
    value_dim,
    BLOCK: tl.constexpr,
):
    """Replace what groups add by the state before them; grid [B * Hk, blocks of D * Dv]."""
    head = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    size = dim * value_dim
    is_place = place < size
    state = tl.load(state_ptr + head * size + place, mask=is_place, other=0)
    here, decay = (
        states_ptr + head * num_groups * size + place,
        decay_ptr + head * num_groups * dim + place // value_dim,
    )
    for _ in tl.range(0, num_groups, num_stages=4):
        added = tl.load(here, mask=is_place, other=0)
        faded = state * tl.exp(tl.load(decay, mask=is_place, other=0))
        tl.store(here, state, mask=is_place)
        state = faded + added
        here += size
        decay += dim
    tl.store(after_ptr + head * size + place, state, mask=is_place)


@triton.jit
def group_outputs(
    k_ptr,  # as in `added_states`
    v_ptr,
    gate_ptr,
    states_ptr,  # float32, [B, Hk, groups, D, Dv]: before each group
    k_batch,
    k_token,
    v_batch,
    v_token,
    gate_batch,
    gate_token,
    num_tokens,
    num_groups,
    inverse_divisor,
    q_ptr,  # [B, L, H, D]
    o_ptr,  # [B, L, H, Dv], filled
    q_batch,
    q_token,
    scale,
    KEY_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    MAP: tl.constexpr,
    GATED: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,  # dtype of what is multiplied; sums are float32
    PRECISION: tl.constexpr,
    PER_KEY: tl.constexpr,  # query heads per key/value head
):
    """Compute the outputs of a group for a query head; grid [groups, B * H, blocks of Dv]."""
    group, head = tl.program_id(0), tl.program_id(1)
    HEADS: tl.constexpr = KEY_HEADS * PER_KEY
    batch, query_head = (head // HEADS).to(tl.int64), head % HEADS
    key_head = query_head // PER_KEY
    channel = tl.arange(0, WIDE)
    value = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_channel, is_value = (channel < DIM)[None, :], (value < VALUE_DIM)[None, :]
    q_row = q_ptr + batch * q_batch + query_head * DIM + channel[None, :]
    k_row = k_ptr + batch * k_batch + key_head * DIM + channel[None, :]
    v_row = v_ptr + batch * v_batch + key_head * VALUE_DIM + value[None, :]
    gate_row = gate_ptr + batch * gate_batch + key_head * DIM + channel[None, :]
    o_row = o_ptr + (batch * num_tokens * HEADS + query_head) * VALUE_DIM + value[None, :]
    is_state = (channel < DIM)[:, None] & is_value
    place = (batch * KEY_HEADS + key_head) * num_groups + group
    state = tl.load(states_ptr + (place * DIM + channel[:, None]) * VALUE_DIM + value[None, :], mask=is_state, other=0)
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    for first in range(group * GROUP, tl.minimum((group + 1) * GROUP, num_tokens), CHUNK):
        token = (first + tl.arange(0, CHUNK)).to(tl.int64)[:, None]
        is_token = token < num_tokens
        q = mapped(tl.load(q_row + token * q_token, mask=is_token & is_channel, other=0), MAP) * scale
        k, v, log_decay = chunk_of(
            k_row + token * k_token, v_row + token * v_token, gate_row + token * gate_token,
            is_token & is_channel, is_token & is_value, inverse_divisor, MAP, GATED,
        )  # fmt: skip
        q = tl.where(is_token & is_channel, q, 0.0)
        so_far, total = tl.cumsum(log_decay, 0), tl.sum(log_decay, 0)
        if tl.min(total, 0) > _STRONGEST:
            from_middle = so_far - 0.5 * total[None, :]
            left, right = (q * tl.exp(from_middle)).to(OPERAND), (k * tl.exp(-from_middle)).to(OPERAND)
            scores = tl.dot(left, tl.trans(right), input_precision=PRECISION)
        else:
            scores = tl.zeros([CHUNK, CHUNK], tl.float32)
            for column in range(CHUNK):
                is_column = tl.arange(0, CHUNK)[:, None] == column
                key = tl.sum(tl.where(is_column, k, 0.0), 0)
                between = so_far - tl.sum(tl.where(is_column, so_far, 0.0), 0)[None, :]
                score = tl.sum(q * key[None, :] * tl.exp(tl.minimum(between, 0.0)), 1)
                scores += tl.where(j == column, score[:, None], 0.0)
        scores = tl.where(j <= i, scores, 0.0)
        v = v.to(OPERAND)
        o = tl.dot((q * tl.exp(so_far)).to(OPERAND), state.to(OPERAND), input_precision=PRECISION)
        o = tl.dot(scores.to(OPERAND), v, o, input_precision=PRECISION)
        tl.store(o_row + token * (HEADS * VALUE_DIM), o.to(o_ptr.dtype.element_ty), mask=is_token & is_value)
        k = (k * tl.exp(total[None, :] - so_far)).to(OPERAND)
        state = tl.dot(tl.trans(k), v, state * tl.exp(total)[:, None], input_precision=PRECISION)
