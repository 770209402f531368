"""What mappings return, checked where it enters; see `neuro.checks`."""

from __future__ import annotations

from ..neuro.checks import asking, needs_check, refuse
from .description import Description
from .mapping import CoreTile, Mapping, Placement, accumulator_bytes, accumulators_of_output, cut_of
from .weights import BYTES, Weights


def placed(
    mapping: Mapping,
    in_features: int,
    out_features: int,
    chip: Description,
    *,
    height: int = 4,
    streamed: bool = False,
    weights: Weights = BYTES,
) -> Placement:
    """Return `mapping.place(...)`, checked if the mapping is not of this package.

    Raises:
        InputError: the mapping returned no placement, or one that loses channels, or leaves the mesh or its cores'
            memory; or the layer does not fit the chip.
    """
    others = {} if weights == BYTES else {"weights": weights}  # a `place` of one's own may know only of bytes
    if not needs_check(mapping):
        return mapping.place(in_features, out_features, chip, height=height, streamed=streamed, **others)
    if type(mapping).place is Mapping.place and not streamed:
        with asking(mapping, "cut"):
            cut = cut_of(mapping, in_features, out_features, chip, weights)
        fits = isinstance(cut, tuple) and len(cut) == 2 and all(type(n) is int for n in cut)
        most = weights.num_groups(in_features) if weights.in_groups else in_features
        if not fits or not (1 <= cut[0] <= most and 1 <= cut[1] <= out_features):
            expected = f"numbers of input and output blocks, in 1 to {most} and 1 to {out_features}"
            raise refuse(mapping, "cut", expected, repr(cut))
    with asking(mapping, "place"):
        placement = mapping.place(in_features, out_features, chip, height=height, streamed=streamed, **others)
    fault = _fault(placement, in_features, out_features, chip, weights)
    if fault is not None:
        raise refuse(mapping, *fault)
    return placement


def _fault(
    placement: object, in_features: int, out_features: int, chip: Description, weights: Weights
) -> tuple[str, str, str] | None:
    """Return the method, what it should have returned and what it did, or None."""
    if not isinstance(placement, Placement):
        return "place", "a Placement", type(placement).__name__
    if placement.weights != weights:
        return "place", f"a placement of {weights}", str(placement.weights)
    return _fault_of_blocks(placement, in_features, out_features, chip) or _fault_of_tiles(placement, chip)


def _fault_of_blocks(
    placement: Placement, in_features: int, out_features: int, chip: Description
) -> tuple[str, str, str] | None:
    cores, num_in, weights = placement.cores, placement.num_input_blocks, placement.weights
    if not cores or num_in < 1 or len(cores) % num_in:
        return "place", "num_input_blocks cores for each block of outputs", f"{len(cores)} cores, {num_in} input blocks"
    for what, blocks, total in (
        ("input", placement.input_blocks, in_features),
        ("output", placement.output_blocks, out_features),
        ("sent", [sent for _, sent in placement.senders], in_features),
    ):
        if [n for block in blocks for n in block] != list(range(total)):
            return "place", f"blocks that hold each of {total} {what} channels once, in order", str(blocks)
    for i, core in enumerate(cores):
        if core.inputs != cores[i % num_in].inputs or core.outputs != cores[i - i % num_in].outputs:
            return "place", "cores ordered by outputs, then by inputs", f"{core} as number {i}"
        if core.inputs.start % (weights.group_size or 1):
            return "place", f"cores of whole groups of {weights.group_size} inputs", f"{core} as number {i}"
        fault = _fault_of_size(core, placement, chip)
        if fault is not None:
            return fault
    return None


def _fault_of_size(core: CoreTile, placement: Placement, chip: Description) -> tuple[str, str, str] | None:
    weights, num_outputs = placement.weights, len(core.outputs)
    used = weights.num_bytes(len(core.inputs), num_outputs) + accumulator_bytes(num_outputs, chip, weights)
    if used > chip.core.sram_bytes and not placement.streamed:
        return "cut", f"blocks of at most {chip.core.sram_bytes:,} bytes, which a core has", f"{used:,} bytes"
    sums, registers = num_outputs * accumulators_of_output(chip, weights), chip.core.register_accumulators
    if registers and sums > registers:
        expected = f"blocks of outputs with at most {registers:,} accumulators, which a core's registers hold"
        return "cut", expected, f"{sums:,} accumulators"
    return None


def _fault_of_tiles(placement: Placement, chip: Description) -> tuple[str, str, str] | None:
    mesh, (left, top) = chip.mesh, placement.origin
    if placement.columns > mesh.columns or placement.rows > mesh.rows:
        return "place", f"at most {mesh.columns} x {mesh.rows} tiles", f"{placement.columns} x {placement.rows}"
    columns, rows = range(left, left + placement.columns), range(top, top + placement.rows)
    tiles = [core.tile for core in placement.cores]
    for method, tile in (("home", placement.home), *(("place", tile) for tile in (*tiles, *dict(placement.sources)))):
        if not isinstance(tile, tuple) or len(tile) != 2 or tile[0] not in columns or tile[1] not in rows:
            return method, f"a tile of the layer's {placement.columns} x {placement.rows} tiles", repr(tile)
    most = max(tiles.count(tile) for tile in set(tiles))
    if most > mesh.cores_per_tile:
        return "place", f"at most {mesh.cores_per_tile} cores a tile", f"{most}"
    return None
