"""Which models the fast decoders are for: what a Llama-type block is, and what a model has that they cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...neuro import KernelRule, without_band
from ..layers.attention_interface import runs_on_counts
from ..layers.graded_linear import GradedLinear, fit_together, own_rows_of
from ..layers.observing import query_observers
from ..layers.spike_linear import SpikeLinear

# Classes of transformers whose decoder layers are: norm, attention with rotary embedding, norm, SwiGLU.
_MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Kinds of rotary embedding whose angles do not depend on the length of the text.
STEADY_ROPE = ("default", "linear", "llama3", "yarn")


class Target(NamedTuple):
    """What a decoder runs.

    Attributes:
        device: type of the tensors' device.
        where: where the tensors must be, in words.
        dtypes: of the float tensors; all of a model have the same.
        obstacles: yields what it cannot do with a spiking layer.
        layers: kinds of projections that it knows.
        advice: what to do about another dtype.
    """

    device: str
    where: str
    dtypes: tuple[torch.dtype, ...]
    obstacles: Callable[[SpikeLinear], Iterator[str]]
    layers: tuple[type[nn.Module], ...] = (nn.Linear, SpikeLinear)
    advice: str = ""


def why_not(model: nn.Module, target: Target) -> str | None:
    """Return why a decoder is not for a model, or None if it is."""
    return next(_obstacles(model, target), None)


def is_llama_type(model: nn.Module) -> bool:
    """Return whether a model is of a class whose blocks the decoders know."""
    return type(model).__name__ in _MODELS and type(model).__module__.startswith("transformers.")


def projections(block: Any) -> list[list[nn.Module]]:
    """Return the projections of a block, those that read the same input together, in the order they run."""
    attention, mlp = block.self_attn, block.mlp
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]


def _obstacles(model: Any, target: Target) -> Iterator[str]:
    if not is_llama_type(model):
        yield f"{type(model).__name__} is none of {', '.join(_MODELS)}"
        return
    config = model.config
    if runs_on_counts(model) and target.device != "cpu":
        yield "its attention runs on spike counts, which only the decoder on a CPU does"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act}, not silu"
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if getattr(config, "sliding_window", None) and set(kinds) != {"full_attention"}:
        yield "its attention has a sliding window"
    yield from obstacles(model, target, map(projections, model.model.layers))


def obstacles(model: Any, target: Target, blocks: Iterable[list[list[nn.Module]]]) -> Iterator[str]:
    """Yield what a decoder cannot do with the parts of a model, whatever its class.

    Args:
        model: the model.
        target: what the decoder runs.
        blocks: the projections of each block, those that read the same input together.
    """
    for name, module in model.named_modules():
        if _has_hooks(module) or ("forward" in vars(module) and module is not model):
            yield f"{name or type(model).__name__} has hooks or a forward of its own"
        if query_observers(module):
            yield f"the queries of {name} are observed"
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            yield f"{name} is a {type(module).__name__}"
        if isinstance(module, GradedLinear) and not fit_together(list(module.levels)):
            yield f"{name} has levels that do not fit each other"
        if isinstance(module, SpikeLinear):
            yield from (f"{name} {reason}" for reason in _obstacles_of_layer(module, target))
            yield from (f"{name} {reason}" for reason in target.obstacles(module))
    yield from _obstacles_of_tensors(model, target)
    yield from _obstacles_of_groups(model, target, blocks)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks other than those of transformers that wait until outputs are asked for."""
    found = [hook for hooks in HOOKS for hook in getattr(module, hooks).values()]
    return any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in found)


def _rule_of(layer: SpikeLinear, target: Target) -> KernelRule | None:
    neuron = without_band(layer.neuron)
    return neuron.cpu_rule() if target.device == "cpu" else neuron.kernel_rule()


def _obstacles_of_layer(layer: SpikeLinear, target: Target) -> Iterator[str]:
    if layer.observers:
        yield "is observed"
    if _rule_of(layer, target) is None:
        yield f"has a neuron without a kernel, {layer.neuron!r}"
    if not layer.encoder.lossless:
        yield f"has the encoder {layer.encoder!r}, whose spikes must be added"
    if not layer.weight.t().is_contiguous() or not layer.scale.is_contiguous():
        yield "has weights in another order"
    if layer.weight.dtype != torch.int8 or layer.scale.dtype != torch.float32:
        yield f"has weights of {layer.weight.dtype} with scales of {layer.scale.dtype}"


def _obstacles_of_tensors(model: Any, target: Target) -> Iterator[str]:
    devices, dtypes = set(), set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != target.device or type(tensor) not in (Tensor, nn.Parameter):
            yield f"{name} is not an ordinary tensor {target.where}"
        devices.add(tensor.device)
        if not isinstance(tensor, nn.Parameter):
            continue
        dtypes.add(tensor.dtype)
        if tensor.dtype not in target.dtypes:
            known = " or ".join(str(dtype).split(".")[1] for dtype in target.dtypes)
            yield f"{name} is {tensor.dtype}, not {known}{target.advice}"
        if not tensor.is_contiguous():
            yield f"{name} is not contiguous"
    if len(devices) > 1:
        yield "its tensors are on several devices"
    if len(dtypes) > 1:
        yield "its parameters have several dtypes"


def _obstacles_of_groups(model: Any, target: Target, blocks: Iterable[list[list[nn.Module]]]) -> Iterator[str]:
    """Projections must be layers that the decoder knows, and those that read the same input make the same counts."""
    spiking = 0
    for index, groups in enumerate(blocks):
        for members in groups:
            for member in members:
                if type(member) not in target.layers:
                    yield f"a projection of block {index} is a {type(member).__name__}"
            own = list(map(own_rows_of, members))
            rules = [_rule_of(member, target) for member in own if isinstance(member, SpikeLinear)]
            spiking += len(rules)
            if len(set(rules)) > 1:
                yield f"layers of block {index} that read the same input have different neurons"
    if type(model.lm_head) not in target.layers:
        yield f"its head is a {type(model.lm_head).__name__}"
    if spiking == 0:
        yield "no layer of its blocks spikes"
