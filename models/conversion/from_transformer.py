"""Convert a Transformer to a SpikingBrain model: Q, K, V, O, feed-forward parts, norms and embeddings are reused.

Softmax, window and linear attention have the same projections, so the weights of one initialise the others (report,
eq. 12 to 14). Few parameters are new: the gate of linear attention, the norms and weights of the branches, sink tokens
and routers. Their initial values keep the model as close to the Transformer as we know how:

- *Gate*: its matrices give 0, so at first the decay is the same for every token, with a time constant of
  `TIME_CONSTANT` tokens. The first of two low-rank matrices is random, so that the second learns from the first step.
- *Norms*: weight 1. *Parallel branches*: `BRANCH_WEIGHTS`, so that softmax attention dominates.
- *Sink tokens*: the embedding of the beginning-of-text token, if the model has one, else the mean embedding.
- *Experts*: see `upcycle`. All of a layer are equal, so they are one set of weights until `unshare_experts`.

A norm gives every head of every token the same magnitude, unlike softmax attention's outputs. Their magnitudes can only
come from data: pass `calibration` tokens (see `calibrate`).

Source: SpikingBrain (arXiv:2509.05276), sections 2 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..layers.quantize import check_finite
from ..layers.stored import note_stored, noted
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import LayerPlan, SpikingBrainConfig
from ..spikingbrain.layouts import parse_layers
from ..spikingbrain.transformers_config import SpikingBrainPretrainedConfig
from .calibrate import calibrate, gate_bias
from .source import origins, settings_of, weights_of

# Tokens after which a state has decayed to 1 / e, before calibration; the best single value for SmolLM2 (DESIGN.md).
TIME_CONSTANT = 64.0
# Weights of linear and softmax attention in a layer that has both, before calibration.
BRANCH_WEIGHTS = (0.1, 0.9)
# Spread of a new router's logits: enough to give experts different tokens, with almost even probabilities.
_ROUTER_LOGITS = 1e-4
# Settings of a published layout besides its layers; all others are the same for both.
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
    """Convert a Transformer. Its weights are copy_bias; the Transformer itself does not change.

    A "full" layer computes the same as the Transformer's layer, and so does "swa" for texts within its window.

    Args:
        model: a causal language model of transformers with a convertible architecture (`models/architectures.py`).
        layout: "7b", "76b", plans separated by commas, such as "gla,swa,gla+full/moe", or a tuple of plans.
        calibration: token ids, [B, L] or [L]; None to keep the initial values of the new parameters.
        fit: "columns" or "o-proj", as for `calibrate`.
        seed: seed of the random numbers in gates and routers.
        progress: as for `calibrate`.
        choices: fields of `SpikingBrainConfig` that the Transformer does not fix, such as window, gate or num_sinks;
            equal_experts=False gives each expert weights of its own at once, as `unshare_experts` does.
            The defaults of "76b" are a tied gate, the sigmoid feature map, 128 sink tokens and 16 experts.
    Returns:
        The model, in evaluation mode, with the Transformer's dtype, device and generation settings.
    Raises:
        InputError: the architecture is not supported, a weight is not finite, the layout has another depth, or the
            Transformer fixes a choice.

    Source:
        SpikingBrain (arXiv:2509.05276), sections 2 and 3.1, eq. 12 to 18.
    """
    fixed = settings_of(model)
    if taken := sorted((fixed.keys() | {"expert_intermediate_size", "spiking"}) & choices.keys()):
        raise InputError(
            f"from_transformer: {taken} cannot be chosen: sizes are the Transformer's, an expert is as wide as its "
            "feed-forward part, and to_spiking puts the result on spikes. Leave them out."
        )
    for name, parameter in model.named_parameters():
        check_finite(parameter, f"from_transformer: weights of {name}")
    source: Any = model
    num_layers = source.config.num_hidden_layers
    plans = parse_layers(layout, num_layers) if isinstance(layout, str) else layout
    if len(plans) != num_layers:
        raise InputError(f"from_transformer.layout: expected {num_layers} plans, one per layer, got {len(plans)}.")
    named = _CHOICES.get(layout, {}) if isinstance(layout, str) else {}
    # Copies of one part: kept once until training makes them differ.
    equal = {"equal_experts": any(getattr(plan, "ffn", None) == "moe" for plan in plans)}
    settings = SpikingBrainConfig.from_dict({**fixed, **named, **equal, **choices, "layers": plans})
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
    """Give every parameter of a model on the meta device its initial value."""
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
        note = noted(source.get_submodule(origin[name].rpartition(".")[0])) if name in origin else None
        if note is not None:  # where a file holds the integers of this weight
            note_stored(student.get_submodule(owner), note)
    if student.settings.tie_word_embeddings:
        student.lm_head.register_parameter("weight", student.get_parameter("model.embeddings.weight"))


def upcycle(weight: Tensor, name: str, settings: SpikingBrainConfig) -> Tensor:
    """Return an expert's weight such that the mixture starts out equal to the dense feed-forward part.

    Take S shared experts and k of N routed ones, all copies of the dense part, and an even router whose probabilities
    are 1 / N, not renormalised (see `MixtureOfExperts`). A token then gets S + k / N times the dense result, no matter
    which experts it is routed to. The report scales every expert by alpha = (S + k / N)^(-1/3), once for each of the
    three matrices. This treats silu as linear, and leaves open which matrices are meant and how routing weights enter.
    Here up and down alone share the same factor alpha^3, alpha^(3/2) each, since an expert is linear in both. So the
    mixture equals the dense part exactly, except for rounding and router logits of about 1e-4.

    Args:
        weight: the dense part's weight: gate, up or down.
        name: name of the expert's parameter.
        settings: the model's configuration.

    Source:
        SpikingBrain (arXiv:2509.05276), eq. 15 to 18.
    """
    if _tail(name) == "gate_proj.weight":
        return weight.clone()
    copies = settings.num_shared + settings.num_experts_per_token / settings.num_experts
    return weight * copies**-0.5


def _fresh(name: str, shape: tuple[int, ...], settings: SpikingBrainConfig, generator: torch.Generator) -> Tensor:
    """Return the initial value, in float32, of a parameter that the Transformer does not have."""
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
    """Return "gate_proj.weight" for "model.layers.3.mlp.experts.5.gate_proj.weight"."""
    return ".".join(name.split(".")[-2:])
