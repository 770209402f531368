"""The codes that carry every count."""

from spikebrain.coding import ENCODERS

EXACT = [name for name in ENCODERS if not ENCODERS.get(name).lossy]
