"""The simulated asynchronous chip: exact integers, and how long, how much energy and where the bottleneck is."""

from .activity import Activity
from .components import COMPONENTS, Component
from .description import Description, chip_names, load_description
from .floor_plan import plan
from .layer import LayerSimulation, simulate_layer
from .mapping import MAPPINGS, CoreTile, InOrder, Mapping, MinimalTraffic, Placement, num_packet_hops
from .ordering import ORDERS, AsGiven, ByRate, ChannelOrder, Together
from .weights import BYTES, CoarseRows, Weights

__all__ = [
    "BYTES",
    "COMPONENTS",
    "MAPPINGS",
    "ORDERS",
    "Activity",
    "AsGiven",
    "ByRate",
    "ChannelOrder",
    "CoarseRows",
    "Component",
    "CoreTile",
    "Description",
    "InOrder",
    "LayerSimulation",
    "Mapping",
    "MinimalTraffic",
    "Placement",
    "Together",
    "Weights",
    "chip_names",
    "load_description",
    "num_packet_hops",
    "plan",
    "simulate_layer",
]
