"""What must hold for a mapping of layers to the cores of a chip."""

from __future__ import annotations

from ..chip import BYTES, MAPPINGS, Mapping, Weights, load_description
from ..chip.floor_plan import plan
from ..chip.mapping import knows_weights
from ..neuro.checks import checking_plugins
from .chips import changed, check_simulation, jobs
from .laws import check_settings, strategies, try_law


def check_mapping(mapping: Mapping | str, *, examples: int = 50) -> None:
    """Check what must hold for a mapping, on random layers and chips.

    Every weight lies in one core, in whose memory it fits; cores, home and senders lie on the layer's tiles, and no
    tile has more cores than the chip says. Simulated layers give exact sums. Several layers fit on one mesh, streamed
    or not.

    Args:
        mapping: an object, or a name.
        examples: random layers and chips.
    Raises:
        InputError: a law is broken; the message names the class and the method, or the chip.
    """
    found: Mapping = MAPPINGS.resolve(mapping, "check_mapping.mapping")
    st = strategies()
    check_settings(MAPPINGS, found)
    with checking_plugins():
        try_law(lambda job: check_simulation(job, compare=False), examples, job=jobs(mapping=found))
        size = st.integers(1, 700)
        shapes = st.lists(st.tuples(size, size), min_size=1, max_size=4)
        try_law(
            lambda **drawn: _on_one_mesh(found, **drawn), max(1, examples // 2), shapes=shapes, stream=st.booleans()
        )


def _on_one_mesh(mapping: Mapping, shapes: list[tuple[int, int]], stream: bool) -> None:
    chip = changed(load_description("async-45nm"), core={"sram_bytes": 20_000}, mesh={"columns": 40, "rows": 40})
    kinds = (BYTES, Weights(4, 32, 32, has_minimum=True)) if knows_weights(mapping) else (BYTES,)
    weights = {str(i): kinds[i % len(kinds)] for i in range(len(shapes))}
    plan({str(i): shape for i, shape in enumerate(shapes)}, chip, mapping, stream=stream, weights=weights)
