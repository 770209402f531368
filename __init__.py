"""Language models on integer spike trains: event-driven, by additions only, exactly.

Activations become spike counts (`neuro`), counts become spike trains (`coding`), layers run on the spikes (`backends`,
`models`), and a recording of the run becomes energy (`energy`) and figures (`analysis`). `simulation` runs a whole
model on a simulated chip (`chip`), and `jobs` holds what the commands do.
"""

from typing import TYPE_CHECKING, Any

from . import interrupt

if interrupt.is_command():  # before the imports that take seconds
    interrupt.leave_on_interrupt()

from . import analysis
from .analysis import measure_perplexity, spike_statistics
from .backends import Chip, Cpu, Reference, Triton
from .coding import (
    AEREvents,
    BidirectionalBitwise,
    Binary,
    Bitwise,
    ChannelEvents,
    Encoder,
    PackedTrain,
    SignedDigit,
    SpikeTrain,
    Ternary,
    TwosComplement,
    decode,
    pack_activations,
)
from .energy import DigitalEnergy, PaperEnergy, SynopEnergy, count_operations, load_table
from .errors import SpikebrainError
from .models import (
    Conversion,
    DistillSettings,
    SpikeLinear,
    SpikeSettings,
    SpikingBrainConfig,
    SpikingBrainForCausalLM,
    Stage,
    describe_decoding,
    distill,
    from_transformer,
    load,
    neuron_with_k,
    record,
    save,
    spike_aware,
    spikingbrain_settings,
    to_dense,
    to_spiking,
)
from .neuro import (
    AdaptiveThreshold,
    IntegrateAndFire,
    LeakyIntegrateAndFire,
    Neuron,
    SpikeCount,
    checking_plugins,
)
from .simulation import simulate_model
from .version import __version__

if TYPE_CHECKING:
    from .analysis import plot_raster

__all__ = [
    "AEREvents",
    "AdaptiveThreshold",
    "BidirectionalBitwise",
    "Binary",
    "Bitwise",
    "ChannelEvents",
    "Chip",
    "Conversion",
    "Cpu",
    "DigitalEnergy",
    "DistillSettings",
    "Encoder",
    "IntegrateAndFire",
    "LeakyIntegrateAndFire",
    "Neuron",
    "PackedTrain",
    "PaperEnergy",
    "Reference",
    "SignedDigit",
    "SpikeCount",
    "SpikeLinear",
    "SpikeSettings",
    "SpikeTrain",
    "SpikebrainError",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "Stage",
    "SynopEnergy",
    "Ternary",
    "Triton",
    "TwosComplement",
    "__version__",
    "checking_plugins",
    "count_operations",
    "decode",
    "describe_decoding",
    "distill",
    "from_transformer",
    "load",
    "load_table",
    "measure_perplexity",
    "neuron_with_k",
    "pack_activations",
    "plot_raster",
    "record",
    "save",
    "simulate_model",
    "spike_aware",
    "spike_statistics",
    "spikingbrain_settings",
    "to_dense",
    "to_spiking",
]


def __getattr__(name: str) -> Any:
    """Return `plot_raster`, which brings Matplotlib, when it is asked for."""
    if name == "plot_raster":
        return analysis.plot_raster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
