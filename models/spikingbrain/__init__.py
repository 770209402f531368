"""SpikingBrain: gated linear, window and softmax attention, their hybrids, mixtures of experts, on spikes or not."""

from transformers import AutoConfig

from .cache import SpikingBrainCache
from .calibrate import calibrate
from .causal_lm import SpikingBrainForCausalLM
from .checkpoint import read_folder, save_folder
from .config import LayerPlan, SpikingBrainConfig
from .distill import distill
from .from_transformer import from_transformer
from .layouts import layout, parse_layers, spikingbrain_7b, spikingbrain_76b, tiny_7b, tiny_76b
from .model import SpikingBrainModel, SpikingBrainOutput
from .planning import fit_steps
from .released import from_released, to_released
from .sampling import sample_from
from .spiking import to_spiking
from .training import DistillResult, DistillSettings, LossPoint, Stage
from .transformers_config import SpikingBrainPretrainedConfig

AutoConfig.register(SpikingBrainPretrainedConfig.model_type, SpikingBrainPretrainedConfig, exist_ok=True)

__all__ = [
    "DistillResult",
    "DistillSettings",
    "LayerPlan",
    "LossPoint",
    "SpikingBrainCache",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "SpikingBrainModel",
    "SpikingBrainOutput",
    "SpikingBrainPretrainedConfig",
    "Stage",
    "calibrate",
    "distill",
    "fit_steps",
    "from_released",
    "from_transformer",
    "layout",
    "parse_layers",
    "read_folder",
    "sample_from",
    "save_folder",
    "spikingbrain_7b",
    "spikingbrain_76b",
    "tiny_7b",
    "tiny_76b",
    "to_released",
    "to_spiking",
]
