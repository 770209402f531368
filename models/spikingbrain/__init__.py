"""SpikingBrain models: linear, window and full attention, hybrids and mixtures of experts, with or without spikes."""

from transformers import AutoConfig

from .cache import SpikingBrainCache
from .causal_lm import SpikingBrainForCausalLM
from .config import LayerPlan, SpikingBrainConfig
from .counted import attend_counted
from .layouts import layout, parse_layers, spikingbrain_7b, spikingbrain_76b, tiny_7b, tiny_76b
from .model import SpikingBrainModel, SpikingBrainOutput
from .prefill import prefill
from .prefill_graph import PrefillGraph
from .sequence import sequence_prefill
from .transformers_config import SpikingBrainPretrainedConfig

AutoConfig.register(SpikingBrainPretrainedConfig.model_type, SpikingBrainPretrainedConfig, exist_ok=True)

__all__ = [
    "LayerPlan",
    "PrefillGraph",
    "SpikingBrainCache",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "SpikingBrainModel",
    "SpikingBrainOutput",
    "SpikingBrainPretrainedConfig",
    "attend_counted",
    "layout",
    "parse_layers",
    "prefill",
    "sequence_prefill",
    "spikingbrain_7b",
    "spikingbrain_76b",
    "tiny_7b",
    "tiny_76b",
]
