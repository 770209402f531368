"""Equal experts get weights of their own, so that training can make them differ."""

from __future__ import annotations

from ...errors import InputError
from ..layers.spike_linear import spiking_layers
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM, check_spikingbrain
from ..spikingbrain.moe import MixtureOfExperts
from .to_spiking import set_settings


def unshare_experts(model: SpikingBrainForCausalLM) -> SpikingBrainForCausalLM:
    """Give every expert of a model weights of its own, in place; needed before training, and before the optimiser.

    After conversion all experts of a layer are equal, so they are one set of weights (`equal_experts` of the
    configuration), which could only learn as one. The result of the model does not change.

    Args:
        model: a float model, from `from_transformer` or `load`.
    Returns:
        The model. Nothing happens if its experts have weights of their own already, or there are none.
    Raises:
        InputError: the experts are equal and spike: their integers do not learn.
    """
    check_spikingbrain("unshare_experts", model)
    if not model.settings.equal_experts:
        return model
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    if any(spiking_layers(mixture) for mixture in mixtures):
        raise InputError(
            "unshare_experts: expected a float model, got one whose experts spike: their integers do not learn. Call "
            "it before to_spiking."
        )
    for mixture in mixtures:
        mixture.unshare()
    set_settings(model, model.settings.replace(equal_experts=False))
    return model
