"""Make a SpikingBrain model of a Transformer; Q, K, V, O, feed-forward parts, norms and embeddings are reused.

Softmax, window and linear attention have the same projections, so that the weights of one initialise the others
(report, eq. 12 to 14). Few parameters are new: the gate of linear attention, the norms and weights of its branches,
sink tokens and routers. They start as follows, which keeps the model close to the Transformer:

- *Gate*: its matrices give 0, so the decay is the same for every token at first, with a time constant of
  `TIME_CONSTANT` tokens. The first of two low-rank matrices is random, so that the second learns from the first step.
- *Norms*: weights 1. Branches side by side: `BRANCH_WEIGHTS`, so that softmax attention dominates.
- *Sink tokens*: the embedding of the token that begins a text, if the model has one, else the mean of the embedding.
- *Experts*: see `upcycle`.

A norm gives every head of every token the same size, but the outputs of softmax attention differ in size. Those sizes
can only be found from data: give `calibration` tokens (see `calibrate`).

Source: SpikingBrain (arXiv:2509.05276), sections 2 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import LayerPlan, SpikingBrainConfig
from ..spikingbrain.layouts import parse_layers
from ..spikingbrain.transformers_config import SpikingBrainPretrainedConfig
from .calibrate import calibrate, gate_bias
from .source import origins, settings_of, weights_of

# Tokens after which a state has decayed to 1 / e, before calibration; the best single one for SmolLM2 (DESIGN.md).
TIME_CONSTANT = 64.0
# Of linear and of softmax attention, where both are in a layer, before calibration.
BRANCH_WEIGHTS = (0.1, 0.9)
# Spread of a fresh router's logits: experts get different tokens, and probabilities are even but for this.
_ROUTER_LOGITS = 1e-4
# What a published layout chooses beyond its layers; the rest is the same for both.
_CHOICES: dict[str, dict[str, Any]] = {
    "76b": {"gate": "tied", "feature_map": "sigmoid", "num_sinks": 128, "num_experts": 16},
}


def from_transformer(
    model: nn.Module,
    layout: str | tuple[LayerPlan, ...] = "7b",
    *,
    calibration: Tensor | None = None,
    fit: str = "columns",
    seed: int = 0,
    progress: Callable[[str, int], Callable[[int], None]] | None = None,
    **choices: Any,
) -> SpikingBrainForCausalLM:
    """Convert a Transformer. Its weights are copied; it stays as it is.

    A layer "full" computes what the Transformer's did, and so does "swa" for texts within its window.

    Args:
        model: a causal language model of transformers, of a convertible architecture (`models/architectures.py`).
        layout: "7b", "76b", plans joined by commas such as "gla,swa,gla+full/moe", or a tuple of plans.
        calibration: token ids, [B, L] or [L]; None to leave the new parameters as they start.
        fit: what `calibrate` fits, "columns" or "o-proj".
        seed: of the random numbers in gates and routers.
        progress: of `calibrate`.
        choices: fields of `SpikingBrainConfig` that the Transformer does not fix, such as window, gate or num_sinks.
            "76b" has a tied gate, the sigmoid feature map, 128 sink tokens and 16 experts unless told otherwise.
    Returns:
        The model, in evaluation mode, with dtype, device and generation settings of the Transformer.
    Raises:
        InputError: an architecture that our layers do not compute, a layout of another depth, or a choice that the
            Transformer fixes.

    Source:
        SpikingBrain (arXiv:2509.05276), sections 2 and 3.1, eq. 12 to 18.
    """
    fixed = settings_of(model)
    if taken := sorted((fixed.keys() | {"expert_intermediate_size", "spiking"}) & choices.keys()):
        raise InputError(
            f"from_transformer: {taken} cannot be chosen: sizes are the Transformer's, an expert is as wide as its "
            "feed-forward part, and to_spiking puts the result on spikes. Leave them out."
        )
    source: Any = model
    num_layers = source.config.num_hidden_layers
    plans = parse_layers(layout, num_layers) if isinstance(layout, str) else layout
    if len(plans) != num_layers:
        raise InputError(f"from_transformer.layout: expected {num_layers} plans, one per layer, got {len(plans)}.")
    named = _CHOICES.get(layout, {}) if isinstance(layout, str) else {}
    settings = SpikingBrainConfig.from_dict({**fixed, **named, **choices, "layers": plans})
    tokens = {name: getattr(source.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = SpikingBrainPretrainedConfig(settings, **tokens)
    with torch.device("meta"):
        student = SpikingBrainForCausalLM(config)
    _fill(student, source, seed)
    student.generation_config = source.generation_config
    student.eval()
    if calibration is not None:
        calibrate(student, source, calibration, fit=fit, progress=progress)
    return student


def _fill(student: SpikingBrainForCausalLM, source: Any, seed: int) -> None:
    """Give every parameter of a model on the meta device its first value."""
    weights = {name: parameter.detach() for name, parameter in source.named_parameters()}
    origin = origins(weights_of(source), student.settings.num_layers)
    embedding = weights[origin["model.embeddings.weight"]]
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(student.named_parameters()):
        if name in origin:
            value = weights[origin[name]].clone()
        elif ".experts." in name or ".shared." in name:
            dense = f"{name.partition('.mlp.')[0]}.mlp.{_tail(name)}"
            value = upcycle(weights[origin[dense]], name, student.settings)
        elif name == "model.sinks":
            first = source.config.bos_token_id
            row = embedding.mean(0) if first is None else embedding[first]
            value = row.expand(parameter.shape).clone()
        else:
            value = _fresh(name, tuple(parameter.shape), student.settings, generator).to(embedding)
        owner, _, attribute = name.rpartition(".")
        student.get_submodule(owner).register_parameter(attribute, nn.Parameter(value))
    if student.settings.tie_word_embeddings:
        student.lm_head.register_parameter("weight", student.get_parameter("model.embeddings.weight"))


def upcycle(weight: Tensor, name: str, settings: SpikingBrainConfig) -> Tensor:
    """Return the weight of an expert that starts as the dense feed-forward part.

    With S shared experts and k of N routed ones, each a copy, and an even router, whose probabilities are 1 / N and are
    not scaled up (see `MixtureOfExperts`), a token would get S + k / N times the dense result, whichever experts it is
    routed to. The report scales every expert by alpha = (S + k / N)^(-1/3), once for each of the three matrices. That
    takes silu for linear; it leaves open which matrices are meant, and how routing weights enter. Here the same factor
    alpha^3 is shared by up and down alone, alpha^(3/2) each, in which an expert is linear: so the mixture equals the
    dense part exactly, but for rounding and for router logits of about 1e-4.

    Args:
        weight: of the dense part: gate, up or down.
        name: of the expert's parameter.
        settings: of the model.

    Source:
        SpikingBrain (arXiv:2509.05276), eq. 15 to 18.
    """
    if _tail(name) == "gate_proj.weight":
        return weight.clone()
    copies = settings.num_shared + settings.num_experts_per_token / settings.num_experts
    return weight * copies**-0.5


def _fresh(name: str, shape: tuple[int, ...], settings: SpikingBrainConfig, generator: torch.Generator) -> Tensor:
    """Return the first value of a parameter that the Transformer does not have, float32."""
    if name.endswith("_norm.weight"):
        return torch.ones(shape)
    if name.endswith("branch_weight"):
        return torch.tensor(BRANCH_WEIGHTS)
    if name.endswith("gk_proj.0.weight"):
        return torch.randn(shape, generator=generator) * settings.initializer_range
    if name.endswith(("gk_proj.1.weight", "gk_proj.weight")):
        return torch.zeros(shape)
    if name.endswith("gk_proj.1.bias") or name.endswith("gk_proj.bias"):
        return torch.full(shape, gate_bias(TIME_CONSTANT, settings.gate_divisor))
    assert name.endswith("router.weight"), name
    return torch.randn(shape, generator=generator) * (_ROUTER_LOGITS * settings.hidden_size**-0.5)


def _tail(name: str) -> str:
    """Return "gate_proj.weight" of "model.layers.3.mlp.experts.5.gate_proj.weight"."""
    return ".".join(name.split(".")[-2:])
