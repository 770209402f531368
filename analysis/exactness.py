"""Checks what ran: recorded sums against exact integer products, and fused layers against the recorded sums."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..coding import SpikeTrain, decode
from ..models import GradedLinear, SpikeLinear, spiking_layers
from ..models.layers.observing import Step, observing
from ..neuro import Band, without_band

# Integers as wide as a float, to compare bits.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Comparison:
    """Numbers that were compared.

    Attributes:
        num_checked: compared so far.
        num_mismatches: those that differed.
        first_mismatch: which one differed first and how; None if all agree.
    """

    num_checked: int = 0
    num_mismatches: int = 0
    first_mismatch: str | None = None

    def add(self, num_checked: int, num_mismatches: int, mismatch: str | None) -> None:
        """Add a batch of comparisons; `mismatch` describes its first difference."""
        self.num_checked += num_checked
        self.num_mismatches += num_mismatches
        self.first_mismatch = self.first_mismatch or mismatch


class ExactnessCheck:
    """Two checks of every step that a model's spiking layers run, and for lossy codes a third.

    *Sums.* Sampled sums are computed again as integer products of count and weight, without spikes. The sample depends
    on the seed, the layer and the counts, not on the order in which layers run. The train of a lossy code carries other
    numbers than the counts: there the product is that of these numbers.

    *Code.* For a lossy code the same sums are also compared with those of the counts. They may differ.

    *Fused layers.* An observed layer runs step by step, so that its spikes can be recorded. Unobserved, it runs in one
    fused kernel. That kernel runs here on the same activations: once with the backend that the whole call would get,
    where "auto" may multiply counts; and for some sampled tokens one at a time, as when text is generated. Every output
    must equal the recorded sum * scale * threshold + bias (with groups and minima: `rescale`), bit for bit, in the
    dtype of the layer's output; but where a backend adds scaled groups in another order, as GPUs do, up to the rounding
    of these additions. A layer without a fused kernel (a neuron or code of your own) is not
    counted. A `GradedLinear` is compared as a whole, with what its levels have added up to.

    Args:
        seed: seed of the samples.
        num_per_step: sums that are checked each time a layer runs.
        num_alone: tokens of each step that run through the fused layer one at a time.

    Attributes:
        sums: recorded sums against integer products.
        code: recorded sums of lossy codes against those of the counts.
        fused: outputs of fused layers against the recorded sums.
    """

    def __init__(self, seed: int = 0, num_per_step: int = 32, num_alone: int = 2) -> None:
        self.seed = seed
        self.num_per_step = num_per_step
        self.num_alone = num_alone
        self.sums = Comparison()
        self.code = Comparison()
        self.fused = Comparison()
        self._lock = threading.Lock()

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[ExactnessCheck]:
        """Check every spiking layer of a model inside a `with` block."""
        graded = [module for module in model.modules() if isinstance(module, GradedLinear)]
        with observing(spiking_layers(model).values(), self._check), ExitStack() as hooks:
            for layer in graded:
                hooks.callback(layer.register_forward_hook(self._check_joined).remove)
            yield self

    def state(self) -> dict[str, Any]:
        """Return what has been found so far, as JSON values."""
        return {**asdict(self.sums), "code": asdict(self.code), "fused": asdict(self.fused)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.code, self.fused = Comparison(**state["code"]), Comparison(**state["fused"])
        self.sums = Comparison(**{name: value for name, value in state.items() if name not in ("code", "fused")})

    def _check(self, layer: SpikeLinear, step: Step) -> None:
        rng = np.random.default_rng([self.seed, zlib.crc32(layer.name.encode()), int(step.count.abs().sum())])
        self._check_sums(layer, step, rng)
        self._check_fused(layer, step, rng)

    def _check_sums(self, layer: SpikeLinear, step: Step, rng: np.random.Generator) -> None:
        tokens = rng.integers(len(step.count), size=self.num_per_step)
        groups = rng.integers(len(layer.groups), size=self.num_per_step)
        outputs = rng.integers(layer.out_features, size=self.num_per_step)
        for token, g, output in zip(tokens.tolist(), groups.tolist(), outputs.tolist(), strict=True):
            channels = layer.groups[g]
            weight = layer.weight[output, channels].to(torch.int64)
            found = int(step.accumulation[token, g, output])
            where = f"{layer.name}, token {step.first_token + token}, output {output}"
            count = step.count[token, channels]
            if layer.encoder.lossy:
                self._add(self.code, int((count * weight).sum()), found, where)
                train = step.train
                count = decode(SpikeTrain(train.spikes[:, token, channels], train.timestep_weight, train.zero_point))
            self._add(self.sums, int((count * weight).sum()), found, where)

    def _add(self, comparison: Comparison, expected: int, found: int, where: str) -> None:
        mismatch = None if expected == found else f"{where}: expected {expected}, got {found}"
        with self._lock:
            comparison.add(1, int(mismatch is not None), mismatch)

    def _check_fused(self, layer: SpikeLinear, step: Step, rng: np.random.Generator) -> None:
        num_tokens, first = len(step.count), step.first_token
        x = step.x.detach().reshape(-1, layer.in_features)[first : first + num_tokens]
        alone = rng.choice(num_tokens, size=min(self.num_alone, num_tokens), replace=False).tolist()
        # Tokens, and how many the call has that they are a part of.
        runs = [(0, num_tokens, step.num_tokens), *((token, token + 1, 1) for token in alone)]
        expected = None
        for start, stop, call_tokens in runs:
            found = layer.run_fused(x[start:stop], call_tokens)
            if found is not None:
                expected = _rescaled(layer, step).to(x.dtype) if expected is None else expected
                how = "whole call" if start == 0 and stop == num_tokens else "alone"
                slack = None if layer.rescales_in_order(x[start:stop], call_tokens) else _slack(layer, x[start:stop])
                self._compare(layer, how, found, expected[start:stop], first + start, slack)

    def _check_joined(self, layer: GradedLinear, given: tuple[Tensor], y: Tensor) -> None:
        """Compare what the levels of a layer have added up to with the kernel that adds them in one pass."""
        x, own = given[0].detach(), layer.own
        found = own.run_fused(x, upper=layer.upper)
        if found is not None:
            found, y = (part.detach().reshape(-1, layer.out_features) for part in (found, y))
            slack = None if own.rescales_in_order(x) else _slack(own, x.reshape(-1, layer.in_features))
            self._compare(own, "whole call", found, y, 0, slack)

    def _compare(
        self, layer: SpikeLinear, how: str, found: Tensor, expected: Tensor, first_token: int, slack: Tensor | None
    ) -> None:
        bits = _BITS[found.element_size()]
        wrong = found.view(bits) != expected.view(bits)
        if slack is not None:
            wrong &= ~((found.float() - expected.float()).abs() <= slack)
        num_mismatches, mismatch = int(wrong.count_nonzero()), None
        if num_mismatches:
            token, output = wrong.nonzero()[0].tolist()
            values = f"expected {expected[token, output].item()!r}, got {found[token, output].item()!r}"
            mismatch = f"{layer.name}, token {first_token + token} ({how}), output {output}: {values}"
        with self._lock:
            self.fused.add(wrong.numel(), num_mismatches, mismatch)


def _rescaled(layer: SpikeLinear, step: Step) -> Tensor:
    """Return sum * scale * threshold + bias from the recorded sums, [tokens, out_features]."""
    y = layer.rescaled(step.accumulation, step.count, step.threshold)
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


def _slack(layer: SpikeLinear, x: Tensor) -> Tensor:
    """Return by how much outputs may differ where scaled groups are added in another order, float32 [tokens, outputs].

    That is the rounding of as many float32 additions and products as there are, relative to the sum of all magnitudes,
    and of the output's dtype.

    Args:
        layer: with weight groups; of a `GradedLinear` the level with its own rows.
        x: activations, [tokens, in_features].
    """
    size, num_terms = layer.group_size or layer.in_features, 2 * layer.scale.shape[1] + 8
    minimum = torch.zeros_like(layer.scale) if layer.minimum is None else layer.minimum
    scale, minimum = (part.abs().repeat_interleave(size, 1)[:, : layer.in_features] for part in (layer.scale, minimum))
    integers = layer.weight.abs().float()
    if isinstance(layer.neuron, Band):  # the middle of those with the same upper bits, two at least
        integers += 2 ** (layer.weight_bits - 2)
    spikes = without_band(layer.neuron)(x)
    largest = spikes.by_token.abs().float() @ (integers * scale + minimum).t() * spikes.threshold.float().reshape(-1, 1)
    if layer.bias is not None:
        largest += layer.bias.abs().float()
    return largest * (num_terms * torch.finfo(torch.float32).eps + torch.finfo(x.dtype).eps)
