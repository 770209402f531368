"""A spiking layer and its dense versions beside a loop over scalars that counts: counts and results are equal."""

from collections import Counter

import pytest
import torch
from made_codes import EXACT
from scalars import Counted, encoded, numbers
from torch import nn

from spikebrain import AdaptiveThreshold, SpikeLinear, SpikeSettings, record, to_spiking
from spikebrain.coding import ENCODERS
from spikebrain.energy import DigitalEnergy, ModelCounts, count_operations
from spikebrain.energy.count_spiking import accumulator_bits, adder_width


def run_layer(layer, x, encoder):  # noqa: PLR0912, PLR0915 - one loop, as it should be read
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
                            tally["num_shifts_per_spike"] += abs(weight[t]) != 1
                if train.zero_point:
                    acc -= train.zero_point * int(layer.weight[o, group].sum())
                    tally["add"] += 1
                    tally["num_mul_int32"] += 1
                tally["num_rescale_convert"] += 1
                tally["num_rescale_mul"] += 1
                part = acc * float(layer.scale[o, g])
                if layer.minimum is not None:
                    tally["num_rescale_mul"] += 1
                    tally["num_rescale_add"] += 1
                    part += sum(counts[n][group]) * float(layer.minimum[o, g])
                parts.append(part)
            tally["num_rescale_add"] += len(parts) - 1
            tally["num_rescale_mul"] += 1
            y = sum(parts) * threshold
            if layer.bias is not None:
                tally["num_rescale_add"] += 1
                y += layer.bias[o].item()
            out.append(y)
        outputs.append(out)
    row = -(-layer.out_features * layer.weight_bits // 8)  # two weights of 4 bits share a byte
    for n in range(len(counts)):
        for group in layer.groups if layer.minimum is not None else ():
            tally["add"] += group.stop - group.start - 1
            tally["num_rescale_convert"] += 1
        for i in range(layer.in_features):
            fires = [spikes[t][n][i] for t in range(length) if spikes[t][n][i]]
            tally["num_spikes"] += len(fires)
            tally["weight_spike_bytes"] += row * len(fires)
            tally["weight_channel_bytes"] += row * bool(fires)
        rows = {i for i in range(layer.in_features) if any(spikes[t][n][i] for t in range(length))}
        touched = {(i * row + o * layer.weight_bits // 8) // 8 for i in rows for o in range(layer.out_features)}
        tally["weight_block_bytes"] += 8 * len(touched)
    k, channels = layer.neuron.k, layer.in_features
    most = {(8, False): 127, (4, True): 15}[layer.weight_bits, layer.minimum is not None]
    bits = int(most * (k + 0.5 + train.zero_point) * channels).bit_length() + 1
    tally[f"num_add_int{8 if bits <= 8 else 16 if bits <= 16 else 32}"] = tally.pop("add", 0)
    return outputs, tally


BYTES = ("parameter_bytes", "activation_bytes", "accumulator_bytes")  # by hand in test_bytes_by_hand


def compared(counts):
    return {name: n for name, n in vars(counts).items() if n and name not in (*BYTES, "num_activations")}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("outputs", "group_size", "bias", "weight_bits"), [(3, None, True, 8), (11, 4, False, 8), (11, 4, True, 4)]
)
def test_projection(name, outputs, group_size, bias, weight_bits):
    encoder = ENCODERS.create(name)
    sizes = {"group_size": group_size, "weight_bits": weight_bits}
    layer = SpikeLinear.from_linear(
        nn.Linear(9, outputs, bias=bias), **sizes, neuron=AdaptiveThreshold(2.5), encoder=encoder
    )
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
        row = -(-outputs * weight_bits // 8)
        assert recoded.weight_block_bytes == 4 * 8 * -(-9 * row // 8) >= found.spiking.weight_block_bytes
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


def test_adder_width():
    assert [adder_width(bits) for bits in (1, 8, 9, 16, 17, 32, 40)] == [8, 8, 16, 16, 32, 32, 32]


def test_weights_of_4_bits_are_half_the_bytes_and_the_dense_models_stay():
    linear, x = nn.Linear(64, 10), torch.randn(5, 64)
    found = {}
    for bits in (8, 4):
        layer = SpikeLinear.from_linear(linear, weight_bits=bits, group_size=None if bits == 8 else 32)
        with torch.no_grad(), record(layer, block_bytes=(8,)) as recording:
            layer(x)
        found[bits] = count_operations(recording, block_bytes=8).layers[""]
    int8, int4 = found[8], found[4]
    for name in ("weight_spike_bytes", "weight_channel_bytes"):
        assert getattr(int8.spiking, name) == 2 * getattr(int4.spiking, name) > 0
    assert int4.spiking.weight_block_bytes < 0.7 * int8.spiking.weight_block_bytes
    assert (int8.int8, int8.fp16) == (int4.int8, int4.fp16)
    assert int8.same_weights == int8.int8
    # 5 reads of 64 rows of 5 bytes. For each output: 2 conversions of sums, 2 products with scales, 2 with minima
    # and one with the scale of the activations, 2 - 1 + 2 additions and the bias. For each token the codes of both
    # groups are added up (64 - 2 additions), and these sums converted.
    same = int4.same_weights
    assert (same.num_mac_int8, same.weight_bytes, same.parameter_bytes) == (5 * 640, 5 * 64 * 5, 5 * 10 * 18)
    assert (same.num_rescale_convert, same.num_rescale_mul, same.num_rescale_add) == (50 * 2 + 5 * 2, 50 * 5, 50 * 4)
    assert same.num_add_int32 == 5 * (64 - 2)
    assert (same.num_encode_div, same.activation_bytes) == (int4.int8.num_encode_div, int4.int8.activation_bytes)
    # 5 reads of 10 outputs: one scale of 4 bytes and a bias of 2; or two scales, two minima and a bias.
    assert (int8.spiking.parameter_bytes, int4.spiking.parameter_bytes) == (5 * 10 * 6, 5 * 10 * 18)
    # In memory: 64 x 10 bytes; or 64 rows of 5 bytes, with 10 x 2 scales and minima of 4 bytes.
    assert (int8.stored_bytes, int4.stored_bytes) == (640, 64 * 5 + 10 * 2 * 2 * 4)


def test_a_model_of_4_bits_fits_memory_that_int8_does_not():
    model = nn.Sequential(nn.Linear(256, 64), nn.Linear(64, 256))
    fits = {}
    for weights in ("int8", "int4"):
        spiking = to_spiking(model, SpikeSettings(weights=weights))
        with torch.no_grad(), record(spiking) as recording:
            spiking(torch.randn(3, 256))
        counts = count_operations(recording)
        report = DigitalEnergy(on_chip_bytes=30_000).estimate(counts)  # INT8: 32,768; 4 bits with groups: 24,576
        fits[weights] = [
            sum(part["weights"] for part in layers.values()) for layers in (report.layers, report.int8_layers)
        ]
        assert ModelCounts.from_dict(counts.to_dict()) == counts
        doubled, grouped = counts + counts, counts.grouped()
        assert sum(layer.stored_bytes for layer in doubled.layers.values()) == sum(
            layer.stored_bytes for layer in grouped.layers.values()
        )
    assert fits["int4"][0] < fits["int8"][0] / 10  # on the chip instead of DRAM
    assert fits["int4"][1] == fits["int8"][1]


def test_integer_scales_are_multiplied_byte_by_byte():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 10)), torch.randn(5, 64)
    spiking = to_spiking(model, SpikeSettings(weights="int4", compact_scales=True))
    with torch.no_grad(), record(spiking) as recording:
        spiking(x)
    assert recording.layers["0"].adds_scaled
    found = count_operations(recording)
    # 5 tokens, 10 outputs, 2 groups; sums of 64 channels of mean |count| 3.5 and weights up to 15 have 13 bits.
    done = found.total("spiking")
    assert done.num_mul_int8 == 5 * 10 * 2 * (2 + 2)
    assert (done.num_rescale_convert, done.num_rescale_mul) == (5 * 10 * 2, 5 * 10 * 3)
    assert done.num_rescale_add == 5 * 10 * 2  # of the minima, and of the bias
    # Of dense INT8 activations sums of 32 channels have 17 bits.
    dense = found.total("same_weights")
    assert dense.num_mul_int8 == 5 * 10 * 2 * (3 + 2)
    assert dense.num_rescale_mul == done.num_rescale_mul


def test_the_dense_model_of_the_same_weights_needs_no_coarse_rows():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 10)), torch.randn(5, 64)
    found = []
    for coarse in ((), ((2, 2),)):
        spiking = to_spiking(model, SpikeSettings(weights="int4", coarse=coarse))
        with torch.no_grad(), record(spiking) as recording:
            spiking(x)
        found.append(count_operations(recording))
    plain, graded = found
    spiking, whole = graded.total("spiking"), plain.total("spiking")
    assert spiking.num_rescale_mul == whole.num_rescale_mul
    # Sums of small counts, and a lift for each output and group.
    assert spiking.num_add_int16 - whole.num_add_int16 == 5 * (64 - 2) + 5 * 10 * 2
    assert graded.total("same_weights") == plain.total("same_weights")
    reports = [DigitalEnergy().estimate(counts) for counts in found]
    assert reports[0].same_weights_total_pj == reports[1].same_weights_total_pj > 0
    for report in reports:
        assert report.ratio_vs_same_weights == report.same_weights_total_pj / report.total_pj
        assert "same weights / spiking" in repr(report)
