"""Convert a Transformer to a SpikingBrain model: Q, K, V, O, feed-forward parts, norms and embeddings are reused.

Softmax, window and linear attention have the same projections, so the weights of one initialise the others (report,
eq. 12 to 14). Few parameters are new: the gate of linear attention, the norms and weights of the branches, sink tokens
and routers. Their initial values keep the model as close to the Transformer as we know how:

- *Gate*: its matrices give 0, so at first the decay is the same for every token, with a time constant of
  `TIME_CONSTANT` tokens. The first of two low-rank matrices is random, so that the second learns from the first step.
- *Norms* of heads: a norm takes away the magnitude of a head's output, which says how much a head has to give, and
  softmax attention has no such norm. An epsilon far above the mean square of the outputs keeps it (`eps_for_heads`),
  and the weight of softmax attention's norm makes up for the constant divisor.
- *Parallel branches*: `BRANCH_WEIGHTS`, so the layer begins as softmax attention; the weight of the linear branch
  learns from the first step.
- *Sink tokens*: the embedding of the beginning-of-text token, if the model has one, then those of random tokens. Many
  sinks that are all alike take more attention from the text.
- *Experts*: see `upcycle`. All of a layer are equal, so they are one set of weights until `unshare_experts`.

What linear attention loses can only come back from data: pass `calibration` tokens (see `calibrate`).

Source: SpikingBrain (arXiv:2509.05276), sections 2 and 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...module_check import check_module
from ..layers.quantize import check_finite
from ..layers.stored import note_stored, noted
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import LayerPlan, SpikingBrainConfig
from ..spikingbrain.layouts import parse_layers
from ..spikingbrain.transformers_config import SpikingBrainPretrainedConfig
from .calibrate import STEPS, calibrate, check_fit, check_tokens, gate_bias
from .placement import check_placement, least_sensitive, sensitivities
from .source import origins, settings_of, weights_of

# Tokens after which a state has decayed to 1 / e, before calibration; the best single value for SmolLM2 (DESIGN.md).
TIME_CONSTANT = 64.0
# Weights of linear and softmax attention in a layer that has both, before calibration.
BRANCH_WEIGHTS = (0.0, 1.0)
# Tokens that linear layers are placed by, at most.
_PLACING_TOKENS = 4096
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
    fit: str = "layers",
    steps: int = STEPS,
    placement: str = "alternate",
    seed: int = 0,
    progress: Callable[[str, int], Callable[[int], None]] | None = None,
    **choices: Any,
) -> SpikingBrainForCausalLM:
    """Convert a Transformer. Its weights are copied; the Transformer itself does not change.

    A "full" layer computes the same as the Transformer's layer, and so does "swa" for texts within its window.

    Args:
        model: a causal language model of transformers with a convertible architecture (`models/architectures.py`).
        layout: "7b", "76b", plans separated by commas, such as "gla,swa,gla+full/moe", or a tuple of plans.
        calibration: token ids, [B, L] or [L]; None to keep the initial values of the new parameters.
        fit: "layers", "columns" or "o-proj", as for `calibrate`.
        steps: as for `calibrate`.
        placement: "alternate": linear layers are where the layout has them; "measured": where they cost least by
            `sensitivities`, which needs calibration tokens.
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
    check_module("from_transformer", model)
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
    settings = SpikingBrainConfig.from_dict({**fixed, **named, **choices, "layers": plans})
    # Experts are copies of one part: kept once until training makes them differ.
    has_experts = any(plan.ffn == "moe" for plan in settings.layers)
    ours = {"head_norm_eps": eps_for_heads(source, settings.layers), "equal_experts": has_experts}
    settings = settings.replace(**{name: value for name, value in ours.items() if name not in choices})
    if calibration is not None:  # before minutes of placing
        check_fit(fit, steps)
        check_tokens(calibration, settings.vocab_size, "calibrate.tokens")
    if placement != "alternate":
        calibration = check_placement(placement, settings, calibration)
        settings = settings.replace(layers=_placed(source, settings, calibration, progress))
    student = _converted(source, settings, seed)
    if calibration is not None:
        calibrate(student, source, calibration, fit=fit, steps=steps, progress=progress)
    return student


def eps_for_heads(model: Any, plans: Sequence[LayerPlan]) -> float | None:
    """Return an epsilon for the norms of heads' outputs; None if no layer has such norms.

    Where linear attention is alone in its layer, 1 will do: calibration scales the outputs accordingly. Beside softmax
    attention it must be far above the mean square of that branch's outputs. Attention averages values, so these are
    below the mean square of a head's values. The epsilon is four times the largest of those, for normed inputs of
    independent channels, rounded up to a power of two.

    Args:
        model: a Transformer of a convertible architecture.
        plans: one per layer.
    """
    if not any(plan.is_parallel for plan in plans):
        return 1.0 if any("gla" in plan.mixers for plan in plans) else None
    weights, largest = weights_of(model), 0.0
    parameters = dict(model.named_parameters())
    for i in range(model.config.num_hidden_layers):
        layer = f"{weights.layers}.{i}."
        value = parameters[layer + weights.layer["attn.v_proj.weight"]].detach().float()
        squares = (value * parameters[layer + weights.layer["attn_norm.weight"]].detach().float()).square().sum(1)
        bias = parameters.get(layer + weights.biases.get("attn.v_proj.bias", ""))
        squares = squares if bias is None else squares + bias.detach().float().square()
        heads = squares.unflatten(0, (model.config.num_key_value_heads, -1)).mean(1)
        largest = max(largest, float(heads.max()))
    return 2.0 ** math.ceil(math.log2(max(4 * largest, 1e-30)))


def _placed(
    source: Any,
    settings: SpikingBrainConfig,
    tokens: Tensor,
    progress: Callable[[str, int], Callable[[int], None]] | None,
) -> tuple[LayerPlan, ...]:
    """Return the plans of the settings with linear layers where they cost least, by what scales alone can reach."""
    rows = tokens.to(source.device).view(-1, tokens.shape[-1])
    rows = rows[: max(_PLACING_TOKENS // rows.shape[1], 1)]
    plain = settings.replace(num_sinks=0)
    every = {mixer: plain.replace(layers=[LayerPlan((mixer,))] * plain.num_layers) for mixer in ("gla", "full")}
    linear, softmax = (_converted(source, every[mixer], 0) for mixer in ("gla", "full"))
    calibrate(linear, source, rows, fit="columns", progress=progress)
    done = progress("sensitivities", settings.num_layers) if progress else lambda number: None
    return least_sensitive(settings.layers, sensitivities(linear, softmax, source, rows, done))


def _converted(source: Any, settings: SpikingBrainConfig, seed: int) -> SpikingBrainForCausalLM:
    """Return a model with a Transformer's weights, not calibrated."""
    tokens = {name: getattr(source.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = SpikingBrainPretrainedConfig(settings, **tokens)
    with torch.device("meta"):
        student = SpikingBrainForCausalLM(config)
    _fill(student, source, seed)
    student.generation_config = source.generation_config
    return student.eval()


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
            drawn = torch.Generator().manual_seed(seed)
            value = embedding[torch.randint(len(embedding), (len(parameter),), generator=drawn)].clone()
            if source.config.bos_token_id is not None:
                value[0] = embedding[source.config.bos_token_id]
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
        keeps = name.endswith("s_norm.weight") and settings.head_norm_eps is not None
        return torch.full(shape, math.sqrt(settings.eps_of_heads) if keeps else 1.0)
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
