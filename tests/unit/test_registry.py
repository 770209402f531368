"""Settings as JSON: whole or not at all, and back."""

import json
from dataclasses import dataclass, field

import pytest

from spikebrain import AdaptiveThreshold, Binary, SpikeSettings, Ternary
from spikebrain.backends import BACKENDS, Chip, Cpu
from spikebrain.chip import MinimalTraffic
from spikebrain.coding import ENCODERS
from spikebrain.errors import InputError
from spikebrain.neuro import NEURONS
from spikebrain.registry import Registry, describe, from_dict, to_dict


class Thing:
    pass


@pytest.fixture
def things(as_users):
    return Registry("thing", Thing)


def through_json(value):
    return from_dict(json.loads(json.dumps(to_dict(value))))


@pytest.mark.parametrize("registry", [NEURONS, ENCODERS, BACKENDS], ids=lambda r: r.kind)
def test_every_registered_class_comes_back_equal(registry):
    for name in registry:
        value = registry.create(name)
        assert through_json(value) == value
        assert to_dict(value) | {"kind": registry.kind, "name": name, "version": 1} == to_dict(value)


@pytest.mark.parametrize(
    "value",
    [
        AdaptiveThreshold(k=2.5, floor=1e-4),
        Binary(zero_point=7),
        Cpu("count"),
        Chip("loihi", jitter=0.3, stream=True, seed=5, mapping=MinimalTraffic()),
        SpikeSettings(
            layers=("*.mlp.*",),
            skip=("*.0.*",),
            neuron={"*down_proj": AdaptiveThreshold(4.0), "*": AdaptiveThreshold(2.0)},
            encoder=Ternary(),
            group_size=8,
            backend=Cpu("count"),
            include_head=True,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_fields_come_back(value):
    again = through_json(value)
    assert again == value
    assert repr(again) == repr(value)


def test_a_chip_is_written_whole_not_by_name():
    stored = json.dumps(to_dict(Chip("loihi")))
    assert "Davies" in stored  # its numbers and their sources, so that the file need not be there


def test_what_a_file_cannot_hold_is_refused():
    with pytest.raises(InputError, match="on_simulation is set"):
        to_dict(Chip(on_simulation=print))

    class Own(AdaptiveThreshold):
        pass

    with pytest.raises(InputError, match="neuron Own has no name by which load could find it"):
        to_dict(Own())
    assert describe(Own()).startswith("Own(k=3.0, floor=1e-05, ceiling=10000.0) #")
    assert json.loads(describe(Ternary()))["name"] == "ternary"


def test_versions_and_fields_are_checked(things):
    @things.register("one")
    @dataclass(frozen=True)
    class One(Thing):
        settings_version = 3
        numbers: tuple[int, ...] = (1, 2)
        names: dict = field(default_factory=lambda: {"a": 1.5})

    stored = to_dict(One())
    assert stored == {
        "kind": "thing",
        "name": "one",
        "version": 3,
        "numbers": [1, 2],
        "names": {"mapping": {"a": 1.5}},
    }
    assert from_dict(stored) == One()
    with pytest.raises(InputError, match="expected settings of version 3, got 2"):
        from_dict(stored | {"version": 2})
    with pytest.raises(InputError, match=r"missing \['names'\], unknown \['extra'\]"):
        from_dict({k: v for k, v in stored.items() if k != "names"} | {"extra": 1})
    with pytest.raises(InputError, match="thing: expected one of one; got 'two'"):
        from_dict(stored | {"name": "two"})
    with pytest.raises(InputError, match="expected one of the kinds"):
        from_dict(stored | {"kind": "nothing"})
    with pytest.raises(InputError, match="as to_dict writes them"):
        from_dict({"name": "one"})
    with pytest.raises(InputError, match=r"One\.names is <object object"):
        to_dict(One(names={"a": object()}))


def test_names_stand_for_default_objects(as_users):
    assert SpikeSettings(encoder="ternary", neuron="adaptive-threshold", backend="cpu") == SpikeSettings(
        encoder=Ternary(), backend=Cpu()
    )
    for name, value in (("encoder", Ternary), ("neuron", 3.0), ("backend", "gpu"), ("encoder", "tenary")):
        with pytest.raises(InputError, match=rf"SpikeSettings\.{name}: expected an object such as"):
            SpikeSettings(**{name: value})
    with pytest.raises(InputError, match=r"SpikeSettings\.neuron\['\*'\]"):
        SpikeSettings(neuron={"*": 3.0})


def test_registration(things):
    @things.register("one")
    class One(Thing):
        pass

    assert list(things) == ["one"]
    assert isinstance(things.create("one"), One)
    assert things.name_of(One()) == "one"
    assert things.name_of(Thing()) is None
    with pytest.raises(InputError, match="thing: expected one of one; got 'two'"):
        things.create("two")
    with pytest.raises(InputError, match="already taken by"):
        things.register("one")(type("Two", (Thing,), {}))


def test_a_field_may_be_called_mapping_or_raw(things):
    @things.register("holder")
    @dataclass(frozen=True)
    class Holder(Thing):
        mapping: object = None
        raw: object = None

    inner = Holder({"a": 1}, 2)
    assert through_json(Holder(inner, inner)) == Holder(inner, inner)
    assert through_json(Holder((inner,), {"b": inner})) == Holder((inner,), {"b": inner})


@pytest.mark.parametrize("field_name", ["kind", "name", "version"])
def test_a_field_that_hides_its_class_is_refused(things, field_name):
    cls = things.register("hiding")(
        dataclass(frozen=True)(type("Hiding", (Thing,), {"__annotations__": {field_name: str}, field_name: "x"}))
    )
    with pytest.raises(InputError, match=rf"Hiding has a field called {field_name}, .*Rename the field"):
        to_dict(cls())


def test_a_field_of_another_kind_is_refused(as_users):
    with pytest.raises(InputError, match=r"AdaptiveThreshold.k: expected a number, got '2'"):
        from_dict({**to_dict(AdaptiveThreshold()), "k": "2"})


def test_patterns_are_a_tuple_of_texts(as_users):
    settings = SpikeSettings(layers=["*_proj"], skip=["lm_head"])  # pyright: ignore[reportArgumentType]
    assert settings == SpikeSettings(layers=("*_proj",), skip=("lm_head",)) == through_json(settings)
    for wrong in (("a", 1), 5, None):
        with pytest.raises(InputError, match=r"SpikeSettings.skip: expected a tuple of texts"):
            SpikeSettings(skip=wrong)


@pytest.mark.parametrize("lost", ["description", "jitter", "mapping"])
def test_a_chip_that_lost_a_field_gets_no_default(as_users, lost):
    content = to_dict(Chip("loihi", jitter=0.3, mapping="minimal-traffic"))
    del content[lost]
    with pytest.raises(InputError, match=rf"backend 'chip': .*{lost}.* The file was changed"):
        from_dict(content)
