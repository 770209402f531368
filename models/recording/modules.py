"""What a model computes beside its spiking layers: which parts there are, their sizes, and how often each ran.

Our own layers and PyTorch's are known here, those of transformers by the records in `models/architectures.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...coding import Encoder
from ...coding.checks import fitted_to, train_of
from ...neuro import AdaptiveThreshold
from ..architectures import Part, has_no_work, part_of
from ..layers.attention_interface import query_neuron, runs_on_counts
from ..layers.experts import Experts, Gate
from ..layers.graded_linear import GradedLinear
from ..layers.spike_linear import SpikeLinear
from ..spikingbrain.attention import Attention
from ..spikingbrain.block import Block
from ..spikingbrain.mlp import SwiGLU
from ..spikingbrain.moe import MixtureOfExperts
from ..spikingbrain.norm import RMSNorm
from .norms import norm_sizes
from .uncounted import count_macs, has_products

# Containers, and modules whose work is counted with the module they are in or is none at all (in evaluation).
_NO_WORK = (nn.ModuleList, nn.Sequential, nn.ModuleDict, nn.Identity, nn.Dropout, nn.SiLU)


@dataclass
class ModuleRecord:
    """What one part of a model that does not spike did.

    Attributes:
        name: of the module in the model; where a module has several parts, followed by which of them this is.
        kind: "linear", "embedding", "rms-norm", "layer-norm", "softmax", "gla", "branches", "gated-mlp", "residual",
            "moe" or "experts"; or "uncounted" for a module with weights of which only their products are known.
        sizes: what the kind needs to know, such as channels and heads.
        num_tokens: vectors that passed.
        num_pairs: of attention, query tokens times the columns that each sees; of experts, vectors times the experts
            that each is routed to; of what is uncounted, its multiply-accumulates with weights, at most.
        before: name of the module in the model before which the work is done; "" if it is done where the part runs.
        num_spikes: of attention on counts, spikes of its queries, in the code of their projection; all below are of
            such attention, too.
        num_synops: spikes of queries times the columns that their query sees.
        num_weighted_synops: the same of spikes whose timestep does not weigh 1 or -1.
        num_shifted_sums: timesteps after the first, of each score.
        zero_point: the largest of the code.
    """

    name: str
    kind: str
    sizes: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0
    num_pairs: int = 0
    before: str = ""
    num_spikes: int = 0
    num_synops: int = 0
    num_weighted_synops: int = 0
    num_shifted_sums: int = 0
    zero_point: int = 0

    def add_queries(self, count: Tensor, seen: Tensor, encoder: Encoder) -> None:
        """Add the queries of a call.

        Args:
            count: spike counts, [B, H, L, D].
            seen: columns that each query sees, [B or 1, L].
            encoder: unrolls them; as in a layer, the train of a call is as long as its largest count needs.
        """
        if not count.numel():
            return
        values, place = count.unique(return_inverse=True)
        columns = seen.to(count.device)[:, None, :, None].expand_as(count)
        num_channels = torch.bincount(place.flatten(), minlength=len(values))
        num_columns = torch.zeros_like(num_channels).scatter_add_(0, place.flatten(), columns.flatten())
        suited, num_timesteps = fitted_to(encoder, int(values[0]), int(values[-1]))
        train = train_of(suited, values.int(), num_timesteps)
        fired = train.spikes.abs().to(torch.int64)  # [T, values]
        weighted = fired[(train.timestep_weight.abs() != 1).to(fired.device)].sum(0)
        self.num_spikes += int((fired.sum(0) * num_channels).sum())
        self.num_synops += int((fired.sum(0) * num_columns).sum())
        self.num_weighted_synops += int((weighted * num_columns).sum())
        self.num_shifted_sums += (num_timesteps - 1) * int(columns[..., 0].sum())
        self.zero_point = max(self.zero_point, train.zero_point)


# The kind of a module with weights of which only their products are known.
UNCOUNTED = "uncounted"

# Of activations in fused experts.
_SILU = ("SiLU", "SiLUActivation")

# (module, positional arguments, keyword arguments) of a call -> (tokens, pairs)
Measure = Callable[[Any, tuple, dict], tuple[int, int]]


def describe(model: nn.Module) -> tuple[list[tuple[nn.Module, ModuleRecord, Measure]], tuple[str, ...]]:
    """Return the parts of a model beside its spiking layers that can be counted, and what cannot.

    Returns:
        A list of module, empty record, and a function that reads tokens and pairs off the arguments of a call; one
        module may be several parts. And a text for every class of module that is not known, with the number of such
        modules and the name of the first.
    """
    parts: list[tuple[nn.Module, ModuleRecord, Measure]] = []
    unknown: dict[str, list[str]] = {}
    originals = {id(module.original) for module in model.modules() if isinstance(module, Gate)}
    for name, module in model.named_modules():
        if isinstance(module, SpikeLinear) or id(module) in originals:
            continue
        found = _parts(name, module)
        if not found and not _has_no_work(module, model):
            unknown.setdefault(_kind(module), []).append(name)
            if has_products(module):
                found = [(ModuleRecord(name, UNCOUNTED), count_macs)]
        parts += [(module, record, measure) for record, measure in found]
    return parts, tuple(f"{kind} ({len(names)}, first {names[0]!r})" for kind, names in sorted(unknown.items()))


def _kind(module: nn.Module) -> str:
    return f"gate of {type(module.original).__name__}" if isinstance(module, Gate) else type(module).__name__


def _has_no_work(module: nn.Module, model: nn.Module) -> bool:
    """Return whether a module has no work of its own: a container, a spiking layer, a model as a whole."""
    whole = module is model and any(module.children())
    return whole or isinstance(module, (SpikeLinear, GradedLinear, *_NO_WORK)) or has_no_work(module)


def _parts(name: str, module: nn.Module) -> list[tuple[ModuleRecord, Measure]]:
    """Return the parts of one module that does not spike, without those of its children."""
    if isinstance(module, nn.Linear | Conv1D):
        rows, columns = module.weight.shape
        inputs, outputs = (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
        sizes = {"in_features": inputs, "out_features": outputs, "bias": int(module.bias is not None)}
        return [(ModuleRecord(name, "linear", sizes), _vectors)]
    if isinstance(module, nn.Embedding):
        return [(ModuleRecord(name, "embedding", {"dim": module.embedding_dim}), _elements)]
    if isinstance(module, RMSNorm):
        return [(ModuleRecord(name, "rms-norm", {"dim": module.weight.numel()}), _vectors)]
    if isinstance(module, Experts | Gate):
        return _fused_parts(name, module)
    if isinstance(module, Attention | Block | SwiGLU | MixtureOfExperts):
        return _our_parts(name, module)
    return _known_parts(name, module)


def _known_parts(name: str, module: nn.Module) -> list[tuple[ModuleRecord, Measure]]:
    """Return the parts of a module of another library: by a record of its class, or as a norm."""
    part = part_of(module)
    if part is None:
        return _norm(name, module) if "norm" in type(module).__name__.lower() else []
    sizes = part.sizes_of(module)
    if sizes is None:  # another class of that name
        return []
    if part.kind == "softmax" and runs_on_counts(module):
        sizes |= _on_counts(query_neuron(module), sizes["dim"])
    record = ModuleRecord(name, part.kind, sizes, before=_child(name, part.before) if part.before else "")
    return [(record, _causal_pairs(part) if part.kind == "softmax" else _vectors)]


def _norm(name: str, module: nn.Module) -> list[tuple[ModuleRecord, Measure]]:
    known = norm_sizes(module)
    if known is None:
        return []
    record = ModuleRecord(name, *known)

    def measure(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
        x = _first(arguments, keywords)
        width = record.sizes.setdefault("dim", x.shape[-1])  # without weights it is as wide as what it is given
        return x.numel() // width, 0

    return [(record, measure)]


def _fused_parts(name: str, module: Experts | Gate) -> list[tuple[ModuleRecord, Measure]]:
    """Return the sum over the chosen experts, or what is between their projections if that is SiLU(g) * u."""
    if isinstance(module, Gate):
        act: Any = getattr(module.original, "act_fn", None)
        if not module.is_plain or type(act).__name__ not in _SILU:
            return []
        return [(ModuleRecord(name, "gated-mlp", {"dim": module.num_channels}), _vectors)]
    return [(ModuleRecord(name, "experts", {"dim": module.hidden_size}), _routes)]


def _routes(module: Experts, arguments: tuple, keywords: dict) -> tuple[int, int]:
    named = dict(zip(("hidden_states", "top_k_index"), arguments, strict=False)) | keywords
    x, index = named["hidden_states"], module.routes(named["hidden_states"], named.get("top_k_index"))
    num_tokens = len(x) // module.num_experts if module.by_blocks else len(x)
    return num_tokens, int(((index >= 0) & (index < module.num_experts)).sum())


def _our_parts(name: str, module: Attention | Block | SwiGLU | MixtureOfExperts) -> list[tuple[ModuleRecord, Measure]]:
    """Return the parts of a layer of SpikingBrain, and before which of its projections each is done."""
    if isinstance(module, Attention):
        return _our_attention(name, module)
    if isinstance(module, SwiGLU):
        sizes = {"dim": module.gate_proj.out_features}
        return [(ModuleRecord(name, "gated-mlp", sizes, before=_child(name, "down_proj")), _vectors)]
    if isinstance(module, MixtureOfExperts):
        sizes = {"dim": module.router.in_features, "experts": module.num_experts}
        sizes |= {"chosen": module.num_chosen, "shared": module.num_shared}
        return [(ModuleRecord(name, "moe", sizes, before=_child(name, "router")), _vectors)]
    sizes = {"dim": module.attn_norm.weight.numel()}
    is_moe = isinstance(module.mlp, MixtureOfExperts)
    first, last = ("mlp.router", "mlp.router") if is_moe else ("mlp.gate_proj", "mlp.down_proj")
    residual = ModuleRecord(name, "residual", sizes, before=_child(name, last))
    # The second norm is called together with the residual before it, not as a module.
    norm = ModuleRecord(f"{name}.mlp_norm after residual", "rms-norm", dict(sizes), before=_child(name, first))
    return [(residual, _vectors), (norm, _vectors)]


def _our_attention(name: str, module: Attention) -> list[tuple[ModuleRecord, Measure]]:
    config, plan, before = module.config, module.plan, _child(name, "o_proj")
    sizes = {"heads": config.num_heads, "kv_heads": config.num_kv_heads, "dim": config.dim}
    parts: list[tuple[ModuleRecord, Measure]] = []
    if "gla" in plan.mixers:
        sigmoid = int(config.feature_map == "sigmoid")
        gated = {**sizes, "sigmoid": sigmoid, "tied": int(config.gate == "tied")}
        parts.append((ModuleRecord(f"{name} linear", "gla", gated, before=before), _vectors))
    if plan.softmax:
        softmax = {**sizes, "integer": 0, "rounds_cache": int(module.spiking is not None)}
        if module.spiking == "as-described":
            softmax |= _on_counts(AdaptiveThreshold(config.k), config.dim)
        parts.append((ModuleRecord(f"{name} softmax", "softmax", softmax, before=before), _our_pairs))
    if plan.is_parallel:
        parts.append((ModuleRecord(f"{name} branches", "branches", sizes, before=before), _vectors))
    return parts


def _on_counts(neuron: AdaptiveThreshold, dim: int) -> dict[str, int]:
    """Return the sizes of attention on counts; no score exceeds `largest_score` while no limit of thresholds binds."""
    return {"integer": 1, "rounds_cache": 1, "largest_score": int(128 * neuron.count_bounds(dim).mean * dim)}


def _child(name: str, path: str) -> str:
    """Return the name in the model of a child of a module; the model itself has the name ""."""
    return f"{name}.{path}" if name else path


def _first(arguments: tuple, keywords: dict) -> Any:
    return arguments[0] if arguments else next(iter(keywords.values()))


def _vectors(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
    x = _first(arguments, keywords)
    return x.shape[:-1].numel(), 0


def _elements(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
    return _first(arguments, keywords).numel(), 0


def _causal_pairs(part: Part) -> Measure:
    """Return what measures causal attention of transformers, with the columns that its cache holds before the call."""

    def measure(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
        batch, length = _first(arguments, keywords).shape[:2]
        names = ("cache", "past_key_values", "past_key_value")  # it was renamed from version to version
        cache = next((keywords[name] for name in names if keywords.get(name) is not None), None)
        before = 0 if cache is None else int(cache.get_seq_length(module.layer_idx))
        return batch * length, batch * visible_columns(length, before, part.window_of(module))

    return measure


def _our_pairs(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
    """Softmax attention of `Attention.forward(x, context, state)`: sinks in front, and a window over the rest."""
    named = dict(zip(("x", "context", "state"), arguments, strict=False)) | keywords
    batch, length = named["x"].shape[:2]
    if not named["context"].causal:
        return batch * length, batch * length * length
    state = named.get("state")
    columns = None if state is None else state.columns
    kept = columns.tensors[0].shape[2] if columns is not None and columns.tensors else 0
    sinks = 0 if columns is None else columns.num_pinned
    window = module.config.max_window_keys if module.plan.softmax == "swa" else None
    return batch * length, batch * (length * sinks + visible_columns(length, kept - sinks, window))


def visible_columns(length: int, before: int, window: int | None = None) -> int:
    """Return how many columns consecutive tokens see together: each itself and those before it.

    Args:
        length: new tokens.
        before: columns in front of the first of them.
        window: columns that a token sees at most, itself included; None for all.

    >>> visible_columns(3, 2), visible_columns(3, 2, window=4)
    (12, 11)
    """
    seen = range(before + 1, before + length + 1)
    return sum(seen) if window is None else sum(min(n, window) for n in seen)
