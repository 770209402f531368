"""A Llama-type model on the CPU as one compiled call a token: tables of its layers for `backends.cpu.decoder`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...backends.cpu import team
from ...backends.cpu.backend import Cpu
from ...backends.cpu.decoder import LAYER, PART, PIECE, PROJECTION, PROJECTIONS, Stage, Task, give_way, kernel
from ...backends.cpu.tiles import TILE, Rows
from ...neuro import NO_RULE
from ..layers.spike_linear import SpikeLinear
from ..layers.stored import noted, stored_weight_of
from .fits import STEADY_ROPE, Target, projections, why_not

# A float32 matrix is divided at multiples of a cache line of outputs.
_LINE = 16
# Positions whose angles are kept ready.
_POSITIONS_AHEAD = 256
# Parts of the head, for each thread: it is large, and threads are not equally fast.
_HEAD_PARTS = 8


def why_not_compiled(model: nn.Module) -> str | None:
    """Return why the compiled decoder is not for a model, or None if it is."""
    return why_not(model, Target("cpu", "in main memory", (torch.float32,), _obstacles_of_layer))


def _obstacles_of_layer(layer: SpikeLinear) -> Iterator[str]:
    groups = (layer.out_features, len(layer.groups))
    if layer.scale.shape != groups or (layer.minimum is not None and layer.minimum.shape != groups):
        yield f"has scales or minima of another shape than {groups}"
    if layer.backend not in ("auto", Cpu("spike")):
        yield f"has the backend {layer.backend!r}"


_STAGES = (Stage.QUERY_KEY_VALUE, Stage.ATTENTION_OUTPUT, Stage.GATE_AND_UP, Stage.DOWN)


class CompiledDecoder:
    """Tables and memory for decoding with a model.

    Attributes:
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
        self._memory_of_cache: Tensor | None = None
        self._cos_sin: tuple[Tensor, ...] = (torch.empty(1, 0, 0),)
        self._first_position = 0
        self._embed, self._rotary, self._num_threads = inner.embed_tokens, inner.rotary_emb, torch.get_num_threads()
        modules = [module for layer in inner.layers for group in projections(layer) for module in group]
        modules.append(model.lm_head)
        self._projections = np.zeros(len(modules), PROJECTION)
        self._rows: list[Rows] = []  # keeps their memory
        self._dense: list[Tensor] = []
        self.copied: list[Tensor] = []
        for row, module in zip(self._projections, modules, strict=True):
            self._fill(row, module)
        self._layers = np.zeros(self.num_layers, LAYER)
        for row, layer in zip(self._layers, inner.layers, strict=True):
            row["attention_norm"] = layer.input_layernorm.weight.data_ptr()
            row["mlp_norm"] = layer.post_attention_layernorm.weight.data_ptr()
            if hasattr(layer.self_attn, "q_norm"):
                row["query_norm"] = layer.self_attn.q_norm.weight.data_ptr()
                row["key_norm"] = layer.self_attn.k_norm.weight.data_ptr()
        self._divide(config.num_attention_heads)
        self._make_task(config, inner, attention)

    def _fill(self, row: Any, module: Any) -> None:
        row["bias"] = 0 if module.bias is None else module.bias.data_ptr()
        if not isinstance(module, SpikeLinear):
            row["num_outputs"], row["num_inputs"] = module.weight.shape
            self._fill_dense(row, module)
            return
        rows = Rows(module.weight, module.scale, module.minimum, module.group_size, module.weight_bits)
        self._rows.append(rows)
        self.copied += [part for part in (module.weight, module.scale, module.minimum) if part is not None]
        for name, value in rows.fields.items():
            row[name] = value
        rule = module.neuron.kernel_rule() or NO_RULE
        row["rule"] = rule.number
        row["a"], row["b"], row["c"] = rule.parameters

    def _fill_dense(self, row: Any, module: Any) -> None:
        """Take the integers that the model's file has for a dense layer, a quarter of the memory to read, or floats."""
        stored = stored_weight_of(module, module.weight.detach()) if noted(module) is not None else "has none"
        row["rows"] = module.weight.data_ptr()
        if isinstance(stored, str) or stored.minimum is not None or stored.weight_bits != 8:
            return
        size, num_inputs = stored.group_size or 0, module.weight.shape[1]
        if size == 0 or size % 32 != 0 or num_inputs % size != 0:
            return
        integers, scale = stored.weight.contiguous(), stored.scale.contiguous()
        row["rows"], row["scale"], row["block"] = integers.data_ptr(), scale.data_ptr(), size
        self._dense += [integers, scale]
        self.copied.append(module.weight)

    def _divide(self, num_heads: int) -> None:
        """List the parts of every stage: equal shares of its outputs for the threads, or heads."""
        parts, pieces, sizes = [], [], []

        def add(kind: Stage, layer: int, projections: range, num_shares: int) -> None:
            encoder = next((p for p in projections if self._projections[p]["rule"] != 0), -1)
            widths = [int(self._projections[p]["num_outputs"]) for p in projections]
            if kind == Stage.GATE_AND_UP:
                widths = widths[:1]
            unit = max(TILE.get(int(self._projections[p]["bits"]), 1) for p in projections)
            for share in _shares(widths, num_shares, max(unit, _LINE)):
                found = [(projections[0] + which, start, stop) for which, start, stop in share]
                parts.append((len(sizes), kind, layer, len(pieces), len(pieces) + len(found), encoder))
                pieces.extend(found)
            sizes.append(len(parts) - sum(sizes))

        for layer in range(self.num_layers):
            first = len(PROJECTIONS) * layer
            for kind, numbers in zip(_STAGES, (range(3), range(3, 4), range(4, 6), range(6, 7)), strict=True):
                add(kind, layer, range(first + numbers.start, first + numbers.stop), self._num_threads)
                if kind == Stage.QUERY_KEY_VALUE:
                    parts += [(len(sizes), Stage.ATTENTION, layer, head, head + 1, -1) for head in range(num_heads)]
                    sizes.append(num_heads)
        head = len(self._projections) - 1
        add(Stage.HEAD, 0, range(head, head + 1), _HEAD_PARTS * self._num_threads)
        self._parts = np.array(parts, PART)
        self._pieces = np.array(pieces, PIECE)
        self._sizes = np.array(sizes, np.int64)

    def _make_task(self, config: Any, inner: Any, attention: Any) -> None:
        heads, dim = config.num_attention_heads, self.head_dim
        widest = int((self._pieces["stop"] - self._pieces["start"]).max())
        self._vocabulary = int(self._projections[-1]["num_outputs"])
        self._done = np.zeros(len(self._sizes), np.int64)
        self._hidden = torch.empty(config.hidden_size)
        self._memory = {
            "projected": torch.empty((heads + 2 * self.num_key_heads) * dim),
            "attended": torch.empty(heads * dim),
            "product": torch.empty(config.intermediate_size),
        }
        self._task = Task(
            parts=self._parts.ctypes.data,
            pieces=self._pieces.ctypes.data,
            layers=self._layers.ctypes.data,
            projections=self._projections.ctypes.data,
            stage_sizes=self._sizes.ctypes.data,
            done=self._done.ctypes.data,
            hidden=self._hidden.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in self._memory.items()},
            final_norm=inner.norm.weight.data_ptr(),
            num_parts=len(self._parts),
            num_pieces=len(self._pieces),
            num_layers=self.num_layers,
            num_stages=len(self._sizes),
            num_hidden=config.hidden_size,
            num_heads=heads,
            num_key_heads=self.num_key_heads,
            head_dim=dim,
            widest=widest,
            most_inputs=int(self._projections["num_inputs"].max()),
            smallest_block=min(rows.fields["block"] for rows in self._rows),
            scaling=attention.scaling,
            eps=config.rms_norm_eps,
            give_way=give_way(),
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
        embedded, task = self._embed(ids), self._task
        self._hidden.copy_(embedded[0, 0])
        task.cos, task.sin = self._angles(embedded, positions)
        if memory is not self._memory_of_cache:
            self._memory_of_cache = memory
            stride = memory.stride(0) * memory.element_size()
            first = memory.data_ptr() + 2 * stride * np.arange(self.num_layers)
            self._layers["keys"], self._layers["values"] = first, first + stride
            self._layers["capacity"] = memory.shape[3]
        self._done[:] = 0
        logits = torch.empty(1, 1, self._vocabulary)
        task.logits, task.num_cached = logits.data_ptr(), length
        task.next_part = task.refused = 0
        team.run(kernel(), ctypes.addressof(task), self._num_threads)
        self._found = None if task.refused else logits

    def _angles(self, embedded: Tensor, positions: Tensor) -> tuple[int, int]:
        """Return the addresses of the cosines and sines of a position, float32 [head_dim]."""
        if getattr(self._rotary, "rope_type", None) not in STEADY_ROPE:
            self._cos_sin = tuple(part.contiguous() for part in self._rotary(embedded, positions))
            return self._cos_sin[0].data_ptr(), self._cos_sin[1].data_ptr()
        position = int(positions)
        row = position - self._first_position
        if not 0 <= row < self._cos_sin[0].shape[1]:
            self._first_position, row = position, 0
            ahead = torch.arange(position, position + _POSITIONS_AHEAD)[None]
            self._cos_sin = tuple(part.contiguous() for part in self._rotary(embedded, ahead))
        cos, sin = self._cos_sin
        return cos.data_ptr() + 4 * cos.shape[2] * row, sin.data_ptr() + 4 * sin.shape[2] * row

    def finish(self) -> Tensor | None:
        """Return the logits of the token, float32 [1, 1, vocabulary].

        None if a layer needs the separate steps, which also raise its errors.
        """
        found, self._found = self._found, None
        return found


def _shares(widths: list[int], num_shares: int, unit: int) -> list[list[tuple[int, int, int]]]:
    """Divide the outputs of matrices that follow one another into shares of about equal size.

    Args:
        widths: outputs of each matrix.
        num_shares: at most.
        unit: a matrix is divided at multiples of it.
    Returns:
        Shares that are not empty, each a list of (matrix, first output, end).
    """
    ends = np.cumsum([0, *widths])
    places = [int(end) + i for end, width in zip(ends, widths, strict=False) for i in range(0, width, unit)]
    cuts = [0, *(min(places, key=lambda at: abs(at - ends[-1] * i / num_shares)) for i in range(1, num_shares))]
    shares = []
    for low, high in pairwise([*cuts, int(ends[-1])]):
        share = []
        for which, (start, stop) in enumerate(pairwise(ends.tolist())):
            first, last = max(low, start), min(high, stop)
            if first < last:
                share.append((which, first - start, last - start))
        if share:
            shares.append(share)
    return shares
