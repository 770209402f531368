from collections import Counter

import pytest
import torch

from spikebrain import SpikeSettings, record, to_spiking
from spikebrain.analysis import DEFINITIONS, code_statistics, merged_histogram, spike_statistics
from spikebrain.coding import ENCODERS
from spikebrain.errors import InputError
from spikebrain.models import LayerRecord


def layer(histogram, num_spikes, num_slots, num_timesteps=5):
    total = sum(histogram.values())
    return LayerRecord("x", total, 2, 1, Counter(histogram), num_spikes, num_slots, num_timesteps)


def test_by_hand():
    # |counts| 0, 1, 3, 7, 8, 17 and their bits 0, 1, 2, 3, 1, 2: 9 spikes among 6 channels in 5 timesteps.
    found = spike_statistics([layer({0: 1, -1: 1, 3: 1, -7: 1, 8: 1, 17: 1}, 9, 30)])
    assert found.mean_spikes == 9 / 6
    assert found.mean_count == 36 / 6
    assert found.silent_fraction == 1 / 6
    assert found.fraction_le_7 == 4 / 6
    assert found.fraction_gt_16 == 1 / 6
    # Over 0, 1, 3, 7: 6 spikes in 4 x 3 places.
    assert found.window3_sparsity == 0.5
    assert (found.firing_rate, found.train_sparsity) == (0.3, 0.7)
    assert (found.max_count, found.num_timesteps) == (17, 5)
    assert set(DEFINITIONS) == set(vars(found))


def test_layers_weigh_by_their_channels():
    found = spike_statistics([layer({0: 30}, 0, 30, 1), layer({1: 10}, 10, 20, 2)])
    assert found.mean_spikes == 10 / 40
    assert found.firing_rate == 10 / 50
    assert found.num_timesteps == 2
    assert merged_histogram([layer({0: 1, 2: 3}, 0, 1), layer({2: 1, -2: 5}, 0, 1)]) == {0: 1, 2: 4, -2: 5}


def test_no_small_count():
    assert spike_statistics([layer({9: 4}, 8, 16)]).window3_sparsity == 0


def test_nothing_recorded():
    with pytest.raises(InputError, match="at least one token"):
        spike_statistics([layer({}, 0, 0)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ternary", "bitwise-bidirectional", "twos-complement", "signed-digit"])
def test_another_code_is_what_it_would_have_run_in(tiny_llama, name):
    ids = torch.arange(30)[None]
    model = to_spiking(tiny_llama, SpikeSettings(encoder=ENCODERS.create(name)))
    with record(model) as own:
        model(ids)
    model = to_spiking(tiny_llama)
    with record(model) as bitwise:
        model(ids)
    predicted = code_statistics(bitwise.layers.values(), ENCODERS.create(name))
    ran = spike_statistics(own.layers.values())
    assert predicted.mean_spikes == ran.mean_spikes
    assert predicted.train_sparsity == pytest.approx(ran.train_sparsity)
    assert predicted.num_timesteps == ran.num_timesteps
