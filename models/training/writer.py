"""A Transformer that writes many texts of one length: on a GPU one CUDA graph a token, for all texts at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..conversion.from_transformer import from_transformer
from ..spikingbrain.block import Block
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import LayerPlan
from ..spikingbrain.kernels import kernels_for
from ..spikingbrain.rope import rotary_angles, rotate
from ..spikingbrain.swa import float_attention


class Writer:
    """Writes texts, each from a token drawn at random, by the probabilities of a Transformer.

    Keys and values have their place from the start, and the next token is drawn where the logits are, so a step needs
    nothing from the host.

    Args:
        teacher: a Transformer of a convertible architecture; its weights are copied.
        num_texts: texts written at once.
        length: tokens of a text.
        dtype: of weights and activations.
    """

    def __init__(self, teacher: Any, num_texts: int, length: int, dtype: torch.dtype) -> None:
        plans = (LayerPlan(("full",)),) * teacher.config.num_hidden_layers
        model: Any = from_transformer(teacher, plans)
        self.model: SpikingBrainForCausalLM = model.to(dtype)
        settings, device = self.model.settings, self.model.device
        shape = (settings.num_layers, num_texts, settings.num_kv_heads, length, settings.dim)
        self._keys, self._values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self._noise = torch.ones(num_texts, settings.vocab_size, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self.text = torch.zeros(num_texts, length, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture()

    @torch.no_grad()
    def write(self, seed: int) -> Tensor:
        """Return texts, int64 [num_texts, length], on the CPU.

        Args:
            seed: the same seed gives the same texts on the same device.
        """
        device, (num_texts, length) = self.text.device, self.text.shape
        generator = torch.Generator(device).manual_seed(seed)
        first = torch.randint(self._noise.shape[1], (num_texts,), generator=generator, device=device)
        self.text[:, 0] = first
        self._position.zero_()
        for _ in range(length - 1):
            self._noise.exponential_(generator=generator)
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        return self.text.to("cpu", copy=True)

    def _step(self) -> None:
        """Write the token after the current position."""
        model, settings, position = self.model.model, self.model.settings, self._position
        x = model.embeddings(self.text.index_select(1, position))  # [texts, 1, d]
        angles = rotary_angles(position.expand(len(x), 1), settings.dim, settings.rope_theta, x.dtype)
        for i, layer in enumerate(model.layers):
            assert isinstance(layer, Block)
            x = self._layer(i, layer, x, angles)
        logits = self.model.lm_head(model.norm(x))[:, 0].float()
        # The largest of probability / Exp(1) is a draw by the probabilities.
        following = (logits.softmax(-1) / self._noise).argmax(-1, keepdim=True)
        position.add_(1)
        self.text.index_copy_(1, position, following)

    def _layer(self, i: int, layer: Block, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Return the residual stream after layer i; the token's keys and values are kept."""
        attn, normed = layer.attn, layer.attn_norm(x)
        q, k, v = (
            part(normed).unflatten(-1, (-1, attn.config.dim)) for part in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        for kept, new in ((self._keys[i], rotate(k, *angles)), (self._values[i], v)):
            kept.index_copy_(2, self._position, new.transpose(1, 2))
        o = self._attend(rotate(q, *angles).transpose(1, 2), self._keys[i], self._values[i])
        normed, x = layer.mlp_norm.after_residual(attn.o_proj(o.transpose(1, 2).flatten(2)), x)
        return x + layer.mlp(normed)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return softmax attention over the columns up to the current position, [texts, H, 1, D]."""
        kernels = kernels_for("one_token", q, keys, values)
        if kernels is not None:
            return kernels.attend(q, keys, values, self._position)
        seen = torch.arange(keys.shape[2], device=q.device) <= self._position
        return float_attention((q,), (keys, values), seen[None, None, None])

    @torch.no_grad()
    def _capture(self) -> None:
        for _ in range(2):  # compiles kernels
            self._step()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step()
