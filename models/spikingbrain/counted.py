"""Softmax attention of transformers' models on spike counts of queries and INT8 keys and values.

It is registered among transformers' attention functions under the name `COUNTS`, with the masks of PyTorch's function.
It computes what the attention of a SpikingBrain model does "as-described". A cache of transformers holds floats, which
become codes whenever they are read. Codes follow from the key or value of one token and head alone, so they are those
that a cache of INT8 would hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...errors import InputError
from ..layers.attention_interface import COUNTS, query_neuron
from . import swa
from .int8 import counted_inputs, tell_queries

# Arguments of transformers' functions that change the scores in ways that are not known here.
_UNABLE = {"softcap": "soft-capped scores", "s_aux": "sinks among the scores", "position_bias": "a bias for positions"}


def attend_counted(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' functions do, on counts.

    Args:
        module: that asks; its projection of queries says k.
        query: rotated queries, [B, H, L, D].
        key: of all columns, [B, Hk, N, D].
        value: of all columns, [B, Hk, N, Dv].
        attention_mask: bool, [B or 1, 1, L, N], True where a query sees a column; None if queries see all columns, or,
            with `is_causal` and more than one query, each its own and those before it.
        scaling: of the scores; None for D^-0.5.
        dropout: must be 0.
        is_causal: None for that of the module.
        others: what the module passes on.
    Returns:
        Outputs, [B, L, H, Dv], and None: no attention weights are kept.
    Raises:
        InputError: it is asked for something that attention on counts does not do.
    """
    where = f"attention on counts of {type(module).__name__}"
    for name, what in _UNABLE.items():
        if others.get(name) is not None:
            raise InputError(f"{where}: does not know {what} ({name}). Convert the model without `attention`.")
    if dropout:
        raise InputError(f"{where}: expected no dropout, got {dropout}. Set attention_dropout to 0 in its config.")
    if attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.shape[1] != 1):
        raise InputError(
            f"{where}: expected a mask of bool, the same for all heads, got {attention_mask.dtype} of shape "
            f"{tuple(attention_mask.shape)}. Pass a mask [batch, columns], or one of bool [batch, 1, queries, columns]."
        )
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    num_queries, dim = query.shape[2:]
    if causal and num_queries > 1:  # the rest of a static cache is still empty
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
    neuron = query_neuron(module)
    visible: dict[str, Any] = {"causal": bool(causal), "mask": attention_mask}
    tell_queries(module, query, neuron, key.shape[2], **visible)
    counted, columns, core = counted_inputs(query, key, value, neuron)
    if scaling is not None and scaling != dim**-0.5:
        counted = (*counted[:-1], counted[-1] * (scaling * dim**0.5))  # thresholds, or the queries themselves
    o = swa.attend(counted, columns, core, dtype=query.dtype, **visible)
    return o.transpose(1, 2).to(query.dtype).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(COUNTS, attend_counted)
ALL_MASK_ATTENTION_FUNCTIONS.register(COUNTS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
