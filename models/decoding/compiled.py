"""A Llama-type model on the CPU as one compiled call a token."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ...backends.cpu.backend import Cpu
from ...backends.cpu.decoder import LAYER, Kind
from ...backends.cpu.rule import fields_of
from ...neuro import NO_RULE
from ..layers.attention_interface import query_neuron, runs_on_counts
from ..layers.graded_linear import GradedLinear
from ..layers.spike_linear import SpikeLinear
from .angles import Angles
from .code_room import CodeRoom
from .fits import STEADY_ROPE, Target, projections, why_not
from .tables import HEAD_PARTS, Output, Tables


def why_not_compiled(model: nn.Module) -> str | None:
    """Return why the compiled decoder is not for a model, or None if it is."""
    return why_not(model, CPU)


def _obstacles_of_layer(layer: SpikeLinear) -> Iterator[str]:
    groups = (layer.out_features, len(layer.groups))
    if layer.scale.shape != groups or (layer.minimum is not None and layer.minimum.shape != groups):
        yield f"has scales or minima of another shape than {groups}"
    if layer.backend not in ("auto", Cpu("spike")):
        yield f"has the backend {layer.backend!r}"


# What the compiled decoders run. Half precision would have to be rounded between the same operators as PyTorch's.
CPU = Target(
    "cpu",
    "in main memory",
    (torch.float32,),
    _obstacles_of_layer,
    (nn.Linear, SpikeLinear, GradedLinear),
    "; model.float() makes it so",
)


class CompiledDecoder:
    """Tables and memory for decoding with a model.

    Attributes:
        tables: what the compiled decoder reads.
        num_layers: blocks.
        num_key_heads: heads of keys and values.
        head_dim: channels of a head.
        dtype: of keys and values.
        device: where they are.
        copied: tensors of the model whose numbers it has copies of.
        overlaps: whether it works while Python goes on, between `start` and `finish`.
    """

    overlaps = False

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, model: Any) -> None:
        config, inner = model.config, model.model
        attention = inner.layers[0].self_attn
        self.num_layers, self.head_dim = len(inner.layers), attention.head_dim
        self.num_key_heads = config.num_key_value_heads
        self._found: Tensor | None = None
        self._memory_of_cache: weakref.ref[Tensor] | None = None
        self._codes: CodeRoom | None = None  # of that memory
        rotary, like = inner.rotary_emb, inner.norm.weight
        steady = getattr(rotary, "rope_type", None) in STEADY_ROPE
        self._angles = Angles(lambda positions: rotary(like, positions), steady=steady)
        self._embed = inner.embed_tokens
        self._layers = np.zeros(self.num_layers, LAYER)
        for record, layer in zip(self._layers, inner.layers, strict=True):
            if hasattr(layer.self_attn, "q_norm"):
                record["query_norm"] = layer.self_attn.q_norm.weight.data_ptr()
                record["key_norm"] = layer.self_attn.k_norm.weight.data_ptr()
        # The codes of each memory of keys and values, which go with it; None if attention is on floats.
        self._codes_of = WeakTensorKeyDictionary() if runs_on_counts(model) else None
        if self._codes_of is not None:
            for record, layer in zip(self._layers, inner.layers, strict=True):
                for name, value in fields_of(query_neuron(layer.self_attn).cpu_rule() or NO_RULE).items():
                    record[name] = value
        self.tables = Tables(torch.get_num_threads())
        self._add_stages(model, config.num_attention_heads)
        self.copied = self.tables.copied

    def _add_stages(self, model: Any, num_heads: int) -> None:
        config, inner, tables, dim = model.config, model.model, self.tables, self.head_dim
        self._hidden = torch.empty(config.hidden_size)
        projected = torch.empty(num_heads + 2 * self.num_key_heads, dim)
        attended, product = torch.empty(num_heads * dim), torch.empty(config.intermediate_size)
        key, value = projected[num_heads:], projected[num_heads + self.num_key_heads :]
        hidden = self._hidden.data_ptr()
        for number, block in enumerate(inner.layers):
            query, output, gate, down = (tables.add(group) for group in projections(block))
            targets = (part.data_ptr() for part in (projected, key, value))
            outputs = [Output(query + which, target) for which, target in enumerate(targets)]
            tables.add_stage(Kind.STORE, self._hidden, outputs, norm=block.input_layernorm.weight)
            tables.add_heads(Kind.ATTENTION, number, self.num_key_heads)
            tables.add_stage(Kind.ADD, attended, [Output(output, hidden)])
            outputs = [Output(gate, product.data_ptr())]
            tables.add_stage(Kind.PRODUCT, self._hidden, outputs, norm=block.post_attention_layernorm.weight)
            tables.add_stage(Kind.ADD, product, [Output(down, hidden)])
        head = [Output(tables.add([model.lm_head]))]
        tables.add_stage(Kind.LOGITS, self._hidden, head, norm=inner.norm.weight, parts=HEAD_PARTS)
        tables.close(
            self._layers,
            {"projected": projected, "attended": attended},
            [product],
            num_heads=num_heads,
            num_key_heads=self.num_key_heads,
            head_dim=dim,
            scaling=inner.layers[0].self_attn.scaling,
            eps=config.rms_norm_eps,
        )

    def decode(self, ids: Tensor, positions: Tensor, memory: Tensor, length: int) -> Tensor | None:
        """Start a token and finish it; see there."""
        self.start(ids, positions, memory, length)
        return self.finish()

    def start(self, ids: Tensor, positions: Tensor, memory: Tensor, length: int) -> None:
        """Run a token, and write its keys and values into the memory.

        Args:
            ids: the token, int64 [1, 1].
            positions: its position, int64 [1, 1].
            memory: keys and values of all layers, float32 [layers * 2, 1, key heads, rows, head_dim]; row `length` is
                filled.
            length: tokens before this one.
        """
        self._hidden.copy_(self._embed(ids)[0, 0])
        if self._memory_of_cache is None or self._memory_of_cache() is not memory:
            self._memory_of_cache = weakref.ref(memory)  # the cache alone decides how long its memory lives
            stride = memory.stride(0) * memory.element_size()
            first = memory.data_ptr() + 2 * stride * np.arange(self.num_layers)
            self._layers["keys"], self._layers["values"] = first, first + stride
            self._layers["capacity"] = memory.shape[3]
            if self._codes_of is not None:
                codes = self._codes = self._codes_of.get(memory) or CodeRoom(memory)
                self._codes_of[memory] = codes
                for name, part in (("codes", codes.codes), ("scales", codes.scales)):
                    found = codes.addresses(part, self.num_layers)
                    self._layers[f"key_{name}"], self._layers[f"value_{name}"] = found
        if self._codes is not None:
            self._codes.follow(memory, length)
        self._found = self.tables.run(self._angles.at(int(positions)), length)

    def finish(self) -> Tensor | None:
        """Return the logits of the token, float32 [1, 1, vocabulary].

        None if a layer needs the separate steps, which also raise its errors.
        """
        found, self._found = self._found, None
        return found
