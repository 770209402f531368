"""What a raster holds: the spikes that ran, codes of the same counts, calls in a row, a potential that agrees."""

import base64
import json

import numpy as np
import pytest
import torch
from torch import nn

from spikebrain import AdaptiveThreshold, IntegrateAndFire, SpikeLinear, SpikeTrain, Ternary, decode, record
from spikebrain.analysis import plot_raster, raster
from spikebrain.analysis.rasters import spikes_of
from spikebrain.coding import Poisson
from spikebrain.errors import InputError
from spikebrain.pages import read_page, write_raster_page

CODES = ("binary", "ternary", "bitwise-bidirectional", "twos-complement", "signed-digit")


def recorded(*calls, neuron=None, encoder=None, **options):
    """Record a layer of as many channels as the calls have, [tokens, channels] each."""
    width = calls[0].shape[-1]
    settings = {"neuron": neuron or AdaptiveThreshold(k=2.0), "encoder": encoder or "bitwise-bidirectional"}
    layer = SpikeLinear.from_linear(nn.Linear(width, 3), **settings)
    with torch.no_grad(), record(layer, keep_trains=True, **options) as recording:
        for x in calls:
            layer(x)
    return recording


@pytest.fixture
def two_calls():
    # Thresholds mean|x| / 2: 1, 1 and 2. Counts [[2, -1, 4, -1], [1, 1, -6, 0]], then [[-2, 0, 5, -1]].
    first = torch.tensor([[2.2, -0.9, 4.0, -0.9], [0.9, 0.8, -6.3, 0.0]])
    return first, torch.tensor([[-4.0, 0.2, 9.8, -2.0]])


def test_the_trains_as_they_ran(two_calls):
    recording = recorded(*two_calls)
    panel = raster(recording, num_timesteps=9).panels[0]
    assert panel.counts.tolist() == [[2, 1, -2], [-1, 1, 0], [4, -6, 5], [-1, 0, -1]]
    for token, train in enumerate((recording.trains[""][0], recording.trains[""][0], recording.trains[""][1])):
        of_call = train.spikes[:, min(token, 1) if token < 2 else 0].t().numpy()
        shown = panel.spikes[:, token][:, ~panel.padded[token]]
        assert np.array_equal(shown, of_call)


@pytest.mark.parametrize("code", CODES)
def test_every_code_carries_the_counts_in_its_places(two_calls, code):
    drawn = raster(recorded(*two_calls), encoders=[code], num_timesteps=10**6)
    panel = drawn.panels[0]
    lift = 0
    if "zero point" in panel.code:  # of each call: the lowest counts are -6 and -2
        lift = np.array([6, 6, 2])
        assert panel.code == f"{code}, zero point 2 to 6"
    assert np.array_equal((panel.spikes * panel.weights).sum(2) - lift, panel.counts)
    assert drawn.calls.tolist() == [0, 0, 1]
    assert not panel.spikes[:, panel.padded].any()


def test_a_shorter_call_is_padded_where_its_digits_are_missing():
    # Counts 4 and 1 in two calls: three digits and one. Codes of digits miss the first, rate codes the last places.
    calls = (torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0, -1.0]]))
    drawn = raster(recorded(*calls, neuron=AdaptiveThreshold(k=2.0)), encoders=["bitwise-bidirectional", "ternary"])
    digits, rate = drawn.panels
    assert digits.counts.tolist() == [[4, 2], [0, -2]]
    assert digits.timesteps.tolist() == [[0, 1, 2], [-1, 0, 1]]
    assert digits.weights.tolist() == [[4, 2, 1], [0, 2, 1]]
    assert rate.timesteps.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]
    assert drawn.notes == ["Hatched: the train of a call is only as long as its own counts need."]


@pytest.mark.parametrize("seed", range(4))
def test_the_potential_fires_the_train_that_is_shown(seed):
    torch.manual_seed(seed)
    # Halves of the threshold are ties, on which the neurons differ unless the potential begins beside 1/2.
    x = torch.cat([torch.randn(5, 8), torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1.0, 2.0]])])
    x[-1] *= 1 / x[-1].abs().mean()
    recording = recorded(x, x[:1], neuron=AdaptiveThreshold(k=1.5), keep_inputs=True)
    for neuron in range(8):
        for panel in raster(recording, encoders=["ternary", "binary"], potential_of=neuron, num_timesteps=99).panels:
            v, spikes = panel.potential.v, panel.spikes[neuron]
            there = ~panel.padded
            fired = (v >= 1).astype(int) - ((v < 0) if panel.code == "ternary" else 0)
            assert np.array_equal(fired[there], spikes[there])
            # Soft reset: what is left falls by each spike.
            both = there[:, 1:] & there[:, :-1]
            assert np.allclose((v[:, 1:] - v[:, :-1] + spikes[:, :-1])[both], 0, atol=1e-9)
            assert np.isnan(v[~there]).all()


def test_no_potential_where_it_would_not_agree(two_calls):
    drawn = raster(recorded(*two_calls, keep_inputs=True), encoders=["ternary", "bitwise-bidirectional"])
    assert [panel.potential is None for panel in drawn.panels] == [False, True]
    assert raster(recorded(*two_calls), encoders=["ternary"]).panels[0].potential is None
    # Its count is a spike at most, whatever x / threshold is.
    once = recorded(two_calls[0], neuron=IntegrateAndFire(negative_threshold=-1.0), keep_inputs=True)
    assert raster(once, encoders=["ternary"]).panels[0].potential is None
    with pytest.raises(InputError, match=r"potential_of: expected one of the neurons that are shown, 0, 2; got 1\."):
        raster(recorded(*two_calls, keep_inputs=True), num_neurons=2, potential_of=1)


def test_what_is_left_out_is_said():
    count = torch.zeros(1, 300, dtype=torch.int32)
    count[0, :200], count[0, 200], count[0, 201] = 1, 3, 7
    train = Ternary().encode(count, 7)
    drawn = raster(train, num_neurons=300)
    assert drawn.panels[0].spikes.shape == (300, 1, 1)
    assert drawn.notes == ["timesteps 2 to 7 of each token left out, with 8 of 210 spikes."]
    drawn = raster(train, num_neurons=150, num_timesteps=7)
    assert drawn.notes == ["150 of 300 neurons are shown, evenly spread."]
    assert drawn.panels[0].neurons.tolist() == list(range(0, 300, 2))
    rate = drawn.panels[0].firing_rate
    assert rate[0, 100] == 3 / 7  # neuron 200
    assert drawn.panels[0].spikes_per_timestep[0, 0].tolist() == [101, 1, 1, 0, 0, 0, 0]


def test_a_lossy_code_is_shown_as_it_ran_and_beside_others_of_its_counts(two_calls):
    lossy = Poisson()
    recording = recorded(*two_calls, encoder=lossy, keep_inputs=True)
    ran, ternary = raster(recording, encoders=[None, "ternary"]).panels
    assert "lossy" in ran.code
    assert ternary.counts.tolist() == [[2, 1, -2], [-1, 1, 0], [4, -6, 5], [-1, 0, -1]]
    with pytest.raises(InputError, match=r"its lossy code does not carry.*keep_inputs=True"):
        raster(recorded(*two_calls, encoder=lossy), encoders=["ternary"])


def test_the_data_of_a_page(two_calls):
    drawn = raster(recorded(*two_calls, keep_inputs=True), encoders=["ternary"], tokens=["a", " ", "</script>"])
    data = json.loads(json.dumps(drawn.to_data()))
    panel = data["panels"][0]
    # Counts 2, 1, -2 of the first neuron, and at most 6 of any.
    # As one bit a place: "++....+.....--...." has 11000010 00000000 00 for +1, and neuron 2, "++++..------+++++.".
    assert spikes_of(panel)[2].ravel().tolist() == [1] * 4 + [0] * 2 + [-1] * 6 + [1] * 5 + [0]
    assert base64.b64decode(panel["spikes"]["plus"])[0] == 0b11000010
    assert base64.b64decode(panel["spikes"]["minus"])[1] == 0b00001100
    assert np.array_equal(spikes_of(panel), drawn.panels[0].spikes)
    assert panel["counts"] == [[2, 1, -2], [-1, 1, 0], [4, -6, 5], [-1, 0, -1]]
    assert data["tokens"] == ["a", "␣", "</script>"]
    assert data["calls"] == [0, 0, 1]
    assert panel["num_spikes"] == [int((drawn.panels[0].spikes == sign).sum()) for sign in (1, -1)]


def test_a_page_stands_alone_and_has_its_figures_without_javascript(two_calls, tmp_path):
    drawn = raster(recorded(*two_calls), encoders=["ternary"], tokens=["a", "b", "</script>"], title="<b>")
    write_raster_page(drawn, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("</script>") == 3  # what is drawn, the figures and the code, none of them a token's
    assert "&lt;b&gt;" in page
    assert "://" not in page
    assert "script-src &#39;sha256-" in page
    found = read_page(tmp_path / "r.html")
    assert found == {"kind": "raster", "format": 1, "rasters": [drawn.to_data()]}
    assert "<td>ternary</td>" in page
    assert "<noscript>" in page


def test_a_page_holds_a_place_in_a_few_bits(tmp_path):
    spikes = torch.randint(-1, 2, (100, 40, 50), dtype=torch.int8)  # T, tokens, neurons
    drawn = raster(SpikeTrain(spikes, torch.ones(100, dtype=torch.int64)), num_neurons=50, num_timesteps=100)
    write_raster_page(drawn, tmp_path / "r.html")
    write_raster_page(raster(SpikeTrain(spikes[:1], torch.tensor([1]))), tmp_path / "one.html")
    more = (tmp_path / "r.html").stat().st_size - (tmp_path / "one.html").stat().st_size
    # Two bits a place as Base64, and once: 1/3 of a byte. The counts and the numbers of timesteps are the rest.
    assert more < 1.2 * spikes.numel() / 3 + 40 * 50 * 6 + 100 * 40 * 6


def test_bad_input(two_calls, tmp_path, as_users):
    recording = recorded(*two_calls)
    for options, message in [
        ({"layers": ("*proj",)}, r"layers '\*proj': expected a pattern that matches"),
        ({"layers": "*"}, "layers: expected a tuple of patterns"),
        ({"num_neurons": 0}, "num_neurons: expected an integer >= 1, got 0"),
        ({"num_timesteps": 0}, "num_timesteps: expected an integer >= 1, got 0"),
        ({"encoders": []}, "encoders: expected at least one code"),
        ({"encoders": ["morse"]}, "encoders: expected"),
        ({"tokens": ["a"]}, "tokens: expected the texts of 3 tokens, got 1"),
    ]:
        with pytest.raises(InputError, match=message):
            raster(recording, **options)
    with pytest.raises(InputError, match=r"raster: expected spikes \[T, tokens, neurons\], got shape \(1, 2\)"):
        raster(SpikeTrain(torch.ones(1, 2, dtype=torch.int8), torch.tensor([1])))
    with record(SpikeLinear.from_linear(nn.Linear(2, 2)), keep_trains=True) as nothing:
        pass
    with pytest.raises(InputError, match=r"layers: '' did not run"):
        raster(nothing)
    layer = SpikeLinear.from_linear(nn.Linear(4, 2))
    with torch.no_grad(), record(layer) as without:
        layer(two_calls[0])
    with pytest.raises(InputError, match=r"'' has no trains in this recording. Use record\(model, keep_trains=True\)"):
        raster(without)
    with pytest.raises(InputError, match=r"r\.pdf: expected a path that ends in \.png or \.svg, got '\.pdf'"):
        plot_raster(recording, tmp_path / "r.pdf")


def test_a_silent_layer_can_be_drawn(tmp_path):
    drawn = raster(recorded(torch.zeros(2, 4), keep_inputs=True), encoders=CODES)
    assert all(not panel.counts.any() for panel in drawn.panels)
    plot_raster(drawn, tmp_path / "r.svg")
    write_raster_page(drawn, tmp_path / "r.html")


def test_the_counts_of_a_panel_are_those_of_the_whole_train(two_calls):
    recording = recorded(*two_calls)
    panel = raster(recording, encoders=["ternary"], num_timesteps=1).panels[0]
    assert panel.spikes.shape == (4, 3, 1)
    assert np.array_equal(panel.counts[:, :2].T, decode(recording.trains[""][0]).numpy())
