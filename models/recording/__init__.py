"""What the layers of a model do while it runs."""

from .layer_record import LayerRecord
from .modules import ModuleRecord
from .record import LayerInput, Recording, record
from .weight_reads import WeightReads

__all__ = ["LayerInput", "LayerRecord", "ModuleRecord", "Recording", "WeightReads", "record"]
