"""Softmax attention over windows: against a plain loop, in blocks, with padding, sinks, and in integers."""

import pytest
import torch

from spikebrain.models.spikingbrain import swa
from spikebrain.models.spikingbrain.cache import Columns
from spikebrain.models.spikingbrain.int8 import quantize_tokens, rounded_to_int8
from spikebrain.models.spikingbrain.rope import rotary_angles, rotate
from spikebrain.neuro import AdaptiveThreshold


def plain(q, k, v, window=None, num_sinks=0, valid=None):
    """Softmax attention written out, one query at a time: [B, H, L, D]."""
    batch, heads, length, dim = q.shape
    shared, first = heads // k.shape[1], k.shape[2] - length
    o = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                own = first + t
                seen = [
                    j
                    for j in range(k.shape[2])
                    if (j < num_sinks or (j <= own and (window is None or own - j < window)))
                    and (valid is None or valid[b, j] or j == own)
                ]
                weight = (k[b, h // shared, seen] @ q[b, h, t] * dim**-0.5).softmax(0)
                o[b, h, t] = weight @ v[b, h // shared, seen]
    return o


def random_qkv(length, num_columns):
    k, v = torch.randn(2, 2, 2, num_columns, 8)
    return torch.randn(2, 4, length, 8), k, v


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize(("length", "num_columns"), [(1, 1), (11, 11), (6, 11), (1, 11)])
@pytest.mark.parametrize(("window", "num_sinks"), [(None, 0), (4, 0), (1, 0), (64, 0), (4, 3), (None, 3)])
def test_against_a_plain_loop(monkeypatch, block, length, num_columns, window, num_sinks):
    monkeypatch.setattr(swa, "_BLOCK", block)
    if num_columns < length + num_sinks:
        num_sinks = 0
    if length == 1 and window is not None:
        num_columns = min(num_columns, num_sinks + window)  # a single query is shown its window only
    q, k, v = random_qkv(length, num_columns)
    o = swa.attend((q,), (k, v), swa.float_attention, window=window, num_sinks=num_sinks)
    torch.testing.assert_close(o, plain(q, k, v, window, num_sinks), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [7, 1])
def test_padding_is_seen_by_nobody_else(length):
    q, k, v = random_qkv(length, 7)
    valid = torch.tensor([[False, False, False, True, True, True, True], [True] * 7])
    o = swa.attend((q,), (k, v), swa.float_attention, window=None if length == 1 else 3, valid=valid)
    expected = plain(q, k, v, None if length == 1 else 3, valid=valid)
    torch.testing.assert_close(o, expected, atol=1e-6, rtol=1e-5)
    nothing = swa.attend((q,), (k, v), swa.float_attention, valid=torch.zeros_like(valid))
    assert bool(torch.isfinite(nothing).all())


def test_cudnn_plans_nothing_for_columns_that_grow(monkeypatch):
    enabled, any_length, seen = torch.backends.cuda.cudnn_sdp_enabled, swa.any_length, []
    attend, before = swa.F.scaled_dot_product_attention, enabled()

    def spy(*args, **kwargs):
        seen.append(enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(swa.F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(swa, "any_length", lambda device: any_length(torch.device("cuda")))
    q, k, v = random_qkv(1, 7)
    swa.attend((q,), (k, v), swa.float_attention)
    q, k, v = random_qkv(3, 7)
    swa.attend((q,), (k, v), swa.float_attention, window=4)
    assert (seen, enabled()) == ([False, False], before)
    with any_length(torch.device("cpu")):
        assert enabled() == before


def test_sinks_see_each_other():
    q, k, v = random_qkv(3, 3)
    o = swa.attend((q,), (k, v), swa.float_attention, window=1, causal=False)
    torch.testing.assert_close(o, plain(q, k, v, num_sinks=3), atol=1e-6, rtol=1e-5)


def test_memory_of_a_window_does_not_grow_with_the_text(monkeypatch):
    """No core is ever shown more columns than a block and its window."""
    monkeypatch.setattr(swa, "_BLOCK", 8)
    shown = []

    def core(query, columns, mask):
        shown.append((query[0].shape[2], columns[0].shape[2]))
        return swa.float_attention(query, columns, mask)

    q, k, v = random_qkv(100, 100)
    o = swa.attend((q,), (k, v), core, window=5)
    assert len(shown) == 13
    assert max(n for n, _ in shown) == 8
    assert max(n for _, n in shown) == 8 + 5 - 1
    torch.testing.assert_close(o, plain(q, k, v, 5), atol=1e-6, rtol=1e-5)


def test_scores_of_counts_and_codes_are_exact():
    q, k = torch.randn(2, 4, 5, 64) * 3, torch.randn(2, 4, 9, 64)
    q[0, 0, 0] = 0.001
    q[0, 0, 0, 7] = 50.0  # a count of 3 * 64 * 50 / (50 + 0.063) = 192
    count, codes = AdaptiveThreshold()(q).count, quantize_tokens(k)[0]
    assert int(count.max()) == 192
    product = swa.integer_product(count, codes)
    assert torch.equal(product.long(), count.long() @ codes.long().transpose(-1, -2))
    # Beyond 2^24 a float32 sum may round.
    large = torch.tensor([[2**20, 1]], dtype=torch.int32)
    assert swa.integer_product(large, torch.tensor([[127, 0], [127, 1]], dtype=torch.int8)).tolist() == [
        [127 * 2.0**20, 127 * 2.0**20 + 1]
    ]
    assert swa.integer_product(large[:, :0], torch.zeros(3, 0, dtype=torch.int8)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("length", [1, 6])
def test_integer_attention_is_that_of_the_rounded_values(length):
    q, k, v = random_qkv(length, 11)
    spikes = AdaptiveThreshold()(q)
    columns = (*quantize_tokens(k), *quantize_tokens(v))
    settings = {"window": None if length == 1 else 4}
    o = swa.attend((spikes.count, spikes.threshold), columns, swa.integer_attention, **settings)
    expected = plain(spikes.activation(), rounded_to_int8(k), rounded_to_int8(v), **settings)
    torch.testing.assert_close(o, expected, atol=1e-6, rtol=1e-5)


def test_int8_by_hand():
    x = torch.tensor([[127.0, -63.5, 0.4], [0.0, 0.0, 0.0], [1e7, -1e7, 0.0]])
    codes, scale = quantize_tokens(x)
    # 63.5 is a tie and goes to even; zeros take the smallest scale; 1e7 / 127 is above the largest, so it saturates.
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0], [127, -128, 0]]
    torch.testing.assert_close(scale.flatten(), torch.tensor([1.0, 1e-5, 1e4]))
    assert rounded_to_int8(x.bfloat16()).dtype == torch.bfloat16


def test_int8_passes_gradients_straight_through():
    x = torch.randn(3, 4, requires_grad=True)
    (rounded_to_int8(x) * torch.arange(4.0)).sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 3


def test_rotary_embedding_by_hand():
    # Two pairs: (0, 2) turns by 1 radian a position, (1, 3) by 100^(-1/2) = 0.1.
    cos, sin = rotary_angles(torch.tensor([[2]]), 4, 100.0, torch.float32)
    x = rotate(torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]]), cos, sin).flatten()
    angle = torch.tensor([2.0, 0.2])
    torch.testing.assert_close(x[::2], torch.stack([angle[0].cos(), angle[0].sin()]))
    torch.testing.assert_close(x[1::2], torch.stack([-angle[1].sin(), angle[1].cos()]))


def test_columns_keep_the_newest_in_a_ring():
    columns = Columns(3)
    numbers = torch.arange(12.0).view(1, 1, 12, 1)
    with torch.no_grad():
        seen = [columns.append((part,))[0].flatten().tolist() for part in numbers.split([2, 1, 1, 1, 4, 1, 1, 1], 2)]
    # Up to three columns, then each takes the place of the oldest; four at once see those that they push out.
    assert seen[:4] == [[0, 1], [0, 1, 2], [3, 1, 2], [3, 4, 2]]
    assert seen[4] == [2, 3, 4, 5, 6, 7, 8]
    assert [sorted(s) for s in seen[5:]] == [[7, 8, 9], [8, 9, 10], [9, 10, 11]]
    assert columns.tensors[0].untyped_storage().nbytes() == 3 * 4


def test_pinned_columns_stay():
    columns = Columns(2)
    with torch.no_grad():
        columns.append((torch.tensor([-2.0, -1.0]).view(1, 1, 2, 1),))
        columns.pin()
        rows = torch.arange(10.0).view(2, 1, 5, 1)  # two rows, 0 to 4 and 5 to 9
        for t in range(5):
            seen = columns.append((rows[:, :, t : t + 1],))[0]
    assert seen[:, 0, :2, 0].tolist() == [[-2, -1]] * 2
    assert seen[:, 0, 2:, 0].sort().values.tolist() == [[3, 4], [8, 9]]
    columns.select(torch.tensor([1, 1]))
    assert columns.tensors[0][:, 0, 2:, 0].sort().values.tolist() == [[8, 9]] * 2
