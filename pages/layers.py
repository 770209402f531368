"""Names of layers as kind and depth, for maps and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable


def kind_and_depth(name: str) -> tuple[str, int | None]:
    """Return a layer's name without its numbers, and the first of them.

    >>> kind_and_depth("model.layers.3.self_attn.q_proj")
    ('model.layers.*.self_attn.q_proj', 3)
    >>> kind_and_depth("lm_head")
    ('lm_head', None)
    """
    number = re.search(r"(?<=\.)\d+(?=\.|$)", f".{name}")
    kind = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", f".{name}")[1:]
    return kind, int(number[0]) if number else None


def short_names(kinds: Iterable[str]) -> dict[str, str]:
    """Return the shortest end of each name that no other one has.

    >>> short_names(["layers.*.attn.q_proj", "layers.*.attn.out", "layers.*.mlp.out"])
    {'layers.*.attn.q_proj': 'q_proj', 'layers.*.attn.out': 'attn.out', 'layers.*.mlp.out': 'mlp.out'}
    """
    kinds = list(dict.fromkeys(kinds))
    parts = {kind: kind.split(".") for kind in kinds}
    found = {}
    for kind in kinds:
        ends = [parts[kind][-length:] for length in range(1, len(parts[kind]) + 1)]
        alone = (end for end in ends if sum(other[-len(end) :] == end for other in parts.values()) == 1)
        found[kind] = ".".join(next(alone, parts[kind]))
    return found
