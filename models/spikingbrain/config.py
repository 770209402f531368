"""The configuration of a SpikingBrain model: one frozen dataclass, with a small plan per layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ..layers.settings import ATTENTION

MIXERS = ("gla", "swa", "full")
FFNS = ("dense", "moe")
GATES = ("low-rank", "full", "tied")
FEATURE_MAPS = ("relu", "sigmoid")
WINDOW_KEYS = ("w+1", "w")
KERNELS = ("auto", "ours", "triton", "fla")
# Fields that hold a real number above 0.
_POSITIVE = ("rope_theta", "norm_eps", "gate_divisor", "k", "initializer_range")


@dataclass(frozen=True)
class LayerPlan:
    """The plan of one layer: its token mixers and its feed-forward part.

    Attributes:
        mixers: "gla" (gated linear attention), "swa" (sliding-window attention) or "full" (softmax attention); or
            "gla" and one of the others, in parallel on the same queries, keys and values.
        ffn: "dense" or "moe".

    >>> str(LayerPlan.parse("gla+full/moe"))
    'gla+full/moe'
    """

    mixers: tuple[str, ...]
    ffn: str = "dense"

    def __post_init__(self) -> None:
        if not isinstance(self.mixers, tuple) or any(m not in MIXERS for m in self.mixers):
            raise InputError(f"LayerPlan.mixers: expected a tuple of names from {MIXERS}, got {self.mixers!r}.")
        if len(self.mixers) != 1 and (len(self.mixers) != 2 or self.mixers[0] != "gla" or self.mixers[1] == "gla"):
            raise InputError(
                f'LayerPlan.mixers: expected one mixer, or "gla" followed by "swa" or "full", got {self.mixers!r}.'
            )
        if self.ffn not in FFNS:
            raise InputError(f"LayerPlan.ffn: expected one of {FFNS}, got {self.ffn!r}.")

    @classmethod
    def parse(cls, text: str) -> LayerPlan:
        """Read a plan such as "gla", "gla+swa" or "gla+full/moe"; without a slash the feed-forward part is dense.

        Raises:
            InputError: an unknown mixer or feed-forward part.
        """
        mixers, _, ffn = text.strip().partition("/")
        return cls(tuple(m.strip() for m in mixers.split("+")), ffn.strip() if "/" in text else "dense")

    def __str__(self) -> str:
        return "+".join(self.mixers) + ("" if self.ffn == "dense" else f"/{self.ffn}")

    @property
    def softmax(self) -> str | None:
        """The mixer that is softmax attention, "swa" or "full", or None."""
        return next((m for m in self.mixers if m != "gla"), None)

    @property
    def is_parallel(self) -> bool:
        """Whether two mixers share the layer (the intra-layer hybrid)."""
        return len(self.mixers) == 2


@dataclass(frozen=True, kw_only=True)
class SpikingBrainConfig:
    """Sizes and choices of a SpikingBrain model. Presets are in `layouts`.

    Attributes:
        vocab_size: rows of the embedding, V.
        hidden_size: width of the residual stream, d.
        num_heads: query heads, H.
        num_kv_heads: key and value heads, Hk; each serves H / Hk query heads in a row.
        head_dim: channels per head, D; None for hidden_size / num_heads.
        intermediate_size: width of the dense feed-forward part.
        layers: one plan per layer.
        window: w of sliding-window attention, in tokens.
        window_keys: "w+1": a token sees itself and the w tokens before it, as in the released code; "w": itself and
            w - 1 before it, as in the report's formula.
        rope_theta: base of the rotary embedding, for softmax attention only.
        norm_eps: epsilon of every RMSNorm but those of head_norm_eps.
        head_norm_eps: epsilon of the norms of each head's output (`Attention.g_norm`, `s_norm`); None for norm_eps. A
            head whose mean square is far below it keeps its magnitudes: the norm then only divides by a constant.
        tie_word_embeddings: whether the output head shares the embedding's weights.
        qkv_bias: whether the q, k and v projections have biases.
        gate: how linear attention gets its decay. "low-rank": two matrices with gate_rank channels between them;
            "full": one matrix; "tied": no parameters, decay 1 - k (76B).
        feature_map: feature map of q and k in linear attention.
        gate_rank: channels between the two gate matrices.
        gate_divisor: log-decay = logsigmoid(gate) / gate_divisor; not for a tied gate.
        num_sinks: learnable tokens before the input, which every token sees.
        num_experts: routed experts in a "moe" layer.
        num_experts_per_token: routed experts per token.
        num_shared: experts that every token goes through.
        expert_intermediate_size: width of an expert; None for intermediate_size.
        equal_experts: whether all experts of a layer, routed and shared, are one set of weights, as after conversion.
            It is kept once, in memory and in files; `unshare_experts` gives each its own, before training.
        aux_loss_weight: weight of the load-balancing loss in the training loss.
        spiking: None for a float model; "as-described": every projection on spikes, INT8 keys and values also in the
            cache; "as-released": the same computation as the released W8ASpike code.
        k: k of the adaptive threshold in spiking layers.
        group_size: input channels that share a weight scale in spiking layers; None for all.
        kernel: implementation of linear attention: "ours", "triton", "fla" or "auto"; `gla.gla` says what each is.
        chunk_size: tokens per chunk in our chunked linear attention.
        max_position_embeddings: length the model was made for, in tokens; None for no limit. Longer texts still run.
        initializer_range: standard deviation of newly initialised weights.
    Raises:
        InputError: sizes or choices that do not make a valid model; the message names the field.

    Source:
        SpikingBrain (arXiv:2509.05276), sections 2 and 3.
    """

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int | None = None
    intermediate_size: int
    layers: tuple[LayerPlan, ...]
    window: int = 4096
    window_keys: str = "w+1"
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    head_norm_eps: float | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = True
    gate: str = "low-rank"
    feature_map: str = "relu"
    gate_rank: int = 16
    gate_divisor: float = 16.0
    num_sinks: int = 0
    num_experts: int = 0
    num_experts_per_token: int = 1
    num_shared: int = 1
    expert_intermediate_size: int | None = None
    equal_experts: bool = False
    aux_loss_weight: float = 0.01
    spiking: str | None = None
    k: float = 3.0
    group_size: int | None = None
    kernel: str = "auto"
    chunk_size: int = 16
    max_position_embeddings: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        are_plans = isinstance(self.layers, tuple) and all(isinstance(plan, LayerPlan) for plan in self.layers)
        self._require(are_plans, "layers", "a tuple of LayerPlan", self.layers)
        self._check_numbers()
        self._check_choices()
        if self.head_dim is None:
            divides = self.hidden_size % self.num_heads == 0
            self._require(divides, "num_heads", f"a divisor of hidden_size = {self.hidden_size}", self.num_heads)
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        if self.expert_intermediate_size is None:
            object.__setattr__(self, "expert_intermediate_size", self.intermediate_size)
        self._check_together()

    def _require(self, fine: bool, field: str, expected: str, got: Any) -> None:
        if not fine:
            raise InputError(f"SpikingBrainConfig.{field}: expected {expected}, got {got!r}.")

    def _check_numbers(self) -> None:
        at_least: dict[str, int] = dict.fromkeys(
            ("vocab_size", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size"), 1
        )
        at_least |= dict.fromkeys(("window", "gate_rank", "num_experts_per_token", "chunk_size"), 1)
        at_least |= dict.fromkeys(("num_sinks", "num_experts", "num_shared"), 0)
        optional = ("head_dim", "expert_intermediate_size", "group_size", "max_position_embeddings")
        for name in optional:
            if getattr(self, name) is not None:
                at_least[name] = 1
        for name, least in at_least.items():
            value = getattr(self, name)
            self._require(type(value) is int and value >= least, name, f"an integer >= {least}", value)
        for name in _POSITIVE:
            value = getattr(self, name)
            self._require(_is_finite(value) and value > 0, name, "a finite number > 0", value)
        eps, weight = self.head_norm_eps, self.aux_loss_weight
        fine = eps is None or (_is_finite(eps) and eps > 0)
        self._require(fine, "head_norm_eps", "a finite number > 0 or None", eps)
        self._require(_is_finite(weight) and weight >= 0, "aux_loss_weight", "a finite number >= 0", weight)

    def _check_choices(self) -> None:
        choices = {
            "window_keys": WINDOW_KEYS,
            "gate": GATES,
            "feature_map": FEATURE_MAPS,
            "spiking": (None, *ATTENTION),
            "kernel": KERNELS,
        }
        for name in ("tie_word_embeddings", "qkv_bias", "equal_experts"):
            self._require(type(getattr(self, name)) is bool, name, "True or False", getattr(self, name))
        for name, allowed in choices.items():
            self._require(getattr(self, name) in allowed, name, f"one of {allowed}", getattr(self, name))

    def _check_together(self) -> None:
        divides = self.num_heads % self.num_kv_heads == 0
        self._require(divides, "num_kv_heads", f"a divisor of num_heads = {self.num_heads}", self.num_kv_heads)
        self._require(len(self.layers) > 0, "layers", "at least one layer", self.layers)
        longest = self.max_position_embeddings
        if longest is not None:
            self._require(
                self.num_sinks <= longest, "num_sinks", f"at most {longest}, as many as positions", self.num_sinks
            )
        if any(plan.softmax for plan in self.layers):
            self._require(self.dim % 2 == 0, "head_dim", "an even number, for the rotary embedding", self.head_dim)
        if any(plan.ffn == "moe" for plan in self.layers):
            self._require(self.num_experts >= 1, "num_experts", 'at least 1, as a layer is "moe"', self.num_experts)
            most = f"at most num_experts = {self.num_experts}"
            self._require(
                self.num_experts_per_token <= self.num_experts,
                "num_experts_per_token",
                most,
                self.num_experts_per_token,
            )
        if self.gate == "tied":
            needed = '"sigmoid", as a tied gate is 1 - k and k must stay below 1'
            self._require(self.feature_map == "sigmoid", "feature_map", needed, self.feature_map)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def dim(self) -> int:
        """Channels per head, D: `head_dim`, which is always set once the configuration is made."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def max_window_keys(self) -> int:
        """Keys that a token sees in window attention, itself included."""
        return self.window + (self.window_keys == "w+1")

    @property
    def eps_of_heads(self) -> float:
        """Epsilon of the norms of each head's output."""
        return self.norm_eps if self.head_norm_eps is None else self.head_norm_eps

    def replace(self, **changes: Any) -> SpikingBrainConfig:
        """Return a copy with some fields changed and all fields checked again."""
        return type(self).from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values, with each layer's plan as a string."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "layers": [str(plan) for plan in self.layers]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SpikingBrainConfig:
        """Build a configuration from its fields by name; layers may be plans or strings.

        Raises:
            InputError: fields are unknown or missing (the message lists all), or values do not make a valid model.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(fields.keys() - known.keys())
        required = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        missing = sorted(required - fields.keys())
        if unknown or missing:
            raise InputError(
                f"SpikingBrainConfig: unknown fields {unknown}, missing fields {missing}. Known are {sorted(known)}."
            )
        layers = fields["layers"]
        if isinstance(layers, str) or not isinstance(layers, list | tuple):
            raise InputError(
                f"SpikingBrainConfig.layers: expected one plan per layer in a list, got {layers!r}. "
                "parse_layers reads a text."
            )
        plans = tuple(LayerPlan.parse(plan) if isinstance(plan, str) else plan for plan in layers)
        # JSON may say 16 for 16.0.
        reals = (*_POSITIVE, "head_norm_eps")
        numbers = {name: float(fields[name]) for name in reals if type(fields.get(name)) is int}
        return cls(**{**fields, **numbers, "layers": plans})


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
