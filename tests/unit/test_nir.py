"""Nets as graphs of NIR: read again by NIR's own equations, with the same spikes; what cannot be said is listed."""

import dataclasses

import numpy as np
import pytest
import torch
from made_nets import hits_a_threshold, random_net
from torch import nn

import spikebrain as sb
from spikebrain import IntegrateAndFire, LeakyIntegrateAndFire, SpikeLinear
from spikebrain.errors import InputError
from spikebrain.exchange import run_stages, to_nir_data

nir = pytest.importorskip("nir", reason="pip install 'spikebrain[exchange]'")
pytestmark = pytest.mark.usefixtures("as_users")
HARD = IntegrateAndFire(5.0, reset="hard")


def run_graph(graph, spikes):
    """Step through a chain as NIR's docstrings say, in float64: fire above the threshold, then reset."""
    after = dict(graph.edges)
    order = [next(iter(graph.inputs))]
    while order[-1] in after:
        order.append(after[order[-1]])
    nodes = [graph.nodes[name] for name in order[1:-1]]
    states = [None] * len(nodes)
    found = []
    for x in spikes.numpy().astype(np.float64):
        for i, node in enumerate(nodes):
            if isinstance(node, nir.Linear):
                x = x @ node.weight.T.astype(np.float64)  # noqa: PLW2901
            elif isinstance(node, nir.Scale):
                x = x * node.scale  # noqa: PLW2901
            else:
                before = np.broadcast_to(node.v_reset, x.shape) if states[i] is None else states[i]
                v = before + node.r * x
                fired = v > node.v_threshold
                states[i] = np.where(fired, node.v_reset, v)
                x = fired.astype(np.float64)  # noqa: PLW2901
        found.append(x)
    return np.stack(found)


def layer(inputs=4, outputs=3, **options):
    return SpikeLinear(torch.randint(-9, 10, (outputs, inputs), dtype=torch.int8), torch.ones(outputs, 1), **options)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_random_nets(dtype):
    ties = 0
    for seed in range(60):
        stages, spikes = random_net(seed, v_reset=seed % 2 == 0, each_its_own=True)
        export = sb.to_nir(stages, dtype)
        assert export.left_out == ()
        trains = run_stages(stages, spikes)
        np.testing.assert_array_equal(run_graph(export.graph, spikes), trains[-1].numpy())
        assert all(node.weight.dtype == dtype for node in export.graph.nodes.values() if isinstance(node, nir.Linear))
        ties += hits_a_threshold(stages, trains)
    assert ties > 10


def test_through_a_file(tmp_path):
    stages, spikes = random_net(3)
    sb.to_nir(stages).write(tmp_path / "it.nir")
    graph = nir.read(tmp_path / "it.nir")
    np.testing.assert_array_equal(run_graph(graph, spikes), run_stages(stages, spikes)[-1].numpy())
    [fires] = [node for name, node in graph.nodes.items() if name == "if_1"]
    assert fires.metadata["threshold"].tolist() == stages[1].threshold.expand(len(fires.r)).tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["it.nir"]


def test_the_last_layer_has_its_scale():
    stages, spikes = random_net(5)
    head = SpikeLinear(torch.ones(2, stages[-2].out_features, dtype=torch.int8), torch.tensor([[0.5], [0.25]]))
    export = sb.to_nir([*stages, head])
    sums = run_stages([*stages, head], spikes)[-1]
    np.testing.assert_array_equal(run_graph(export.graph, spikes), sums.numpy() * np.array([0.5, 0.25]))


def test_by_hand():
    """Weight 2, threshold 4: fires at the second spike, at the threshold; NIR's own is between 3 and 4."""
    stages = [SpikeLinear(torch.tensor([[2]], dtype=torch.int8), torch.ones(1, 1)), IntegrateAndFire(4.0, reset="hard")]
    spikes = torch.ones(5, 1, 1, dtype=torch.int8)
    assert [x.flatten().tolist() for x in run_stages(stages, spikes)] == [[2] * 5, [0, 1, 0, 1, 0]]
    fires = sb.to_nir(stages).graph.nodes["if_1"]
    assert (fires.r.tolist(), fires.v_threshold.tolist(), fires.v_reset.tolist()) == ([1.0], [3.5], [0.0])


UNSAID = {
    "soft": (IntegrateAndFire(5.0), "a soft reset"),
    "leak": (LeakyIntegrateAndFire(5.0, reset="hard"), "a leak"),
    "threshold": (IntegrateAndFire(4.5, reset="hard"), "a threshold that is not one integer"),
    "a token's threshold": (IntegrateAndFire(torch.ones(2, 3) * 4, reset="hard"), "a threshold that is not one"),
    "huge": (IntegrateAndFire(2.0**24, reset="hard"), "a threshold that is not one integer below"),
    "v_reset": (IntegrateAndFire(5.0, reset="hard", v_reset=0.5, v_initial=0.5), "a v_reset that is no integer"),
    "v_initial": (IntegrateAndFire(5.0, reset="hard", v_initial=1.0), "a v_initial that is not v_reset"),
    "ternary": (IntegrateAndFire(5.0, reset="hard", negative_threshold=0.0), "spikes of -1"),
    "groups": (SpikeLinear(torch.ones(3, 3, dtype=torch.int8), torch.ones(3, 2), group_size=2), "groups of input"),
    "minimum": (layer(3, 3, minimum=torch.ones(3, 1)), "minima beside the scales"),
}


def test_what_cannot_be_said_is_left_out_and_listed():
    for stage, message in UNSAID.values():
        stages = [layer(), stage, layer(3, 2)] if not isinstance(stage, SpikeLinear) else [layer(), HARD, stage]
        export = sb.to_nir(stages)
        assert [text for text in export.left_out if text.startswith(message)], (message, export.left_out)
        assert ("linear_2" if isinstance(stage, SpikeLinear) else "if_1") not in export.graph.nodes
    parts = sb.to_nir([layer(), IntegrateAndFire(5.0), layer(3, 2), HARD])
    assert list(parts.graph.nodes) == [
        *("linear_0.input", "linear_0", "linear_0.output"),
        *("linear_2.input", "linear_2", "if_3", "linear_2.output"),
    ]
    assert parts.left_out == ("a soft reset, as NIR sets the potential to v_reset: stage 1",)


def test_a_class_of_ones_own_is_left_out():
    @dataclasses.dataclass(frozen=True)
    class Own(IntegrateAndFire):
        def step(self, x, state):
            return super().step(x * 2, state)

    [told] = sb.to_nir([layer(), Own(5.0, reset="hard")]).left_out
    assert told.startswith("the class Own, whose steps may be others")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ([], "nothing of this net can be said"),
        (nn.Linear(2, 2), "to_nir: expected a model with SpikeLinear layers. Call to_spiking"),
        ([HARD], "stage 0: expected a SpikeLinear in front"),
        ([layer(), nn.ReLU()], "stage 1: expected a SpikeLinear or an IntegrateAndFire, got ReLU"),
        ([layer(), layer(3, 2)], "stage 1: expected a neuron between two layers"),
        ([layer(), HARD, layer(4, 2)], "stage 2: expected 3 input channels, got 4"),
    ],
)
def test_what_is_no_net(net, message):
    with pytest.raises(InputError, match=message):
        sb.to_nir(net)


def test_arguments():
    with pytest.raises(InputError, match=r"to_nir\.dtype: expected \"int8\" or \"float32\", got 'int4'"):
        sb.to_nir([layer()], "int4")
    with pytest.raises(InputError, match=r"run_stages: expected int8 spikes .*got torch\.float32"):
        run_stages([layer()], torch.ones(2, 1, 4))


def test_a_model(tiny_llama, tmp_path):
    spiking = sb.to_spiking(tiny_llama, sb.SpikeSettings(encoder=sb.Ternary()))
    export = sb.to_nir(spiking)
    name = "model.layers.0.mlp.down_proj"
    linear, scale = (export.graph.nodes[f"{name}.{kind}"] for kind in ("linear", "scale"))
    with sb.record(spiking, keep_trains=True) as recording, torch.no_grad():
        spiking(torch.arange(3)[None])
    module = spiking.get_submodule(name)
    count = recording.spikes_of(name).spikes.sum(0).numpy()  # of unit timesteps
    expected = count @ module.dequantized_weight().numpy().T
    np.testing.assert_allclose((count @ linear.weight.T.astype(np.int32)) * scale.scale, expected, rtol=1e-5)
    assert linear.metadata["encoder"] == "Ternary()"
    said = " ".join(export.left_out)
    for part in ("the neuron AdaptiveThreshold(k=3.0", "the code Ternary()", "14 of them, such as model.layers.0"):
        assert part in said
    assert "what does not spike" in said
    data = to_nir_data(recording)
    data.check_nodes(export.graph)
    nir.write_data(tmp_path / "it.h5", data)
    back = nir.read_data(tmp_path / "it.h5").nodes[f"{name}.input"].observables["spikes"]
    np.testing.assert_array_equal(back.data, recording.spikes_of(name).spikes.transpose(0, 1).numpy())
    with pytest.raises(InputError, match="to_nir_data: expected a recording with trains"):
        to_nir_data(dataclasses.replace(recording, trains={}))
