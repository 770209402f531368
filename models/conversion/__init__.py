"""A Transformer becomes a SpikingBrain model, and a SpikingBrain model spikes."""

from .calibrate import calibrate
from .from_transformer import from_transformer
from .spiking import to_spiking

__all__ = ["calibrate", "from_transformer", "to_spiking"]
