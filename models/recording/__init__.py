"""What the layers of a model do while it runs."""

from .record import LayerRecord, Recording, record

__all__ = ["LayerRecord", "Recording", "record"]
