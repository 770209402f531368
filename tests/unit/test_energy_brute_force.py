"""Every operation counted by a loop over scalars that computes the layer: counts and results must be equal."""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikebrain import AdaptiveThreshold, SpikeLinear, record, spikingbrain_settings, to_spiking
from spikebrain.coding import ENCODERS
from spikebrain.energy import OperationCounts, count_operations
from spikebrain.energy.count_dense import count_dense_part
from spikebrain.energy.count_spiking import accumulator_bits, adder_width
from spikebrain.models.recording.modules import describe, visible_columns
from spikebrain.models.spikingbrain import LayerPlan, SpikingBrainForCausalLM, tiny_7b, tiny_76b
from spikebrain.models.spikingbrain.gla import recurrent_gla
from spikebrain.models.spikingbrain.mlp import SwiGLU
from spikebrain.models.spikingbrain.norm import RMSNorm


class Counted:
    """A number that counts what is done with it, under names that end as the fields of OperationCounts do."""

    def __init__(self, value, tally):
        self.value, self.tally = float(value), tally

    def _did(self, what, value):
        self.tally[what] += 1
        return Counted(value, self.tally)

    def __add__(self, other):
        return self._did("add", self.value + float(other))

    def __sub__(self, other):
        return self._did("add", self.value - float(other))

    def __mul__(self, other):
        return self._did("mul", self.value * float(other))

    def __truediv__(self, other):
        return self._did("div", self.value / float(other))

    def __abs__(self):
        return self._did("abs", abs(self.value))

    def __round__(self):
        return self._did("round", round(self.value))

    def __float__(self):
        return self.value

    def mac(self, a, b):
        return self._did("mac", self.value + float(a) * float(b))

    def exp(self):
        return self._did("exp", math.exp(self.value))

    def log(self):
        return self._did("exp", math.log(self.value))  # counted together

    def sqrt(self):
        return self._did("sqrt", math.sqrt(self.value))

    def max(self, other):
        return self._did("compare", max(self.value, float(other)))

    def min(self, other):
        return self._did("compare", min(self.value, float(other)))


def numbers(values, tally):
    return [Counted(v, tally) for v in values]


def total(values):
    """Sum without a zero to start from: one addition fewer than values."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def encoded(x, k, tally):
    """Counts of one token by eq. 19 and 21, and its threshold."""
    threshold = total([abs(v) for v in numbers(x, tally)]) / len(x) / k
    threshold = threshold.max(1e-5).min(1e4)
    return [round(v / threshold) for v in numbers(x, tally)], threshold


def run_layer(layer, x, encoder):  # noqa: PLR0915 - one loop, as it should be read
    """Run a spiking layer as scalars: outputs, and operations by name."""
    tally = Counter()
    counts = []
    thresholds = []
    for token in x.tolist():
        encode = Counter()
        count, threshold = encoded(token, layer.neuron.k, encode)
        tally.update({f"num_encode_{what}": n for what, n in encode.items()})
        counts.append([int(float(c)) for c in count])
        thresholds.append(float(threshold))
    tally["num_encoded_tokens"] += len(counts)
    suited, length = encoder.fitted(min(map(min, counts)), max(map(max, counts)))
    train = suited.encode(torch.tensor(counts), length)
    spikes, weight = train.spikes.tolist(), train.timestep_weight.tolist()
    # A digit's weight is twice the next one's (negative for the sign of two's complement), or all are 1.
    digits = any(abs(w) != 1 for w in weight)
    outputs = []
    for n, threshold in enumerate(thresholds):
        out = []
        for o in range(layer.out_features):
            parts = []
            for g, group in enumerate(layer.groups):
                acc = 0
                for t in range(length):
                    if digits and t > 0:
                        acc *= 2
                        tally["num_shifts_per_timestep"] += 1
                    for i in range(group.start, group.stop):
                        spike = spikes[t][n][i]
                        if spike:
                            sign = -1 if weight[t] < 0 else 1
                            acc += sign * spike * int(layer.weight[o, i])
                            tally["add"] += 1
                            tally["num_synops"] += 1
                            tally["weight_spike_bytes"] += 1
                            tally["num_shifts_per_spike"] += abs(weight[t]) != 1
                if train.zero_point:
                    acc -= train.zero_point * int(layer.weight[o, group].sum())
                    tally["add"] += 1
                    tally["num_mul_int32"] += 1
                tally["num_rescale_convert"] += 1
                tally["num_rescale_mul"] += 1
                parts.append(acc * float(layer.scale[o, g]))
            tally["num_rescale_add"] += len(parts) - 1
            tally["num_rescale_mul"] += 1
            y = sum(parts) * threshold
            if layer.bias is not None:
                tally["num_rescale_add"] += 1
                y += layer.bias[o].item()
            out.append(y)
        outputs.append(out)
    for n in range(len(counts)):
        for i in range(layer.in_features):
            fires = [spikes[t][n][i] for t in range(length) if spikes[t][n][i]]
            tally["num_spikes"] += len(fires)
            tally["weight_channel_bytes"] += layer.out_features * bool(fires)
        rows = {i for i in range(layer.in_features) if any(spikes[t][n][i] for t in range(length))}
        touched = {(i * layer.out_features + o) // 8 for i in rows for o in range(layer.out_features)}
        tally["weight_block_bytes"] += 8 * len(touched)
    k, channels = layer.neuron.k, layer.in_features
    bits = int(127 * (k + 0.5 + train.zero_point) * channels).bit_length() + 1
    tally[f"num_add_int{8 if bits <= 8 else 16 if bits <= 16 else 32}"] = tally.pop("add", 0)
    return outputs, tally


BYTES = ("parameter_bytes", "activation_bytes", "accumulator_bytes")  # by hand in test_bytes_by_hand


def compared(counts):
    return {name: n for name, n in vars(counts).items() if n and name not in (*BYTES, "num_activations")}


@pytest.mark.parametrize("name", list(ENCODERS))
@pytest.mark.parametrize(("outputs", "group_size", "bias"), [(3, None, True), (11, 4, False)])
def test_projection(name, outputs, group_size, bias):
    encoder = ENCODERS.create(name)
    linear = nn.Linear(9, outputs, bias=bias)
    layer = SpikeLinear.from_linear(linear, group_size=group_size, neuron=AdaptiveThreshold(2.5), encoder=encoder)
    x = torch.randn(4, 9)
    x[0, :5] = 0  # silent channels
    with torch.no_grad(), record(layer, block_bytes=(8,)) as recording:
        y = layer(x)
    expected, tally = run_layer(layer, x, encoder)
    torch.testing.assert_close(y, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    found = count_operations(recording, block_bytes=8).layers[""]
    assert compared(found.spiking) == {what: n for what, n in tally.items() if n}
    # What the counts would cost in this code, from a run in another.
    layer.encoder = ENCODERS.create("bitwise-bidirectional")
    with torch.no_grad(), record(layer, block_bytes=(8,)) as recording:
        layer(x)
    recoded = count_operations(recording, encoder=encoder, block_bytes=8).layers[""].spiking
    if found.spiking.num_mul_int32:  # where a zero point makes other channels fire, all blocks are taken to be read
        assert recoded.weight_block_bytes == 4 * 8 * -(-9 * outputs // 8) >= found.spiking.weight_block_bytes
        differing = {"weight_block_bytes"}
    else:
        differing = set()
    assert {n: v for n, v in vars(recoded).items() if n not in differing} == {
        n: v for n, v in vars(found.spiking).items() if n not in differing
    }


def test_dense_versions_of_a_projection():
    layer = SpikeLinear.from_linear(nn.Linear(6, 5), group_size=4)
    x = torch.randn(3, 6)
    with torch.no_grad(), record(layer) as recording:
        layer(x)
    found = count_operations(recording).layers[""]
    tally = Counter()
    for token in x.tolist():
        first, *rest = [abs(v) for v in numbers(token, tally)]
        for value in rest:
            first = first.max(value)
        scale = first / 127
        codes = [round(v / scale) for v in numbers(token, tally)]
        for _ in range(5):
            for group in (codes[:4], codes[4:]):
                acc = Counted(0, tally)
                for code in group:
                    acc = acc.mac(code, 1)
    counts = found.int8
    assert (counts.num_encode_abs, counts.num_encode_compare) == (tally["abs"], tally["compare"])
    assert (counts.num_encode_div, counts.num_encode_round) == (tally["div"], tally["round"])
    assert counts.num_mac_int8 == counts.num_macs == found.fp16.num_mac_fp16 == tally["mac"] == 90
    # Two groups: two conversions and products with scales, one addition, one product with the activation's scale, bias.
    assert (counts.num_rescale_convert, counts.num_rescale_mul, counts.num_rescale_add) == (30, 45, 30)
    assert found.fp16.num_rescale_add == 15
    assert (counts.weight_bytes, found.fp16.weight_bytes) == (3 * 30, 3 * 60)


def test_bytes_by_hand():
    layer = SpikeLinear.from_linear(nn.Linear(4, 3), neuron=AdaptiveThreshold(3.0))
    with torch.no_grad(), record(layer, block_bytes=(2, 4, 64), shared_tokens=(1, 2)) as recording:
        layer(torch.tensor([[1.0, -1.0, 4.0, 0.0], [7.0, -3.0, -2.0, 0.0]]))
    counts = count_operations(recording, block_bytes=4).layers[""].spiking
    # Thresholds 0.5 and 1: counts 2 -2 8 0 and 7 -3 -2 0, in bits 1 1 1 0 and 3 2 1 0 spikes: 9, of 3 outputs each.
    assert (counts.num_spikes, counts.num_synops, counts.weight_spike_bytes) == (9, 27, 27)
    # Channels 0 to 2 fire for both tokens: bytes 0 to 8, which are in blocks 0, 1, 2 of 4 bytes.
    assert (counts.weight_channel_bytes, counts.weight_block_bytes) == (2 * 9, 2 * 12)
    # 127 * 3.5 * 4 = 1778 needs 11 bits and a sign: 16-bit sums, read and written, 4 bytes a synaptic operation.
    assert accumulator_bits(recording.layers[""]) == 12
    assert counts.accumulator_bytes == 27 * 4
    # A scale of 4 bytes and a bias of 2 for each of 3 outputs and 2 tokens; 2 bytes for 4 inputs twice and 3 outputs.
    assert counts.parameter_bytes == 2 * 3 * 6
    assert counts.activation_bytes == 2 * (2 * 2 * 4 + 2 * 3)
    # Only in the bits of weight 8, 4 and 2 are shifts: 2 -> one of one spike, -2 one, 8 one; 7 two, -3 one, -2 one.
    assert counts.num_shifts_per_spike == 7 * 3
    # 4 timesteps: three shifts of 3 sums for each of 2 tokens.
    assert counts.num_shifts_per_timestep == 2 * 3 * 3
    for size, blocks in ((2, 5), (4, 3), (64, 1)):  # bytes 0 to 8
        assert count_operations(recording, block_bytes=size).layers[""].spiking.weight_block_bytes == 2 * blocks * size
    shared = count_operations(recording, block_bytes=4, shared_tokens=2).layers[""]
    assert (shared.spiking.weight_channel_bytes, shared.spiking.weight_block_bytes) == (9, 12)
    assert (shared.spiking.weight_spike_bytes, shared.int8.weight_bytes, shared.fp16.weight_bytes) == (27, 12, 24)


def part_of(module, kind):
    """Return the record of a module's part, empty."""
    return next(record for _, record, _ in describe(module)[0] if record.kind == kind)


def dense_counts(kind, sizes, tokens, pairs=0):
    layer = nn.Linear(1, 1)
    part = part_of(layer, "linear")
    part.kind, part.sizes, part.num_tokens, part.num_pairs = kind, sizes, tokens, pairs
    return count_dense_part(part)


def operations(counts):
    """Return the non-zero arithmetic of counts, FP32 names without their format."""
    return {
        name.removeprefix("num_").removesuffix("_fp32"): n
        for name, n in vars(counts).items()
        if n and name.startswith("num_") and name != "num_macs"
    }


def test_rms_norm():
    norm, x = RMSNorm(5, 1e-6), torch.randn(2, 5)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(5))
    tally, outputs = Counter(), []
    for token in x.tolist():
        values = numbers(token, tally)
        mean = total([v * v for v in values]) / 5
        factor = Counted(1, tally) / (mean + 1e-6).sqrt()
        outputs.append([float(v * factor * w) for v, w in zip(values, norm.weight.tolist(), strict=True)])
    torch.testing.assert_close(torch.tensor(outputs), norm(x).detach())
    assert operations(dense_counts("rms-norm", {"dim": 5}, 2).fp16) == tally


def test_layer_norm():
    norm, x = nn.LayerNorm(4), torch.randn(3, 4)
    tally, outputs = Counter(), []
    for token in x.tolist():
        values = numbers(token, tally)
        mean = total(values) / 4
        values = [v - mean for v in values]
        variance = total([v * v for v in values]) / 4
        factor = Counted(1, tally) / (variance + norm.eps).sqrt()
        pairs = zip(values, norm.weight.tolist(), norm.bias.tolist(), strict=True)
        outputs.append([float(v * factor * w + b) for v, w, b in pairs])
    torch.testing.assert_close(torch.tensor(outputs), norm(x).detach())
    assert operations(dense_counts("layer-norm", {"dim": 4}, 3).fp16) == tally


def silu(x):
    return x / (Counted(-x.value, x.tally).exp() + 1)


def test_gated_mlp():
    mlp, x = SwiGLU(4, 6), torch.randn(3, 4)
    g, u = mlp.gate_proj(x).tolist(), mlp.up_proj(x).tolist()
    tally = Counter()
    inner = [
        [float(silu(Counted(a, tally)) * b) for a, b in zip(*rows, strict=True)] for rows in zip(g, u, strict=True)
    ]
    torch.testing.assert_close(mlp.down_proj(torch.tensor(inner)), mlp(x))
    assert operations(dense_counts("gated-mlp", {"dim": 6}, 3).fp16) == tally


def attention_scalars(q, k, v, tally, visible):
    """Softmax attention of one head and query over the visible columns."""
    scores = []
    for key in k[:visible]:
        dot = Counted(0, tally)
        for a, b in zip(q, key, strict=True):
            dot = dot.mac(a, b)
        scores.append(dot * len(q) ** -0.5)
    largest, *rest = scores
    for score in rest:
        largest = largest.max(score)
    exps = [(score - largest).exp() for score in scores]
    whole = total(exps)
    weights = [e / whole for e in exps]
    out = [Counted(0, tally) for _ in q]
    for w, value in zip(weights, v[:visible], strict=True):
        out = [o.mac(w, x) for o, x in zip(out, value, strict=True)]
    return [float(o) for o in out]


def rotated(x, position, tally, theta=1e6):
    d = len(x)
    values, out = numbers(x, tally), []
    for j in range(d):
        angle = position * theta ** (-2 * (j % (d // 2)) / d)
        other, sign = (x[j + d // 2], -1) if j < d // 2 else (x[j - d // 2], 1)
        out.append(float(values[j] * math.cos(angle) + Counted(sign * other, tally) * math.sin(angle)))
    return out


def test_softmax_attention():
    length, heads, kv_heads, d = 5, 4, 2, 4
    q, k, v = torch.randn(length, heads, d), torch.randn(length, kv_heads, d), torch.randn(length, kv_heads, d)
    tally, out = Counter(), torch.zeros(length, heads, d)
    for _ in range(length):
        for _ in range(d // 2):
            angle = Counted(1, tally) * 1.0
            angle.exp(), angle.exp()  # a sine and a cosine, counted like an exponential
    turned_q = [[rotated(q[i, h].tolist(), i, tally) for i in range(length)] for h in range(heads)]
    turned_k = [[rotated(k[i, h].tolist(), i, tally) for i in range(length)] for h in range(kv_heads)]
    for h in range(heads):
        for i in range(length):
            values = v[:, h // 2].tolist()
            out[i, h] = torch.tensor(attention_scalars(turned_q[h][i], turned_k[h // 2], values, tally, i + 1))
    tensors = (torch.tensor(turned_q), torch.tensor(turned_k), v.transpose(0, 1))
    expected = F.scaled_dot_product_attention(*(x[None] for x in tensors), is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out.transpose(0, 1)[None], expected)
    pairs = visible_columns(length, 0)
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": d, "integer": 0}
    tally["mac_fp16"] = tally.pop("mac")
    found = dense_counts("softmax", sizes, length, pairs)
    assert operations(found.spiking) == operations(found.fp16) == tally
    # Keys and values of 2 bytes: 15 pairs read and 5 tokens written, 2 heads of 4 channels each.
    assert found.fp16.kv_bytes == 2 * 2 * (15 + 5) * 2 * 4


def to_int8(x, tally):
    first, *rest = [abs(v) for v in numbers(x, tally)]
    for value in rest:
        first = first.max(value)
    scale = (first / 127).max(1e-5).min(1e4)
    return [float(round(v / scale)) for v in numbers(x, tally)], float(scale)


def test_integer_attention_of_one_head():
    # Without the rotary embedding, which is counted above.
    length, d = 4, 4
    q, k, v = torch.randn(length, d), torch.randn(length, d), torch.randn(length, d)
    encode, tally = Counter(), Counter()
    keys = [to_int8(row, encode) for row in k.tolist()]
    values = [to_int8(row, encode) for row in v.tolist()]
    for i, row in enumerate(q.tolist()):
        counts, threshold = encoded(row, 3.0, encode)
        scores = []
        for codes, scale in keys[: i + 1]:
            dot = 0
            for a, b in zip(counts, codes, strict=True):
                dot += float(a) * b
                tally["mac_int8"] += 1
            scores.append(Counted(dot, tally) * float(threshold) * scale * d**-0.5)
        largest, *rest = scores
        for score in rest:
            largest = largest.max(score)
        exps = [(score - largest).exp() for score in scores]
        whole = total(exps)
        weights = [e / whole * scale for e, (_, scale) in zip(exps, values, strict=False)]
        out = [Counted(0, tally) for _ in row]
        for w, (codes, _) in zip(weights, values, strict=False):
            out = [o.mac(w, x) for o, x in zip(out, codes, strict=True)]
    tally["mac_fp16"] = tally.pop("mac")
    tally.update({f"encode_{what}": n for what, n in encode.items()})
    tally["encoded_tokens"] = 3 * length
    rotary = Counter(exp=length * d, mul=2 * 2 * length * d + length * d // 2, add=2 * length * d)
    sizes = {"heads": 1, "kv_heads": 1, "dim": d, "integer": 1, "rounds_cache": 1}
    found = dense_counts("softmax", sizes, length, visible_columns(length, 0))
    assert operations(found.spiking) == tally + rotary
    assert found.int8 == found.fp16
    assert found.fp16.num_mac_fp16 == 2 * 10 * d


@pytest.mark.parametrize("tied", [False, True])
def test_linear_attention(tied):
    length, heads, kv_heads, d = 3, 4, 2, 3
    shapes = {"q": heads, "k": kv_heads, "v": kv_heads, "gate": kv_heads}
    raw = {name: torch.randn(length, h, d) for name, h in shapes.items()}
    if tied:
        raw["gate"] = -raw["k"]
    tally = Counter()

    def mapped(x):
        x = Counted(x, tally)
        if tied:
            return float(Counted(1, tally) / (Counted(-x.value, tally).exp() + 1))
        return float(x.max(0))

    def log_decay(x):
        log = (Counted(-x, tally).exp() + 1).log()
        return -float(log) if tied else -float(log / 16)

    q, k = (torch.tensor([[[mapped(x) for x in h] for h in t] for t in raw[n].tolist()]) for n in "qk")
    g = torch.tensor([[[log_decay(x) for x in h] for h in t] for t in raw["gate"].tolist()])
    out, state = torch.zeros(length, heads, d), torch.zeros(kv_heads, d, d).tolist()
    for t in range(length):
        for h in range(kv_heads):
            for i in range(d):
                decay = Counted(g[t, h, i], tally).exp()
                for j in range(d):
                    state[h][i][j] = float((decay * state[h][i][j]).mac(k[t, h, i], raw["v"][t, h, j]))
        for h in range(heads):
            scaled = [float(Counted(x, tally) * d**-0.5) for x in q[t, h].tolist()]
            for j in range(d):
                o = Counted(0, tally)
                for i in range(d):
                    o = o.mac(scaled[i], state[h // 2][i][j])
                out[t, h, j] = float(o)
    expected, _ = recurrent_gla(q[None], k[None], raw["v"][None], g[None])
    torch.testing.assert_close(out[None], expected)
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": d, "sigmoid": int(tied), "tied": int(tied)}
    found = dense_counts("gla", sizes, length).fp16
    assert operations(found) == tally
    assert found.state_bytes == 2 * 4 * length * kv_heads * d * d


def test_experts_and_branches():
    tally = Counter()
    for _ in range(3):  # tokens; 4 experts, 2 chosen, 1 shared, 5 channels
        logits = numbers(torch.randn(4).tolist(), tally)
        largest, *rest = logits
        for x in rest:
            largest = largest.max(x)
        exps = [(x - largest).exp() for x in logits]
        whole = total(exps)
        left = [e / whole for e in exps]
        chosen = []
        for _ in range(2):
            best, *rest = left
            for x in rest:
                best = best.max(x)
            chosen.append(best)
            left = [x for x in left if x.value != best.value]
        y = [Counted(0, tally) for _ in range(5)]
        for weight in chosen:
            y = [a + Counted(1, tally) * weight for a in y]
        y = [a + 1 for a in y]
    sizes = {"dim": 5, "experts": 4, "chosen": 2, "shared": 1}
    assert operations(dense_counts("moe", sizes, 3).fp16) == tally
    # w1 * o1 + w2 * o2 for 2 heads of 3 channels and 4 tokens; two residuals of 5 channels.
    assert operations(dense_counts("branches", {"heads": 2, "dim": 3}, 4).fp16) == {"mul": 48, "add": 24}
    assert operations(dense_counts("residual", {"dim": 5}, 4).fp16) == {"add": 40}
    assert operations(dense_counts("embedding", {"dim": 5}, 4).fp16) == {}


def test_whole_model_with_silent_experts():
    # One token: of four experts one runs, and its three layers; the others cost nothing.
    model = to_spiking(SpikingBrainForCausalLM(tiny_76b(num_sinks=0)))
    with torch.inference_mode(), record(model) as recording:
        model(torch.tensor([[7]]))
    counts = count_operations(recording)
    assert counts.unsupported == ()
    for layer in (4, 6):  # gla+swa/moe, counted from 1: layers 4 and 6
        prefix = f"model.layers.{layer - 1}.mlp.experts."
        ran = [name for name in counts.layers if name.startswith(prefix) and counts.layers[name].spiking.num_macs == 0]
        active = {name.split(".")[5] for name in ran if counts.layers[name].spiking.num_activations}
        assert len(active) == 1
        silent = [counts.layers[name] for name in ran if name.split(".")[5] not in active]
        assert len(silent) >= 9
        for part in silent:
            assert part.spiking == part.int8 == part.fp16 == OperationCounts()
    assert counts.total("spiking").num_mac_fp32 > 0  # states
    assert counts.layers["lm_head"].fp16.num_mac_fp16 == 64 * 256


@pytest.mark.parametrize("plan", ["gla", "swa", "full", "gla+swa", "gla+full/moe"])
@pytest.mark.parametrize("spiking", [None, "as-described", "as-released"])
def test_pairs_of_each_attention(plan, spiking):
    config = tiny_7b(layers=(LayerPlan.parse(plan),), window=3, num_experts=2, num_sinks=2)
    model = SpikingBrainForCausalLM(config)
    if spiking is None:  # projections alone, attention in floating point
        model = to_spiking(model)
    else:
        model = to_spiking(model, spikingbrain_settings(spiking))
    with torch.inference_mode(), record(model) as recording:
        cache = model(torch.randint(0, 256, (2, 4)), use_cache=True).cache
        model(torch.randint(0, 256, (2, 3)), cache=cache)
    found = {part.kind: part for part in recording.modules.values() if part.kind in ("gla", "softmax")}
    tokens = 2 + 2 * 7  # two sinks once, two rows of seven
    assert all(part.num_tokens == tokens for part in found.values())
    if "softmax" in found:
        # Sinks see both sinks; a token sees the sinks and at most w + 1 = 4 columns (or all), its own included.
        own = [1, 2, 3, 4, 4, 4, 4] if "swa" in plan else [1, 2, 3, 4, 5, 6, 7]
        assert found["softmax"].num_pairs == 2 * 2 + 2 * (7 * 2 + sum(own))
    counts = count_operations(recording)
    assert counts.num_tokens == tokens


def test_pairs_of_transformers_models(tiny_llama):
    model = to_spiking(tiny_llama)
    with torch.inference_mode(), record(model) as recording:
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    part = recording.modules["model.layers.1.self_attn"]
    # A prompt of 3 sees 1 + 2 + 3; two more tokens are fed, which see 4 and 5.
    assert (part.num_tokens, part.num_pairs) == (5, 15)
    assert recording.unsupported == ()


def test_adder_width():
    assert [adder_width(bits) for bits in (1, 8, 9, 16, 17, 32, 40)] == [8, 8, 16, 16, 32, 32, 32]
