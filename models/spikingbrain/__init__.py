"""SpikingBrain: gated linear, window and softmax attention, their hybrids, mixtures of experts, on spikes or not."""

from transformers import AutoConfig

from .cache import SpikingBrainCache
from .config import LayerPlan, SpikingBrainConfig
from .layouts import layout, parse_layers, spikingbrain_7b, spikingbrain_76b, tiny_7b, tiny_76b
from .model import SpikingBrainForCausalLM, SpikingBrainOutput
from .released import from_released, to_released
from .transformers_config import SpikingBrainPretrainedConfig

AutoConfig.register(SpikingBrainPretrainedConfig.model_type, SpikingBrainPretrainedConfig, exist_ok=True)

__all__ = [
    "LayerPlan",
    "SpikingBrainCache",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "SpikingBrainOutput",
    "SpikingBrainPretrainedConfig",
    "from_released",
    "layout",
    "parse_layers",
    "spikingbrain_7b",
    "spikingbrain_76b",
    "tiny_7b",
    "tiny_76b",
    "to_released",
]
