"""Gated linear attention: the recurrence, and the same result computed in chunks of tokens.

With a state S of [D, Dv] per key/value head, starting from zeros, and for each token t

    S_t = exp(g_t)[:, None] * S_{t-1} + k_t v_t^T        o_t = D^-0.5 * q_t S_t

where g is the logarithm of the decay, one per key channel. Letters: B batch, L tokens, H query heads, Hk key/value
heads, r = H / Hk query heads that share a state, D channels of q, k and g, Dv of v.

Source: SpikingBrain (arXiv:2509.05276), eq. 10 and 11, with the scale D^-0.5 of the released code; Yang et al., Gated
Linear Attention, arXiv:2312.06635, section 4.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...errors import BackendUnavailableError
from . import fla_kernels
from .kernels import kernels_for

# Tokens whose pairwise decays are in memory at once: [tokens, chunk_size, D] for each key/value head.
_SEGMENT = 2048


def gla(
    q: Float[Tensor, "B L H D"],
    k: Float[Tensor, "B L Hk D"],
    v: Float[Tensor, "B L Hk Dv"],
    log_decay: Float[Tensor, "B L Hk D"],
    state: Float[Tensor, "B Hk D Dv"] | None = None,
    *,
    kernel: str = "auto",
    chunk_size: int = 16,
) -> tuple[Float[Tensor, "B L H Dv"], Float[Tensor, "B Hk D Dv"]]:
    """Run gated linear attention in the form that suits the input.

    Args:
        q: queries, after their feature map; query heads that share a key/value head are adjacent.
        k: keys, after their feature map.
        v: values.
        log_decay: logarithm of the decay, at most 0.
        state: state after the preceding tokens; None for zeros.
        kernel: "ours": chunks in plain PyTorch, or one step of the recurrence for one token; "triton": our kernels for
            many tokens on a CUDA GPU, without gradients; "fla": the kernels of flash-linear-attention; "auto": "triton"
            where it can run, else "fla" for half precision on a CUDA GPU, if it is installed and heads have enough
            channels, else "ours". In float32, "fla" multiplies in TF32, so "auto" does not take it.
        chunk_size: tokens per chunk with "ours".
    Returns:
        Outputs in the dtype of q, and the state after the last token in at least float32.
    Raises:
        BackendUnavailableError: kernel is "fla" or "triton" and cannot run.
    """
    if kernel in ("auto", "triton"):
        kernels = kernels_for("gla", q, k, v, log_decay, *(() if state is None else (state,)))
        if kernels is not None and (q.shape[1] > 1 or kernel == "triton"):
            return kernels.run(kernels.Inputs(q, k, v, log_decay), state)
        if kernel == "triton":
            raise BackendUnavailableError(
                f'gla: kernel "triton" cannot run: it needs a CUDA GPU, Triton, numbers of at most 32 bits and no '
                f'gradients; the tensors are {q.dtype} on {q.device}. Use kernel="ours" or "auto".'
            )
    half = q.dtype in (torch.float16, torch.bfloat16)
    dim = min(q.shape[-1], v.shape[-1])
    if kernel == "fla" or (kernel == "auto" and half and fla_kernels.why_unavailable(q.device, dim) is None):
        return fla_kernels.gla(q, k, v, log_decay, state)
    with torch.autocast(q.device.type, enabled=False):  # the state needs float32
        if q.shape[1] == 1:
            return recurrent_gla(q, k, v, log_decay, state)
        return chunked_gla(q, k, v, log_decay, state, chunk_size)


def recurrent_gla(
    q: Float[Tensor, "B L H D"],
    k: Float[Tensor, "B L Hk D"],
    v: Float[Tensor, "B L Hk Dv"],
    log_decay: Float[Tensor, "B L Hk D"],
    state: Float[Tensor, "B Hk D Dv"] | None = None,
) -> tuple[Float[Tensor, "B L H Dv"], Float[Tensor, "B Hk D Dv"]]:
    """Run the recurrence token by token: the reference, and the form for decoding.

    Arguments and result are those of `gla`.
    """
    wide_q, wide_k, wide_v, decay, state = _prepare(q, k, v, log_decay, state)
    decay = decay.exp()
    outputs = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state + wide_k[:, t, :, :, None] * wide_v[:, t, :, None, :]
        outputs.append(wide_q[:, t] @ state)  # [B, Hk, r, D] @ [B, Hk, D, Dv]
    o = torch.stack(outputs, 1) if outputs else wide_q.new_zeros(*wide_q.shape[:-1], v.shape[-1])
    return o.flatten(2, 3).to(q.dtype), state


def chunked_gla(
    q: Float[Tensor, "B L H D"],
    k: Float[Tensor, "B L Hk D"],
    v: Float[Tensor, "B L Hk Dv"],
    log_decay: Float[Tensor, "B L Hk D"],
    state: Float[Tensor, "B Hk D Dv"] | None = None,
    chunk_size: int = 16,
) -> tuple[Float[Tensor, "B L H Dv"], Float[Tensor, "B Hk D Dv"]]:
    """Run chunks of tokens at once: the form for prefill and training.

    Let G_i be the sum of g over a chunk up to token i. Token i of the chunk reads the state before the chunk, decayed
    by exp(G_i), and the k_j v_j^T of the chunk's tokens j <= i, decayed by exp(G_i - G_j). All these exponents are at
    most 0, so nothing overflows, however strong the decay. The common factorisation exp(G_i) * exp(-G_j) can overflow.

    Arguments and result are those of `gla`. chunk_size changes only speed and rounding: G_i - G_j is only as exact as
    G is in float32, so short chunks are best for strong decay.
    """
    num_tokens = q.shape[1]
    chunk_size = min(chunk_size, max(num_tokens, 1))
    segment = max(_SEGMENT // chunk_size, 1) * chunk_size
    wide_q, wide_k, wide_v, log_decay, state = _prepare(q, k, v, log_decay, state)
    outputs = []
    for first in range(0, num_tokens, segment):
        part = slice(first, first + segment)
        tensors = (wide_q[:, part], wide_k[:, part], wide_v[:, part], log_decay[:, part])
        o, state = _segment(*tensors, state, chunk_size)
        outputs.append(o)
    o = torch.cat(outputs, 1) if outputs else wide_q.new_zeros(*wide_q.shape[:-1], v.shape[-1])
    return o.flatten(2, 3).to(q.dtype), state


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return all tensors in at least float32, q scaled and grouped as [B, L, Hk, r, D], and the state or zeros."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    batch, num_kv_heads, dim = k.shape[0], k.shape[2], k.shape[3]
    q = q.to(dtype).unflatten(2, (num_kv_heads, -1)) * dim**-0.5
    if state is None:
        state = v.new_zeros(batch, num_kv_heads, dim, v.shape[-1], dtype=dtype)
    return q, k.to(dtype), v.to(dtype), log_decay.to(dtype), state.to(dtype)


def _segment(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Run consecutive tokens in n chunks of C tokens; see `chunked_gla`."""
    num_tokens = q.shape[1]
    # Tokens added to fill the last chunk have k = v = 0 and decay 1, so they leave the state unchanged.
    filling = -num_tokens % chunk_size
    q = F.pad(q, (0, 0, 0, 0, 0, 0, 0, filling)).unflatten(1, (-1, chunk_size)).permute(0, 3, 1, 2, 4, 5)
    k, v, log_decay = (
        F.pad(x, (0, 0, 0, 0, 0, filling)).unflatten(1, (-1, chunk_size)).permute(0, 3, 1, 2, 4)
        for x in (k, v, log_decay)
    )  # q [B, Hk, n, C, r, D]; k, log_decay [B, Hk, n, C, D]; v [B, Hk, n, C, Dv]
    total = log_decay.cumsum(3)

    # Within the chunk.
    between = total[:, :, :, :, None] - total[:, :, :, None]  # from token j to token i: [B, Hk, n, C (i), C (j), D]
    later = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=q.device).triu(1)
    decayed_k = between.masked_fill(later[:, :, None], -torch.inf).exp() * k[:, :, :, None]
    scores = q @ decayed_k.transpose(-1, -2)  # for each token i: [r, D] @ [D, C (j)]

    # The states before each chunk.
    rest = total[:, :, :, -1:]  # log-decay over the whole chunk
    added = (k * (rest - total).exp()).transpose(-1, -2) @ v  # [B, Hk, n, D, Dv]
    decay = rest.exp().transpose(-1, -2)  # [B, Hk, n, D, 1]
    before = []
    for i in range(k.shape[2]):
        before.append(state)
        state = decay[:, :, i] * state + added[:, :, i]

    # Query heads that share keys become rows of the same product: [C * r, .].
    decayed_q = q * total.exp()[:, :, :, :, None]
    o = scores.flatten(3, 4) @ v + decayed_q.flatten(3, 4) @ torch.stack(before, 2)
    o = o.unflatten(3, (chunk_size, -1))  # [B, Hk, n, C, r, Dv]
    return o.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)[:, :num_tokens], state  # [B, L, Hk, r, Dv]
