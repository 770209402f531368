"""What we know of each Transformer architecture of Hugging Face: one record each.

Recording (which parts a model has, and what they cost) and conversion (where its weights go) read these records and
know no architecture by name. To add one, write its record into `ARCHITECTURES`; the tests in
`tests/unit/test_architectures.py` then build a tiny model of it, record it and check every name below.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """How the work of one class of module is counted.

    Attributes:
        kind: a kind of `ModuleRecord`, such as "softmax"; `energy.count_dense` has the formula of each.
        sizes: sizes that the kind needs, by name: the path of an attribute of the module (of a tensor, its number of
            elements counts), or a number that is the same for all modules.
        before: path of the child before which the work is done; "" if it is done where the module runs.
        window: path of the attribute that holds the columns a token sees at most, or None for all; softmax only.
    """

    kind: str
    sizes: Mapping[str, str | int]
    before: str = ""
    window: str = ""

    def sizes_of(self, module: nn.Module) -> dict[str, int] | None:
        """Return the sizes of a module; None if it lacks an attribute, and so is another class of the same name."""
        try:
            self.window_of(module)
            if self.kind == "softmax":
                _size(module, "layer_idx")
            return {name: path if isinstance(path, int) else _size(module, path) for name, path in self.sizes.items()}
        except (AttributeError, TypeError, ValueError):
            return None

    def window_of(self, module: nn.Module) -> int | None:
        """Return how many columns a token of the module sees at most, or None for all."""
        return operator.attrgetter(self.window)(module) if self.window else None


def _size(module: nn.Module, path: str) -> int:
    value: Any = operator.attrgetter(path)(module)
    return value.numel() if isinstance(value, Tensor) else int(value)


@dataclass(frozen=True)
class Weights:
    """Where the weights of an architecture are, by our names of the same weights.

    Attributes:
        layers: path of the list of layers.
        layer: weights of each layer: our name within our layer, and theirs within theirs.
        biases: the same for weights that a layer has or has not.
        embedding, norm, head: names of the three weights outside the layers.
    """

    layers: str
    layer: Mapping[str, str]
    biases: Mapping[str, str]
    embedding: str
    norm: str
    head: str


@dataclass(frozen=True)
class Architecture:
    """One family of Transformers.

    Attributes:
        model_types: values of `config.model_type` that mean this family.
        prefix: what the names of its classes begin with.
        parts: how its classes are counted, by what their names end with: `prefix` + ending is the whole name.
        weights: where its weights are, if `from_transformer` can convert it; else None.
        not_convertible: if it cannot, why.
    """

    model_types: tuple[str, ...]
    prefix: str
    parts: Mapping[str, Part]
    weights: Weights | None = None
    not_convertible: str = ""


def _parts(*, window: str = "", norm: str = "input_layernorm") -> dict[str, Part]:
    """Return the parts of a block as Llama has it: attention, a gated feed-forward part, two residual additions.

    Args:
        window: as of `Part`.
        norm: a norm of the block, as wide as the residual stream.
    """
    heads = {"heads": "config.num_attention_heads", "kv_heads": "config.num_key_value_heads", "dim": "head_dim"}
    return {
        "Attention": Part("softmax", {**heads, "integer": 0}, before="o_proj", window=window),
        "MLP": Part("gated-mlp", {"dim": "gate_proj.out_features"}, before="down_proj"),
        # Both additions of the block are one part; the second one is after down_proj, which nothing waits for.
        "DecoderLayer": Part("residual", {"dim": f"{norm}.weight"}, before="mlp.down_proj"),
    }


_LLAMA_WEIGHTS = Weights(
    layers="model.layers",
    layer={
        "attn_norm.weight": "input_layernorm.weight",
        "attn.q_proj.weight": "self_attn.q_proj.weight",
        "attn.k_proj.weight": "self_attn.k_proj.weight",
        "attn.v_proj.weight": "self_attn.v_proj.weight",
        "attn.o_proj.weight": "self_attn.o_proj.weight",
        "mlp_norm.weight": "post_attention_layernorm.weight",
        "mlp.gate_proj.weight": "mlp.gate_proj.weight",
        "mlp.up_proj.weight": "mlp.up_proj.weight",
        "mlp.down_proj.weight": "mlp.down_proj.weight",
    },
    biases={f"attn.{x}_proj.bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
    embedding="model.embed_tokens.weight",
    norm="model.norm.weight",
    head="lm_head.weight",
)

ARCHITECTURES = (
    Architecture(("llama",), "Llama", _parts(), _LLAMA_WEIGHTS),
    Architecture(("qwen2",), "Qwen2", _parts(window="sliding_window"), _LLAMA_WEIGHTS),
    Architecture(
        ("mistral",),
        "Mistral",
        _parts(window="config.sliding_window"),
        not_convertible="All its layers may have a sliding window, and ours that copy a layer have none.",
    ),
    Architecture(
        ("qwen3",),
        "Qwen3",
        _parts(window="sliding_window"),
        not_convertible="It has norms of queries and keys (q_norm, k_norm), which our layers do not have.",
    ),
)

# Of any architecture: classes that are counted with the module they are in.
# A rotary embedding is counted with softmax attention, an activation with the gated feed-forward part.
_NORM = Part("rms-norm", {"dim": "weight"})
_NORM_ENDING = "RMSNorm"
_COUNTED_ELSEWHERE = ("SiLUActivation", "RotaryEmbedding")
# A model as a whole does nothing that its parts do not do.
_WHOLE_MODELS = ("Model", "ForCausalLM")


def part_of(module: nn.Module) -> Part | None:
    """Return how a module of transformers is counted; None if no record says it."""
    name = type(module).__name__
    for architecture in ARCHITECTURES:
        part = architecture.parts.get(name.removeprefix(architecture.prefix))
        if part is not None and name.startswith(architecture.prefix):
            return part
    return None


def has_no_work(module: nn.Module) -> bool:
    """Return whether a module of transformers does nothing that is not counted elsewhere."""
    name = type(module).__name__
    return name.endswith(_COUNTED_ELSEWHERE) or (name.endswith(_WHOLE_MODELS) and any(module.children()))


def architecture_of(model_type: str | None) -> Architecture | None:
    """Return the record of an architecture by `config.model_type`; None if there is none."""
    return next((known for known in ARCHITECTURES if model_type in known.model_types), None)


def convertible_types() -> tuple[str, ...]:
    """Return the values of `config.model_type` that `from_transformer` can convert."""
    return tuple(name for known in ARCHITECTURES if known.weights is not None for name in known.model_types)
