"""Which core holds which weights of a layer, and where on the mesh a layer lies."""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import InputError
from ..registry import Registry
from .description import Description
from .weights import BYTES, Weights

Tile = tuple[int, int]


@dataclass(frozen=True)
class CoreTile:
    """The weights of one core: some inputs times some outputs.

    Attributes:
        tile: (column, row) on the mesh.
        inputs: positions of input channels, in the order in which they are sent.
        outputs: output channels.
    """

    tile: Tile
    inputs: range
    outputs: range


@dataclass(frozen=True)
class Placement:
    """A layer on the mesh.

    Attributes:
        origin, columns, rows: the rectangle of tiles that belongs to the layer.
        home: tile whose digital unit receives the sums. Its encoder sends the input, unless `sources` names others.
        cores: ordered by outputs, then by inputs: the cores of one block of outputs follow each other.
        num_input_blocks: number of cores that share a block of outputs; their partial sums meet at the first one.
        streamed: True if weights come from DRAM, block by block.
        sources: tiles that send parts of the input; empty if the home sends all of it.
        weights: how they lie in the cores.
    """

    origin: Tile
    columns: int
    rows: int
    home: Tile
    cores: tuple[CoreTile, ...]
    num_input_blocks: int
    streamed: bool = False
    sources: tuple[tuple[Tile, range], ...] = ()
    weights: Weights = BYTES

    @property
    def senders(self) -> tuple[tuple[Tile, range], ...]:
        """Tiles that encode and send the input, with the positions that each sends."""
        return self.sources or ((self.home, range(self.cores[-1].inputs.stop)),)

    @property
    def output_blocks(self) -> list[range]:
        """Output channels of each block, in order."""
        return [core.outputs for core in self.cores[:: self.num_input_blocks]]

    @property
    def input_blocks(self) -> list[range]:
        """Input positions of each block, in order."""
        return [core.inputs for core in self.cores[: self.num_input_blocks]]

    @property
    def num_tiles(self) -> int:
        """Tiles that hold weights or send."""
        return len({core.tile for core in self.cores} | {tile for tile, _ in self.senders})


def route(start: Tile, end: Tile) -> list[tuple[Tile, Tile]]:
    """Return the links from one tile to another, first along the row, then along the column (XY routing).

    >>> route((0, 0), (1, 1))
    [((0, 0), (1, 0)), ((1, 0), (1, 1))]
    """
    tiles = [start]
    while tiles[-1] != end:
        x, y = tiles[-1]
        tiles.append((x + (1 if end[0] > x else -1), y) if x != end[0] else (x, y + (1 if end[1] > y else -1)))
    return list(itertools.pairwise(tiles))


def is_north_south(a: Tile, b: Tile) -> bool:
    """Return whether the link from tile to tile runs along a column."""
    return a[0] == b[0]


class Mapping(ABC):
    """Cuts a layer into blocks that fit the cores, and places them.

    To add a mapping, write `cut` and `home`. `place` does the rest; `plan` moves the result to its part of the mesh.
    """

    @abstractmethod
    def cut(self, in_features: int, out_features: int, chip: Description, weights: Weights = BYTES) -> tuple[int, int]:
        """Return the numbers of input blocks and of output blocks. Every block has to fit the memory of a core.

        Where the registers of a core hold fewer sums, `place` makes more blocks of outputs. Input blocks of a layer in
        groups consist of whole groups. A mapping without the parameter `weights` takes only layers of `BYTES`.
        """

    @abstractmethod
    def home(self, placement: Placement) -> Tile:
        """Return the tile of the layer's rectangle that sends its input and receives its sums."""

    def place(
        self,
        in_features: int,
        out_features: int,
        chip: Description,
        *,
        height: int = 4,
        streamed: bool = False,
        weights: Weights = BYTES,
    ) -> Placement:
        """Place a layer with its upper left corner at tile (0, 0).

        Args:
            in_features: input channels, at least 1.
            out_features: output channels, at least 1.
            chip: the chip.
            height: largest number of rows of the layer's rectangle.
            streamed: weights stream from DRAM, so that only accumulators have to fit.
            weights: how they lie in the cores.
        Raises:
            InputError: no division of the layer fits the cores, it needs more cores than the chip has, or its weights
                are in groups and the chip cannot rescale them.
        """
        check_groups(weights, chip)
        if streamed:
            num_in, num_out = _streamed_cut(out_features, chip, weights)
        else:
            num_in, num_out = cut_of(self, in_features, out_features, chip, weights)
            if (most := _most_outputs(chip, weights)) is not None:  # a mapping need not know of registers
                num_out = max(num_out, -(-out_features // most))
        num_cores = num_in * num_out
        if num_cores > chip.num_cores:
            raise InputError(
                f"{chip.name}: a layer of {out_features} x {in_features} needs {num_cores:,} cores of "
                f"{core_size(chip)}, the chip has {chip.num_cores:,}. Enlarge [mesh] or {enlarge(chip)}, or "
                "stream weights from DRAM (stream=True)."
            )
        num_tiles = -(-num_cores // chip.mesh.cores_per_tile)
        rows = min(height, num_tiles, chip.mesh.rows)
        columns = -(-num_tiles // rows)
        if columns > chip.mesh.columns:
            columns = min(chip.mesh.columns, num_tiles)
            rows = -(-num_tiles // columns)
        cores = []
        for o, outputs in enumerate(_blocks(out_features, num_out)):
            for i, inputs in enumerate(_input_blocks(in_features, num_in, weights)):
                tile = (o * num_in + i) // chip.mesh.cores_per_tile
                cores.append(CoreTile((tile // rows, tile % rows), inputs, outputs))
        placement = Placement((0, 0), columns, rows, (0, 0), tuple(cores), num_in, streamed, weights=weights)
        return replace(placement, home=self.home(placement))


MAPPINGS: Registry[Mapping] = Registry("mapping", Mapping, "spikebrain.mappings")


@MAPPINGS.register("in-order")
@dataclass(frozen=True)
class InOrder(Mapping):
    """The fewest cores; among divisions with as few, the one with the fewest input blocks. Home is the corner."""

    def cut(self, in_features: int, out_features: int, chip: Description, weights: Weights = BYTES) -> tuple[int, int]:
        """Return the division with the fewest cores."""
        return min(_cuts(in_features, out_features, chip, weights), key=lambda cut: (cut[0] * cut[1], cut[0]))

    def home(self, placement: Placement) -> Tile:
        """Return the upper left corner."""
        return (0, 0)


@MAPPINGS.register("minimal-traffic")
@dataclass(frozen=True)
class MinimalTraffic(Mapping):
    """The fewest packet-hops if every input channel sends one packet, from the home tile that needs the fewest.

    Compares divisions that take at most a quarter more cores than necessary.
    """

    def cut(self, in_features: int, out_features: int, chip: Description, weights: Weights = BYTES) -> tuple[int, int]:
        """Return the division with the least traffic."""
        cuts = list(_cuts(in_features, out_features, chip, weights))
        fewest = min(i * o for i, o in cuts)
        return min(
            (cut for cut in cuts if cut[0] * cut[1] <= max(fewest + 1, fewest * 5 // 4)),
            key=lambda cut: (self._traffic(in_features, out_features, cut), cut[0] * cut[1], cut),
        )

    def home(self, placement: Placement) -> Tile:
        """Return the tile with the fewest packet-hops."""
        tiles = [(x, y) for x in range(placement.columns) for y in range(placement.rows)]
        return min(tiles, key=lambda tile: (num_packet_hops(replace(placement, home=tile)), tile))

    def _traffic(self, in_features: int, out_features: int, cut: tuple[int, int]) -> int:
        """Return the packets that reach cores, with partial sums; on a compact rectangle each takes about one hop."""
        num_in, num_out = cut
        return in_features * num_out + out_features * num_in


def num_packet_hops(placement: Placement) -> int:
    """Return the packet-hops of a token: every channel sends one packet, which routers copy, and every sum travels."""
    total = 0
    for i, inputs in enumerate(placement.input_blocks):
        holders = placement.cores[i :: placement.num_input_blocks]
        total += len(inputs) * len({link for core in holders for link in route(placement.home, core.tile)})
    for o, outputs in enumerate(placement.output_blocks):
        first = o * placement.num_input_blocks
        reducer = placement.cores[first].tile
        partial = placement.cores[first : first + placement.num_input_blocks]
        hops = sum(len(route(core.tile, reducer)) for core in partial) + len(route(reducer, placement.home))
        total += len(outputs) * hops
    return total


def moved(placement: Placement, origin: Tile) -> Placement:
    """Return the placement with its corner at another tile."""
    dx, dy = origin[0] - placement.origin[0], origin[1] - placement.origin[1]
    cores = tuple(replace(c, tile=(c.tile[0] + dx, c.tile[1] + dy)) for c in placement.cores)
    return replace(placement, origin=origin, home=(placement.home[0] + dx, placement.home[1] + dy), cores=cores)


def core_size(chip: Description) -> str:
    """Return what a core holds, in words."""
    registers = chip.core.register_accumulators
    return f"{chip.core.sram_bytes:,} bytes" + (f" and {registers:,} accumulators in registers" if registers else "")


def enlarge(chip: Description) -> str:
    """Return the keys of the size of a core, in words."""
    return "sram_bytes" + (" and register_accumulators" if chip.core.register_accumulators else "")


def cut_of(
    mapping: Mapping, in_features: int, out_features: int, chip: Description, weights: Weights
) -> tuple[int, int]:
    """Return `mapping.cut(...)`; a mapping that knows only of bytes is not told of weights.

    Raises:
        InputError: the weights are others, and the mapping does not know of them.
    """
    if weights == BYTES:
        return mapping.cut(in_features, out_features, chip)
    if not knows_weights(mapping):
        raise InputError(
            f"{type(mapping).__name__}.cut: expected a parameter `weights` for a layer of {weights.bits} bits with "
            f"group_size={weights.group_size}, found none. Add it (chip.Weights), or take another mapping."
        )
    return mapping.cut(in_features, out_features, chip, weights)


def knows_weights(mapping: Mapping) -> bool:
    """Return whether a mapping cuts layers of other weights than bytes."""
    return "weights" in inspect.signature(mapping.cut).parameters


def check_groups(weights: Weights, chip: Description) -> None:
    """Raise an InputError if a chip has nothing that rescales sums group by group."""
    if weights.in_groups and (chip.barrier.tiles or not chip.core.sums_travel):
        raise InputError(
            f"{chip.name}: expected weights with one scale an output, since sums stay where their neurons are, which "
            f"add up all channels; got group_size={weights.group_size}. Take another chip, or convert the float model "
            'with SpikeSettings(weights="int8", group_size=None).'
        )


def accumulators_of_output(chip: Description, weights: Weights) -> int:
    """Return how many sums that packets add to a core holds for an output: one for each token in progress; in groups
    two, of which one is rescaled while packets add to the other.
    """
    return 2 if weights.in_groups else chip.core.accumulator_banks


def accumulator_bytes(num_outputs: int, chip: Description, weights: Weights = BYTES) -> int:
    """Return the bytes of memory for the sums of a core: for every token in progress those that meet in it; its own if
    they are not in registers; and in groups, for every token in progress, what is rescaled.
    """
    held = chip.core.accumulator_banks * (2 if weights.in_groups else 1)
    held += 0 if chip.core.register_accumulators else accumulators_of_output(chip, weights)
    return held * num_outputs * chip.core.accumulator_bits // 8


def check_registers(placement: Placement, chip: Description, layer: str) -> None:
    """Raise an InputError if the registers of a core do not hold the accumulators of a placed layer.

    Args:
        placement: of the layer.
        chip: the chip.
        layer: its name, for the message.
    """
    available, each = chip.core.register_accumulators, accumulators_of_output(chip, placement.weights)
    most = max(len(core.outputs) for core in placement.cores)
    if available and most * each > available:
        raise InputError(
            f"{layer}: a core needs {most * each:,} accumulators in registers ({most:,} outputs, each for "
            f"{_what_for(each, placement.weights)}), {chip.name} has core.register_accumulators = {available:,}. "
            "Enlarge them, or cut the layer into cores of fewer outputs."
        )


def _what_for(each: int, weights: Weights) -> str:
    return f"{each} groups" if weights.in_groups else f"{each} tokens in progress"


def _most_outputs(chip: Description, weights: Weights) -> int | None:
    """Return how many outputs of a core its registers hold; None if accumulators are in memory.

    Raises:
        InputError: they hold none.
    """
    available, each = chip.core.register_accumulators, accumulators_of_output(chip, weights)
    if 0 < available < each:
        what, remedy = "token in progress", "Enlarge them, or lower accumulator_banks."
        if weights.in_groups:
            what, remedy = "of two groups", "Enlarge them."
        raise InputError(
            f"an output needs {each} accumulators in registers, one for each {what}; {chip.name} has "
            f"core.register_accumulators = {available}. {remedy}"
        )
    return available // each or None


def _cuts(in_features: int, out_features: int, chip: Description, weights: Weights) -> Sequence[tuple[int, int]]:
    """Return, for each number of input blocks, the smallest number of output blocks that fits."""
    cuts, most = [], _most_outputs(chip, weights)
    size = weights.group_size or 1
    num_units = -(-in_features // size)
    for num_in in range(1, num_units + 1):
        rows = min(size * -(-num_units // num_in), in_features)
        each = weights.bits_of_output(rows) + 8 * accumulator_bytes(1, chip, weights)
        columns = 8 * chip.core.sram_bytes // each
        if columns == 0:
            continue
        columns = columns if most is None else min(columns, most)
        num_out = -(-out_features // columns)
        if cuts and num_out == cuts[-1][1]:
            continue
        cuts.append((num_in, num_out))
        if num_out == 1 or columns == most:
            break
    if not cuts:
        least = weights.num_bytes(min(size, in_features), 1)
        raise InputError(
            f"{chip.name}: core.sram_bytes = {chip.core.sram_bytes:,} holds no "
            f"{'weight' if weights.group_size is None else 'group of weights'} and its accumulators "
            f"({least + accumulator_bytes(1, chip, weights)} bytes). Enlarge it."
        )
    return cuts


def _streamed_cut(out_features: int, chip: Description, weights: Weights) -> tuple[int, int]:
    """Return a division whose accumulators fit beside one block of weights; parts are at least a block wide."""
    room = chip.core.sram_bytes - chip.dram.block_bytes
    columns, most = room // accumulator_bytes(1, chip, weights) if room > 0 else 0, _most_outputs(chip, weights)
    columns = columns if most is None else min(columns, most)
    if columns == 0:
        raise InputError(
            f"{chip.name}: core.sram_bytes = {chip.core.sram_bytes:,} holds no block of DRAM "
            f"({chip.dram.block_bytes:,} bytes) and an accumulator. Enlarge it."
        )
    least = -(-out_features // columns)
    of_a_block = 8 * chip.dram.block_bytes // weights.bits
    return 1, max(least, min(chip.num_cores, -(-out_features // of_a_block)))


def _input_blocks(in_features: int, num: int, weights: Weights) -> list[range]:
    """Cut input channels into `num` parts of nearly equal length, which consist of whole groups."""
    size = weights.group_size or 1
    groups = _blocks(-(-in_features // size), num)
    return [range(block.start * size, min(block.stop * size, in_features)) for block in groups]


def _blocks(total: int, num: int) -> list[range]:
    """Cut range(total) into `num` parts of nearly equal length, the longer ones first.

    >>> _blocks(5, 2)
    [range(0, 3), range(3, 5)]
    """
    length, rest = divmod(total, num)
    ends = [i * length + min(i, rest) for i in range(num + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends)]
