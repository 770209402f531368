import dataclasses

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
