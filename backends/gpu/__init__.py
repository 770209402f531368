"""Accumulation on NVIDIA GPUs."""

from .backend import Triton

__all__ = ["Triton"]
