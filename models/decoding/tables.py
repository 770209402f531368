"""Tables of a model's layers for `backends.cpu.decoder`, and the memory that a token passes through."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...backends.cpu import team
from ...backends.cpu.decoder import PART, PER_EXPERT, PIECE, PROJECTION, STAGE, Kind, Task, kernel
from ...backends.cpu.memory import give_way
from ...backends.cpu.rule import fields_of
from ...backends.cpu.tiles import TILE, Rows, reading
from ...neuro import NO_RULE, without_band
from ..layers.graded_linear import GradedLinear
from ..layers.spike_linear import SpikeLinear
from ..layers.stored import rounded_before, stored_weight_of

# A float32 matrix is divided at multiples of a cache line of outputs.
_LINE = 16
# Parts of the head, for each thread: it is large, and threads are not equally fast.
HEAD_PARTS = 8


class Output(NamedTuple):
    """A projection of a stage, and where its outputs go.

    Attributes:
        number: of the projection.
        target: address of float32 [outputs]; for ROUTE, of its choices.
        choice: address of the choice of an expert, whose first one the number belongs to; 0 for this projection.
        alternatives: experts that can be chosen.
    """

    number: int
    target: int = 0
    choice: int = 0
    alternatives: int = 1


class Tables:
    """What the decoder reads. Add projections and stages in the order in which a token passes them, then close.

    Attributes:
        num_threads: that the stages are divided for.
        modules: the projections' layers.
        projections: a `PROJECTION` record for each of them.
        copied: tensors of the model whose numbers are copied here.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.modules: list[Any] = []
        self.projections = np.zeros(0, PROJECTION)
        self.copied: list[Tensor] = []
        self._rows: list[Rows] = []  # keeps their memory
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []
        self._records: list[np.ndarray] = []
        self._stages: list[tuple[int, ...]] = []
        self._parts: list[tuple[int, ...]] = []
        self._pieces: list[tuple[int, ...]] = []

    def add(self, modules: Iterable[nn.Module]) -> int:
        """Add projections, and return the number of the first."""
        first = len(self.modules)
        for module in modules:
            known = self._numbers.setdefault(id(module), len(self.modules))
            if known == len(self.modules):
                record = np.zeros(1, PROJECTION)
                self._fill(record[0], module)
            else:  # equal experts are one module: its rows are packed once
                record = self._records[known].copy()
            self._records.append(record)
            self.modules.append(module)
        return first

    def add_stage(
        self, kind: Kind, source: Tensor, outputs: Sequence[Output], *, norm: Tensor | None = None, parts: int = 1
    ) -> None:
        """Add a stage of projections that read the same input, divided into equal shares of their outputs.

        Args:
            kind: what becomes of the outputs; a PRODUCT names the gate, which the projection up follows.
            source: the input, float32, which stays where it is.
            outputs: the projections.
            norm: weight of the norm before them.
            parts: at most, for each thread.
        """
        reads = 1 + (kind == Kind.PRODUCT)
        numbers = [
            output.number + PER_EXPERT * expert + which
            for output in outputs
            for expert in range(output.alternatives)
            for which in range(reads)
        ]
        records = [self._records[number][0] for number in numbers]
        encoder = next((n for n, record in zip(numbers, records, strict=True) if record["rule"] != 0), -1)
        if encoder >= 0:  # whose counts all of them add
            most = min(int(record["most_charge"]) for record in records if record["rule"] != 0)
            self._records[encoder]["most_charge"] = most
        unit = max(_LINE, *(TILE.get(int(record["bits"]), 1) for record in records))
        widths = [int(self._records[output.number][0]["num_outputs"]) for output in outputs]
        stage, first = len(self._stages), len(self._parts)
        for share in shares(widths, 1 if kind == Kind.ROUTE else parts * self.num_threads, unit):
            begin = len(self._pieces)
            for which, start, stop in share:
                number, target, choice, _ = outputs[which]
                self._pieces.append((number, start, stop, target + 4 * start, choice))
            self._parts.append((stage, kind, 0, begin, len(self._pieces)))
        size = len(self._parts) - first
        address = 0 if norm is None else norm.data_ptr()
        self._stages.append((source.data_ptr(), address, int(records[0]["num_inputs"]), encoder, size))

    def add_heads(self, kind: Kind, layer: int, num_heads: int) -> None:
        """Add a stage with a part for each head of a layer."""
        self._parts += [(len(self._stages), kind, layer, head, head + 1) for head in range(num_heads)]
        self._stages.append((0, 0, 0, -1, num_heads))

    def close(self, layers: np.ndarray, memory: Mapping[str, Tensor], kept: Sequence[object], **numbers: Any) -> None:
        """Make the tables, once all is added.

        Args:
            layers: records of the layers' attention.
            memory: tensors whose addresses the decoder's task has, by name.
            kept: what else must stay where it is.
            numbers: the task's other numbers.
        """
        self.projections = np.concatenate(self._records)
        self._kept += [layers, memory, kept]
        arrays = {
            "parts": np.array(self._parts, PART),
            "stages": np.array(self._stages, STAGE),
            "pieces": np.array(self._pieces, PIECE),
            "layers": layers,
            "projections": self.projections,
        }
        self._kept.append(arrays)
        self._vocabulary = int(self.projections[-1]["num_outputs"])
        self._done = np.zeros(len(self._stages), np.int64)
        self._task = Task(
            **{name: array.ctypes.data for name, array in arrays.items()},
            **{f"num_{name}": len(array) for name, array in arrays.items()},
            **{name: tensor.data_ptr() for name, tensor in memory.items()},
            done=self._done.ctypes.data,
            widest=int((arrays["pieces"]["stop"] - arrays["pieces"]["start"]).max()),
            most_inputs=int(self.projections["num_inputs"].max()),
            smallest_block=min(rows.fields["block"] for rows in self._rows),
            give_way=give_way(),
            **numbers,
        )

    def run(self, angles: tuple[int, int], num_cached: int = 0) -> Tensor | None:
        """Let a token pass, whose embedding is in the source of the first stage.

        Args:
            angles: addresses of the cosines and sines of its position, float32 [head_dim].
            num_cached: tokens in the cache of a Llama-type model.
        Returns:
            Its logits, float32 [1, 1, vocabulary]; None if a layer needs the separate steps.
        """
        task = self._task
        task.cos, task.sin = angles
        self._done[:] = 0
        logits = torch.empty(1, 1, self._vocabulary)
        task.logits, task.num_cached = logits.data_ptr(), num_cached
        task.next_part = task.refused = 0
        team.run(kernel(), ctypes.addressof(task), self.num_threads)
        return None if task.refused else logits

    def _fill(self, record: Any, module: Any) -> None:
        reads = ()
        if isinstance(module, GradedLinear):
            reads, module = module.reads, module.own
        record["bias"] = 0 if module.bias is None else module.bias.data_ptr()
        if not isinstance(module, SpikeLinear):
            record["num_outputs"], record["num_inputs"] = module.weight.shape
            self._fill_dense(record, module)
            return
        sizes = (module.group_size, module.weight_bits, module.units)
        rows = Rows(module.weight, module.scale, module.minimum, *sizes)
        self._rows.append(rows)
        self.copied += [part for part in (module.weight, module.scale, module.minimum) if part is not None]
        reads = reading(reads)
        rule = fields_of(without_band(module.neuron).cpu_rule() or NO_RULE) | {"most_charge": rows.most_charge}
        for name, value in (rows.fields | reads | rule).items():
            record[name] = value

    def _fill_dense(self, record: Any, module: Any) -> None:
        """Take integers that give a dense layer's weight exactly, a quarter of the memory to read, or its floats."""
        weight = module.weight.detach()
        stored = stored_weight_of(module, weight)
        if isinstance(stored, str) or stored.minimum is not None or stored.weight_bits != 8:
            stored = rounded_before(weight)
        record["rows"] = module.weight.data_ptr()
        if stored is None:
            return
        size, num_inputs = stored.group_size or 0, module.weight.shape[1]
        if size == 0 or size % 32 != 0 or num_inputs % size != 0:
            return
        integers, scale = stored.weight.contiguous(), stored.scale.contiguous()
        assert (integers.dtype, scale.dtype) == (torch.int8, torch.float32)  # their memory is read as such
        record["rows"], record["scale"], record["block"] = integers.data_ptr(), scale.data_ptr(), size
        self._kept += [integers, scale]
        self.copied.append(module.weight)


def shares(widths: Sequence[int], num_shares: int, unit: int) -> list[list[tuple[int, int, int]]]:
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
    found = []
    for low, high in pairwise([*cuts, int(ends[-1])]):
        share = []
        for which, (start, stop) in enumerate(pairwise(ends.tolist())):
            first, last = max(low, start), min(high, stop)
            if first < last:
                share.append((which, first - start, last - start))
        if share:
            found.append(share)
    return found
