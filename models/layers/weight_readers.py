"""Code around a layer that uses its weights, or their dtype, where INT8 weights would not do."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
# Attributes of a weight that are the same, or harmless, for INT8 weights.
_HARMLESS = ("dtype", "device", "shape", "ndim", "size", "dim", "is_cuda", "requires_grad", "_is_hf_initialized")
# Questions about a weight, and methods that set weights up.
_ONLY_READ = "uses its weights without calling it"
_QUESTIONS, _SETUP = ("isinstance", "hasattr", "getattr", "id"), ("init", "reset_parameters", "tie_")


def why_its_weights_are_needed(model: nn.Module, name: str) -> str | None:
    """Return why the code around a layer needs its float weights, or None if it only calls the layer.

    The code is read: a method that uses `self.NAME.weight` and does not call `self.NAME`, that casts the input of the
    layer to the dtype of its weights, or that uses `block.PART.NAME.weight` (RWKV). Code without source is not seen.

    Args:
        model: has the layer.
        name: of the layer in the model.
    """
    path = name.split(".") if name else []
    owners = [(model.get_submodule(".".join(path[:i])), path[i]) for i in range(len(path))]
    for owner, child in owners:
        # peft's adapters, without importing peft; only plain LoRA just calls the layer that it adapts.
        if not hasattr(owner, "adapter_layer_names"):
            continue
        kind, variants = type(owner), getattr(owner, "lora_variant", None)
        if child != "base_layer":
            return f"part of the adapter {kind.__name__}, which uses its weights"
        if not kind.__module__.startswith("peft.tuners.lora.") or variants:
            return f"the adapter {kind.__name__} around it uses its weights"
    for i, (owner, _) in enumerate(owners):
        inside = "." + ".".join(path[i:])
        if any("." in tail and inside.endswith("." + tail) for tail in _readers(type(owner))):
            return f"{type(owner).__name__} {_ONLY_READ}"
    while owners and isinstance(owners[-1][0], _LISTS):
        owners.pop()
    if not owners:
        return None
    owner, child = owners[-1]
    reason = _readers(type(owner)).get(child)
    return f"{type(owner).__name__} {reason}" if reason else None


@functools.cache
def _readers(kind: type) -> dict[str, str]:
    """Return what methods of a class do with the weights of its children, by name of the child."""
    found: dict[str, str] = {}
    for name in dir(kind):
        method = inspect.getattr_static(kind, name)
        if not inspect.isfunction(method) or (hasattr(PreTrainedModel, name) and name != "forward"):
            continue
        method = inspect.unwrap(method)
        if "weight" in method.__code__.co_names and not any(word in name for word in _SETUP):
            found |= _uses(method)
    return found


def _uses(method: Any) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return {}
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    harmless = {id(a.value) for a in attributes if a.attr in _HARMLESS}
    harmless |= {id(x) for c in calls if isinstance(c.func, ast.Name) and c.func.id in _QUESTIONS for x in c.args}
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute | ast.Subscript)}
    weights = [a for a in attributes if a.attr == "weight" and isinstance(a.ctx, ast.Load)]
    used = {c for a in weights if id(a) not in harmless for c in _child(a.value)}
    alone = {c for node in nodes if id(node) not in inner for c in _child(node)}
    # Where a method does both, it depends on settings; a factor of @ is used by default (Jamba's dt_proj).
    factors = {id(x) for n in nodes if isinstance(n, ast.BinOp) for x in (n.left, n.right)}
    found = {c: "uses its weights as a factor" for a in weights if id(a) in factors for c in _child(a.value)}
    found |= dict.fromkeys(used - alone, _ONLY_READ)
    found |= dict.fromkeys({_tail(a.value) for a in weights if id(a) not in harmless} - {""}, _ONLY_READ)
    for call in calls:
        for child in _child(call.func):
            parts = [part for argument in (*call.args, *call.keywords) for part in ast.walk(argument)]
            dtypes = [p.value for p in parts if isinstance(p, ast.Attribute) and p.attr == "dtype"]
            if any(isinstance(d, ast.Attribute) and d.attr == "weight" and child in _child(d.value) for d in dtypes):
                found[child] = "casts its input to the dtype of its weights"
    return found


def _tail(node: ast.AST) -> str:
    """Return "b.c" for a.b.c, which names a layer from afar, also if a is self; "" for fewer names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return ".".join(names) if len(names) >= 2 else ""


def _child(node: ast.AST) -> Iterator[str]:
    """Yield NAME if the expression is self.NAME or self.NAME[...]."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        yield node.attr
