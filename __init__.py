"""Language models on integer spike trains: event-driven, by additions only, exactly.

Activations become spike counts (`neuro`), counts become spike trains (`coding`), layers run on the spikes (`backends`,
`models`), and a recording of the run becomes energy (`energy`) and figures (`analysis`). `simulation` runs a whole
model on a simulated chip (`chip`), `exchange` writes what other tools read, `pages` shows what was found as one HTML
file, and `jobs` holds what the commands do. Each is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from . import hugging_face, interrupt
from .errors import SpikebrainError
from .lazy import exports
from .version import __version__

if interrupt.is_command():  # until the job begins, while imports take seconds
    interrupt.leave_on_interrupt()

hugging_face.announce()

if TYPE_CHECKING:
    from . import analysis as analysis
    from . import backends as backends
    from . import chip as chip
    from . import coding as coding
    from . import energy as energy
    from . import exchange as exchange
    from . import jobs as jobs
    from . import models as models
    from . import neuro as neuro
    from . import pages as pages
    from . import simulation as simulation
    from . import testing as testing
    from .analysis import measure_perplexity, plot_raster, spike_statistics
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
    from .exchange import export, read_recording, to_nir
    from .models import (
        Conversion,
        DistillSettings,
        GradedLinear,
        PrefillGraph,
        SpikeLinear,
        SpikeSettings,
        SpikingBrainConfig,
        SpikingBrainForCausalLM,
        Stage,
        WrittenText,
        describe_decoding,
        distill,
        from_transformer,
        load,
        neuron_with_k,
        prefill,
        record,
        save,
        sequence_prefill,
        spike_aware,
        spikingbrain_settings,
        split_spiking,
        to_dense,
        to_spiking,
        unshare_experts,
    )
    from .neuro import (
        AdaptiveThreshold,
        Band,
        DeadZoneThreshold,
        IntegrateAndFire,
        LargestMagnitude,
        LeakyIntegrateAndFire,
        Neuron,
        RateDistortionThreshold,
        SpikeCount,
        checking_plugins,
    )
    from .simulation import simulate_model

__all__ = [
    "AEREvents",
    "AdaptiveThreshold",
    "Band",
    "BidirectionalBitwise",
    "Binary",
    "Bitwise",
    "ChannelEvents",
    "Chip",
    "Conversion",
    "Cpu",
    "DeadZoneThreshold",
    "DigitalEnergy",
    "DistillSettings",
    "Encoder",
    "GradedLinear",
    "IntegrateAndFire",
    "LargestMagnitude",
    "LeakyIntegrateAndFire",
    "Neuron",
    "PackedTrain",
    "PaperEnergy",
    "PrefillGraph",
    "RateDistortionThreshold",
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
    "WrittenText",
    "__version__",
    "checking_plugins",
    "count_operations",
    "decode",
    "describe_decoding",
    "distill",
    "export",
    "from_transformer",
    "load",
    "load_table",
    "measure_perplexity",
    "neuron_with_k",
    "pack_activations",
    "plot_raster",
    "prefill",
    "read_recording",
    "record",
    "save",
    "sequence_prefill",
    "simulate_model",
    "spike_aware",
    "spike_statistics",
    "spikingbrain_settings",
    "split_spiking",
    "to_dense",
    "to_nir",
    "to_spiking",
    "unshare_experts",
]

# The same once more, for Python; a test holds the three together.
_HOMES = {
    "analysis": ("measure_perplexity", "plot_raster", "spike_statistics"),
    "backends": ("Chip", "Cpu", "Reference", "Triton"),
    "coding": (
        "AEREvents",
        "BidirectionalBitwise",
        "Binary",
        "Bitwise",
        "ChannelEvents",
        "Encoder",
        "PackedTrain",
        "SignedDigit",
        "SpikeTrain",
        "Ternary",
        "TwosComplement",
        "decode",
        "pack_activations",
    ),
    "energy": ("DigitalEnergy", "PaperEnergy", "SynopEnergy", "count_operations", "load_table"),
    "exchange": ("export", "read_recording", "to_nir"),
    "models": (
        "Conversion",
        "DistillSettings",
        "GradedLinear",
        "PrefillGraph",
        "SpikeLinear",
        "SpikeSettings",
        "SpikingBrainConfig",
        "SpikingBrainForCausalLM",
        "Stage",
        "WrittenText",
        "describe_decoding",
        "distill",
        "from_transformer",
        "load",
        "neuron_with_k",
        "prefill",
        "record",
        "save",
        "sequence_prefill",
        "spike_aware",
        "spikingbrain_settings",
        "split_spiking",
        "to_dense",
        "to_spiking",
        "unshare_experts",
    ),
    "neuro": (
        "AdaptiveThreshold",
        "Band",
        "DeadZoneThreshold",
        "IntegrateAndFire",
        "LargestMagnitude",
        "LeakyIntegrateAndFire",
        "Neuron",
        "RateDistortionThreshold",
        "SpikeCount",
        "checking_plugins",
    ),
    "simulation": ("simulate_model",),
}
_ROOMS = (
    "analysis",
    "backends",
    "chip",
    "coding",
    "energy",
    "exchange",
    "jobs",
    "models",
    "neuro",
    "pages",
    "simulation",
    "testing",
)

__getattr__, __dir__ = exports(__name__, _HOMES, _ROOMS)
