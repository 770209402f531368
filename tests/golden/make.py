"""Make the golden vectors beside this file: exact figures, worked out without importing spikebrain.

    python tests/golden/make.py            # writes tests/golden/*.json

Everything is computed with Python's integers and fractions, from the formulas of the SpikingBrain report
(arXiv:2509.05276). Where the package promises float32, `float32` below rounds a fraction once. So a figure is wrong
here only if the formula is; nothing is copied from a run of the package. `tests/unit/test_golden_small.py` compares.
"""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

FOLDER = Path(__file__).parent


def rounded(value: Fraction, bits: int) -> Fraction:
    """Return the nearest binary floating-point number with that many significant bits, ties to even."""
    if value == 0:
        return value
    exponent = 0
    while abs(value) / Fraction(2) ** exponent >= 2**bits:
        exponent += 1
    while abs(value) / Fraction(2) ** exponent < 2 ** (bits - 1):
        exponent -= 1
    return round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent  # Python rounds fractions half to even


def float32(value: float | Fraction) -> Fraction:
    return rounded(Fraction(value), 24)


def float64(value: Fraction) -> Fraction:
    return rounded(value, 53)


def as_floats(values: list[Fraction]) -> list[float]:
    return [float(value) for value in values]


# The neuron: report, section 3.3.1, eq. 19 to 21.


def neuron_step(x: list[Fraction], k: float) -> tuple[Fraction, list[int]]:
    """Return the threshold mean|x| / k, within [1e-5, 1e4], and the counts round(x / threshold), ties to even."""
    total = sum(abs(value) for value in x)
    assert float64(total) == total, "choose activations whose sum float64 holds, so that no order of addition matters"
    mean = float32(float64(total / len(x)))
    threshold = min(max(float32(mean / float32(k)), float32(1e-5)), float32(1e4))
    return threshold, [round(float32(value / threshold)) for value in x]


def neuron() -> list[dict]:
    draw = random.Random(19)
    bell = [float32(Fraction(sum(draw.randrange(-999, 1000) for _ in range(4)), 1000)) for _ in range(24)]
    tokens = {
        "ties: mean 3, k 3, threshold 1": (3.0, [0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 7.5, -7.5]),
        "all zero: threshold at the floor, silent": (3.0, [0.0] * 5),
        "below the floor": (3.0, [2**-17, -(2**-16), 0.0, 2**-18]),
        "above the ceiling": (3.0, [100000.0, -35000.0, 4999.0, 5000.0, 15000.0]),
        "one channel": (3.0, [-0.3]),
        "one channel of many fires: count k * N": (3.0, [0.0] * 63 + [1.0]),
        "more than 16 bits": (8.0, [0.0] * 9999 + [-7.0]),
        "k 2": (2.0, bell),
        "k 2.5": (2.5, bell),
        "k 3": (3.0, bell),
        "k 3.5": (3.5, bell),
        "k 4": (4.0, bell),
    }
    cases = []
    for name, (k, values) in tokens.items():
        x = [float32(value) for value in values]
        threshold, counts = neuron_step(x, k)
        skip = len(x) - 1 if len(x) > 50 else 0  # channels of 0 that come first, left out of the file
        assert not any(x[:skip] + counts[:skip])
        cases.append(
            {
                "name": name,
                "k": k,
                "leading_zeros": skip,
                "x": as_floats(x[skip:]),
                "threshold": float(threshold),
                "counts": counts[skip:],
            }
        )
    return cases


# The codes: report, section 3.3.2. A train is written as one string per count, a character per timestep.


def sign(count: int) -> int:
    return (count > 0) - (count < 0)


def binary(lifted: int, length: int) -> list[int]:
    return [1] * lifted + [0] * (length - lifted)


def ternary(count: int, length: int) -> list[int]:
    return [sign(count)] * abs(count) + [0] * (length - abs(count))


def digits(lifted: int, length: int) -> list[int]:
    return [int(digit) for digit in f"{lifted:0{length}b}"]


def bidirectional(count: int, length: int) -> list[int]:
    return [sign(count) * digit for digit in digits(abs(count), length)]


def twos_complement(count: int, length: int) -> list[int]:
    return digits(count % 2**length, length)


def non_adjacent(count: int, length: int) -> list[int]:
    """Return digits -1, 0, 1, no two neighbours both nonzero: while odd, take 2 - (count mod 4)."""
    result = []
    for _ in range(length):
        digit = 2 - count % 4 if count % 2 else 0
        result.append(digit)
        count = (count - digit) // 2
    assert count == 0
    return result[::-1]


def powers(length: int) -> list[int]:
    return [2 ** (length - 1 - t) for t in range(length)]


def ones(length: int) -> list[int]:
    return [1] * length


def twos_complement_weights(length: int) -> list[int]:
    return [-(2 ** (length - 1)), *powers(length)[1:]]


def num_bits(count: int) -> int:
    """Return ceil(log2(count + 1)): the smallest n with 2^n > count."""
    n = 0
    while 2**n <= count:
        n += 1
    return n


CODES = {  # train of a count, timestep weights, timesteps for |count| <= c, whether counts must be lifted to >= 0
    "binary": (binary, ones, lambda c: c, True),
    "ternary": (ternary, ones, lambda c: c, False),
    "bitwise": (digits, powers, num_bits, True),
    "bitwise-bidirectional": (bidirectional, powers, num_bits, False),
    "twos-complement": (twos_complement, twos_complement_weights, lambda c: num_bits(c) + 1, False),
    "signed-digit": (non_adjacent, powers, lambda c: num_bits(c) + 1, False),
}


def codes() -> dict:
    result = {}
    for name, (train_of, weights_of, length_of, unsigned) in CODES.items():
        zero_point = 20 if unsigned else 0
        length = length_of(20 + zero_point)
        weights = weights_of(length)
        trains = []
        for count in range(-20, 21):
            train = train_of(count + zero_point, length)
            assert sum(w * s for w, s in zip(weights, train, strict=True)) == count + zero_point
            trains.append("".join("-0+"[spike + 1] for spike in train))
        result[name] = {
            "zero_point": zero_point,
            "num_timesteps": length,
            "timestep_weights": weights,
            "trains": trains,
            "timesteps_for": {str(c): length_of(c) for c in (1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 3570)},
        }
    return result


# A linear layer: INT8 weights, spikes, exact sums, one rescale. Report, section 3.3.2, eq. 22 and 23.


def linear() -> list[dict]:
    draw = random.Random(22)
    num_outputs, num_inputs, num_tokens = 5, 12, 4

    def thousandths(largest: int) -> Fraction:
        return float32(Fraction(draw.randrange(-largest, largest + 1), 1000))

    weight = [[thousandths(500) for _ in range(num_inputs)] for _ in range(num_outputs)]
    weight[3] = [Fraction(0)] * num_inputs  # its scale is 1
    weight[4][:3] = [Fraction(127), Fraction(1, 2), Fraction(5, 2)]  # scale 1, so that two weights are ties
    bias = [thousandths(1000) for _ in range(num_outputs)]
    x = [[thousandths(2000) for _ in range(num_inputs)] for _ in range(num_tokens)]
    x[1] = [Fraction(0)] * num_inputs
    x[2][5] = Fraction(90)  # a count far beyond the others
    cases = []
    for group_size in (None, 5):
        size = group_size or num_inputs
        groups = [range(i, min(i + size, num_inputs)) for i in range(0, num_inputs, size)]
        scale = [[float32(max(abs(row[i]) for i in g) / 127) or Fraction(1) for g in groups] for row in weight]
        integers = [
            [round(float32(row[i] / scale[o][i // size])) for i in range(num_inputs)] for o, row in enumerate(weight)
        ]
        assert all(abs(integer) <= 127 for row in integers for integer in row)
        thresholds, counts = zip(*(neuron_step(token, 3.0) for token in x), strict=True)
        sums = [[[sum(row[i] * count[i] for i in g) for row in integers] for g in groups] for count in counts]
        outputs = [
            [
                thresholds[t] * sum(scale[o][g] * sums[t][g][o] for g in range(len(groups))) + bias[o]
                for o in range(num_outputs)
            ]
            for t in range(num_tokens)
        ]
        cases.append(
            {
                "group_size": group_size,
                "k": 3.0,
                "weight": [as_floats(row) for row in weight],
                "bias": as_floats(bias),
                "x": [as_floats(token) for token in x],
                "integers": integers,
                "scale": [as_floats(row) for row in scale],
                "thresholds": as_floats(list(thresholds)),
                "counts": list(counts),
                "sums": sums,  # [tokens, groups, outputs]
                "outputs": [as_floats(token) for token in outputs],
            }
        )
    return cases


# Gated linear attention: report, section 2, eq. 10 and 11, with the scale D^-0.5 of the released code.


def gated_linear_attention() -> dict:
    """Run S = diag(decay) S + k^T v and o = D^-0.5 q S; two query heads share one state. D = 4, so the scale is 1/2."""
    draw = random.Random(10)
    num_tokens, num_heads, dim, dim_v = 5, 2, 4, 3

    def eighths(count: int) -> list[Fraction]:
        return [Fraction(draw.randrange(-16, 17), 8) for _ in range(count)]

    q = [[eighths(dim) for _ in range(num_heads)] for _ in range(num_tokens)]
    k = [eighths(dim) for _ in range(num_tokens)]
    v = [eighths(dim_v) for _ in range(num_tokens)]
    decay = [[Fraction(draw.randrange(1, 17), 16) for _ in range(dim)] for _ in range(num_tokens)]
    state = [eighths(dim_v) for _ in range(dim)]
    first_state, outputs = [list(row) for row in state], []
    for t in range(num_tokens):
        state = [[decay[t][d] * state[d][e] + k[t][d] * v[t][e] for e in range(dim_v)] for d in range(dim)]
        outputs.append(
            [
                [Fraction(1, 2) * sum(q[t][h][d] * state[d][e] for d in range(dim)) for e in range(dim_v)]
                for h in range(num_heads)
            ]
        )
    return {
        "q": [[as_floats(head) for head in token] for token in q],
        "k": [as_floats(token) for token in k],
        "v": [as_floats(token) for token in v],
        "decay": [as_floats(token) for token in decay],
        "first_state": [as_floats(row) for row in first_state],
        "outputs": [[as_floats(head) for head in token] for token in outputs],
        "last_state": [as_floats(row) for row in state],
    }


# Energy: report, section 5.5 and appendix C.2, eq. 24, with Horowitz' 45 nm energies (ISSCC 2014).


def energy() -> dict:
    spikes, add, fp16, int8 = Fraction("1.13"), Fraction("0.03"), Fraction("1.5"), Fraction("0.23")
    mac = spikes * add
    printed = Fraction("0.034")  # the report goes on from the rounded figure
    return {
        "average_spikes": float(spikes),
        "spike_mac_pj": float(mac),
        "saving_vs_fp16": float(1 - mac / fp16),
        "saving_vs_int8": float(1 - mac / int8),
        "ratio_vs_fp16": float(fp16 / mac),
        "ratio_vs_int8": float(int8 / mac),
        "printed_saving_vs_int8": f"{float(1 - printed / int8):.1%}",
        "printed_ratio_vs_int8": f"{float(int8 / printed):.2f}",
        "ratio_vs_int8_with_int32_sums": float(int8 / (spikes * Fraction("0.1"))),
    }


# Weight reads: a memory reads whole blocks, so a silent row saves nothing while its block holds an active one.


def block_reads() -> list[dict]:
    draw = random.Random(24)
    cases = []
    for row_bytes in (1, 3, 8, 20, 64, 65):
        for block_bytes in (1, 8, 24, 64):
            active = [draw.random() < 0.3 for _ in range(40)]
            read = {
                byte // block_bytes
                for row, is_active in enumerate(active)
                if is_active
                for byte in range(row * row_bytes, (row + 1) * row_bytes)
            }
            cases.append(
                {
                    "row_bytes": row_bytes,
                    "block_bytes": block_bytes,
                    "active": "".join("01"[is_active] for is_active in active),
                    "num_blocks_read": len(read),
                }
            )
    return cases


FILES = {
    "neuron": neuron,
    "codes": codes,
    "linear": linear,
    "gated_linear_attention": gated_linear_attention,
    "energy": energy,
    "block_reads": block_reads,
}


def text_of(value: list | dict) -> str:
    """Return JSON with an entry per line."""
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"
    return "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]\n"


if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / f"{name}.json").write_text(text_of(make()), encoding="utf-8")
