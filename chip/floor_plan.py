"""Where on the mesh each layer of a model lies."""

from __future__ import annotations

from collections.abc import Mapping as MappingOf

from ..errors import InputError
from .checks import placed
from .description import Description
from .mapping import Mapping, Placement, check_registers, core_size, enlarge, moved
from .weights import BYTES, Weights


def plan(
    layers: MappingOf[str, tuple[int, int]],
    chip: Description,
    mapping: Mapping,
    *,
    stream: bool = False,
    weights: MappingOf[str, Weights] | None = None,
) -> dict[str, Placement]:
    """Place every layer of a model on a rectangle of its own; streamed layers take turns on the whole mesh.

    Args:
        layers: (in_features, out_features) of each layer, in order.
        chip: the chip.
        mapping: cuts layers.
        stream: weights stream from DRAM.
        weights: how they lie in the cores, by name; a byte a weight without groups for layers without.
    Raises:
        InputError: the model does not fit; the message gives the number of cores it needs.
    """

    def place_all(height: int) -> dict[str, Placement]:
        return {
            name: _placed(name, mapping, shape, chip, height, stream, (weights or {}).get(name, BYTES))
            for name, shape in layers.items()
        }

    if stream:
        return place_all(chip.mesh.rows)
    found: dict[str, Placement] = {}
    heights = dict.fromkeys(h for h in (4, 8, 2, 6, 3, 5, 12, 16, 1, 32) if h <= chip.mesh.rows)
    for height in heights:
        found = place_all(height)
        planned = _shelves(found, chip, height)
        if planned is not None:
            return planned
    needed = sum(len(p.cores) for p in found.values())
    raise InputError(
        f"{chip.name}: {len(layers)} layers need {needed:,} cores of {core_size(chip)} and whole "
        f"rectangles of tiles; the chip has {chip.num_cores:,} cores. Enlarge [mesh] or {enlarge(chip)}, take fewer "
        "layers, or stream weights from DRAM (stream=True)."
    )


def _placed(
    name: str,
    mapping: Mapping,
    shape: tuple[int, int],
    chip: Description,
    height: int,
    stream: bool,
    weights: Weights,
) -> Placement:
    """Place one layer; an error names it."""
    try:
        found = placed(mapping, *shape, chip, height=height, streamed=stream, weights=weights)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    check_registers(found, chip, name)
    return found


def _shelves(rectangles: MappingOf[str, Placement], chip: Description, height: int) -> dict[str, Placement] | None:
    """Put rectangles side by side on shelves of one height; narrow ones share a column. None if they do not fit."""
    planned, x, y, shelf, width = {}, 0, 0, 0, 0
    for name, p in rectangles.items():
        if not (p.columns == width == 1 and y + p.rows <= height):
            x, y, width = x + width, 0, p.columns
        if x + p.columns > chip.mesh.columns:
            x, y, shelf, width = 0, 0, shelf + height, p.columns
        if shelf + y + p.rows > chip.mesh.rows:
            return None
        planned[name] = moved(p, (x, shelf + y))
        y += p.rows
        if p.rows > height:
            x, y, shelf, width = 0, 0, shelf + p.rows, 0
    return planned
