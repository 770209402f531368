import dataclasses

import numpy as np
import pytest
import torch

from spikebrain import AEREvents, SpikeTrain
from spikebrain.coding import AEREvent
from spikebrain.errors import EncodingError

# Timestep 0: neuron (0, 1) = 1 fires +1. Timestep 1: neurons 0 and 3 fire -1 and +1.
TRAIN = SpikeTrain(
    torch.tensor([[[0, 1], [0, 0]], [[-1, 0], [0, 1]]], dtype=torch.int8), torch.tensor([2, 1]), zero_point=3
)


def test_by_hand():
    events = AEREvents.from_train(TRAIN)
    assert list(events) == [AEREvent(0, 1, 1), AEREvent(1, 0, -1), AEREvent(1, 3, 1)]
    assert len(events) == 3


def same(a, b):
    return (
        torch.equal(a.spikes, b.spikes)
        and torch.equal(a.timestep_weight, b.timestep_weight)
        and a.zero_point == b.zero_point
    )


def test_round_trip():
    assert same(AEREvents.from_train(TRAIN).to_train(), TRAIN)


@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (2, 5), (4, 2, 3, 5)])
def test_round_trip_of_shapes(shape):
    train = SpikeTrain(torch.randint(-1, 2, shape, dtype=torch.int8), torch.arange(shape[0]))
    events = AEREvents.from_train(train)
    assert same(events.to_train(), train)
    assert len(events) == train.num_spikes


def test_order_does_not_matter():
    events = AEREvents.from_train(TRAIN)
    columns = {name: getattr(events, name).flip(0) for name in ("timestep", "address", "value")}
    assert same(dataclasses.replace(events, **columns).to_train(), TRAIN)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("timestep", [0, 1, 2], r"0 <= timestep < 2, got 2 in event 2"),
        ("timestep", [-1, 1, 1], r"0 <= timestep < 2, got -1 in event 0"),
        ("address", [1, 4, 3], r"0 <= address < 4, got 4 in event 1"),
        ("value", [1, -1, 0], r"value -1 or 1, got 0 in event 2"),
        ("value", [1, 2, 1], r"value -1 or 1, got 2 in event 1"),
        ("timestep", [0.0, 1.0, 1.0], "expected integers, got torch.float32"),
        ("value", [1, 1], "one length, got 3 timesteps, 3 addresses and 2 values"),
        ("address", [1, 3, 3], "at most one event .* got 3 in event 2"),
    ],
)
def test_bad_events(column, values, message, as_users):
    events = dataclasses.replace(AEREvents.from_train(TRAIN), **{column: torch.tensor(values)})
    with pytest.raises(EncodingError, match=message):
        events.to_train()


# As Tonic has them


def test_tonic_by_hand():
    events = AEREvents.from_train(TRAIN).to_numpy()
    assert events.dtype == np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])
    assert events.tolist() == [(1, 0, 0, True), (0, 0, 1, False), (1, 1, 1, True)]


def test_tonic_has_the_same_type():
    io = pytest.importorskip("tonic.io", reason="pip install tonic")
    assert AEREvents.from_train(TRAIN).to_numpy().dtype == io.events_struct


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (), (0,), (4, 0)])
def test_tonic_and_back(shape):
    spikes = torch.randint(-1, 2, (5, *shape), dtype=torch.int8)
    train = SpikeTrain(spikes, torch.tensor([16, 8, 4, 2, 1]), 3)
    events = AEREvents.from_train(train).to_numpy()
    events = events[np.random.default_rng(0).permutation(len(events))]
    back = AEREvents.from_numpy(events, train.timestep_weight, shape, 3)
    assert same(back.to_train(), train)
    assert list(back) == list(AEREvents.from_train(train))


def test_tonic_axes_beyond_16_bits():
    wide = AEREvents(*(torch.tensor([n]) for n in (0, 40_000, 1)), torch.tensor([1]), (40_001,))
    assert wide.to_numpy().dtype["x"] == np.int32
    assert wide.to_numpy()["x"].tolist() == [40_000]


def test_tonic_events_of_one_row_have_no_y():
    events = np.array([(1, 2, 1), (0, 0, 0)], [("t", int), ("x", int), ("p", int)])  # as in its data sets of speech
    found = AEREvents.from_numpy(events, torch.tensor([1, 1]), (3,))
    assert list(found) == [AEREvent(0, 0, -1), AEREvent(1, 2, 1)]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([(3, 0, 0, 1)], "0 <= x < 3, got 3"),
        ([(-1, 1, 0, 1)], "0 <= x < 3, got -1"),
        ([(0, 2, 0, 1)], "0 <= address < 6, got 6"),
        ([(0, 0, 2, 1)], "0 <= timestep < 2, got 2"),
        ([(0, 0, 0, -1)], "p 0 or 1, got -1"),
        ([(0, 0, 0, 1), (0, 0, 0, 1)], "at most one event"),
    ],
)
def test_tonic_events_that_are_none(events, message):
    kind = [("x", int), ("y", int), ("t", int), ("p", int)]
    with pytest.raises(EncodingError, match=message):
        AEREvents.from_numpy(np.array(events, kind), torch.tensor([1, 1]), (2, 3))


def test_tonic_arrays_that_are_none():
    with pytest.raises(EncodingError, match=r"expected a structured array \[E\] with fields x, y, t and p"):
        AEREvents.from_numpy(np.zeros(3), torch.tensor([1]), (3,))
    floats = np.zeros(3, [("x", float), ("t", int), ("p", int)])
    with pytest.raises(EncodingError, match="expected integers in x, got float64"):
        AEREvents.from_numpy(floats, torch.tensor([1]), (3,))


def test_pandas():
    pytest.importorskip("pandas", reason="pip install 'spikebrain[exchange]'")
    frame = AEREvents.from_train(TRAIN).to_pandas()
    # Timestep 0: token 0, channel 1 fires +1. Timestep 1: (0, 0) fires -1 and (1, 1) fires +1.
    assert [*frame.columns] == ["timestep", "token", "channel", "value"]
    assert frame.to_numpy().tolist() == [[0, 0, 1, 1], [1, 0, 0, -1], [1, 1, 1, 1]]


def test_numpy_takes_events_and_trains_as_they_are():
    events = AEREvents.from_train(TRAIN)
    assert (
        np.asarray(events).tolist()
        == events.to_numpy().tolist()
        == [(1, 0, 0, True), (0, 0, 1, False), (1, 1, 1, True)]
    )
    with pytest.raises(ValueError, match="always a copy"):
        np.array(events, copy=False)
    assert np.asarray(TRAIN).tolist() == [[[0, 1], [0, 0]], [[-1, 0], [0, 1]]]
    assert np.asarray(TRAIN, dtype=np.int64).dtype == np.int64
    assert repr(events) == "AEREvents: 3 spikes in 2 timesteps of 2 x 2 neurons"
