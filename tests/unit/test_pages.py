"""Pages without a browser: the same figures as the JSON, nothing unescaped, clear errors, contrast, definitions."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import altair
import numpy as np
import pytest
from made_pages import JSON_OF, NAME, figures_of

import spikebrain
from spikebrain import pages
from spikebrain.analysis.rasters import spikes_of
from spikebrain.chip import Placement, load_description
from spikebrain.chip.layer import simulate_layer
from spikebrain.chip.mapping import CoreTile
from spikebrain.errors import InputError
from spikebrain.pages import bundle
from spikebrain.pages.figures import Figures
from spikebrain.pages.words import cost_in_words
from spikebrain.simulation.queue_steps import queue_steps

CSS = (Path(spikebrain.__file__).parent / "pages" / "templates" / "page.css").read_text(encoding="utf-8")
EVIL = "</script><script>hacked=1</script>\"'<img src=x onerror=hacked=1>&amp; \u2028 神"
KINDS = list(JSON_OF)


class Tags(HTMLParser):
    """All tags of a page with their attributes, and its text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text.append(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_holds_the_figures_of_its_json(results, kind):
    page = results[kind].with_suffix(".html")
    assert pages.read_page(page) == figures_of(results[kind])
    assert figures_of(results[kind])["kind"] == kind
    assert page.stat().st_size < 5_000_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "raster"])
def test_a_page_is_whole_and_loads_nothing(results, kind):
    tags = Tags(results[kind].with_suffix(".html").read_text(encoding="utf-8")).tags
    assert not [tag for tag, attributes in tags if tag in ("link", "img", "iframe", "object") or "src" in attributes]
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    names = {attributes.get("id") for _, attributes in tags}
    assert all(link[1:] in names for link in links if link.startswith("#"))  # each definition is there
    beside = {path.name for path in results[kind].parent.iterdir()}
    assert {link for link in links if not link.startswith("#")} <= beside
    policy = next(attributes["content"] for _, attributes in tags if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_other_people_are_escaped(results, kind):
    def spoil(value):
        """Put the evil text behind every text, but where the page is told what it is."""
        if isinstance(value, dict):
            return {key: item if key in _OURS else spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return value + EVIL if isinstance(value, str) else value

    figures = spoil(figures_of(results[kind]))
    clean, spoilt = (Tags(pages.make_page(each)) for each in (figures_of(results[kind]), figures))
    assert [tag for tag, _ in spoilt.tags] == [tag for tag, _ in clean.tags]
    assert EVIL.replace("\u2028", "") in "".join(spoilt.text).replace("\u2028", "")
    assert NAME.split("/")[0] in "".join(clean.text) or kind in ("energy", "sweep")


# Texts that choose what a page does: kinds, keys and codes.
_OURS = ("kind", "spikes", "better", "form", "links", "swept")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_charts_are_vega_lite(results, kind):
    text = results[kind].with_suffix(".html").read_text(encoding="utf-8")
    views = json.loads(re.search(r'<script type="application/json" id="views">(.*?)</script>', text, re.S)[1])
    charts = [view["data"] for view in views.values() if view["what"] == "chart"]
    assert charts
    for chart in charts:
        altair.Chart.from_dict(chart, validate=True)


@pytest.mark.slow
def test_figures_on_the_page(results):
    figures, text = figures_of(results["report"]), results["report"].with_suffix(".html").read_text(encoding="utf-8")
    shown = " ".join(Tags(text).text)
    assert f"{figures['spikes']['mean_spikes']:.2f} spikes" in shown
    assert f"{figures['perplexity']['spiking']:.3f}" in shown
    assert cost_in_words(figures["energy"]["digital"]["ratio_vs_int8"]) in shown
    assert cost_in_words(figures["energy"]["paper"]["ratio_vs_int8"]) in shown
    projections = [layer for layer in figures["energy"]["counts"]["layers"].values() if layer["kind"] == "projection"]
    share = sum(layer["spiking"]["weight_channel_bytes"] for layer in projections)
    share /= sum(layer["int8"]["weight_bytes"] for layer in projections)
    assert f"{share:.0%}".replace("%", "\u00a0% of dense INT8") in shown
    assert all(layer["name"] in shown for layer in figures["layers"])


@pytest.mark.slow
def test_rasters_and_histograms_of_a_report(results):
    figures = figures_of(results["report"])
    by_layer = {layer["name"]: layer for layer in figures["layers"]}
    assert figures["histograms"]["layers"].keys() == by_layer.keys()
    for name, numbers in figures["histograms"]["layers"].items():
        assert sum(numbers) == figures["text"]["num_tokens"] * by_layer[name]["in_features"]
        assert numbers[17] / sum(numbers) == pytest.approx(by_layer[name]["silent_fraction"])
    assert figures["rasters"][0]["layers"][0].endswith("q_proj")
    assert len(figures["rasters"]) == 4  # q, k and v read the same input, as gate and up do
    for raster in figures["rasters"]:
        (panel,) = raster["panels"]
        weights = np.array(panel["weights"])
        assert weights.shape == (len(raster["tokens"]), panel["num_timesteps"])
        assert (spikes_of(panel) * weights).sum(2).tolist() == panel["counts"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.pop("kind"), "expected figures of one of the kinds report, .* got none"),
        (lambda f: f.update(kind="picture"), "got 'picture'"),
        (lambda f: f.update(format=0), "expected format 1, got 0: it is of another version"),
        (lambda f: f.pop("format"), "expected format 1, got None"),
        (lambda f: f["perplexity"].pop("spiking"), r"perplexity.spiking: expected a figure, it is missing"),
        (lambda f: f["energy"]["waterfall"][2].pop("int8_pj"), r"energy.waterfall\[2\].int8_pj: expected a figure"),
        (lambda f: f["layers"][1].pop("mean_spikes"), r"layers\[1\].mean_spikes: expected a figure"),
        (lambda f: f["perplexity"].update(spiking="low"), "perplexity.spiking: expected a number, got 'low'"),
        (lambda f: f.update(layers=3), "some have another type or value"),
        (lambda f: f["histograms"].update(counts=[]), "some have another type or value"),
    ],
)
@pytest.mark.slow
def test_damaged_figures(results, tmp_path, change, said):
    figures = figures_of(results["report"])
    change(figures)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(figures))
    with pytest.raises(InputError, match=said):
        pages.write_page(path, tmp_path / "report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.slow
def test_a_page_that_cannot_be_written_leaves_the_rest(results, tmp_path):
    figures = figures_of(results["energy"])
    (tmp_path / "energy.html").mkdir()  # nothing can take its place
    with pytest.raises(InputError, match=r"energy\.html: cannot be written"):
        pages.write_page(figures, tmp_path / "energy.html")
    for text in ("<html></html>", '<script id="data"></script>'):
        (tmp_path / "other.html").write_text(text)
        with pytest.raises(InputError, match="expected a page of spikebrain"):
            pages.read_page(tmp_path / "other.html")
    with pytest.raises(InputError, match="cannot be read"):
        pages.read_page(tmp_path / "missing.html")


@pytest.mark.slow
def test_no_spikes_and_a_model_that_spikes_already(results):
    """Figures that are None in a JSON file are words on the page."""
    figures = copy.deepcopy(figures_of(results["report"]))
    figures["perplexity"]["float"] = None
    figures["energy"]["digital"]["ratio_vs_int8"] = figures["energy"]["paper"]["ratio_vs_int8"] = None
    figures["energy"]["break_even"], figures["rasters"] = [], []
    for step in figures["energy"]["waterfall"]:
        step["ratio_vs_int8"] = step["ratio_vs_fp16"] = None
    shown = " ".join(Tags(pages.make_page(figures)).text)
    assert "no spike ran" in shown
    assert "Nothing fired, so no layer breaks even." in shown
    assert "with the same weights in float" in shown


@pytest.mark.slow
def test_infinite_figures_are_shown_and_not_drawn(results):
    """A perplexity may overflow; browsers do not read NaN and Infinity."""
    figures = figures_of(results["eval"])
    for text in figures["texts"].values():
        text["perplexity"]["k=3"].update(value=float("inf"), difference=float("inf"))
    text = pages.make_page(figures)
    views = re.search(r'<script type="application/json" id="views">(.*?)</script>', text, re.S)[1]
    assert "Infinity" not in views
    assert "inf" in " ".join(Tags(text).text)


def test_a_figure_that_may_be_missing():
    figures = Figures({"layers": {"q": 1}}, "report.json")
    assert "k" not in figures["layers"]
    assert figures["layers"].get("k", 0) == 0
    assert figures["layers"].get("q") == 1


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


COLOURS = {name: pair for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", CSS)}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("behind", ["page", "surface"])
def test_contrast(theme, behind):
    """WCAG 2.2 AA: text 4.5 to 1, marks of charts and edges of controls 3 to 1."""
    back = COLOURS[behind][theme]
    found = {name: contrast(pair[theme], back) for name, pair in COLOURS.items()}
    assert min(found[name] for name in ("ink", "muted", "link", "good", "bad")) >= 4.5
    marks = [name for name in COLOURS if name in ("spikes", "other", "quiet", "edge") or name.startswith("part-")]
    assert len(marks) == 13
    assert min(found[name] for name in marks) >= 3, found


def test_the_bundle_is_made_once_and_again_if_damaged(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda: made.append(1) or "window.vegaEmbed = null;")
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path))
    assert bundle.vega_bundle() == bundle.vega_bundle()
    assert len(made) == 1
    kept = next((tmp_path / "pages").iterdir())
    kept.write_text(kept.read_text()[:-5])
    assert bundle.vega_bundle().startswith("window.vegaEmbed")
    assert len(made) == 2
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(kept))  # a file, so that nothing can be kept there
    assert bundle.vega_bundle().startswith("window.vegaEmbed")
    assert len(made) == 3


def test_queue_steps_hold_what_queues_held():
    """Mean packets × time, summed over steps and tiles, is the integral of all queues."""
    rng = np.random.default_rng(0)
    chip = load_description("async-45nm")
    cores = tuple(CoreTile((x, 0), range(12), range(6 * x, 6 * x + 6)) for x in range(2))
    placement = Placement((0, 0), 2, 1, (0, 0), cores, 1)
    spikes = rng.integers(-1, 2, (3, 4, 12)).astype(np.int8)
    weight = rng.integers(-9, 10, (12, 12)).astype(np.int8)
    found = simulate_layer(spikes, np.array([4, 2, 1]), weight, chip, placement, overlap=False, trace=True)
    steps = queue_steps(found, "layer")
    step_ps = (steps["begin_us"][1] - steps["begin_us"][0]) * 1e6
    assert steps["tiles"] == [[0, 0], [1, 0]]
    assert steps["num_tokens"] == 4
    assert sum(map(sum, steps["waiting"])) * step_ps == pytest.approx(found.outcome.queue_ps.sum(), rel=0.01)
    assert steps["token"] == sorted(steps["token"])
    assert (steps["token"][0], steps["token"][-1]) == (0, 3)
