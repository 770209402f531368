"""A whole model on a simulated chip."""

from .describe import describe_simulation
from .model import ModelOnChip, simulate_model
from .orders import learn_orders

__all__ = ["ModelOnChip", "describe_simulation", "learn_orders", "simulate_model"]
