"""The page of `spikebrain energy`."""

from __future__ import annotations

from collections.abc import Mapping

from .energy_parts import energy_card, energy_section, weights_card
from .figures import Figures
from .parts import Card, Page
from .terms import terms_for
from .words import cost_in_words, percent


def build(figures: Figures, meanings: Mapping[str, str]) -> Page:
    """Return the page of an estimate."""
    del meanings  # what was typed is in the words of the energy model
    counts, digital = figures["counts"], figures["digital"]
    ratio = digital["ratio_vs_int8"]
    answer = (
        "No spike ran, so there is nothing to compare."
        if ratio is None
        else f"On spikes, a token {cost_in_words(ratio)} energy than in dense INT8."
    ).replace("the same energy than", "the same energy as")
    section = energy_section(figures)
    page = Page(
        title=f"Energy of {counts['model']} on spikes",
        subject=f"{counts['model']}, {counts['neuron']}, {counts['encoder']}; {counts['num_tokens']:,} tokens; table "
        f"{digital['table']['name']} ({digital['table']['process']})",
        answer=answer,
        cards=[energy_card(figures), weights_card(figures), *_winners(figures)],
        sections=[section],
        terms={},
    )
    return Page(**{**vars(page), "terms": terms_for([*page.asked_for, "paper", "mean_spikes", "silent_fraction"])})


def _winners(figures: Figures) -> list[Card]:
    """Return a card that says which kinds of layers are cheaper on spikes."""
    points = figures["break_even"]
    if not points:
        return []
    wins = sum(bool(point["wins"]) for point in points)
    dense = figures["digital"]["spiking_parts_pj"]
    rest = sum(value for part, value in dense.items() if part.startswith("rest"))
    share = rest / max(figures["digital"].number("spiking_total_pj"), 1e-30)
    notes = ("cost less than in dense INT8.", f"What stays dense takes {percent(share)} of the energy.")
    return [Card("Layers", f"{wins} of {len(points)} kinds of layers", notes, "modelled", "wins")]
