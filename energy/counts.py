"""What was computed, in exact integers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import InputError
from ..text_table import kind_of, text_table

SYSTEMS = ("spiking", "same_weights", "int8", "fp16")
# Kinds of parts whose inputs spike: layers, and the scores of attention on counts.
PROJECTION, SCORES = "projection", "scores"
ON_SPIKES = (PROJECTION, SCORES)


@dataclass(frozen=True)
class OperationCounts:
    """Operations of one or more layers; add them with `+`, repeat them with `* integer`.

    Some work can be done in several ways (which weights are read, when digits are shifted). Each way has its own field,
    and the energy model uses one of them. It uses all other fields.

    Attributes:
        num_activations: channels encoded, over all tokens.
        num_spikes: spikes of either sign that left the encoder.
        num_synops: spikes times the synapses they reach, zero weights included: one accumulate (AC) each. They are
            among the integer additions.
        num_macs: multiply-accumulates of products with weights, and of queries with keys where queries spike, in any
            format. They are among the MACs by format.
        num_add_int8: integer additions whose operands and sum fit 8 bits.
        num_add_int16: integer additions that need 16 bits.
        num_add_int32: integer additions that need 32 bits.
        num_mul_int32: integer multiplications (of a zero point with a row sum).
        num_shifts_per_spike: shifts, if each added weight is shifted by the digit of its spike.
        num_shifts_per_timestep: shifts, if each sum is shifted once between two timesteps.
        num_mac_int8: INT8 multiplications, each with an addition to a 32-bit sum.
        num_mac_fp16: FP16 multiplications, each with an addition.
        num_mac_fp32: FP32 multiplications, each with an addition.
        num_encoded_tokens: vectors that became integers, each with a threshold or scale of its own.
        num_encode_abs: magnitudes taken to find thresholds or scales.
        num_encode_add: additions to find them.
        num_encode_compare: comparisons to find or limit them.
        num_encode_div: divisions, to find them and by them.
        num_encode_round: roundings to integers.
        num_mul_int8: products of bytes (of which one of a sum with an integer scale has several).
        num_rescale_convert: integer sums turned into floats.
        num_rescale_mul: multiplications of those with scales and thresholds.
        num_rescale_add: additions of groups and biases.
        num_add_fp32: other FP32 additions.
        num_mul_fp32: other FP32 multiplications.
        num_div_fp32: other FP32 divisions.
        num_exp_fp32: exponentials, logarithms, sines and cosines.
        num_sqrt_fp32: square roots.
        num_compare_fp32: other comparisons.
        weight_spike_bytes: weights read, if each spike reads its row.
        weight_channel_bytes: weights read, if each active channel's row is read once.
        weight_block_bytes: weights read, if memory gives whole blocks.
        weight_bytes: weights that dense layers read.
        parameter_bytes: scales, biases, norm weights and embedding rows read.
        activation_bytes: activations read and written.
        accumulator_bytes: sums read and written, if they do not stay where they are added.
        state_bytes: states of linear attention read and written.
        kv_bytes: keys and values read and written.
    """

    num_activations: int = 0
    num_spikes: int = 0
    num_synops: int = 0
    num_macs: int = 0
    num_add_int8: int = 0
    num_add_int16: int = 0
    num_add_int32: int = 0
    num_mul_int32: int = 0
    num_shifts_per_spike: int = 0
    num_shifts_per_timestep: int = 0
    num_mac_int8: int = 0
    num_mac_fp16: int = 0
    num_mac_fp32: int = 0
    num_encoded_tokens: int = 0
    num_encode_abs: int = 0
    num_encode_add: int = 0
    num_encode_compare: int = 0
    num_encode_div: int = 0
    num_encode_round: int = 0
    num_rescale_convert: int = 0
    num_rescale_mul: int = 0
    num_rescale_add: int = 0
    num_add_fp32: int = 0
    num_mul_fp32: int = 0
    num_div_fp32: int = 0
    num_exp_fp32: int = 0
    num_sqrt_fp32: int = 0
    num_compare_fp32: int = 0
    weight_spike_bytes: int = 0
    weight_channel_bytes: int = 0
    weight_block_bytes: int = 0
    weight_bytes: int = 0
    parameter_bytes: int = 0
    activation_bytes: int = 0
    accumulator_bytes: int = 0
    state_bytes: int = 0
    kv_bytes: int = 0
    num_mul_int8: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if type(value) is not int or value < 0:
                raise InputError(f"OperationCounts.{f.name}: expected an integer >= 0, got {value!r}.")

    def __add__(self, other: OperationCounts) -> OperationCounts:
        return OperationCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: int) -> OperationCounts:
        if type(factor) is not int or factor < 0:
            raise InputError(f"OperationCounts * n: expected an integer n >= 0, got {factor!r}.")
        return OperationCounts(*(getattr(self, f.name) * factor for f in fields(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class LayerCounts:
    """One part of a model in four systems, for the same tokens.

    Attributes:
        kind: "projection" for a layer that spikes, "scores" for products of queries that spike; else what it is, as in
            `ModuleRecord`.
        spiking: what this run did.
        int8: the same part in a model of INT8 weights and activations, without spikes.
        fp16: the same part in a model of FP16 weights and activations.
        weight_count: weights of the part.
        accumulator_bits: that hold every sum of a spiking layer, sign included; 0 without spikes.
        stored_bytes: of the weights of a spiking layer, with the scales and minima of its groups; None for a byte each.
        same_weights: the part without spikes, with the same weights in their bits (but no coarse rows), the same
            attention, and INT8 activations: what it costs beyond `spiking` is what spikes save.
    """

    kind: str
    spiking: OperationCounts = field(default_factory=OperationCounts)
    int8: OperationCounts = field(default_factory=OperationCounts)
    fp16: OperationCounts = field(default_factory=OperationCounts)
    weight_count: int = 0
    accumulator_bits: int = 0
    stored_bytes: int | None = None
    same_weights: OperationCounts = field(default_factory=OperationCounts)

    def __post_init__(self) -> None:
        if self.stored_bytes is None:
            object.__setattr__(self, "stored_bytes", self.weight_count)

    def __add__(self, other: LayerCounts) -> LayerCounts:
        mine, theirs = ((one.kind, one.weight_count, one.stored_bytes) for one in (self, other))
        if mine != theirs:
            raise InputError(
                f"LayerCounts: expected the same part twice, got {self.kind} of {self.weight_count} weights and "
                f"{other.kind} of {other.weight_count}. Add recordings of one model."
            )
        systems = (getattr(self, s) + getattr(other, s) for s in SYSTEMS)
        bits = max(self.accumulator_bits, other.accumulator_bits)
        return replace(self, **dict(zip(SYSTEMS, systems, strict=True)), accumulator_bits=bits)


@dataclass(frozen=True)
class ModelCounts:
    """What a model computed for some tokens; runs of the same model and settings add with `+`.

    Attributes:
        layers: parts by name.
        num_tokens: tokens that passed the model: the most that passed any of its spiking layers.
        model: class of the model.
        neuron: of the spiking layers, with k.
        encoder: that the counts are for.
        unsupported: parts of the model that are not counted.
        uncounted_macs: multiply-accumulates with weights of those parts, at most.
        assumptions: of the counts.
    """

    layers: Mapping[str, LayerCounts]
    num_tokens: int = 0
    model: str = ""
    neuron: str = ""
    encoder: str = ""
    unsupported: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    uncounted_macs: int = 0

    def __repr__(self) -> str:
        title = f"Counts of {self.model or 'a model'}: {self.num_tokens:,} tokens, {self.neuron}, {self.encoder}"
        rows = [
            (name, f"{layer.spiking.num_spikes:,}", f"{layer.spiking.num_synops:,}", f"{layer.int8.num_macs:,}")
            for name, layer in self.grouped().layers.items()
        ]
        return f"{title}\n{text_table(('part of the model', 'spikes', 'SynOps', 'MACs in INT8'), rows)}"

    @property
    def uncounted_share(self) -> float:
        """Share of all multiply-accumulates with weights that is not counted, at most."""
        counted = sum(layer.int8.num_macs for layer in self.layers.values() if layer.kind != SCORES)
        return self.uncounted_macs / max(self.uncounted_macs + counted, 1)

    def not_counted(self) -> str:
        """Return one sentence on what is not counted and its share of the work, or "" if everything is."""
        if not self.unsupported:
            return ""
        return (
            f"Not counted: {'; '.join(self.unsupported)}. Of all multiply-accumulates with weights these do "
            f"{'up to ' if self.uncounted_macs else ''}{self.uncounted_share:.1%}."
        )

    def on_spikes(self) -> dict[str, LayerCounts]:
        """Return the parts whose inputs spike."""
        return {name: layer for name, layer in self.layers.items() if layer.kind in ON_SPIKES}

    def total(self, system: str, *, kind: str | Collection[str] | None = None) -> OperationCounts:
        """Return the sum over all parts, or over those of one kind, or of several.

        Args:
            system: "spiking", "same_weights", "int8" or "fp16".
            kind: as in `LayerCounts`; None for all.
        """
        kinds = (kind,) if isinstance(kind, str) else kind
        chosen = (layer for layer in self.layers.values() if kinds is None or layer.kind in kinds)
        return sum((getattr(layer, system) for layer in chosen), OperationCounts())

    def grouped(self) -> ModelCounts:
        """Return the same counts with like layers added up: `layers.0.q_proj` and so on become `layers.*.q_proj`.

        Layers that have a name in common but are of another kind than the first (experts among dense parts) are a group
        of their own, with the kind behind the name.
        """
        groups: dict[str, LayerCounts] = {}
        for name, layer in self.layers.items():
            group = kind_of(name)
            if group in groups and groups[group].kind != layer.kind:
                group = f"{group} ({layer.kind})"
            known = groups.get(group)
            if known is None:
                groups[group] = layer
                continue
            none = {"weight_count": 0, "stored_bytes": 0}
            sizes = {size: getattr(known, size) + getattr(layer, size) for size in none}
            groups[group] = replace(replace(known, **none) + replace(layer, **none), **sizes)
        return replace(self, layers=groups)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it, without operations that did not occur.

        Each layer, and the whole, has a checksum ("sha256"): without it, a count that a file has lost would be read as
        an operation that did not occur.
        """
        layers = {
            name: _with_checksum(
                {
                    "kind": layer.kind,
                    "weight_count": layer.weight_count,
                    "accumulator_bits": layer.accumulator_bits,
                    **({} if layer.stored_bytes == layer.weight_count else {"stored_bytes": layer.stored_bytes}),
                    **{s: {k: n for k, n in vars(getattr(layer, s)).items() if n} for s in SYSTEMS},
                }
            )
            for name, layer in self.layers.items()
        }
        return _with_checksum({**asdict(replace(self, layers={})), "layers": layers})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelCounts:
        """Read what `to_dict` gave.

        Raises:
            InputError: it is something else, or it was changed; the message says where.
        """
        try:
            layers = {name: _read_layer(name, layer) for name, layer in content["layers"].items()}
            rest: dict[str, Any] = {name: content[name] for name in ("num_tokens", "model", "neuron", "encoder")}
            rest["uncounted_macs"] = content["uncounted_macs"]
            rest |= {name: tuple(content[name]) for name in ("unsupported", "assumptions")}
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"ModelCounts.from_dict: expected what to_dict wrote, got another content: {error!r}."
            ) from error
        if type(rest["num_tokens"]) is not int or rest["num_tokens"] < 0:
            raise InputError(f"num_tokens: expected an integer >= 0, got {rest['num_tokens']!r}.")
        _check(content, "counts")
        return cls(layers, **rest)

    def __add__(self, other: ModelCounts) -> ModelCounts:
        for what in ("model", "neuron", "encoder"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise InputError(
                    f"ModelCounts: expected counts of the same {what}, got {mine!r} and {theirs!r}. "
                    "Compare them side by side instead of adding."
                )
        if self.layers.keys() != other.layers.keys():
            differing = sorted(self.layers.keys() ^ other.layers.keys())
            raise InputError(
                f"ModelCounts: expected recordings of one model, got another with different layers, such as "
                f"{differing[0]!r}. Add recordings of one model."
            )
        layers = {name: layer + other.layers[name] for name, layer in self.layers.items()}
        return ModelCounts(
            layers,
            self.num_tokens + other.num_tokens,
            self.model,
            self.neuron,
            self.encoder,
            tuple(dict.fromkeys(self.unsupported + other.unsupported)),
            tuple(dict.fromkeys(self.assumptions + other.assumptions)),
            self.uncounted_macs + other.uncounted_macs,
        )


def _read_layer(name: str, content: Mapping[str, Any]) -> LayerCounts:
    """Return the counts of a layer from what `ModelCounts.to_dict` gave."""
    systems = {}
    for system in SYSTEMS:
        try:
            systems[system] = OperationCounts(**content[system])
        except (InputError, TypeError) as error:
            raise InputError(f"layers.{name}.{system}: {error}") from error
    for key in ("weight_count", "accumulator_bits", *(("stored_bytes",) if "stored_bytes" in content else ())):
        if type(content[key]) is not int or content[key] < 0:
            raise InputError(f"layers.{name}.{key}: expected an integer >= 0, got {content[key]!r}.")
    _check(content, f"layers.{name}")
    return LayerCounts(**{**{k: v for k, v in content.items() if k != _CHECKSUM}, **systems})


_CHECKSUM = "sha256"


def _with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    written = json.dumps({k: v for k, v in content.items() if k != _CHECKSUM}, sort_keys=True)
    return {**content, _CHECKSUM: hashlib.sha256(written.encode()).hexdigest()}


def _check(content: Mapping[str, Any], where: str) -> None:
    """Raise an InputError unless the checksum is that of the content."""
    if content.get(_CHECKSUM) != _with_checksum(dict(content))[_CHECKSUM]:
        raise InputError(
            f"{where}: expected the counts that were written, got others: their sha256 differs. The file was changed, "
            "or is of another version."
        )
