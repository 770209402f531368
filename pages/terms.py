"""Definitions behind the figures. Those that stand elsewhere in the package are taken from there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from ..analysis import DEFINITIONS, LABELS
from ..energy import BreakEven, OperationCounts
from .parts import Term

# What no docstring says, since it is made for a page.
_OWN = {
    "accuracy": Term(
        "change of perplexity",
        "Perplexity on spikes divided by that of the float model, minus 1. Perplexity is the exponential of the mean "
        "negative log-likelihood of the next token, in nats; lower is better. Measured on the text named above, in "
        "windows that do not overlap.",
        "perplexity",
    ),
    "weights_read": Term(
        "weights read",
        "Bytes of weights of the spiking layers that a token reads, if the row of each active channel is read once. "
        "Dense INT8 reads every row. Counted from the spikes that ran.",
        "weight_channel_bytes",
    ),
    "mixture": Term(
        "two levels of sparsity",
        "A token goes through a few experts of a mixture (expert sparsity), and reads their weights only in rows of "
        "channels with a spike (neuron sparsity). Counted from the routes and spikes that ran.",
        "mixture.weight_sparsity",
    ),
    "ratio": Term(
        "energy ratio",
        "Modelled energy of the same model in dense INT8 (or FP16), divided by that on spikes, with every operation "
        "and byte that is counted: sums as wide as exactness requires, encoding, weights, activations, and what stays "
        "dense. Above 1 spikes cost less.",
        "ratio_vs_int8",
    ),
    "paper": Term(
        "the paper's estimate (additions only)",
        "Equation 24 of the SpikingBrain report: one 8-bit addition per spike and output, against one INT8 multiply-"
        "accumulate per channel and output. Wide sums, memory, encoding and what stays dense are left out.",
        "energy.paper",
    ),
    "exactness": Term(
        "exactness",
        "Sampled outputs of spiking layers are compared with integer products that were computed without spikes, and "
        "outputs of the fused kernels with the recorded sums. Any difference would be a fault.",
        "exactness",
    ),
    "pj_per_mac": Term(
        "picojoules per dense MAC",
        "Energy divided by the multiply-accumulates that the same layers take in a dense model.",
        "energy_per_mac_pj",
    ),
    "latency": Term(
        "time of a token",
        "Simulated time from the input of a token to the last sum of its last layer, dense work and transfers "
        "included. The mean over the tokens of the run.",
        "token_s.mean",
    ),
    "stderr": Term(
        "standard error",
        "Of a mean over documents or windows. Differences are paired: each document is compared with itself, so "
        "their errors are smaller than those of both figures together.",
        "stderr",
    ),
    "kl": Term(
        "KL divergence",
        "Of the next token's distribution, with only this layer on spikes, from that of the float model; in nats, "
        "averaged over tokens. 0: nothing changes.",
        "kl_nats",
    ),
    "sqnr": Term(
        "signal to noise",
        "Power of the layer's float output divided by that of its change on spikes, in dB.",
        "sqnr_db",
    ),
    "front": Term(
        "on the front",
        "No other run is at least as good in all objectives and better in one (Pareto).",
        "on_front",
    ),
    "busy": Term("busy", "Share of its layer's time in which a core adds weights.", "busy"),
    "queue": Term("queue", "Packets that wait at a station, averaged over the time of its layer.", "queues"),
    "synops": Term("synaptic operations", "A spike at a synapse: one addition of a weight.", "num_synops"),
}
_ENERGY = {
    "even_spikes": (BreakEven, "break-even spikes, with memory"),
    "even_spikes_without_memory": (BreakEven, "break-even spikes, without memory"),
    "even_silent_fraction": (BreakEven, "break-even silent share"),
    "wins": (BreakEven, "cheaper on spikes"),
}


def terms_for(keys: Iterable[str], others: dict[str, Term] | None = None) -> dict[str, Term]:
    """Return the definitions of these keys, in their order.

    Args:
        keys: of statistics, energies, or the page's own.
        others: definitions that a result brings along.
    """
    known = {**_OWN, **statistics_terms(), **_energy_terms(), **(others or {})}
    return {key: known[key] for key in dict.fromkeys(keys) if key}


def statistics_terms() -> dict[str, Term]:
    """Return what the spike statistics mean."""
    return {key: Term(LABELS[key], sentence(meaning), key) for key, meaning in DEFINITIONS.items()}


def attributes_of(cls: type) -> dict[str, str]:
    """Return what a class says about its attributes and properties, by name.

    >>> attributes_of(BreakEven)["spikes"]
    'Per channel, as it ran.'
    """
    found: dict[str, str] = {}
    section = re.search(r"Attributes:\n(.*?)(?:\n\w|\Z)", inspect.getdoc(cls) or "", re.DOTALL)
    for entry in re.finditer(r"^ {4}(\w[\w, ]*): (.*?)(?=^ {4}\w|\Z)", section[1] if section else "", re.M | re.S):
        for name in entry[1].split(", "):
            found[name] = sentence(" ".join(entry[2].split()))
    for name, value in vars(cls).items():
        if isinstance(value, property) and value.__doc__:
            found[name] = sentence(" ".join(value.__doc__.split()))
    return found


def _energy_terms() -> dict[str, Term]:
    counts = attributes_of(OperationCounts)
    found = {key: Term(label, attributes_of(cls)[key], key) for key, (cls, label) in _ENERGY.items()}
    return found | {key: Term(key.replace("_", " "), text, key) for key, text in counts.items()}


def sentence(text: str) -> str:
    """Return a definition of the code as a sentence of prose."""
    text = text.replace("`", "").replace(" x ", " × ").replace("<=", "≤")
    text = re.sub(r"(?<= )- (?=\w)", "− ", text).replace("firing_rate", "firing rate")
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
