"""A Llama-type model on a GPU as one CUDA graph a token: kernels are launched once, and replayed for every token.

A graph ends with its most likely next token in the place of the input. So the next replay is queued right behind it,
and the GPU does not wait while Python chooses the token that was already guessed. Where the caller comes with another
token, the guess is dropped, and nothing is guessed until one would have been right.

The graph holds no product of cuBLAS (`backends/gpu/dense.py` says why).
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backends.gpu import Triton
from ...backends.gpu.job import Matrix, Reads, power_of_two
from ...coding.kernels import interpreting
from ...neuro import Band, without_band
from ..layers.graded_linear import GradedLinear, own_rows_of
from ..layers.spike_linear import SpikeLinear
from .fits import STEADY_ROPE, Target, projections, why_not

# Cached tokens that a program of the attention reads at a time, and most programs for a head of keys.
_BLOCK, _MOST_SPLITS = 64, 32


def why_not_graph(model: nn.Module) -> str | None:
    """Return why the graph decoder is not for a model, or None if it is."""
    device = "cpu" if interpreting() else "cuda"
    dtypes, layers = (torch.bfloat16, torch.float16, torch.float32), (nn.Linear, SpikeLinear, GradedLinear)
    reason = why_not(model, Target(device, "on the GPU", dtypes, _obstacles, layers))
    for block in () if reason else model.model.layers:  # pyright: ignore
        for members in projections(block):
            own = list(map(own_rows_of, members))
            if len({isinstance(member, SpikeLinear) for member in own}) > 1:
                return "only some of the layers that read the same input spike"
            if len({getattr(member, "group_size", None) for member in own}) > 1:
                return "the layers that read the same input have weight groups of different sizes"
            if len(set(map(_reads, members))) > 1:
                return "the layers that read the same input have coarse rows for different counts"
    embedding = None if reason else model.model.embed_tokens  # pyright: ignore
    if embedding is not None and (type(embedding) is not nn.Embedding or embedding.max_norm is not None):
        return f"its embedding is {embedding}, of which more than the weight is needed"
    kind = "default" if reason else getattr(model.model.rotary_emb, "rope_type", "default")  # pyright: ignore
    return reason if kind in STEADY_ROPE else f"its rotary embedding is {kind}, which looks at the length of the text"


def _obstacles(layer: SpikeLinear) -> Iterator[str]:
    if layer.backend not in ("auto", Triton("spike")):
        yield f"has the backend {layer.backend!r}"
    neuron = layer.neuron
    if isinstance(neuron, Band) and neuron.up_to is not None:
        return  # upper bits of the layer's own rows, which are looked at
    if layer.minimum is not None and layer.group_size is None:
        yield "has minima without weight groups"
    reason = Triton("spike").why_not_fused(
        without_band(neuron), layer.encoder, layer.weight, layer.group_size, upper=isinstance(neuron, Band)
    )
    if reason is not None:
        yield reason


def _reads(module: nn.Module) -> Reads:
    """Return which counts of a layer read upper bits."""
    return module.reads if isinstance(module, GradedLinear) else ()


class _Token(NamedTuple):
    """A token on the GPU.

    Attributes:
        slot: which of the places for results is filled.
        memory: keys and values that it reads.
        length: tokens before it.
        versions: of all tensors that it reads, when it was queued; None if changes are not counted.
    """

    slot: int
    memory: weakref.ref[Tensor]
    length: int
    versions: list[int] | None


class _Slot(NamedTuple):
    """Where the results of a token go: logits, the state on the GPU and on the host, and when they are there."""

    logits: Tensor
    state: Tensor
    state_on_host: Tensor
    done: torch.cuda.Event | None


class GraphDecoder:
    """Memory and launches for decoding with a model.

    Attributes:
        num_layers: blocks.
        num_key_heads: heads of keys and values.
        head_dim: channels of a head.
        dtype: of activations, keys and values.
        device: the GPU.
        overlaps: whether it works while Python goes on, between `start` and `finish`.
    """

    overlaps = True

    def __init__(self, model: Any) -> None:
        config, inner = model.config, model.model
        attention, weight = inner.layers[0].self_attn, inner.norm.weight
        self.num_layers, self.head_dim = len(inner.layers), attention.head_dim
        self.num_key_heads = config.num_key_value_heads
        self._num_heads, self._scaling, self._eps = config.num_attention_heads, attention.scaling, config.rms_norm_eps
        self._inner, self._head = inner, model.lm_head
        self.device, self.dtype = weight.device, weight.dtype
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._token: _Token | None = None  # the last that was asked for
        self._guess: _Token | None = None  # the one after it, if it was queued
        self._guesses_well = True
        self._tensors = [*model.parameters(), *model.buffers()]
        self._counts_changes = not any(map(Tensor.is_inference, self._tensors))
        self._spike = importlib.import_module("...backends.gpu.spike", __package__)  # imports Triton
        self._list = importlib.import_module("...backends.gpu.list", __package__)
        self._groups = importlib.import_module("...backends.gpu.groups", __package__)
        self._dense = importlib.import_module("...backends.gpu.dense", __package__)
        self._attend = importlib.import_module("...backends.gpu.attend", __package__).attend
        with torch.inference_mode(False), torch.no_grad():
            self._allocate(config)
            self._blocks = [self._block(number, block) for number, block in enumerate(inner.layers)]
            self._last = self._stage(
                [self._head], self._hidden, self._logits, 4 * self.num_layers, self._list.NORM.value, inner.norm
            )
            self._token_plan = self._plan_token()

    def _allocate(self, config: Any) -> None:
        heads, keys, dim = self._num_heads, self.num_key_heads, self.head_dim
        self._splits = min(_MOST_SPLITS, power_of_two(max(128 // keys, 1)))

        def empty(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        # The next token, its position, and whether a layer of the last one failed.
        self._state = empty(3, 1, dtype=torch.int64)
        self._ids, self._positions = self._state[:1], self._state[1:2]
        self._arrived = empty(keys, dtype=torch.int32)
        self._hidden, self._projected = empty(1, config.hidden_size), empty(1, (heads + 2 * keys) * dim)
        self._attended, self._gated = empty(1, heads * dim), empty(1, 2 * config.intermediate_size)
        self._logits = empty(1, self._head.weight.shape[0])
        self._partial = empty(heads * self._splits * (dim + 2), dtype=torch.float32)
        self._failed = empty(4 * self.num_layers + 2, dtype=torch.int32)
        pinned = self.device.type == "cuda"
        # Address, rows and filled rows of the memory of keys and values.
        self._cache = empty(3, dtype=torch.int64)
        self._cache_on_host = torch.zeros(3, dtype=torch.int64, pin_memory=pinned)
        # Results of a token and of the one queued behind it.
        self._slots = [
            _Slot(
                torch.empty_like(self._logits),
                torch.empty_like(self._state),
                torch.zeros(3, 1, dtype=torch.int64, pin_memory=pinned),
                torch.cuda.Event() if pinned else None,
            )
            for _ in range(2)
        ]

    def _plan_token(self) -> Any:
        token, rotary = importlib.import_module("...backends.gpu.token", __package__), self._inner.rotary_emb
        blocks, cos = (
            token.num_blocks(self._logits),
            torch.empty(1, self.head_dim, dtype=self.dtype, device=self.device),
        )
        return token.TokenPlan(
            self._state,
            self._inner.embed_tokens.weight,
            rotary.inv_freq,
            rotary.attention_scaling,
            self._hidden,
            cos,
            torch.empty_like(cos),
            self._logits,
            torch.empty(blocks, dtype=torch.float32, device=self.device),
            torch.empty(blocks, dtype=torch.int32, device=self.device),
            self._failed,
            self._cache,
        )

    def _block(self, number: int, block: Any) -> list[Any]:
        given, norm, gated = (kind.value for kind in (self._list.GIVEN, self._list.NORM, self._list.GATED))
        qkv, output, gate_up, down = projections(block)
        return [
            self._stage(qkv, self._hidden, self._projected, 4 * number, norm, block.input_layernorm),
            self._stage(output, self._attended, self._hidden, 4 * number + 1, given),
            self._stage(gate_up, self._hidden, self._gated, 4 * number + 2, norm, block.post_attention_layernorm),
            self._stage(down, self._gated, self._hidden, 4 * number + 3, gated),
        ]

    def _stage(self, modules: list[Any], x: Tensor, y: Tensor, number: int, source: int, norm: Any = None) -> Any:
        """Return the plan of projections that read the same input, or a function where they do not spike."""
        layer = own_rows_of(modules[0])
        if not isinstance(layer, SpikeLinear):
            return lambda: self._run_dense(modules, x, y, source, norm)
        upper, modules = _reads(modules[0]), list(map(own_rows_of, modules))
        biases = [module.bias for module in modules]
        if any(bias is not None for bias in biases):
            biases = [
                torch.zeros(len(m.weight), dtype=x.dtype, device=x.device) if m.bias is None else m.bias
                for m in modules
            ]
        neuron = without_band(layer.neuron)
        matrices = tuple(
            Matrix(m.weight, m.scale, bias, m.minimum, m.group_size, upper)
            for m, bias in zip(modules, biases, strict=True)
        )
        stage = self._spike.Stage(
            x,
            matrices,
            y,
            neuron.kernel_rule(),
            neuron.count_bounds(layer.in_features),
            self._failed[number : number + 1],
            source,
            None if norm is None else (norm.weight, norm.variance_epsilon),
            residual=y is self._hidden,
        )
        if matrices[0].has_groups:
            return self._groups.tuned_groups(stage)
        return self._spike.plan_for(self._spike.tuned(stage), stage)

    def _run_dense(self, modules: list[Any], x: Tensor, y: Tensor, source: int, norm: Any) -> None:
        if source == self._list.NORM.value:
            x = norm(x)
        elif source == self._list.GATED.value:
            gate, up = x.chunk(2, 1)
            x = F.silu(gate) * up
        first = 0
        for module in modules:
            part = y[:, first : first + len(module.weight)]
            self._dense.multiply(x, module.weight, module.bias, part, residual=y is self._hidden)
            first += len(module.weight)

    def _run(self, stage: Any) -> None:
        if callable(stage):
            stage()
        else:
            stage.run()

    def _launch(self) -> None:
        """Launch all kernels of a token."""
        self._token_plan.begin()
        for number, (block, (qkv, output, gate_up, down)) in enumerate(
            zip(self._inner.layers, self._blocks, strict=True)
        ):
            self._run(qkv)
            self._run_attention(number, block.self_attn)
            for stage in (output, gate_up, down):
                self._run(stage)
        self._run(self._last)
        self._token_plan.end()

    def _run_attention(self, number: int, attention: Any) -> None:
        has_norm, cos, sin = hasattr(attention, "q_norm"), self._token_plan.cos, self._token_plan.sin
        self._attend[self.num_key_heads, self._splits](
            self._projected,
            self._cache,
            cos,
            sin,
            attention.q_norm.weight if has_norm else cos,
            attention.k_norm.weight if has_norm else cos,
            self._partial,
            self._arrived,
            self._attended,
            number,
            self._scaling,
            self._eps,
            HEADS=self._num_heads,
            KEY_HEADS=self.num_key_heads,
            DIM=self.head_dim,
            GROUP=max(16, power_of_two(self._num_heads // self.num_key_heads)),
            WIDE=max(16, power_of_two(self.head_dim // 2)),
            BLOCK=_BLOCK,
            NORM=has_norm,
            PRECISION="ieee" if self.dtype == torch.float32 else "tf32",
            enable_fp_fusion=False,
        )

    def decode(self, ids: Tensor, positions: Tensor, memory: Tensor, length: int) -> Tensor | None:
        """Start a token and finish it; see there."""
        self.start(ids, positions, memory, length)
        return self.finish()

    @torch.no_grad()
    def start(self, ids: Tensor, positions: Tensor, memory: Tensor, length: int) -> None:
        """Let the GPU begin with a token, and write its keys and values into the memory.

        Args:
            ids: the token, int64 [1, 1].
            positions: its position, int64 [1, 1].
            memory: keys and values of all layers, [layers * 2, 1, key heads, rows, head_dim]; row `length` is filled,
                and the row after it may be.
            length: tokens before this one.
        """
        versions = self._versions(memory)
        token = self._guess if self._is_guessed(ids, positions, memory, length, versions) else None
        with self._on_stream():
            if token is None:
                self._fill(ids, positions, memory, length)
                if self._stream is not None and self._graph is None:
                    self._capture()
                    self._fill(ids, positions, memory, length)
                token = self._queue(0, memory, length, versions)
            self._token, self._guess = token, None
            if self._stream is not None and self._guesses_well and versions and length + 1 < memory.shape[3]:
                self._guess = self._queue(1 - token.slot, memory, length + 1, versions)

    @torch.no_grad()
    def finish(self) -> Tensor | None:
        """Wait for the GPU.

        Returns:
            The logits of the token, [1, 1, vocabulary]; None if a layer needs the separate steps, which also raise its
            errors.
        """
        assert self._token is not None
        slot = self._slots[self._token.slot]
        if slot.done is not None:
            slot.done.synchronize()
        if int(slot.state_on_host[2]):
            self._token = self._guess = None
            return None
        return slot.logits.clone()[None]

    def _is_guessed(
        self, ids: Tensor, positions: Tensor, memory: Tensor, length: int, versions: list[int] | None
    ) -> bool:
        """Return whether a token is queued, reading what it would read now; notice whether guesses are right."""
        last, guess = self._token, self._guess
        if last is None or last.memory() is not memory or last.length + 1 != length:
            return False
        expected = self._slots[last.slot].state
        self._guesses_well = bool(((expected[:1] == ids) & (expected[1:2] == positions)).all())
        return self._guesses_well and guess is not None and guess.versions == versions

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which work is queued behind that of the caller, on a stream of its own on a GPU."""
        if self._stream is None:
            return contextlib.nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self._stream)

    def _queue(self, slot: int, memory: Tensor, length: int, versions: list[int] | None) -> _Token:
        """Queue a token whose state is there; its results go to a slot."""
        if self._graph is None or self._stream is None:
            self._launch()
        else:
            memory.record_stream(self._stream)  # it may be freed while a guess runs
            self._graph.replay()
        logits, state, state_on_host, done = self._slots[slot]
        logits.copy_(self._logits)
        state.copy_(self._state)
        state_on_host.copy_(self._state, non_blocking=True)
        if done is not None:
            done.record()
        return _Token(slot, weakref.ref(memory), length, versions)

    def _fill(self, ids: Tensor, positions: Tensor, memory: Tensor, length: int) -> None:
        if self._stream is not None:
            self._stream.synchronize()  # what it was given is read
        for place, number in enumerate((memory.data_ptr(), memory.shape[3], length)):
            self._cache_on_host[place] = number
        self._cache.copy_(self._cache_on_host, non_blocking=True)
        self._ids.copy_(ids)
        self._positions.copy_(positions)

    def _versions(self, memory: Tensor) -> list[int] | None:
        """Return how often each tensor that a token reads was changed; None if that is not counted."""
        if not self._counts_changes:
            return None
        return [memory._version, *map(operator.attrgetter("_version"), self._tensors)]

    def _capture(self) -> None:
        self._launch()  # compiles what was not compiled yet
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._launch()
        self._graph = graph

    def __del__(self) -> None:
        """Let a guess end before its memory is freed."""
        stream = getattr(self, "_stream", None)
        if stream is not None:
            stream.synchronize()
