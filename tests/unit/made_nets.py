"""Random nets of integer weights and integrate-and-fire neurons; tests share it."""

import itertools

import numpy as np
import torch

from spikebrain import IntegrateAndFire, SpikeLinear


def random_net(seed, *, v_reset=False, each_its_own=False):
    """Return one to three layers, each with a neuron, and spikes [T, B, channels]."""
    rng = np.random.default_rng(seed)
    widths = [int(rng.integers(1, 12)) for _ in range(int(rng.integers(2, 5)))]
    stages = []
    for inputs, outputs in itertools.pairwise(widths):
        weight = torch.from_numpy(rng.integers(-127, 128, (outputs, inputs)).astype(np.int8))
        stages.append(SpikeLinear(weight, torch.from_numpy(rng.random((outputs, 1)).astype(np.float32) + 0.1)))
        threshold = torch.from_numpy(rng.integers(1, 200, outputs if each_its_own else 1).astype(np.float64))
        reset = float(rng.integers(-50, 1)) if v_reset else 0.0
        stages.append(IntegrateAndFire(threshold, reset="hard", v_reset=reset, v_initial=reset))
    spikes = rng.random((int(rng.integers(1, 20)), 3, widths[0])) < rng.random()
    return stages, torch.from_numpy(spikes.astype(np.int8))


def hits_a_threshold(stages, trains):
    """Return whether a potential equals its threshold exactly, where one reading fires and the other does not."""
    for stage, sums in zip(stages[1::2], trains[::2], strict=True):
        v = torch.full_like(sums[0], stage.v_reset, dtype=torch.float64)
        for x in sums:
            v = v + x
            if bool((v == stage.threshold).any()):
                return True
            v = torch.where(v >= stage.threshold, stage.v_reset, v)
    return False
