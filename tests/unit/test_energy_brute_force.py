"""The parts of a model but its projections, every operation counted by a loop over scalars; then whole models."""

import math
from collections import Counter

import pytest
import torch
from fast_first import fast_first
from scalars import Counted, encoded, numbers, total
from torch import nn
from torch.nn import functional as F

from spikebrain import AdaptiveThreshold, record, spikingbrain_settings, to_spiking
from spikebrain.coding import ENCODERS
from spikebrain.energy import OperationCounts, count_operations
from spikebrain.energy.count_dense import count_dense_part, count_scores
from spikebrain.models.recording.modules import ModuleRecord, describe, visible_columns
from spikebrain.models.spikingbrain import LayerPlan, SpikingBrainForCausalLM, swa, tiny_7b, tiny_76b
from spikebrain.models.spikingbrain.gla import recurrent_gla
from spikebrain.models.spikingbrain.int8 import counted_inputs
from spikebrain.models.spikingbrain.mlp import SwiGLU
from spikebrain.models.spikingbrain.norm import RMSNorm


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


def summed_codes(fired, digit, codes, zero_point, tally):
    """The sum of INT8 codes that the spikes of one query add: [timesteps][channels] of spikes, digits of weight."""
    dot = 0
    for t, spikes in enumerate(fired):
        if t and any(abs(w) != 1 for w in digit):
            dot *= 2
            tally["shifts_per_timestep"] += 1
        for spike, code in zip(spikes, codes, strict=True):
            if spike:
                dot += (-1 if digit[t] < 0 else 1) * spike * int(code)
                tally.update(add_int16=1, synops=1, shifts_per_spike=int(abs(digit[t]) != 1))
    if zero_point:
        dot -= zero_point * int(sum(codes))
        tally.update(add_int16=1, mul_int32=1)
    tally.update(rescale_convert=1, rescale_mul=2)
    return dot


def _integer_scores(length: int, d: int) -> dict[str, int]:
    """Return what scores of queries in INT8 and keys in INT8 take: D MACs and two products for a pair."""
    pairs = length * (length + 1) // 2
    found = {"mac_int8": pairs * d, "rescale_convert": pairs, "rescale_mul": 2 * pairs, "activations": length * d}
    found |= {"encoded_tokens": length, "encode_abs": length * d, "encode_compare": length * (d + 1)}
    return found | {"encode_div": length * (d + 1), "encode_round": length * d}


@pytest.mark.parametrize("code", ["bitwise-bidirectional", "ternary", "bitwise", "twos-complement"])
def test_integer_attention_of_one_head(code):
    # Without the rotary embedding, which is counted above.
    length, d = 4, 4
    encoder = ENCODERS.create(code)
    q, k, v = torch.randn(length, d), torch.randn(length, d), torch.randn(length, d)
    encode, of_keys, tally, spikes = Counter(), Counter(), Counter(), Counter()
    queries = [encoded(row, 3.0, encode) for row in q.tolist()]
    count = torch.tensor([[int(float(c)) for c in counts] for counts, _ in queries], dtype=torch.int32)
    suited, num_timesteps = encoder.fitted(int(count.min()), int(count.max()))
    train = suited.encode(count, num_timesteps)
    fired = train.spikes.tolist()
    keys = [to_int8(row, of_keys) for row in k.tolist()]
    values = [to_int8(row, of_keys) for row in v.tolist()]
    if train.zero_point:
        spikes["add_int16"] += length * (d - 1)  # the sum of each key's codes
    out_rows = []
    for i, (_, threshold) in enumerate(queries):
        spikes["spikes"] += sum(bool(fired[t][i][c]) for t in range(num_timesteps) for c in range(d))
        scores = []
        for codes, scale in keys[: i + 1]:
            dot = summed_codes(
                [plane[i] for plane in fired], train.timestep_weight.tolist(), codes, train.zero_point, spikes
            )
            scores.append(Counted(dot * float(threshold) * scale, tally) * d**-0.5)
        largest, *rest = scores
        for score in rest:
            largest = largest.max(score)
        exps = [(score - largest).exp() for score in scores]
        whole = total(exps)
        weights = [e / whole * scale for e, (_, scale) in zip(exps, values, strict=False)]
        out = [Counted(0, tally) for _ in range(d)]
        for w, (codes, _) in zip(weights, values, strict=False):
            out = [o.mac(w, x) for o, x in zip(out, codes, strict=True)]
        out_rows.append([float(o) for o in out])
    tally["mac_fp16"] = tally.pop("mac")
    tally.update({f"encode_{what}": n for what, n in of_keys.items()})
    tally["encoded_tokens"] = 2 * length
    rotary = Counter(exp=length * d, mul=2 * 2 * length * d + length * d // 2, add=2 * length * d)
    neuron = AdaptiveThreshold()
    largest = int(128 * 3.5 * d)
    sizes = {"heads": 1, "kv_heads": 1, "dim": d, "integer": 1, "rounds_cache": 1, "largest_score": largest}
    part = ModuleRecord("attention", "softmax", sizes, length, visible_columns(length, 0))
    given = (q[None, None], k[None, None], v[None, None])
    part.add_queries(neuron(given[0]).count, swa.columns_seen(length, length), encoder)
    found, scored = count_dense_part(part), count_scores(part)
    assert operations(found.spiking) == tally + rotary
    spikes.update({f"encode_{what}": n for what, n in encode.items()})
    spikes.update({"encoded_tokens": length, "activations": length * d})
    assert operations(scored.spiking) == {what: n for what, n in spikes.items() if n}
    assert (found.int8, scored.int8) == (found.fp16, scored.fp16)
    assert found.fp16.num_mac_fp16 == scored.fp16.num_mac_fp16 == scored.fp16.num_macs == 10 * d
    assert found.same_weights == found.spiking
    assert operations(scored.same_weights) == _integer_scores(length, d)
    assert scored.accumulator_bits == (largest + 128 * train.zero_point * d).bit_length() + 1
    query, columns, core = counted_inputs(*given, neuron)
    torch.testing.assert_close(swa.attend(query, columns, core)[0, 0], torch.tensor(out_rows))


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


@pytest.mark.slow
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


@pytest.mark.parametrize("plan", fast_first(["gla+swa", "gla+full/moe", "gla", "swa", "full"], 2))
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
