"""Spiking layers as operators of PyTorch: in graphs of torch.compile, torch.export and other tracers."""

import io
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from fast_first import fast_first
from made_codes import EXACT
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._functorch.aot_autograd import aot_function
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import AutoConfig, AutoModelForCausalLM, CompileConfig

import spikebrain as sb
from spikebrain import AdaptiveThreshold, SpikeLinear, SpikeSettings, record, to_spiking
from spikebrain.errors import ActivationError, InputError
from spikebrain.neuro import NEURONS

pytestmark = pytest.mark.usefixtures("as_users")
X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


class OwnNeuron(AdaptiveThreshold):
    """A user's class, of which a graph knows nothing."""


@pytest.fixture
def model():
    layers = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8))
    return to_spiking(layers).requires_grad_(False).eval()


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


def compiled(model, **options):
    return torch.compile(model, backend="eager", **options)


def arguments(layer, x):
    return x, layer.weight, layer.scale, layer.bias, layer.graph_settings.text, layer.group_size, "a layer"


def layers(device):
    linear = nn.Linear(16, 8, device=device)
    yield SpikeLinear.from_linear(linear)
    yield SpikeLinear.from_linear(nn.Linear(16, 8, bias=False, device=device), group_size=5, encoder="ternary")
    for name in EXACT:
        yield SpikeLinear.from_linear(linear, encoder=name)
    for name in NEURONS:
        yield SpikeLinear.from_linear(linear, neuron=name, backend="reference")


@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_is_the_layer(device):
    for layer in layers(device):
        x = X.to(device, torch.float32)
        given = arguments(layer, x)
        with torch.no_grad():
            assert torch.equal(torch.ops.spikebrain.spike_linear(*given), layer(x)), layer
            half = torch.ops.spikebrain.spike_linear(x.bfloat16(), *given[1:])
            assert half.dtype == torch.bfloat16
            assert torch.equal(half, layer(x.bfloat16()))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(4, 16), (2, 3, 16), (16,), (0, 16)])
def test_opcheck_of_a_layer(device, shape):
    for layer in list(layers(device))[:2]:
        x = torch.randn(shape, device=device, requires_grad=len(shape) == 2)
        found = torch.library.opcheck(torch.ops.spikebrain.spike_linear.default, arguments(layer, x))
        assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_of_experts(device):
    layers = [SpikeLinear.from_linear(nn.Linear(16, 8, device=device)) for _ in range(3)]
    parts = [[getattr(layer, name).detach() for layer in layers] for name in ("weight", "scale", "bias")]
    x, expert = X.to(device), torch.tensor([2, 0, 3, 2], device=device)  # there is no expert 3
    given = (x, expert, *parts, layers[0].graph_settings.text, None, "experts.*.up")
    found = torch.library.opcheck(torch.ops.spikebrain.spike_experts.default, given)
    assert set(found.values()) == {"SUCCESS"}
    y = torch.ops.spikebrain.spike_experts(*given)
    with torch.no_grad():
        expected = [layers[2](x[:1]), layers[0](x[1:2]), torch.zeros_like(y[:1]), layers[2](x[3:])]
    assert torch.equal(y, torch.cat(expected))
    with pytest.raises(ActivationError, match=r"'experts\.2\.up': .*nan"):
        torch.ops.spikebrain.spike_experts(
            x * torch.tensor([[1.0], [1.0], [1.0], [torch.nan]], device=device), *given[1:]
        )
    with pytest.raises(InputError, match=r"torch\.no_grad"):
        torch.ops.spikebrain.spike_experts(x.clone().requires_grad_(), *given[1:])


TRACERS = {
    "make_fx": lambda m: make_fx(m)(X)(X),
    "make_fx, symbolic": lambda m: make_fx(whole(m), tracing_mode="symbolic")(state(m), X)(state(m), X),
    "aot": lambda m: aot_function(whole(m), fw_compiler=lambda graph, given: graph)(state(m), X),
    "vmap": lambda m: torch.vmap(m)(X),
    "vmap of columns": lambda m: torch.vmap(m, in_dims=1, out_dims=1)(X.t().contiguous()).t(),
    "vmap twice": lambda m: torch.vmap(torch.vmap(m))(X.view(2, 2, 16)).view(4, 8),
    "functionalize": lambda m: torch.func.functionalize(m)(X),
    "compile": lambda m: compiled(m, fullgraph=True)(X),
    "compile, aot": lambda m: torch.compile(m, backend="aot_eager", fullgraph=True)(X),
    "export": lambda m: torch.export.export(m, (X,)).module()(X),
    "export, strict": lambda m: torch.export.export(m, (X,), strict=True).module()(X),
}


def whole(model):
    return lambda state, x: functional_call(model, state, (x,))


def state(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("how", TRACERS)
@pytest.mark.parametrize("grad", [False, True])
def test_tracers_give_what_the_layers_give(model, how, grad):
    with torch.set_grad_enabled(grad):
        assert torch.equal(TRACERS[how](model), model(X))


def test_fake_tensors(model):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = model(mode.from_tensor(X))
        assert found.shape == (4, 8)
        with pytest.raises(InputError, match=r"'0' cannot be part of a graph: expected activations \[\.\.\., 16\]"):
            model(mode.from_tensor(X[:, :5]))
    assert type(found).__name__ == "FakeTensor"


def test_vmap_over_weights_is_refused(model):
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in state(model).items()}
    with pytest.raises(InputError, match="Map activations"):
        torch.vmap(lambda s: functional_call(model, s, (X,)))(stacked)


@pytest.mark.slow
def test_errors_of_a_compiled_model_name_the_layer(model):
    run = compiled(model, fullgraph=True)
    run(X)
    broken = X.clone()
    broken[1, 3] = torch.nan
    with pytest.raises(ActivationError, match=r"SpikeLinear '0': .*nan at index \(1, 3\)"):
        run(broken)
    with pytest.raises(InputError, match=r"SpikeLinear '0': expected activations \[\.\.\., 16\], got shape \(4, 5\)"):
        compiled(model)(X[:, :5])


@pytest.mark.parametrize(
    ("name", "value"),
    [("neuron", AdaptiveThreshold(k=7.0)), ("encoder", sb.Ternary()), ("backend", sb.Reference()), ("bias", None)],
)
def test_what_is_replaced_after_compilation_counts(model, name, value):
    run = compiled(model, fullgraph=True)
    before = run(X)
    setattr(model[0], name, value)
    assert torch.equal(run(X), model(X))
    assert torch.equal(run(X), before) == (name in ("encoder", "backend"))
    assert type(getattr(model[0], name)) is type(value)
    texts = [getattr(node, "args", ())[4:5] for node in torch.export.export(model, (X,)).graph.nodes]
    assert (str(7.0) in str(texts)) == (name == "neuron")
    assert ('"ternary"' in str(texts)) == (name == "encoder")


@pytest.mark.slow
def test_observers_added_after_compilation_are_called(model):
    run, seen = compiled(model), []
    run(X)
    model[2].observers.append(lambda layer, step: seen.append(layer.name))
    assert torch.equal(run(X), model(X))
    assert seen == ["2", "2"]
    torch._dynamo.reset()
    with pytest.raises(Unsupported, match="SpikeLinear '2' cannot be part of a graph: it is observed"):
        compiled(model, fullgraph=True)(X)
    with pytest.raises(InputError, match="SpikeLinear '2' cannot be part of a graph: it is observed"):
        torch.export.export(model, (X,))


@pytest.mark.slow
def test_a_recording_of_a_compiled_model_is_that_of_the_model(tiny_llama):
    spiking, ids = to_spiking(tiny_llama), torch.arange(9)[None]
    run = compiled(spiking, fullgraph=True)
    with torch.no_grad():
        run(ids)
        states = []
        for model in (run, spiking, run):  # norms and attention are recorded by hooks, which PyTorch does not look for
            with record(spiking) as recording:
                model(ids)
            states.append(recording.state())
        assert states[0]["modules"]
        assert states[0] == states[1] == states[2]
        with record(spiking), record(spiking):
            pass
        assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("kind", ["neuron", *(pytest.param(k, marks=pytest.mark.slow) for k in ("encoder", "backend"))])
def test_plugins_that_no_graph_can_hold(kind):
    own = {
        "neuron": OwnNeuron(k=2.0),
        "encoder": type("Own", (sb.Ternary,), {})(),
        "backend": sb.Chip(on_simulation=print),
    }
    own["backend"] = type("OwnBackend", (sb.Reference,), {})()
    model = to_spiking(nn.Sequential(nn.Linear(16, 8)), SpikeSettings(**{kind: own[kind]})).requires_grad_(False)
    reason = f"SpikeLinear '0' cannot be part of a graph: {kind} {type(own[kind]).__name__} has no name"
    assert torch.equal(compiled(model)(X), model(X))
    torch._dynamo.reset()
    with pytest.raises(Unsupported, match=reason):
        compiled(model, fullgraph=True)(X)
    with pytest.raises(InputError, match=reason):
        torch.export.export(model, (X,))


def test_a_plugin_that_may_change_is_no_constant(model, monkeypatch):
    class Changing(AdaptiveThreshold):
        def __init__(self):
            object.__setattr__(self, "k", 3.0)

    Changing.__dataclass_params__ = type("Params", (), {"frozen": False})
    monkeypatch.setitem(NEURONS._classes, "changing", Changing)
    layer = SpikeLinear.from_linear(nn.Linear(16, 8), neuron=Changing())
    assert "Changing is no frozen dataclass" in layer.graph_settings.obstacle


@pytest.mark.parametrize("backend", fast_first(["eager", "aot_eager"]))
def test_gradients_of_a_compiled_model(backend):
    model = to_spiking(nn.Sequential(nn.Linear(16, 8)), SpikeSettings(group_size=5)).train()
    model[0].bias.requires_grad_()

    def gradients(run):
        x = X.clone().requires_grad_()
        model.zero_grad()
        y = run(x)
        (y * torch.arange(8.0)).sum().backward()
        return y, x.grad, model[0].bias.grad

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gradients(torch.compile(model, backend=backend, fullgraph=True))
        assert ["do not learn" in str(w.message) for w in caught if "INT8" in str(w.message)] == [True]
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(model), strict=True))


@pytest.mark.slow
def test_a_neuron_without_gradient(model):
    model[0].neuron = sb.LeakyIntegrateAndFire()
    x = X.clone().requires_grad_()
    assert torch.equal(compiled(model, fullgraph=True)(X), model(X))
    with pytest.raises(Unsupported, match="no gradient passes its neuron"):
        compiled(model, fullgraph=True)(x)
    torch._dynamo.reset()
    with pytest.raises(InputError, match="LeakyIntegrateAndFire passes no gradient"):
        compiled(model)(x)
    with pytest.raises(InputError, match="a layer: LeakyIntegrateAndFire passes no gradient"):
        torch.ops.spikebrain.spike_linear(*arguments(model[0], x))


def exported(model):
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("tokens")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    return program, file


def test_an_exported_program_is_saved_and_loaded(model):
    program, file = exported(model)
    found = [node for node in program.graph.nodes if "spike_linear" in str(node.target)]
    assert [node.args[-1] for node in found] == ["0", "2"]
    assert program.state_dict.keys() == model.state_dict().keys()
    file.seek(0)
    again = torch.export.load(file).module()
    assert torch.equal(again(X), model(X))
    assert torch.equal(again(X[:3]), model(X[:3]))
    assert all(w.t().is_contiguous() for w in again.state_dict().values() if w.dtype == torch.int8)
    with pytest.raises(ActivationError, match=r"SpikeLinear '0': "):
        again(X * torch.inf)


@pytest.mark.slow
def test_a_saved_program_says_which_operator_is_missing(model, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(exported(model)[1].getvalue())
    code = f"import torch; torch.export.load({str(path)!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "spikebrain" in found.stderr
    assert "spike_linear" in found.stderr
    code = f"import spikebrain.models, torch; print(torch.export.load({str(path)!r}).module()(torch.ones(4, 16)).shape)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torch.Size([4, 8])" in found.stdout, found.stderr


@pytest.mark.slow
def test_a_compiled_model_generates_with_a_static_cache(tiny_llama):
    spiking, ids = to_spiking(tiny_llama), torch.arange(9)[None]
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    compilation = CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
    compilation._compile_all_devices = True  # transformers compiles by itself on GPUs only
    found = spiking.generate(ids, cache_implementation="static", compile_config=compilation, **settings)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert torch.equal(found, spiking.generate(ids, cache_implementation="static", **settings))
    assert torch.equal(found, spiking.generate(ids, **settings))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_calls_the_operators(tiny_llama):
    spiking, ids = to_spiking(tiny_llama), torch.arange(9)[None]
    with torch.no_grad():
        found = torch.compile(spiking, fullgraph=True)(ids).logits
        torch.testing.assert_close(found, spiking(ids).logits, rtol=0.2, atol=0.2)  # a count may be rounded otherwise
        layer = spiking.model.layers[0].mlp.down_proj
        x = torch.randn(3, 40)
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("grad", [False, True])
def test_kernels_get_the_layers_own_weights(model, monkeypatch, backend, grad):
    """What is made of weights for a GPU is kept by the tensor: other objects would be copied at every call."""
    seen, run = [], SpikeLinear.run
    monkeypatch.setattr(SpikeLinear, "run", lambda layer, x: (seen.append(layer.weight), run(layer, x))[1])
    x = X.clone().requires_grad_(grad)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(grad):
        compiled(x)
        compiled(x)
    assert [weight is layer.weight for weight, layer in zip(seen, [model[0], model[2]] * 2, strict=True)] == [True] * 4


@pytest.mark.slow
def test_what_the_operator_does_not_know_stays_out_of_graphs():
    class Own(SpikeLinear):
        def run(self, x):
            return 2 * super().run(x)

    layer = SpikeLinear.from_linear(nn.Linear(16, 8)).requires_grad_(False)
    layer.register_buffer("shift", None)
    assert torch.equal(compiled(layer, fullgraph=True)(X), layer(X))
    layer.register_buffer("shift", torch.ones(8))
    own = Own.from_linear(nn.Linear(16, 8)).requires_grad_(False)
    reasons = ("has tensors that the operator does not take", "what the subclass Own adds")
    for refused, reason in zip((layer, own), reasons, strict=True):
        assert torch.equal(compiled(refused)(X), refused(X))
        with pytest.raises(InputError, match=f"SpikeLinear cannot be part of a graph: .*{reason}"):
            torch.export.export(refused, (X,))


@pytest.mark.slow
def test_experts_that_no_graph_can_hold():
    config = AutoConfig.for_model("mixtral", vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    config.num_attention_heads, config.num_key_value_heads, config.num_local_experts = 2, 1, 3
    ids = torch.tensor([[3, 5, 7]])
    for skip, change in ((("*down_proj",), lambda m: None), ((), observe)):
        spiking = to_spiking(AutoModelForCausalLM.from_config(config).eval(), SpikeSettings(skip=skip))
        change(spiking)
        torch._dynamo.reset()
        with torch.no_grad():
            assert torch.equal(compiled(spiking)(ids).logits, spiking(ids).logits)
            torch._dynamo.reset()
            with pytest.raises(Unsupported, match=r"Experts cannot be part of a graph: .*(all spike|observed)"):
                compiled(spiking, fullgraph=True)(ids)


def observe(model):
    next(m for m in model.modules() if getattr(m, "name", "").endswith("1.down_proj")).observers.append(lambda *_: None)
