"""A Transformer becomes a SpikingBrain model, and a SpikingBrain model spikes."""

from .calibrate import calibrate
from .from_transformer import from_transformer
from .to_spiking import spikingbrain_settings, to_spiking
from .unshare import unshare_experts

__all__ = ["calibrate", "from_transformer", "spikingbrain_settings", "to_spiking", "unshare_experts"]
