"""Spiking linear layers split over several processes: each has the weights of a part of the input channels.

All ranks count the spikes of a whole token, since its threshold depends on all channels. Each adds up its own channels,
the integer sums are added between the ranks, and each rescales them. Integers add up in any order, so the outputs are
those of one process, bit for bit.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from ...backends.base import INT32, MAX_WEIGHT
from ...backends.checks import sums_of
from ...errors import AccumulatorOverflowError, InputError
from ...module_check import check_module
from ...neuro import SpikeCount
from ...neuro.checks import spikes_of
from .ranks import answers_of_others, place_in
from .rescale import rescale
from .spike_linear import SpikeLinear, spiking_layers


class SplitSpikeLinear(nn.Module):
    """A `SpikeLinear` of which this process has every weight of some input channels.

    It passes no gradient.

    Args:
        layer: the whole layer, the same on all ranks, with one scale per output.
        group: the processes; None for all of torch.distributed.
    Raises:
        InputError: no process group, weight groups, or fewer channels than ranks.
    """

    def __init__(self, layer: SpikeLinear, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        where = f"split_spiking: layer {layer.name!r}"
        rank, size = place_in(group, where)
        if layer.group_size is not None or layer.minimum is not None:
            raise InputError(
                f"{where}: expected one scale per output, got weight groups of {layer.group_size} channels."
            )
        if layer.in_features < size:
            raise InputError(f"{where}: expected at least {size} input channels, one a rank, got {layer.in_features}.")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.channels = slice(layer.in_features * rank // size, layer.in_features * (rank + 1) // size)
        settings = {"neuron": layer.neuron, "encoder": layer.encoder, "backend": layer.backend, "name": layer.name}
        self.part = SpikeLinear(layer.weight[:, self.channels].clone(), layer.scale.clone(), layer.bias, **settings)
        self._group = group

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*tokens in_features"]) -> Float[Tensor, "*tokens out_features"]:
        """Run the layer on spikes, together with the other ranks.

        Args:
            x: activations, the same on all ranks.
        Raises:
            RankError: another rank has ended or does not answer within the group's timeout.
        """
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise InputError(
                f"SplitSpikeLinear {self.part.name!r}: expected activations [..., {self.in_features}], got "
                f"{tuple(x.shape)}."
            )
        spikes = spikes_of(self.part.neuron, x)
        count = spikes.by_token
        threshold = spikes.threshold.to(torch.promote_types(spikes.threshold.dtype, torch.float32))
        threshold = threshold.expand(*spikes.count.shape[:-1], 1).reshape(-1, 1)
        y = rescale(self._sums(count), self.part.scale, threshold)
        if self.part.bias is not None:
            y = y + self.part.bias.to(y.dtype)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _sums(self, count: Tensor) -> Tensor:
        """Return the sums over all channels, int32 [tokens, 1, out_features]."""
        backend = self.part._backend_for(count)
        mine = SpikeCount(count[:, self.channels].contiguous(), count.new_ones(len(count), 1, dtype=torch.float32))
        parts = self.part.trains(mine, self.part.tokens_at_a_time(mine)) if mine.count.numel() else ()
        sums = [sums_of(backend, train, self.part.weight) for _, train in parts]
        total = torch.cat(sums) if sums else count.new_zeros(len(count), self.out_features)
        # int32 sums of parts may wrap where all of them together do not fit.
        fits = MAX_WEIGHT * int(count.abs().sum(1, dtype=torch.int64).max() if count.numel() else 0) <= INT32.max
        total = total if fits else total.to(torch.int64)
        with answers_of_others(f"SplitSpikeLinear {self.part.name!r}"):
            dist.all_reduce(total, group=self._group)
        if not fits and bool(((total < INT32.min) | (total > INT32.max)).any()):
            raise AccumulatorOverflowError(
                f"SplitSpikeLinear {self.part.name!r}: expected sums that fit 32 bits. Raise the threshold's ceiling."
            )
        return total.to(torch.int32)[:, None]


def split_spiking(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Split all spiking layers of a model over the processes of a group, in place, and return the model.

    Every rank must call this with the same model and then run the same inputs. Attention, norms and embeddings stay
    whole on each rank.

    Args:
        model: has spiking layers with one scale per output.
        group: the processes; None for all.
    Raises:
        InputError: there is no spiking layer, no process group, or a layer that cannot be split.
    """
    check_module("split_spiking", model)
    layers = spiking_layers(model, every_name=True)
    if not layers:
        raise InputError("split_spiking: the model has no spiking layers. Call spikebrain.to_spiking first.")
    made = {id(layer): SplitSpikeLinear(layer, group) for layer in layers.values()}
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made[id(layer)])
    return model
