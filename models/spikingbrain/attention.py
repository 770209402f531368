"""A layer's mixer: linear attention, softmax attention, or both in parallel on the same queries, keys and values.

In parallel (report, eq. 12 to 14), each branch is normalised per head and scaled by a learned weight:

    o = w_1 * norm(o_linear) + w_2 * norm(o_softmax)

Softmax attention on its own is not normalised, as in the 7B.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...neuro import AdaptiveThreshold
from ..layers.graded_linear import GradedLinear
from ..layers.spike_aware import SpikeAwareLinear
from ..layers.spike_linear import SpikeLinear
from ..layers.split_linear import SplitSpikeLinear
from . import swa
from .cache import LayerState
from .config import LayerPlan, SpikingBrainConfig
from .gla import gla
from .int8 import count_queries, quantize_tokens, rounded_to_int8
from .kernels import kernels_for
from .mlp import cast_once
from .norm import RMSNorm
from .rope import rotate

if TYPE_CHECKING:
    from .sequence import SequencePart

_SPIKING = (SpikeLinear, GradedLinear, SpikeAwareLinear, SplitSpikeLinear)


@dataclass(frozen=True)
class Context:
    """Values that all layers share in one call.

    Attributes:
        cos: cosines from `rotary_angles`, [B, L, 1, D].
        sin: sines from `rotary_angles`, [B, L, 1, D].
        valid: bool, [B, L], False for padding; None if there is no padding.
        is_padded: whether any of these tokens, or any before them, is padding.
        causal: True: no token sees later ones; False: all tokens see each other, as sink tokens do.
        sequence: this process's part of a text that several read; None for all of it.
    """

    cos: Tensor
    sin: Tensor
    valid: Tensor | None = None
    is_padded: bool = False
    causal: bool = True
    sequence: SequencePart | None = None


class Attention(nn.Module):
    """Mixes tokens as the layer's plan says. B batch, L tokens, H query and Hk key/value heads of D channels.

    In a spiking model the projections are `SpikeLinear` layers (see `to_spiking`). Softmax attention then uses spike
    counts of the rotated queries, with one threshold per token and head, and INT8 keys and values.

    Args:
        config: the model's configuration.
        plan: the layer's plan.
    """

    def __init__(self, config: SpikingBrainConfig, plan: LayerPlan) -> None:
        super().__init__()
        self.config, self.plan = config, plan
        width, kv_width = config.num_heads * config.dim, config.num_kv_heads * config.dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        if "gla" in plan.mixers:
            if config.gate == "low-rank":
                inner = nn.Linear(config.hidden_size, config.gate_rank, bias=False)
                self.gk_proj = nn.Sequential(inner, nn.Linear(config.gate_rank, kv_width))
            elif config.gate == "full":
                self.gk_proj = nn.Linear(config.hidden_size, kv_width)
            self.g_norm = RMSNorm(config.dim, config.eps_of_heads)
        if plan.is_parallel:
            self.s_norm = RMSNorm(config.dim, config.eps_of_heads)
            self.branch_weight = nn.Parameter(torch.full((2,), 0.5))

    def forward(
        self, x: Float[Tensor, "B L hidden"], context: Context, state: LayerState | None = None
    ) -> Float[Tensor, "B L hidden"]:
        """Mix the tokens.

        Args:
            x: normalised activations.
            context: values that all layers share in this call.
            state: the layer's state, updated in place; None if the whole text is in this call.
        """
        x = cast_once(x, self.q_proj)
        q = self.q_proj(x).unflatten(-1, (-1, self.config.dim))  # [B, L, H, D]
        k = self.k_proj(x).unflatten(-1, (-1, self.config.dim))  # [B, L, Hk, D]
        v = self.v_proj(x).unflatten(-1, (-1, self.config.dim))
        branches = []
        if "gla" in self.plan.mixers:
            branches.append(self.g_norm(self._linear(x, q, k, v, context, state)))
        if self.plan.softmax:
            o = self._softmax(q, k, v, context, state)
            branches.append(self.s_norm(o) if self.plan.is_parallel else o)
        if self.plan.is_parallel:
            weight = self.branch_weight.to(x.dtype)
            branches = [weight[0] * branches[0] + weight[1] * branches[1]]
        return self.o_proj(branches[0].flatten(2))

    @property
    def spiking(self) -> str | None:
        """How softmax attention spikes; None if the projections are dense (as after `to_dense`)."""
        return self.config.spiking if isinstance(self.q_proj, _SPIKING) else None

    def linear_inputs(self, x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and log-decay of linear attention, with feature maps and without rotary embedding.

        Args:
            x: input of the layer, [B, L, hidden].
            q: projected queries, [B, L, H, D].
            k: projected keys, [B, L, Hk, D].
        Returns:
            Queries and keys in the same shapes, and log-decay, [B, L, Hk, D].
        """
        return self._mapped(q, k, *self._gate(x, k))

    def _mapped(self, q: Tensor, k: Tensor, gate: Tensor, divisor: float) -> tuple[Tensor, Tensor, Tensor]:
        log_decay = F.logsigmoid(gate) / divisor
        if self.config.feature_map == "relu":
            return q.relu(), k.relu(), log_decay
        return q.sigmoid(), k.sigmoid(), log_decay

    def _gate(self, x: Tensor, k: Tensor) -> tuple[Tensor, float]:
        """Return the input of the decay's logarithm, logsigmoid(gate) / divisor, [B, L, Hk, D], and the divisor."""
        if self.config.gate == "tied":
            # Decay 1 - sigmoid(k) = sigmoid(-k), without the cancellation.
            return -k, 1.0
        return self.gk_proj(x).unflatten(-1, (-1, self.config.dim)), self.config.gate_divisor

    def _linear(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Context, state: LayerState | None) -> Tensor:
        before = None if state is None or state.linear is None else state.linear.expand(len(x), -1, -1, -1)
        gate, divisor = self._gate(x, k)
        may_run = self.config.kernel in ("auto", "triton") and context.valid is None and q.shape[1] > 1
        kernels = kernels_for("gla", q, k, v, gate) if may_run else None
        if kernels is not None:
            groups = kernels.Groups(kernels.Inputs(q, k, v, gate, divisor, self.config.feature_map))
            if context.sequence is None:
                after = groups.states_before(before)
            else:
                added = groups.states_before(None)
                before, after = context.sequence.state_before(added, groups.decay.sum(2), before)
                groups.start_from(before)
            o = groups.outputs()
        else:
            q, k, log_decay = self._mapped(q, k, gate, divisor)
            if context.valid is not None:
                # Padding adds nothing to the state and does not make it decay.
                valid = context.valid[:, :, None, None]
                v, log_decay = v.masked_fill(~valid, 0), log_decay.masked_fill(~valid, 0)
            run = functools.partial(gla, kernel=self.config.kernel, chunk_size=self.config.chunk_size)
            after_all = None
            if context.sequence is not None:
                _, added = run(q, k, v, log_decay)
                before, after_all = context.sequence.state_before(added, log_decay.float().sum(1), before)
            o, after = run(q, k, v, log_decay, before)
            after = after if after_all is None else after_all
        if state is not None:
            state.linear = after
        return o

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, context: Context, state: LayerState | None) -> Tensor:
        dtype = q.dtype
        q = rotate(q, context.cos, context.sin).transpose(1, 2)  # [B, H, L, D]
        k = rotate(k, context.cos, context.sin).transpose(1, 2)
        v = v.transpose(1, 2)
        query, new, core = self._softmax_inputs(q, k, v)
        window = self.config.max_window_keys if self.plan.softmax == "swa" else None
        if context.sequence is not None:
            new = context.sequence.with_columns_before(new, window)
        columns, valid, num_sinks = new, context.valid, 0
        if state is not None and state.columns is not None:
            is_text = v.new_ones(len(v), 1, new[0].shape[2], 1, dtype=torch.bool)
            if valid is not None:
                is_text = valid[:, None, :, None]
            *columns, seen = state.columns.append((*new, is_text))
            valid = seen[:, 0, :, 0] if context.is_padded else None
            num_sinks = state.columns.num_pinned
        if self.spiking == "as-released":
            columns = [rounded_to_int8(x) for x in columns]
        o = swa.attend(
            query,
            tuple(columns),
            core,
            window=window,
            num_sinks=num_sinks,
            causal=context.causal,
            valid=valid,
            dtype=dtype,
        )
        return o.transpose(1, 2).to(dtype)

    def _softmax_inputs(
        self, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], swa.Core]:
        """Return the query tensors, the column tensors to cache, and the function that attends with them."""
        if self.spiking is None:
            return (q,), (k, v), swa.float_attention
        if self.spiking == "as-described" and not (torch.is_grad_enabled() and q.requires_grad):
            query = count_queries(q, AdaptiveThreshold(self.config.k))
            return query, (*quantize_tokens(k), *quantize_tokens(v)), swa.integer_attention
        spikes = AdaptiveThreshold(self.config.k)(q)
        query = (spikes.activation().to(q.dtype),)
        if self.spiking == "as-described":  # in training: the same values as floats, for the gradients
            return query, (rounded_to_int8(k), rounded_to_int8(v)), swa.float_attention
        return query, (k, v), swa.float_attention
