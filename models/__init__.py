"""Models whose linear layers run on spike trains."""

from .conversion import calibrate, from_transformer, spikingbrain_settings, to_spiking, unshare_experts
from .decoding import describe_decoding
from .io import Loaded, load, save
from .layers import (
    Conversion,
    GradedLinear,
    SpikeLinear,
    SpikeSettings,
    choose_layers,
    neuron_with_k,
    spike_aware,
    spiking_layers,
    split_spiking,
    to_dense,
)
from .recording import LayerRecord, Recording, record
from .spikingbrain import PrefillGraph, SpikingBrainConfig, SpikingBrainForCausalLM, prefill, sequence_prefill
from .training import DistillSettings, Stage, WrittenText, distill

__all__ = [
    "Conversion",
    "DistillSettings",
    "GradedLinear",
    "LayerRecord",
    "Loaded",
    "PrefillGraph",
    "Recording",
    "SpikeLinear",
    "SpikeSettings",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "Stage",
    "WrittenText",
    "calibrate",
    "choose_layers",
    "describe_decoding",
    "distill",
    "from_transformer",
    "load",
    "neuron_with_k",
    "prefill",
    "record",
    "save",
    "sequence_prefill",
    "spike_aware",
    "spiking_layers",
    "spikingbrain_settings",
    "split_spiking",
    "to_dense",
    "to_spiking",
    "unshare_experts",
]
