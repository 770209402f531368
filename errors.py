"""Errors for bad input. Each message says where it arose, what was expected, what was given and what to do."""

from __future__ import annotations


class SpikebrainError(Exception):
    """Base of all errors that this package raises for bad input; the command line turns it into exit code 2."""


class InputError(SpikebrainError, ValueError):
    """An argument has the wrong value, shape or type."""


class ActivationError(SpikebrainError, ValueError):
    """An activation cannot become a spike count: it is NaN, infinite or too large."""


class EncodingError(SpikebrainError, ValueError):
    """A spike count does not fit the code or the number of timesteps, or a train is malformed."""


class AccumulatorOverflowError(SpikebrainError, OverflowError):
    """An exact sum does not fit a signed 32-bit accumulator."""


class BackendUnavailableError(SpikebrainError, RuntimeError):
    """A backend was requested by name but cannot run here."""


class CheckpointError(SpikebrainError, RuntimeError):
    """A model file is missing, damaged, of a kind that is never opened, or could not be fetched."""


class RankError(SpikebrainError, RuntimeError):
    """A process that shares the work has ended, or does not answer."""


class TrainingError(SpikebrainError, ArithmeticError):
    """Training cannot continue: a loss is NaN or infinite."""
