"""What mappings return, checked where it enters; see `neuro.checks`."""

from __future__ import annotations

from ..neuro.checks import asking, needs_check, refuse
from .description import Description
from .mapping import Mapping, Placement, accumulator_bytes


def placed(
    mapping: Mapping, in_features: int, out_features: int, chip: Description, *, height: int = 4, streamed: bool = False
) -> Placement:
    """Return `mapping.place(...)`, checked if the mapping is not of this package.

    Raises:
        InputError: the mapping returned no placement, or one that loses channels, or leaves the mesh or its cores'
            memory; or the layer does not fit the chip.
    """
    if not needs_check(mapping):
        return mapping.place(in_features, out_features, chip, height=height, streamed=streamed)
    if type(mapping).place is Mapping.place and not streamed:
        with asking(mapping, "cut"):
            cut = mapping.cut(in_features, out_features, chip)
        fits = isinstance(cut, tuple) and len(cut) == 2 and all(type(n) is int for n in cut)
        if not fits or not (1 <= cut[0] <= in_features and 1 <= cut[1] <= out_features):
            expected = f"numbers of input and output blocks, in 1 to {in_features} and 1 to {out_features}"
            raise refuse(mapping, "cut", expected, repr(cut))
    with asking(mapping, "place"):
        placement = mapping.place(in_features, out_features, chip, height=height, streamed=streamed)
    fault = _fault(placement, in_features, out_features, chip)
    if fault is not None:
        raise refuse(mapping, *fault)
    return placement


def _fault(placement: object, in_features: int, out_features: int, chip: Description) -> tuple[str, str, str] | None:
    """Return the method, what it should have returned and what it did, or None."""
    if not isinstance(placement, Placement):
        return "place", "a Placement", type(placement).__name__
    return _fault_of_blocks(placement, in_features, out_features, chip) or _fault_of_tiles(placement, chip)


def _fault_of_blocks(
    placement: Placement, in_features: int, out_features: int, chip: Description
) -> tuple[str, str, str] | None:
    cores, num_in = placement.cores, placement.num_input_blocks
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
        used = len(core.outputs) * (len(core.inputs) + accumulator_bytes(1, chip))
        if used > chip.core.sram_bytes and not placement.streamed:
            return "cut", f"blocks of at most {chip.core.sram_bytes:,} bytes, which a core has", f"{used:,} bytes"
        sums, registers = len(core.outputs) * chip.core.accumulator_banks, chip.core.register_accumulators
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
