"""Spiking layers and integrate-and-fire neurons as graphs of NIR, with the same spikes.

NIR's integrate-and-fire neuron fires where v > v_threshold, ours where v >= threshold. All sums here are integers, so
v_threshold = threshold - 1/2 fires at the same v in both readings: SpikingJelly 2.0 takes NIR's threshold and fires at
it, which would be one spike too early with threshold - 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int8
from torch import Tensor, nn

from ..backends import Reference
from ..coding import SpikeTrain
from ..errors import CheckpointError, InputError
from ..files import whole_file
from ..lazy import optional
from ..models import Recording, SpikeLinear, spiking_layers
from ..models.recording.modules import describe
from ..neuro import IntegrateAndFire, LeakyIntegrateAndFire
from ..neuro.checks import describe_tensor
from ..registry import label
from ..version import __version__

if TYPE_CHECKING:
    import nir  # pyright: ignore[reportMissingImports] - of the extra `exchange`

Stage = SpikeLinear | LeakyIntegrateAndFire


@dataclass(frozen=True)
class NIRExport:
    """What NIR can say of a net.

    Attributes:
        graph: a nir.NIRGraph; of a model, each layer is a sub-graph with an input and an output of its own.
        left_out: what it does not say, one sentence each.
    """

    graph: nir.NIRGraph
    left_out: tuple[str, ...]

    def write(self, path: str | Path) -> None:
        """Write the graph to a .nir file, in one step.

        Raises:
            InputError: h5py is not installed.
            CheckpointError: the file cannot be written.
        """
        with whole_file(Path(path), CheckpointError) as partial:
            _nir().write(partial, self.graph)


def to_nir(net: nn.Module | Sequence[Stage], dtype: str | None = None) -> NIRExport:
    """Return a net as a graph of NIR (nir.Linear, nir.IF, nir.Scale).

    A sequence of `SpikeLinear` and `IntegrateAndFire` is a net as `run_stages` runs it: spikes pass the integer weights
    of a layer, and their sums pass the neuron. It becomes one chain, with r = 1 and a time step of 1 (`dt=1.0` for
    SpikingJelly). A layer at its end gets its scales as nir.Scale. In front of a neuron, whose threshold is in
    integers, they are metadata.

    Each layer of a model becomes an input of spikes, a nir.Linear and a nir.Scale. Its neuron and code are metadata.

    Args:
        net: a spiking model, a `SpikeLinear`, or a sequence of layers and neurons.
        dtype: of nir.Linear's integers: "int8", or "float32", as SpikingJelly and snnTorch need it; None for "float32"
            in a sequence and "int8" in a model, whose scales neither of them reads. Both are exact.
    Returns:
        The graph, and what it does not say. A stage that NIR cannot say is left out, and the chain is cut there.
    Raises:
        InputError: nir is not installed, or nothing is left.
    """
    nir = _nir()
    if dtype not in (None, "int8", "float32"):
        raise InputError(f'to_nir.dtype: expected "int8" or "float32", got {dtype!r}.')
    builder = _Builder(nir, dtype or ("int8" if isinstance(net, nn.Module) else "float32"))
    if isinstance(net, nn.Module):
        builder.add_model(net)
    else:
        builder.add_chain(_checked(net))
    if not builder.nodes:
        told = "; ".join(builder.left_out) or "it is empty"
        raise InputError(f"to_nir: nothing of this net can be said in NIR: {told}.")
    graph = nir.NIRGraph(builder.nodes, builder.edges, metadata={"written_by": f"spikebrain {__version__}"})
    return NIRExport(graph, tuple(builder.left_out))


def to_nir_data(recording: Recording) -> Any:
    """Return the trains of a recording as a nir.NIRGraphData, for the inputs of what `to_nir` made of its model.

    Each input has the observable "spikes": int8 [tokens, timesteps, channels], with a time step of 1; trains of a layer
    that differ in length are padded as in `Recording.spikes_of`. `nir.write_data` writes it. NIR has no place for the
    weights of timesteps and zero points.

    Args:
        recording: with its trains: record(model, keep_trains=True).
    Raises:
        InputError: nir is not installed, no trains were kept, or those of a layer differ in more than their length.
    """
    nir = _nir()
    if not recording.trains:
        raise InputError("to_nir_data: expected a recording with trains. Use record(model, keep_trains=True).")
    nodes = {}
    for name in recording.trains:
        spikes = recording.spikes_of(name).spikes.transpose(0, 1).contiguous().cpu().numpy()
        data = nir.TimeGriddedData(spikes, dt=1.0)
        nodes[f"{_part(name)}.input"] = nir.NIRNodeData({"spikes": data})
    return nir.NIRGraphData(nodes)


def run_stages(stages: Sequence[Stage], spikes: Int8[Tensor, "timesteps *batch channels"]) -> list[Tensor]:
    """Run layers and neurons in turn, one timestep after the other, in exact integers.

    A layer adds the integer weights of the channels that fire; scales and biases play no part. A neuron integrates
    these sums and fires.

    Args:
        stages: of a net, as `to_nir` takes it.
        spikes: -1, 0 or 1, int8 [T, ..., channels].
    Returns:
        The integers after each stage, int32 [T, ..., channels]: sums after a layer, spikes after a neuron.
    Raises:
        InputError: a stage is none, or its channels are not those before it.
    """
    if spikes.dtype != torch.int8 or spikes.ndim < 2:
        raise InputError(f"run_stages: expected int8 spikes [T, ..., channels], got {describe_tensor(spikes)}.")
    found: list[Tensor] = []
    for stage in _checked(stages):
        x = found[-1] if found else spikes
        if isinstance(stage, SpikeLinear):
            unit = torch.ones(1, dtype=torch.int64)
            rows = x.reshape(1, -1, x.shape[-1]).to(torch.int8)
            sums = Reference().accumulate(SpikeTrain(rows, unit), stage.weight)
            found.append(sums.reshape(*x.shape[:-1], stage.out_features))
        else:
            found.append(stage.unroll(x.to(torch.float64))[0].count)
    return found


def _nir() -> Any:
    return optional("nir", "exchange", "NIR")


def _checked(stages: Sequence[Any]) -> Sequence[Stage]:
    """Raise an InputError unless layers and neurons fit each other."""
    width: int | None = None
    before: Any = None
    for i, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise InputError(f"stage {i}: expected a SpikeLinear or an IntegrateAndFire, got {type(stage).__name__}.")
        if isinstance(stage, SpikeLinear):
            if isinstance(before, SpikeLinear):
                raise InputError(f"stage {i}: expected a neuron between two layers, as sums are no spikes.")
            if width not in (None, stage.in_features):
                raise InputError(f"stage {i}: expected {width} input channels, got {stage.in_features}.")
            width = stage.out_features
        elif width is None:
            raise InputError(f"stage {i}: expected a SpikeLinear in front of the first neuron.")
        before = stage
    return stages


def _part(name: str) -> str:
    """Return the name of a layer's sub-graph; "layer" for a model that is a layer."""
    return name or "layer"


@dataclass
class _Builder:
    """Nodes and edges so far, and what could not be said."""

    nir: Any
    dtype: str
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add_model(self, model: nn.Module) -> None:
        """Add each spiking layer as a sub-graph."""
        spiking = spiking_layers(model)
        if not spiking:
            raise InputError("to_nir: expected a model with SpikeLinear layers. Call to_spiking first.")
        why: dict[str, list[str]] = {}
        for name, layer in spiking.items():
            faults = _faults_of_layer(layer)
            for fault in faults or _unsaid(layer):
                why.setdefault(fault, []).append(_part(name))
            if not faults:
                prefix = f"{_part(name)}."
                linear = self._linear(layer, neuron=label(layer.neuron), encoder=label(layer.encoder))
                self._add([(f"{prefix}linear", linear), (f"{prefix}scale", self._scale(layer))], prefix)
        for fault, names in why.items():
            self.left_out.append(f"{fault}: {_some(names)}")
        parts, unknown = describe(model)
        if parts or unknown:
            others = [part.name for _, part, _ in parts] + list(unknown)
            self.left_out.append(f"what does not spike: {_some(others)}")

    def add_chain(self, stages: Sequence[Stage]) -> None:
        """Add a chain, cut where a stage cannot be said."""
        pieces: list[list[tuple[str, Any]]] = [[]]
        width = 0
        for i, stage in enumerate(stages):
            is_layer = isinstance(stage, SpikeLinear)
            width = stage.out_features if is_layer else width
            faults = _faults_of_layer(stage) if is_layer else _faults_of_neuron(stage, width)
            if is_layer and stage.bias is not None:
                self.left_out.append(f"the bias of stage {i}, which is added to rescaled sums")
            if faults:
                self.left_out += [f"{fault}: stage {i}" for fault in faults]
                pieces.append([])
            elif is_layer:
                pieces[-1].append((f"linear_{i}", self._linear(stage)))
                if i + 1 == len(stages):
                    pieces[-1].append((f"scale_{i}", self._scale(stage)))
            else:
                pieces[-1].append((f"if_{i}", self._fire(stage, width)))
        pieces = [piece for piece in pieces if piece]
        for piece in pieces:
            self._add(piece, "" if len(pieces) == 1 else f"{piece[0][0]}.")

    def _add(self, piece: list[tuple[str, Any]], prefix: str) -> None:
        first, last = piece[0][1], piece[-1][1]
        begin = self.nir.Input({"input": first.input_type["input"]})
        end = self.nir.Output({"output": last.output_type["output"]})
        piece = [(f"{prefix}input", begin), *piece, (f"{prefix}output", end)]
        self.nodes |= dict(piece)
        self.edges += itertools.pairwise(name for name, _ in piece)

    def _linear(self, layer: SpikeLinear, **more: str) -> Any:
        told = {"weight_bits": layer.weight_bits, "scale": layer.scale[:, 0].cpu().numpy()}
        weight = layer.weight.cpu().contiguous().numpy().astype(self.dtype)
        return self.nir.Linear(weight, metadata=told | more)

    def _scale(self, layer: SpikeLinear) -> Any:
        told = {} if layer.bias is None else {"bias": layer.bias.detach().float().cpu().numpy()}
        return self.nir.Scale(layer.scale[:, 0].cpu().numpy(), metadata=told)

    def _fire(self, neuron: LeakyIntegrateAndFire, width: int) -> Any:
        threshold = _each(neuron.threshold, width)
        assert threshold is not None
        return self.nir.IF(
            r=np.ones(width, np.float32),
            v_threshold=(threshold - 0.5).astype(np.float32),
            v_reset=np.full(width, neuron.v_reset, np.float32),
            metadata={"threshold": threshold.astype(np.int64)},
        )


def _faults_of_layer(layer: SpikeLinear) -> list[str]:
    """Return why a layer is not one product of integers and one scale an output."""
    faults = []
    if len(layer.groups) > 1:
        faults.append("groups of input channels with scales of their own")
    if layer.minimum is not None:
        faults.append("minima beside the scales")
    return faults


def _unsaid(layer: SpikeLinear) -> list[str]:
    """Return what a sub-graph of a layer does not say."""
    unsaid = [f"the neuron {label(layer.neuron)}, so the inputs are spikes and sums lack the token's threshold"]
    unsaid.append(f"the code {label(layer.encoder)} with the weights of its timesteps")
    if layer.bias is not None:
        unsaid.append("the bias, which is added once a token (in the metadata of nir.Scale)")
    return unsaid


def _faults_of_neuron(neuron: LeakyIntegrateAndFire, width: int) -> list[str]:
    """Return why a neuron is not NIR's integrate-and-fire neuron on integers."""
    faults = []
    if type(neuron) not in (IntegrateAndFire, LeakyIntegrateAndFire):
        faults.append(f"the class {type(neuron).__name__}, whose steps may be others")
    threshold = _each(neuron.threshold, width)
    # Beyond 2^24 float32, in which most tools compute, has no halves.
    if threshold is None or bool((threshold != threshold.round()).any()) or bool((threshold >= 2**23).any()):
        faults.append("a threshold that is not one integer below 2^23 a channel")
    if neuron.decay != 1:
        faults.append("a leak, which NIR has in continuous time")
    if neuron.reset != "hard":
        faults.append("a soft reset, as NIR sets the potential to v_reset")
    elif neuron.v_reset != round(neuron.v_reset) or abs(neuron.v_reset) >= 2**23:
        faults.append("a v_reset that is no integer below 2^23")
    initial = _each(neuron.v_initial, width)
    if neuron.reset == "hard" and (initial is None or bool((initial != neuron.v_reset).any())):
        faults.append("a v_initial that is not v_reset, from which other tools start")
    if neuron.negative_threshold is not None:
        faults.append("spikes of -1 (negative_threshold)")
    return faults


def _each(value: float | Tensor, width: int) -> np.ndarray | None:
    """Return a number for each channel; None if they differ elsewhere, or are not finite."""
    values = torch.as_tensor(value, dtype=torch.float64).cpu()
    if values.numel() not in (1, width) or (values.numel() > 1 and values.shape[-1] != width):
        return None
    if not bool(values.isfinite().all()):
        return None
    return values.reshape(-1).expand(width).numpy()


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} of them, such as {names[0]}"
