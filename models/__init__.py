"""Models whose linear layers run on spike trains."""

from .conversion import calibrate, from_transformer, spikingbrain_settings, to_spiking
from .decoding import describe_decoding
from .io import Loaded, load, save
from .layers import (
    Conversion,
    SpikeLinear,
    SpikeSettings,
    choose_layers,
    neuron_with_k,
    spike_aware,
    spiking_layers,
    to_dense,
)
from .recording import LayerRecord, Recording, record
from .spikingbrain import SpikingBrainConfig, SpikingBrainForCausalLM
from .training import DistillSettings, Stage, distill

__all__ = [
    "Conversion",
    "DistillSettings",
    "LayerRecord",
    "Loaded",
    "Recording",
    "SpikeLinear",
    "SpikeSettings",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "Stage",
    "calibrate",
    "choose_layers",
    "describe_decoding",
    "distill",
    "from_transformer",
    "load",
    "neuron_with_k",
    "record",
    "save",
    "spike_aware",
    "spiking_layers",
    "spikingbrain_settings",
    "to_dense",
    "to_spiking",
]
