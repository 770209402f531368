"""Fit a converted model to its Transformer on some text, layer by layer: in closed form, then by a few gradient steps.

Each layer with linear attention gets the input of the Transformer's layer and is fitted to that layer's output:

1. *Decay.* For each key/value head, choose the time constant from `TIME_CONSTANTS` whose outputs fit best, by the
   squared error that step 3 would leave. (Not for a tied gate, which has no parameters.)
2. *Magnitudes.* The outputs of linear attention are sums without a divisor. Where linear attention is alone, its
   queries (with the sigmoid feature map: values) are scaled so that the outputs of a head have a mean square of
   `eps_of_heads`. There a norm keeps small outputs small, as most heads give nothing at most tokens, and limits large
   ones.
3. *Columns.* Each column of o_proj is scaled by the least-squares factor between the layer's channel and the
   Transformer's. If two branches share the columns, softmax attention sets the factors; both branch weights then follow
   by least squares over all channels.
4. fit="layers": all of the layer's attention learns in a few gradient steps (`fit_layers`), where linear attention is
   alone. fit="o-proj": the whole of o_proj is fitted to the attention output instead, by ridge regression towards the
   result of step 3. fit="columns": neither.

With fit="layers", sink tokens are fitted to the Transformer's predictions (`fit_sinks`): first of all, or last if
linear attention is alone in a layer, since predictions say nothing before such layers are fitted.

The norms keep weight 1: g_norm shares one weight per channel between heads, while o_proj has a column for each head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...errors import InputError
from ...module_check import check_module
from ..spikingbrain.attention import Attention
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM, check_spikingbrain
from .fit_layers import fit_layers
from .fit_sinks import STEPS as SINK_STEPS
from .fit_sinks import fit_sinks
from .layerwise import LayerTrace, Surroundings, trace, watch

FITS = ("layers", "columns", "o-proj")
# Gradient steps of a layer with fit="layers".
STEPS = 50
# Tokens after which a state has decayed to 1 / e.
TIME_CONSTANTS = (2.0, 8.0, 32.0, 128.0, 512.0, 4096.0)
# Strength of the ridge regression, relative to the mean square of a column.
RIDGE = 1e-3
# Tokens whose activations in all layers are in memory at once.
_TOKENS = 2048
# Index of a layer, its attention, the Transformer's trace of some rows, and a function to run the layer on its input.
_Part: TypeAlias = tuple[int, Attention, LayerTrace, Callable[[], dict[str, tuple[Tensor, Tensor]]]]


@torch.no_grad()
def calibrate(
    student: SpikingBrainForCausalLM,
    teacher: Any,
    tokens: Tensor,
    *,
    fit: str = "layers",
    steps: int = STEPS,
    progress: Callable[[str, int], Callable[[int], None]] | None = None,
) -> None:
    """Fit a model from `from_transformer` to its Transformer, in place.

    Args:
        student: the converted model, not spiking.
        teacher: the Transformer that it was converted from.
        tokens: token ids, [B, L], or [L] for one text. A few thousand tokens are enough.
        fit: "layers": all of a linear layer's attention, and sink tokens; "o-proj": scales and output projections;
            "columns": scales only, which is quick (docs/results.md compares them).
        steps: gradient steps of each layer, for fit="layers".
        progress: called with a step's title and number of parts; the function it returns gets the number of parts done.
    Raises:
        InputError: no tokens, ids outside the vocabulary, an unknown fit, steps below 1, or a spiking model.
    """
    check_spikingbrain("calibrate", student, "student")
    check_module("calibrate", teacher, "teacher")
    check_fit(fit, steps)
    if student.settings.spiking is not None:
        raise InputError("calibrate: expected a float model, got one that spikes. Calibrate it before to_spiking.")
    rows = check_tokens(tokens, student.settings.vocab_size, "calibrate.tokens").to(student.device)
    rows = rows[None] if rows.ndim == 1 else rows
    groups = rows.split(max(_TOKENS // rows.shape[1], 1))
    mixers: Any = [layer.attn for layer in student.model.layers]
    layers: dict[int, Attention] = {i: mixer for i, mixer in enumerate(mixers) if "gla" in mixer.plan.mixers}
    alone = {i: mixer for i, mixer in layers.items() if not mixer.plan.is_parallel}

    def told(title: str, total: int) -> Callable[[int], None]:
        return progress(title, total) if progress else lambda number: None

    def parts(title: str) -> Iterator[_Part]:
        done = told(title, len(groups) * len(layers))
        for part in _each(student, teacher, groups, layers):
            yield part
            done(1)

    def sinks() -> None:
        if student.model.sinks is not None and fit == "layers":
            fit_sinks(student, teacher, rows, SINK_STEPS, told("sinks", SINK_STEPS))

    if not alone:
        sinks()
    if layers and student.settings.gate != "tied":
        _choose_decay(student, layers, parts("time constants"))
    if alone and student.settings.head_norm_eps is not None:
        _scale_outputs(student, teacher, groups[0], alone)
    if layers:
        _scale_columns(student, layers, parts("columns"))
    if alone and fit == "layers":
        fit_layers(student, teacher, groups, alone, steps, told("layers", len(alone)))
    if layers and fit == "o-proj":
        _fit_output(student, layers, parts("o_proj"))
    if alone:
        sinks()


def check_fit(fit: str, steps: int) -> None:
    """Raise an InputError unless this is a way to fit, and a number of steps."""
    if fit not in FITS:
        raise InputError(f"calibrate.fit: expected one of {FITS}, got {fit!r}.")
    if type(steps) is not int or steps < 1:
        raise InputError(f"calibrate.steps: expected an integer >= 1, got {steps!r}.")


def check_tokens(tokens: Tensor, vocab_size: int, where: str) -> Tensor:
    """Check that there are at least two token ids, as integers within the vocabulary, and return them.

    Raises:
        InputError: a check fails.
    """
    if tokens.ndim not in (1, 2) or tokens.shape[-1] < 2 or len(tokens) == 0 or tokens.dtype != torch.int64:
        raise InputError(
            f"{where}: expected int64 token ids [L] or [B, L] with L >= 2, got {tokens.dtype} {list(tokens.shape)}."
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"{where}: expected ids from 0 to {vocab_size - 1}, got {low} to {high}. Use the model's tokenizer."
        )
    return tokens


def gate_bias(time_constant: float, divisor: float) -> float:
    """Return b such that the decay exp(logsigmoid(b) / divisor) falls to 1 / e after `time_constant` tokens.

    >>> round(gate_bias(16 / math.log(2), 16.0), 6) + 0.0  # logsigmoid(0) is -log(2)
    0.0
    """
    # logsigmoid(b) = -x, so b = -log(e^x - 1) = -x - log(1 - e^-x).
    x = divisor / time_constant
    return -x - math.log(-math.expm1(-x))


def _each(
    student: SpikingBrainForCausalLM, teacher: Any, groups: Sequence[Tensor], layers: dict[int, Attention]
) -> Iterator[_Part]:
    """Yield each layer for each group of rows, with its target and a function to run it."""
    for group in groups:
        traces = trace(teacher, group)
        surroundings = Surroundings(student, group, traces[0].normed.dtype)
        for i, attention in layers.items():
            watched = {
                name: module for name, module in attention.named_children() if name.endswith(("_norm", "o_proj"))
            }

            def run(i=i, attention=attention, watched=watched, x=traces[i].normed, surroundings=surroundings):
                with watch(watched) as seen:
                    attention(x, surroundings.context, surroundings.state(i))
                return seen

            yield i, attention, traces[i], run


def _choose_decay(student: SpikingBrainForCausalLM, layers: dict[int, Attention], parts: Iterator[_Part]) -> None:
    """Give every key/value head the time constant whose outputs fit best."""
    settings = student.settings
    # Per layer, summed over tokens: target * output and output^2, each [constants, channels].
    sums = {i: torch.zeros(2, len(TIME_CONSTANTS), settings.num_heads * settings.dim).double() for i in layers}
    for i, attention, target, run in parts:
        attention.g_norm.eps = settings.norm_eps  # magnitudes, which differ between constants, do not count here
        for j, constant in enumerate(TIME_CONSTANTS):
            _gate_bias(attention).fill_(gate_bias(constant, settings.gate_divisor))
            output = _flat(run()["g_norm"][1].flatten(2))
            sums[i][0, j] += (_flat(target.heads) * output).sum(0).cpu()
            sums[i][1, j] += output.square().sum(0).cpu()
    for i, attention in layers.items():
        # The part of the target's square sum that the best factor explains; the rest is the error.
        explained = sums[i][0].square() / sums[i][1].clamp(min=1e-30)
        best = explained.unflatten(1, (settings.num_kv_heads, -1)).sum(-1).argmax(0)  # [Hk]
        biases = torch.tensor([gate_bias(TIME_CONSTANTS[j], settings.gate_divisor) for j in best.tolist()])
        _gate_bias(attention).copy_(biases.repeat_interleave(settings.dim))
        attention.g_norm.eps = settings.eps_of_heads


def _scale_outputs(student: SpikingBrainForCausalLM, teacher: Any, group: Tensor, layers: dict[int, Attention]) -> None:
    """Scale queries or values so that the outputs of linear attention have a mean square of `eps_of_heads`."""
    settings = student.settings
    for _, attention, _, run in _each(student, teacher, [group], layers):
        heads = run()["g_norm"][0].float()  # [B, L, H, D]
        projection = attention.q_proj
        if settings.feature_map != "relu":  # a factor of a query is a factor of relu(query) only
            heads, projection = heads.unflatten(2, (settings.num_kv_heads, -1)).flatten(3), attention.v_proj
        factor = (settings.eps_of_heads / heads.square().mean((0, 1, 3)).clamp(min=1e-30)).sqrt()
        for parameter in projection.parameters():
            parameter.unflatten(0, (len(factor), -1)).flatten(1).mul_(factor.to(parameter)[:, None])


def _scale_columns(student: SpikingBrainForCausalLM, layers: dict[int, Attention], parts: Iterator[_Part]) -> None:
    """Scale the columns of o_proj and set the branch weights."""
    num_channels = student.settings.num_heads * student.settings.dim
    # Summed over tokens, for target u, linear branch a and softmax branch b: u a, u b, a a, a b, b b; [5, channels].
    sums = {i: torch.zeros(5, num_channels).double() for i in layers}
    for i, attention, target, run in parts:
        seen, u = run(), _flat(target.heads)
        a = _flat(seen["g_norm"][1].flatten(2))
        b = _flat(seen["s_norm"][1].flatten(2)) if attention.plan.is_parallel else torch.zeros_like(a)
        sums[i] += torch.stack([(u * a).sum(0), (u * b).sum(0), (a * a).sum(0), (a * b).sum(0), (b * b).sum(0)]).cpu()
    for i, attention in layers.items():
        ua, ub, aa, ab, bb = sums[i]
        if not attention.plan.is_parallel:
            factor = ua / aa.clamp(min=1e-30)
        else:
            factor = ub / bb.clamp(min=1e-30)
            # Solve u = factor * (w_1 a + w_2 b) for the weights w, by the normal equations.
            square = torch.stack([factor**2 * aa, factor**2 * ab, factor**2 * ab, factor**2 * bb]).sum(1).view(2, 2)
            weights = torch.linalg.lstsq(square, torch.stack([factor * ua, factor * ub]).sum(1)).solution
            attention.branch_weight.copy_(weights)
        attention.o_proj.weight.mul_(factor.to(attention.o_proj.weight))


def _fit_output(student: SpikingBrainForCausalLM, layers: dict[int, Attention], parts: Iterator[_Part]) -> None:
    """Fit o_proj to the attention output: minimise |Z W^T - Y|^2 + ridge |W - W_0|^2 for its inputs Z."""
    num_channels, hidden_size = student.settings.num_heads * student.settings.dim, student.settings.hidden_size
    device = student.device
    squares = {i: torch.zeros(num_channels, num_channels, device=device, dtype=torch.float64) for i in layers}
    products = {i: torch.zeros(num_channels, hidden_size, device=device, dtype=torch.float64) for i in layers}
    for i, _, target, run in parts:
        z = _flat(run()["o_proj"][0])
        squares[i] += z.T @ z
        products[i] += z.T @ _flat(target.attended)
    for i, attention in layers.items():
        weight = attention.o_proj.weight
        ridge = RIDGE * squares[i].diagonal().mean().clamp(min=1e-30)
        left = squares[i] + ridge * torch.eye(num_channels, device=device, dtype=torch.float64)
        weight.copy_(torch.linalg.solve(left, products[i] + ridge * weight.double().T).T)


def _gate_bias(attention: Attention) -> Tensor:
    """Return the bias of the gate, [Hk * D]."""
    gate: Any = attention.gk_proj
    return gate[-1].bias if attention.config.gate == "low-rank" else gate.bias


def _flat(x: Tensor) -> Tensor:
    """Return [tokens, channels] in float64."""
    return x.flatten(0, -2).double()
