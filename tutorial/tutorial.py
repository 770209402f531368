"""From one neuron to a whole model on spikes: a marimo notebook, which is also a script.

`spikebrain tutorial` opens it. Each cell can be changed; what depends on it runs again.
"""

import marimo

app = marimo.App(width="medium", app_title="spikebrain: from one neuron to a whole model")


@app.cell
def _():
    import marimo as mo
    import torch
    from matplotlib.figure import Figure
    from torch import nn

    import spikebrain as sb
    from spikebrain.analysis import raster
    from spikebrain.analysis.raster_plot import draw_raster

    torch.manual_seed(0)
    return Figure, draw_raster, mo, nn, raster, sb, torch


@app.cell
def _(mo):
    mo.md(r"""
    # From one neuron to a whole model on spikes

    **1. One neuron.** A neuron adds up its input in a *membrane potential*. Where that reaches a *threshold*, the
    neuron fires a *spike*, and the threshold is taken from the potential. Here it gets all of its input in the first
    timestep, and then silence. A negative input fires spikes of −1. Move the slider.
    """)
    return


@app.cell
def _(mo):
    x = mo.ui.slider(-5.0, 5.0, step=0.1, value=2.6, label="input, in thresholds", show_value=True)
    x
    return (x,)


@app.cell
def _(Figure, sb, torch, x):
    # The potential begins at half a threshold: that turns "how often does the threshold fit?" into rounding.
    neuron = sb.IntegrateAndFire(threshold=1.0, v_initial=0.5, negative_threshold=0.0)
    steps = torch.zeros(6, 1)
    steps[0] = x.value
    spikes, _ = neuron.unroll(steps)

    potential, _state = [], neuron.initial_state(steps[0])
    for _step in steps:
        _, _state = neuron.step(_step, _state)
        potential.append(float(_state.v))
    _figure = Figure(figsize=(7, 2.4), layout="constrained")
    _axes = _figure.subplots()
    _axes.step(range(6), potential, where="mid", color="black")
    _axes.axhline(1, color="grey", linestyle="--")
    _axes.axhline(0, color="grey")
    for _t, _spike in enumerate(spikes.count.flatten().tolist()):
        if _spike:
            _axes.plot(_t, potential[_t], "^" if _spike > 0 else "v", color="#0072b2" if _spike > 0 else "#d55e00")
    _axes.set(xlabel="timestep", ylabel="potential / threshold", title=f"spikes: {spikes.count.flatten().tolist()}")
    _figure
    return neuron, spikes


@app.cell
def _(mo, spikes, x):
    count = int(spikes.count.sum())
    assert count == round(x.value) or abs(x.value) % 1 == 0.5
    mo.md(f"""
    **2. Its closed form.** The spikes add up to {count}: the input, rounded to whole thresholds. So nobody has to run
    the neuron step by step: `count = round(x / threshold)`. *Adaptive threshold* means that each token of a text sets
    its own, `threshold = mean |x| / k`. With a larger `k` there are more spikes and less rounding.
    """)
    return


@app.cell
def _(sb, torch):
    activations = torch.tensor([[1.0, -1.0, 4.0, 0.2]])
    counted = sb.AdaptiveThreshold(k=2.0)(activations)
    print("threshold", counted.threshold.tolist(), "counts", counted.count.tolist())
    print("what the spikes carry:", counted.activation().tolist())
    return (counted,)


@app.cell
def _(mo):
    mo.md(r"""
    **3. Codes.** A count becomes a *spike train*. The ternary code fires as often as the count says. The bitwise code
    writes the count in binary digits: a few timesteps, each with a weight of its own. All of them carry the same count.
    """)
    return


@app.cell
def _(counted, sb):
    for _code, _timesteps in ((sb.Ternary(), 8), (sb.BidirectionalBitwise(), 4), (sb.SignedDigit(), 5)):
        _train = _code.encode(counted.count, _timesteps)
        assert sb.decode(_train).tolist() == counted.count.tolist()
        print(_code, "with the weights", _train.timestep_weight.tolist())
        for _row in _train.spikes[:, 0].t().tolist():
            print("   ", "".join("-·+"[_s + 1] for _s in _row))
    return


@app.cell
def _(mo):
    mo.md(r"""
    **4. A layer.** A spike of a channel adds that channel's weights to the sums; it multiplies nothing, and a silent
    channel's weights are not read. The sums are integers, and exact: equal to the product of weights and counts.
    """)
    return


@app.cell
def _(nn, sb, torch):
    layer = sb.SpikeLinear.from_linear(nn.Linear(40, 8, bias=False))
    tokens = torch.randn(6, 40)
    with torch.no_grad(), sb.record(layer, keep_trains=True, keep_inputs=True) as seen:
        outputs = layer(tokens)
    given = seen.inputs[""][0]
    product = given.count.long() @ layer.weight.t().long()
    assert torch.allclose(outputs, product * given.threshold * layer.scale.t(), rtol=1e-5)
    print(f"{seen.layers[''].num_spikes} spikes, {given.count.eq(0).float().mean():.0%} of the channels are silent")
    return (seen,)


@app.cell
def _(draw_raster, raster, seen):
    draw_raster(raster(seen, encoders=["ternary", "bitwise-bidirectional"], title="Six tokens into one layer"))
    return


@app.cell
def _(mo):
    mo.md(r"""
    **5. A whole model.** `to_spiking` puts every linear layer of a model on spikes. Here a tiny Llama that nobody has
    trained; yours goes the same way: `model, tokenizer, _ = sb.load("FOLDER")`.
    """)
    return


@app.cell
def _(mo):
    k = mo.ui.slider(1.0, 8.0, step=0.5, value=3.0, label="k", show_value=True)
    k
    return (k,)


@app.cell
def _(k, sb, torch):
    from transformers import LlamaConfig, LlamaForCausalLM

    _sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**_sizes, num_key_value_heads=2, vocab_size=300)).eval()
    spiking = sb.to_spiking(llama, sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k=k.value)))
    ids = torch.arange(24)[None]
    with torch.inference_mode(), sb.record(spiking) as recording:
        logits = spiking(ids).logits
        expected = llama(ids).logits
    error = float((logits - expected).norm() / expected.norm())
    mean_spikes = sb.spike_statistics(recording.layers.values()).mean_spikes
    print(f"k = {k.value:g}: {mean_spikes:.2f} spikes per channel and token; the logits differ by {error:.1%}")
    recording
    return (recording,)


@app.cell
def _(mo):
    mo.md(r"""
    **6. Does it pay?** The paper's estimate prices each spike as one 8-bit addition and leaves out the rest. The full
    estimate counts everything that the run did, above all reading weights, and charges the dense models for the same.
    """)
    return


@app.cell
def _(recording, sb):
    counts = sb.count_operations(recording)
    paper, full = sb.PaperEnergy().estimate(counts), sb.DigitalEnergy().estimate(counts)
    print(f"additions only: {paper.ratio_vs_int8:.1f}x less energy than INT8")
    print(f"everything:     {full.ratio_vs_int8:.2f}x")
    return


@app.cell
def _(mo):
    mo.md(r"""
    **Next.** On the command line, with a real model:

        spikebrain report                     # accuracy, spikes and energy of SmolLM2, about two minutes
        spikebrain raster smollm2 --prompt "A neuron fires when" --out raster.html
        spikebrain simulate --num-tokens 4    # the same spikes on an asynchronous chip

    In the repository, `examples/` shows codes, neurons, chips and energy tables of your own.
    """)
    return


if __name__ == "__main__":
    app.run()
