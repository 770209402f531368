"""The page of `spikebrain report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..analysis import DEFINITIONS, LABELS
from ..analysis.mixtures import mixture_in_words, mixture_rows
from .calibration import calibration_section
from .charts import depth_map, histogram
from .energy_parts import energy_card, energy_section, weights_card
from .figures import Figures
from .layers import kind_and_depth, short_names
from .parts import Card, Column, Page, Section, Table, Text, View
from .raster import raster_section
from .tables import environment, settings_table
from .terms import sentence, terms_for
from .words import change_in_words, cost_in_words, duration, percent

_MAPPED = {
    "mean_spikes": ".3f",
    "firing_rate": ".2%",
    "silent_fraction": ".1%",
    "fraction_le_7": ".2%",
    "window3_sparsity": ".1%",
    "max_count": ",",
}
_SHARES = ("silent_fraction", "fraction_le_7", "fraction_gt_16", "window3_sparsity", "train_sparsity", "firing_rate")


def build(figures: Figures, meanings: Mapping[str, str]) -> Page:
    """Return the page of a report."""
    model, settings, text = figures["model"], figures["settings"], figures["text"]
    energy = figures["energy"]
    page = Page(
        title=f"{model['source']} on spikes",
        subject=f"{model['source']}, {model['num_spiking_layers']} layers on spikes, {settings['neuron']}, code "
        f"{settings['encoder']}; {text['num_tokens']:,} tokens of {text['source']}",
        answer=_answer(figures),
        cards=[
            _accuracy_card(figures["perplexity"]),
            _spikes_card(figures["spikes"]),
            weights_card(energy),
            energy_card(energy),
        ],
        sections=[
            _accuracy(figures["perplexity"], settings["weights"]),
            *calibration_section(figures.get("calibration")),
            _spikes(figures),
            *_mixture(figures.get("mixture")),
            _map(figures["layers"]),
            *_rasters(figures["rasters"]),
            _layers(figures["layers"]),
            energy_section(energy),
            _exactness(figures["exactness"]),
            Section(
                "settings",
                "Settings",
                f"This run took {duration(figures['seconds'].number('total'))}.",
                [settings_table(settings, meanings), environment(figures["environment"])],
            ),
        ],
        terms={},
    )
    keys = [*page.asked_for, "paper", "exactness", *DEFINITIONS]
    return Page(**{**vars(page), "terms": terms_for(keys)})


def _answer(figures: Figures) -> str:
    change, base = _change(figures["perplexity"])
    cost = cost_in_words(figures["energy"]["digital"]["ratio_vs_int8"])
    energy = (
        "no spike ran"
        if cost == "no spikes"
        else f"this model {cost} energy than dense INT8".replace("the same energy than", "the same energy as")
    )
    return f"On spikes, {energy}, and its perplexity is {change_in_words(change)} than {base}.".replace(
        "the same than", "the same as"
    )


def _change(perplexity: Figures) -> tuple[float, str]:
    """Return how much the perplexity rises on spikes, and the model with which it is compared."""
    base = "float" if perplexity["float"] is not None else "int8"
    named = "in float" if base == "float" else "with the same weights in float"
    return perplexity.number("spiking") / perplexity.number(base) - 1, named


def _accuracy_card(perplexity: Figures) -> Card:
    change, _ = _change(perplexity)
    notes = [f"{name}: {perplexity[key]:.3f}" for key, name in _STAGES.items() if perplexity[key] is not None]
    value = f"{100 * change:+.1f}\u00a0% perplexity".replace("-", "−")
    return Card("Accuracy", value, notes, "measured", "accuracy")


def _spikes_card(spikes: Figures) -> Card:
    notes = (
        "per channel and token.",
        f"{percent(spikes.number('silent_fraction'), 1)} of the channels are silent; trains are "
        f"{percent(spikes.number('train_sparsity'), 1)} empty.",
    )
    return Card("Spikes", f"{spikes.number('mean_spikes'):.2f} spikes", notes, "counted", "mean_spikes")


_STAGES = {"float": "float", "int8": "integer weights", "spiking": "spiking"}


def _accuracy(perplexity: Figures, weights: str) -> Section:
    meanings = {
        "float": "float32 weights and activations",
        "int8": f"{weights} weights, float32 activations",
        "spiking": f"{weights} weights, spike trains",
    }
    base = perplexity["float"] or perplexity["int8"]
    rows = [
        (_STAGES[key], perplexity[key], perplexity[key] / base - 1, meaning)
        for key, meaning in meanings.items()
        if perplexity[key] is not None
    ]
    columns = [Column("model"), Column("perplexity", ".3f", "accuracy"), Column("change", "+.2%"), Column("")]
    return Section("accuracy", "Accuracy", "", [Table("Perplexity", columns, rows)])


def _spikes(figures: Figures) -> Section:
    spikes = figures["spikes"]
    statistics = [(LABELS[key], _shown(key, spikes[key]), sentence(meaning)) for key, meaning in DEFINITIONS.items()]
    codes = [
        (name, code["mean_spikes"], code["train_sparsity"], code["num_timesteps"]) if code else (name, None, None, None)
        for name, code in figures["codes"].items()
    ]
    columns = [Column("code"), Column("spikes per channel", ".4f", "mean_spikes")]
    columns += [Column("empty places", ".2%", "train_sparsity"), Column("timesteps", ",", "num_timesteps")]
    return Section(
        "spikes",
        "Spikes",
        "Every spike of every train that ran is counted.",
        [
            *_histogram(figures["histograms"]),
            Table("All layers together", [Column("figure"), Column("value", "s"), Column("definition")], statistics),
            Table("The same counts in each code", columns, codes, "– : the code would need too many timesteps."),
        ],
    )


def _mixture(figures: Figures | None) -> list[Section]:
    if figures is None:
        return []
    columns = [Column("what is read"), Column("bytes a token", ",.0f", "mixture")]
    columns += [Column("of all experts'", ".2%"), Column("spikes a token", ",.0f")]
    table = Table("Two levels of sparsity", columns, mixture_rows(figures), mixture_in_words(figures))
    return [Section("mixture", "Mixtures of experts", "Weights and spikes of all mixtures of experts.", [table])]


def _shown(key: str, value: float) -> str:
    return percent(value, 2) if key in _SHARES else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _histogram(histograms: Figures) -> list[View | Table]:
    places, layers = histograms["counts"], dict(histograms["layers"].items())
    kinds = {name: kind_and_depth(name)[0] for name in layers}
    short = short_names(kinds.values())
    groups: dict[str, list[int]] = {"all": [0] * len(places)}
    for name, numbers in layers.items():
        for group in ("all", short[kinds[name]]):
            groups[group] = [a + b for a, b in zip(groups.get(group, [0] * len(places)), numbers, strict=True)]
    shown = [str(place).replace("-", "−") for place in places]
    shown[0], shown[-1] = f"< {shown[1]}", f"> {shown[-2]}"
    rows = [
        {
            "group": group,
            "count": label,
            "share": number / max(sum(numbers), 1),
            "number": number,
            "sign": "below 0" if place < 0 else "above 0" if place > 0 else "silent",
        }
        for group, numbers in groups.items()
        for place, label, number in zip(places, shown, numbers, strict=True)
    ]
    columns = [Column("signed count"), *(Column(group, ".3%") for group in groups)]
    table = [
        (label, *(numbers[i] / max(sum(numbers), 1) for numbers in groups.values())) for i, label in enumerate(shown)
    ]
    note = "One bar a count; the outermost bars hold all counts beyond. A silent channel reads no weights."
    return [
        View("histogram", "chart", "How many spikes a channel has", histogram(rows, list(groups)), note),
        Table("Share of channels by signed count", columns, table, is_open=False),
    ]


def _map(layers: list[Figures]) -> Section:
    placed = [(layer, *kind_and_depth(layer["name"])) for layer in layers]
    short = short_names(kind for _, kind, _ in placed)
    cells: dict[tuple[str, int], list[Figures]] = {}
    for layer, kind, depth in placed:
        if depth is not None:
            cells.setdefault((short[kind], depth), []).append(layer)
    rows: list[dict[str, Any]] = [
        {
            "kind": kind,
            "depth": depth,
            "layer": found[0]["name"] if len(found) == 1 else f"{len(found)} layers, their mean",
            **{key: sum(layer.number(key) for layer in found) / len(found) for key in _MAPPED},
        }
        for (kind, depth), found in cells.items()
    ]
    without = [layer["name"] for layer, _, depth in placed if depth is None]
    note = f"Without a depth, hence not on the map: {', '.join(without)}." if without else ""
    metrics = {key: (LABELS[key], form) for key, form in _MAPPED.items()}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    parts: list[Any] = [View("map", "chart", "", depth_map(rows, metrics, kinds), note)] if rows else [Text([note])]
    return Section(
        "map", "Firing over kind and depth", "One cell a layer. The table of layers has the same figures.", parts
    )


def _rasters(rasters: list[Figures]) -> list[Section]:
    names = [", ".join(short_names(raster["layers"]).values()) for raster in rasters]
    intro = "Spikes into layers of one block, token after token. Layers that read the same input have the same spikes."
    return [raster_section(rasters, names, intro)] if rasters else []


def _layers(layers: list[Figures]) -> Section:
    keys = ("in_features", "out_features", *DEFINITIONS)
    forms = {"mean_spikes": ".3f", "mean_count": ".3f", **dict.fromkeys(_SHARES, ".2%")}
    columns = [Column("layer"), Column("inputs", ","), Column("outputs", ",")]
    columns += [Column(LABELS[key], forms.get(key, ","), key) for key in DEFINITIONS]
    rows = [(layer["name"], *(layer[key] for key in keys)) for layer in layers]
    return Section("layers", "Layers", "", [Table(f"{len(layers)} layers", columns, rows)])


def _exactness(exact: Figures) -> Section:
    fused, code = exact["fused"], exact["code"]
    sentences = [
        f"{exact['num_mismatches']:,} of {exact['num_checked']:,} sampled outputs differ from the exact integer "
        f"product.{_first(exact)}",
        f"Fused layers, as they run when nobody records: {fused['num_mismatches']:,} of {fused['num_checked']:,} "
        f"outputs differ from the recorded sums.{_first(fused)}"
        if fused["num_checked"]
        else "These layers have no fused kernel, so there is nothing to compare.",
    ]
    if code["num_checked"]:
        sentences.append(
            f"Lossy code: {code['num_mismatches']:,} of {code['num_checked']:,} sampled outputs differ from those of "
            "the counts. The products above are those of what the trains carry."
        )
    return Section("exactness", "Exactness", "", [Text(sentences)])


def _first(check: Figures) -> str:
    return f" The first: {check['first_mismatch']}" if check["first_mismatch"] else ""
