"""A SpikingBrain model on the CPU as one compiled call a token; its state is the model's own `SpikingBrainCache`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from ...backends.cpu.decoder import CHOICE, Kind
from ...backends.cpu.hybrid import MIXER
from ...backends.cpu.rule import fields_of
from ...neuro import AdaptiveThreshold
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.model import SpikingBrainOutput
from ..spikingbrain.moe import MixtureOfExperts
from ..spikingbrain.rope import rotary_angles
from .angles import Angles
from .compiled import CPU
from .fits import obstacles
from .state_room import Group, Layout, state_room_of
from .tables import HEAD_PARTS, Output, Tables


def is_hybrid(model: nn.Module) -> TypeGuard[SpikingBrainForCausalLM]:
    """Return whether a model is of the class that this decoder knows."""
    return type(model) is SpikingBrainForCausalLM


def why_not_hybrid(model: SpikingBrainForCausalLM) -> str | None:
    """Return why the compiled decoder is not for a SpikingBrain model, or None if it is."""
    return next(_obstacles(model), None)


def _obstacles(model: SpikingBrainForCausalLM) -> Iterator[str]:
    blocks: Any = model.model.layers
    for index, block in enumerate(blocks):
        attention = block.attn
        if attention.plan.softmax and attention.spiking == "as-released":
            yield f"attention of block {index} spikes as released: the whole cache is rounded for every token"
        if "gla" in attention.plan.mixers and attention.config.kernel == "fla":
            yield f"linear attention of block {index} is to run in the kernels of flash-linear-attention"
    yield from obstacles(model, CPU, map(_projections, blocks))


def _projections(block: Any) -> list[list[nn.Module]]:
    """Return the projections of a block, those that read the same input together, in the order they run."""
    attention, mlp = block.attn, block.mlp
    first, *rest = _gate(attention)
    groups: list[list[Any]] = [
        [attention.q_proj, attention.k_proj, attention.v_proj, *first],
        *rest,
        [attention.o_proj],
    ]
    if not isinstance(mlp, MixtureOfExperts):
        return [*groups, [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
    experts: list[Any] = [*mlp.experts, *mlp.shared]
    inner = [part for expert in experts for part in (expert.gate_proj, expert.up_proj)]
    groups += [[mlp.router], inner, [expert.down_proj for expert in mlp.experts]]
    groups += [[expert.down_proj] for expert in mlp.shared]
    return groups


def _gate(attention: Any) -> list[list[nn.Module]]:
    """Return the projections of the gate that read the layer's input, and those that read theirs."""
    gate = getattr(attention, "gk_proj", None)
    if gate is None:
        return [[]]
    return [[part] for part in gate] if isinstance(gate, nn.Sequential) else [[gate]]


class HybridDecoder:
    """Tables and memory for decoding with a SpikingBrain model.

    Attributes:
        tables: what the compiled decoder reads.
        copied: tensors of the model whose numbers it has copies of.
        overlaps: whether it works while Python goes on.
    """

    overlaps = False

    def __init__(self, model: SpikingBrainForCausalLM) -> None:
        inner = model.model
        settings = self._settings = inner.settings
        self._embed: nn.Module = inner.embeddings
        self._angles = Angles(lambda at: rotary_angles(at, settings.dim, settings.rope_theta, torch.float32))
        self.tables = Tables(torch.get_num_threads())
        self._layers = np.zeros(settings.num_layers, MIXER)
        routed = sum(isinstance(block.mlp, MixtureOfExperts) for block in inner.layers)
        self._choices = np.zeros((routed, settings.num_experts_per_token), CHOICE)
        self._allocate()
        self._add_stages(model)
        self.copied = self.tables.copied

    def _allocate(self) -> None:
        settings, dim = self._settings, self._settings.dim
        heads, keys = settings.num_heads, settings.num_kv_heads
        self._hidden = torch.empty(settings.hidden_size)
        self._projected = torch.empty(heads + 3 * keys, dim)
        self._rank = torch.empty(settings.gate_rank)
        self._attended = torch.empty(heads * dim)
        slots = settings.num_experts_per_token + settings.num_shared
        width = max(settings.intermediate_size, settings.expert_intermediate_size or 0)
        self._products = torch.empty(slots, width)

    def _add_stages(self, model: SpikingBrainForCausalLM) -> None:
        settings, inner = self._settings, model.model
        blocks: Any = inner.layers
        choices = iter(self._choices)
        linear, columns = [], {}
        for number, block in enumerate(blocks):
            self._add_mixer(number, block)
            attention = block.attn
            if "gla" in attention.plan.mixers:
                linear.append(number)
            if attention.plan.softmax:
                columns[number] = _columns(settings, attention.spiking is not None)
            if isinstance(block.mlp, MixtureOfExperts):
                self._add_experts(block, next(choices))
            else:
                mlp, product = block.mlp, self._products[0]
                gate, down = self.tables.add([mlp.gate_proj, mlp.up_proj]), self.tables.add([mlp.down_proj])
                norm = block.mlp_norm.weight
                self.tables.add_stage(Kind.PRODUCT, self._hidden, [Output(gate, product.data_ptr())], norm=norm)
                self.tables.add_stage(Kind.ADD, product, [Output(down, self._hidden.data_ptr())])
        self._layout = Layout(linear, columns, (1, settings.num_kv_heads, settings.dim, settings.dim))
        head = [Output(self.tables.add([model.lm_head]))]
        self.tables.add_stage(Kind.LOGITS, self._hidden, head, norm=inner.norm.weight, parts=HEAD_PARTS)
        self.tables.close(
            self._layers,
            {"projected": self._projected, "attended": self._attended},
            [self._hidden, self._products, self._rank, self._choices],
            num_heads=settings.num_heads,
            num_key_heads=settings.num_kv_heads,
            head_dim=settings.dim,
            num_choices=settings.num_experts_per_token,
            scaling=settings.dim**-0.5,
            eps=settings.norm_eps,
        )

    def _add_mixer(self, number: int, block: Any) -> None:
        settings, attention, tables = self._settings, block.attn, self.tables
        first, *rest = _gate(attention)
        places = (0, settings.num_heads, settings.num_heads + settings.num_kv_heads)
        query = tables.add([attention.q_proj, attention.k_proj, attention.v_proj])
        outputs = [Output(query + which, self._projected[place].data_ptr()) for which, place in enumerate(places)]
        decay = self._projected[settings.num_heads + 2 * settings.num_kv_heads].data_ptr()
        if first:
            outputs.append(Output(tables.add(first), self._rank.data_ptr() if rest else decay))
        tables.add_stage(Kind.STORE, self._hidden, outputs, norm=block.attn_norm.weight)
        for group in rest:
            tables.add_stage(Kind.STORE, self._rank, [Output(tables.add(group), decay)])
        tables.add_heads(Kind.MIX, number, settings.num_kv_heads)
        output = Output(tables.add([attention.o_proj]), self._hidden.data_ptr())
        tables.add_stage(Kind.ADD, self._attended, [output])
        record = self._layers[number]
        record["head_eps"] = settings.eps_of_heads
        if "gla" in attention.plan.mixers:
            record["linear_norm"] = attention.g_norm.weight.data_ptr()
            record["sigmoid"], record["tied"] = settings.feature_map == "sigmoid", settings.gate == "tied"
            record["gate_divisor"] = settings.gate_divisor
        if attention.plan.is_parallel:
            record["softmax_norm"] = attention.s_norm.weight.data_ptr()
            record["branch_weight"] = attention.branch_weight.data_ptr()
        if attention.spiking is not None:
            rule = AdaptiveThreshold(settings.k).kernel_rule()
            assert rule is not None
            for name, value in fields_of(rule).items():
                record[name] = value

    def _add_experts(self, block: Any, choices: np.ndarray) -> None:
        """Add the router, gate and up of all experts of a token together, and down of one after the other."""
        mlp, tables, norm, hidden = block.mlp, self.tables, block.mlp_norm.weight, self._hidden
        address = choices.ctypes.data
        tables.add_stage(Kind.ROUTE, hidden, [Output(tables.add([mlp.router]), address)], norm=norm)
        members = [*mlp.routed_experts, *mlp.shared_experts]
        numbers = [tables.add([e.gate_proj, e.up_proj, e.down_proj]) for e in members]
        chosen = [(numbers[0], address + CHOICE.itemsize * which, mlp.num_experts) for which in range(len(choices))]
        experts = [*chosen, *((number, 0, 1) for number in numbers[mlp.num_experts :])]
        outputs = [
            Output(number, product.data_ptr(), choice, alternatives)
            for (number, choice, alternatives), product in zip(experts, self._products, strict=True)
        ]
        tables.add_stage(Kind.PRODUCT, hidden, outputs, norm=norm)
        for (number, choice, alternatives), product in zip(experts, self._products, strict=True):
            tables.add_stage(Kind.ADD, product, [Output(number + 2, hidden.data_ptr(), choice, alternatives)])

    def step(self, ids: Tensor, cache: Any, mask: Tensor | None, positions: Tensor | None) -> SpikingBrainOutput | None:
        """Run a token, and let the cache have its state.

        Args:
            ids: the token, int64 [1, 1].
            cache: what the model got.
            mask: attention mask, or None.
            positions: its position, int64 [1, 1], or None.
        Returns:
            Logits and cache; None if the model's own code must run, with the cache as it was.
        """
        room = state_room_of(cache, self._layout)
        if room is None or not _is_open(mask, cache.num_tokens + 1):
            return None
        for group in room.groups:
            self._point_to(group)
        record, linear = self._layers, self._layout.linear
        with torch.inference_mode(False):
            after = torch.empty(len(linear), *self._layout.state)
        record["before"][linear] = room.states()
        record["after"][linear] = after.data_ptr() + 4 * after.stride(0) * np.arange(len(linear))
        self._hidden.copy_(self._embed(ids)[0, 0])
        position = cache.num_valid if positions is None else positions
        logits = self.tables.run(self._angles.at(max(int(position), 0)))
        if logits is None:
            return None
        room.advance(cache, after)
        loss = None
        if len(self._choices):
            # See `load_balancing_loss`: each chosen expert has the same share of the token's routes.
            share = self._settings.num_experts / self._choices.shape[1]
            loss = torch.tensor(share * self._choices["weight"].sum(1).mean(), dtype=torch.float32)
        return SpikingBrainOutput(logits=logits, cache=cache, aux_loss=loss)

    def _point_to(self, group: Group) -> None:
        record, layers = self._layers, group.layers
        record["row"][layers] = rows = group.rows()
        names = ("keys", "key_scales", "values", "value_scales") if len(group.memory) == 5 else ("keys", "values")
        for part, name in enumerate(names):
            record[name][layers] = group.addresses(part)
        record["capacity"][layers] = group.memory[0].shape[3]
        record["num_visible"][layers] = max(group.length, rows[0] + 1)


def _columns(settings: Any, spikes: bool) -> list[tuple[int, int, torch.dtype]]:
    """Return heads, channels and dtype of what a layer caches, as `Attention._softmax` does; a flag of text at last."""
    heads, dim = settings.num_kv_heads, settings.dim
    codes = [(heads, dim, torch.int8), (heads, 1, torch.float32)] if spikes else [(heads, dim, torch.float32)]
    return [*codes, *codes, (1, 1, torch.bool)]


def _is_open(mask: Tensor | None, width: int) -> bool:
    """Return whether the token is no padding, by a mask of the shapes that the model takes."""
    if mask is None:
        return True
    return isinstance(mask, Tensor) and mask.shape in ((1, 1), (1, width)) and bool(mask[0, -1])
