"""Which core holds which weights of a layer, and where on the mesh a layer lies."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import InputError
from ..registry import Registry
from .description import Description

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
    """

    origin: Tile
    columns: int
    rows: int
    home: Tile
    cores: tuple[CoreTile, ...]
    num_input_blocks: int
    streamed: bool = False
    sources: tuple[tuple[Tile, range], ...] = ()

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
    def cut(self, in_features: int, out_features: int, chip: Description) -> tuple[int, int]:
        """Return the numbers of input blocks and of output blocks. Every block has to fit a core."""

    @abstractmethod
    def home(self, placement: Placement) -> Tile:
        """Return the tile of the layer's rectangle that sends its input and receives its sums."""

    def place(
        self, in_features: int, out_features: int, chip: Description, *, height: int = 4, streamed: bool = False
    ) -> Placement:
        """Place a layer with its upper left corner at tile (0, 0).

        Args:
            in_features: input channels, at least 1.
            out_features: output channels, at least 1.
            chip: the chip.
            height: largest number of rows of the layer's rectangle.
            streamed: weights stream from DRAM, so that only accumulators have to fit.
        Raises:
            InputError: no division of the layer fits the cores, or it needs more cores than the chip has.
        """
        if streamed:
            num_in, num_out = _streamed_cut(in_features, out_features, chip)
        else:
            num_in, num_out = self.cut(in_features, out_features, chip)
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
            for i, inputs in enumerate(_blocks(in_features, num_in)):
                tile = (o * num_in + i) // chip.mesh.cores_per_tile
                cores.append(CoreTile((tile // rows, tile % rows), inputs, outputs))
        placement = Placement((0, 0), columns, rows, (0, 0), tuple(cores), num_in, streamed)
        return replace(placement, home=self.home(placement))


MAPPINGS: Registry[Mapping] = Registry("mapping", Mapping, "spikebrain.mappings")


@MAPPINGS.register("in-order")
@dataclass(frozen=True)
class InOrder(Mapping):
    """The fewest cores; among divisions with as few, the one with the fewest input blocks. Home is the corner."""

    def cut(self, in_features: int, out_features: int, chip: Description) -> tuple[int, int]:
        """Return the division with the fewest cores."""
        return min(_cuts(in_features, out_features, chip), key=lambda cut: (cut[0] * cut[1], cut[0]))

    def home(self, placement: Placement) -> Tile:
        """Return the upper left corner."""
        return (0, 0)


@MAPPINGS.register("minimal-traffic")
@dataclass(frozen=True)
class MinimalTraffic(Mapping):
    """The fewest packet-hops if every input channel sends one packet, from the home tile that needs the fewest.

    Compares divisions that take at most a quarter more cores than necessary.
    """

    def cut(self, in_features: int, out_features: int, chip: Description) -> tuple[int, int]:
        """Return the division with the least traffic."""
        cuts = list(_cuts(in_features, out_features, chip))
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


def accumulator_bytes(num_outputs: int, chip: Description) -> int:
    """Return the bytes of memory for the sums of a core: for every token in progress those that meet in it, and its own
    if they are not in registers.
    """
    kinds = 1 if chip.core.register_accumulators else 2
    return kinds * num_outputs * chip.core.accumulator_banks * chip.core.accumulator_bits // 8


def check_registers(placement: Placement, chip: Description, layer: str) -> None:
    """Raise an InputError if the registers of a core do not hold the accumulators of a placed layer.

    Args:
        placement: of the layer.
        chip: the chip.
        layer: its name, for the message.
    """
    available, banks = chip.core.register_accumulators, chip.core.accumulator_banks
    most = max(len(core.outputs) for core in placement.cores)
    if available and most * banks > available:
        raise InputError(
            f"{layer}: a core needs {most * banks:,} accumulators in registers ({most:,} outputs, each for {banks} "
            f"tokens in progress), {chip.name} has core.register_accumulators = {available:,}. Enlarge them, or cut "
            "the layer into cores of fewer outputs."
        )


def _most_outputs(chip: Description) -> int | None:
    """Return how many outputs of a core its registers hold; None if accumulators are in memory.

    Raises:
        InputError: they hold none.
    """
    available, banks = chip.core.register_accumulators, chip.core.accumulator_banks
    if 0 < available < banks:
        raise InputError(
            f"an output needs {banks} accumulators in registers, one for each token in progress; {chip.name} has "
            f"core.register_accumulators = {available}. Enlarge them, or lower accumulator_banks."
        )
    return available // banks or None


def _cuts(in_features: int, out_features: int, chip: Description) -> Sequence[tuple[int, int]]:
    """Return, for each number of input blocks, the smallest number of output blocks that fits."""
    cuts, most = [], _most_outputs(chip)
    for num_in in range(1, in_features + 1):
        rows = -(-in_features // num_in)
        columns = chip.core.sram_bytes // (rows + accumulator_bytes(1, chip))
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
        raise InputError(
            f"{chip.name}: core.sram_bytes = {chip.core.sram_bytes:,} holds no weight and its accumulators "
            f"({1 + accumulator_bytes(1, chip)} bytes). Enlarge it."
        )
    return cuts


def _streamed_cut(in_features: int, out_features: int, chip: Description) -> tuple[int, int]:
    """Return a division whose accumulators fit beside one block of weights; parts are at least a block wide."""
    room = chip.core.sram_bytes - chip.dram.block_bytes
    columns, most = room // accumulator_bytes(1, chip) if room > 0 else 0, _most_outputs(chip)
    columns = columns if most is None else min(columns, most)
    if columns == 0:
        raise InputError(
            f"{chip.name}: core.sram_bytes = {chip.core.sram_bytes:,} holds no block of DRAM "
            f"({chip.dram.block_bytes:,} bytes) and an accumulator. Enlarge it."
        )
    least = -(-out_features // columns)
    return 1, max(least, min(chip.num_cores, -(-out_features // chip.dram.block_bytes)))


def _blocks(total: int, num: int) -> list[range]:
    """Cut range(total) into `num` parts of nearly equal length, the longer ones first.

    >>> _blocks(5, 2)
    [range(0, 3), range(3, 5)]
    """
    length, rest = divmod(total, num)
    ends = [i * length + min(i, rest) for i in range(num + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends)]
