"""Accumulation on a CPU."""

from .backend import Cpu

__all__ = ["Cpu"]
