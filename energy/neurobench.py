"""The counts of a run under the names that NeuroBench uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InputError
from ..models import Recording, SpikeLinear, spiking_layers
from ..models.recording.modules import UNCOUNTED
from ..module_check import check_module


@dataclass(frozen=True)
class NeuroBenchCounts:
    """Totals over a recording; NeuroBench divides them by the number of samples.

    Attributes:
        effective_acs: additions of weights for spikes of either sign; weights that are 0 do not count.
        effective_macs: products with weights in layers that do not spike, zeros included.
        dense: the same layers if every channel fired in every timestep and no weight were 0.
        activation_sparsity: share of places without a spike, of all trains.
        membrane_updates: outputs times timesteps: sums that a spike may change.

    Source:
        Yik et al., The NeuroBench framework, Nature Communications 16 (2025).
    """

    effective_acs: int
    effective_macs: int
    dense: int
    activation_sparsity: float
    membrane_updates: int


def neurobench_counts(model: nn.Module, recording: Recording) -> NeuroBenchCounts:
    """Count a recorded run as NeuroBench would, from its trains.

    NeuroBench itself takes a tensor for spikes if it holds only -1, 0 and 1; here the layers say what spikes.

    Args:
        model: that ran.
        recording: of that model, with its trains: record(model, keep_trains=True).
    Raises:
        InputError: a layer ran without its trains being kept, or is not in the model.
    """
    check_module("neurobench_counts", model)
    modules = dict(model.named_modules())
    acs = dense = num_slots = num_spikes = updates = 0
    for name, layer in recording.layers.items():
        module, trains = modules.get(name), recording.trains.get(name, [])
        if not isinstance(module, SpikeLinear) or sum(t.spikes.shape[1] for t in trains) != layer.num_tokens:
            raise InputError(
                f"neurobench_counts: expected the model that was recorded, with the trains of {name!r}. Use "
                "record(model, keep_trains=True)."
            )
        synapses = module.weight.count_nonzero(0)  # of each input channel
        for train in trains:
            acs += int((train.spikes.count_nonzero((0, 1)) * synapses).sum())
        slots = layer.num_slots
        dense += slots * layer.out_features
        updates += slots // max(layer.in_features, 1) * layer.out_features
        num_slots, num_spikes = num_slots + slots, num_spikes + layer.num_spikes
    macs = 0
    for part in recording.modules.values():
        if part.kind == "linear":
            macs += part.num_tokens * part.sizes["in_features"] * part.sizes["out_features"]
        elif part.kind == UNCOUNTED:
            macs += part.num_pairs
    sparsity = 1 - num_spikes / num_slots if num_slots else 0.0
    return NeuroBenchCounts(acs, macs, dense + macs, sparsity, updates)


def neurobench_results(
    model: nn.Module, recording: Recording, num_samples: int | None = None, sample: str = "token"
) -> dict[str, Any]:
    """Return the results of a recorded run as NeuroBench writes them: by the class of its metric, per sample.

    Args:
        model: that ran.
        recording: of that model, with its trains: record(model, keep_trains=True).
        num_samples: samples that ran; None for the tokens of the recording.
        sample: what a sample is, in a word; it stands beside the results.
    Returns:
        Values of JSON: Footprint (bytes of all parameters and buffers), ConnectionSparsity (of linear layers),
        ActivationSparsity (of all trains), SynapticOperations and MembraneUpdates (per sample), and Sample, which
        NeuroBench does not have: what they were divided by.
    Raises:
        InputError: as for `neurobench_counts`, or nothing ran, or num_samples is given without `sample`.
    Source:
        NeuroBench 2.3, `Benchmark.save_benchmark_results`.
    """
    check_module("neurobench_results", model)
    counts = neurobench_counts(model, recording)
    if num_samples is not None and sample == "token":
        raise InputError('neurobench_results.sample: expected what `num_samples` counts, such as "text".')
    num = max((x.num_tokens for x in recording.layers.values()), default=0) if num_samples is None else num_samples
    if num < 1:
        raise InputError(f"neurobench_results.num_samples: expected a run of at least one sample, got {num}.")
    return {
        "Footprint": sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers())),
        "ConnectionSparsity": _connection_sparsity(model),
        "ActivationSparsity": counts.activation_sparsity,
        "SynapticOperations": {
            "Effective_MACs": counts.effective_macs / num,
            "Effective_ACs": counts.effective_acs / num,
            "Dense": counts.dense / num,
        },
        "MembraneUpdates": counts.membrane_updates / num,
        "Sample": {"of": sample, "num_samples": num},
    }


def _connection_sparsity(model: nn.Module) -> float:
    """Return the share of weights that are 0, in linear layers, spiking or not, in the four decimals of NeuroBench."""
    weights = [layer.dequantized_weight for layer in spiking_layers(model).values()]
    weights += [lambda m=m: m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    num_weights = num_zeros = 0
    for read in weights:  # one at a time: a spiking layer makes its floats anew
        weight = read()
        num_weights += weight.numel()
        num_zeros += weight.numel() - int(weight.count_nonzero())
    return round(num_zeros / num_weights, 4)
