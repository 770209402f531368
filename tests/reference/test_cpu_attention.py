"""Softmax attention of the compiled decoders beside the plain rules: on floats, and on counts and codes."""

import numpy as np
import pytest
import torch

from spikebrain import AdaptiveThreshold
from spikebrain.backends.cpu import attention
from spikebrain.models.spikingbrain import swa
from spikebrain.models.spikingbrain.int8 import quantize_tokens

# Rows: one, less than are multiplied together, a block, and blocks with a rest.
SIZES = [(1, 8), (7, 24), (64, 64), (65, 16), (200, 80), (1000, 128)]


def read(query, factor, keys, key_scales, values, value_scales):
    out = np.full(query.shape, np.nan, np.float32)
    addresses = (0 if part is None else part.data_ptr() for part in (keys, key_scales, values, value_scales))
    attention.attend(query.numpy(), np.asarray(factor, np.float32), *addresses, len(keys), query.shape[1], out)
    return torch.from_numpy(out)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("rows", "dim"), SIZES)
def test_floats(rows, dim, heads):
    torch.manual_seed(rows)
    query, keys, values = torch.randn(heads, dim), torch.randn(rows, dim), torch.randn(rows, dim)
    found = read(query, np.full(heads, dim**-0.5), keys, None, values, None)
    given = (query[None, :, None],), (keys[None, None], values[None, None])
    torch.testing.assert_close(found, swa.float_attention(*given, None)[0, :, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("rows", "dim"), SIZES)
def test_counts_and_codes(rows, dim, heads):
    torch.manual_seed(rows)
    spikes = AdaptiveThreshold()(torch.randn(1, heads, 1, dim))
    columns = tuple(part for x in (torch.randn(rows, dim), torch.randn(rows, dim)) for part in quantize_tokens(x))
    expected = swa.integer_attention((spikes.count, spikes.threshold), tuple(c[None, None] for c in columns), None)
    factor = spikes.threshold[0, :, 0, 0] * dim**-0.5
    found = read(spikes.count[0, :, 0].float(), factor, *columns)
    torch.testing.assert_close(found, expected[0, :, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 24, 64])
def test_products_of_counts_and_codes_are_exact_up_to_the_bound(dim):
    """Of nine columns one has a product that is 1 lower: with a factor of 1 its weight is 1 / e of the others'."""
    codes = torch.zeros(9, dim, dtype=torch.int8)
    codes[:, 0] = -128
    codes[4, 1] = -1
    count = torch.zeros(1, dim)
    count[0, 0], count[0, 1] = -(attention.MOST_CHARGE - 1), 1
    assert (count.long() @ codes.t().long()).unique().tolist() == [2**24 - 129, 2**24 - 128]
    values = torch.arange(9, dtype=torch.int8)[:, None].expand(9, dim).contiguous()
    found = read(count, [1.0], codes, torch.ones(9), values, torch.ones(9))
    # Row numbers 0 to 8, without 4: 32.
    assert found[0].numpy() == pytest.approx((32 + 4 * np.exp(-1)) / (8 + np.exp(-1)), rel=1e-6)


def test_a_higher_score_in_a_later_block_takes_over():
    """Scores 0, 100 and 200 in three blocks: without the running maximum exp(200) is beyond float32."""
    keys = torch.zeros(3 * attention.BLOCK, 16)
    keys[attention.BLOCK :, 0] = 100
    keys[-1, 0] = 200
    values = torch.zeros(len(keys), 16)
    values[-1] = 7
    query = torch.zeros(1, 16)
    query[0, 0] = 1
    assert read(query, [1.0], keys, None, values, None).eq(7).all()


def test_nothing_is_read_after_the_last_row():
    keys, values = torch.randn(72, 16), torch.randn(72, 16)
    keys[70:], values[70:] = torch.nan, torch.nan
    query = torch.randn(2, 16)
    assert read(query, [0.25, 0.25], keys[:70], None, values[:70], None).isfinite().all()
