"""Count the operations of a layer on spikes, and of the dense layers it replaces."""

from __future__ import annotations

from ..errors import InputError
from ..models import LayerRecord
from ..models.recording.weight_reads import row_bytes
from .counts import LayerCounts, OperationCounts
from .recode import Recoded

WIDTHS = (8, 16, 32)
# Of the sum of a group's counts, where it is multiplied with an integer minimum.
_COUNT_BYTES = 2


def accumulator_bits(layer: LayerRecord, zero_point: int = 0) -> int:
    """Return the bits, sign included, that hold every sum of a layer for any input.

    The neuron bounds the mean |count| of K channels (the adaptive threshold by k + 1/2), so no sum of weights up to W
    (127 for INT8) exceeds W * (bound + zero_point) * K; all of it may be in one group of channels. For a neuron
    without such a bound, the largest count that was seen is taken, in every channel.

    Args:
        layer: the record.
        zero_point: that lifts every count.

    Source:
        SpikingBrain (arXiv:2509.05276), eq. 19 and 21.
    """
    if layer.mean_count_bound is not None:
        per_channel = layer.mean_count_bound
    else:
        per_channel = max((abs(count) for count in layer.count_histogram), default=0)
    bound = int(layer.largest_weight * (per_channel + zero_point) * layer.in_features)
    return bound.bit_length() + 1


def adder_width(bits: int) -> int:
    """Return the narrowest of 8, 16 and 32 bits that holds a number of bits.

    More bits give 32, too: the bound can be larger, but a layer raises if a sum leaves 32 bits, so all that ran fit.
    """
    return next((width for width in WIDTHS if bits <= width), WIDTHS[-1])


def count_spiking_layer(layer: LayerRecord, spikes: Recoded, block_bytes: int, shared_tokens: int) -> LayerCounts:
    """Return the operations of a layer in the four systems.

    Spiking, for each of n tokens, K channels, N outputs, G groups of weight scales, T timesteps:

    - encode: K magnitudes, K - 1 additions and 2 divisions for the threshold (mean, k), 2 comparisons for its limits,
      K divisions by it, K roundings, and what comparisons the neuron makes for a channel (a dead zone makes one);
    - one addition per spike and output, as wide as `accumulator_bits` says; with digit weights either one shift for
      each addition whose digit is not 1, or (T - 1) N shifts of the sums;
    - with a zero point, one multiplication and one subtraction for each output and group (row sums are stored);
    - rescale: G conversions, G products with a weight scale and G - 1 additions per output, one product with the
      threshold, and the bias;
    - with minima, the sum of each group's counts (K - G additions), its conversion, and one more product and addition
      per output and group;
    - with integer scales and minima (`SpikeLinear.units`), instead of all that: a product of a scale of one byte with a
      sum per output and group, in as many products of bytes as the sum has, each added in 32 bits; the same of a
      minimum with the sum of counts, in 16 bits; and per output the rescaling of one group;
    - a weight is read in 1 byte, or in 4 or 2 bits (a row that does not fill its last byte has it to itself); scales
      and minima (`scale_bytes_of`) are among `parameter_bytes`;
    - activations of 2 bytes are read twice (threshold, counts) and written once.

    Coarse rows of a `GradedLinear` are upper bits of its own rows, and add up in the same accumulators. They have
    additions and reads of their own. Their counts are summed in each group (K - G additions), and lift its sums to the
    middle of what upper bits stand for (one addition per output and group). All that the layer does once is counted
    with its own rows: the encoding, activations, scales, rescaling, and the dense counterparts.

    INT8: one MAC per weight and token, the same rescaling, and the same kind of encoding, with the largest magnitude
    (K - 1 comparisons, one division by 127) in place of the mean. Beside 4-bit weights or minima it is the usual INT8
    layer: one scale per output, and no minimum. FP16: the MACs and the bias. Dense with the same weights: MACs and
    encoding of INT8, all weights in their bits, and the rescaling of the layer's own rows, minima included.

    Rows of active channels, blocks and dense weights are read once for `shared_tokens` tokens; if each spike reads its
    row, it does so every time.

    Args:
        layer: the record.
        spikes: of the layer, in the code that is counted.
        block_bytes: bytes that the weight memory gives at a time.
        shared_tokens: tokens for which a read of weights serves.
    Raises:
        InputError: reads were not recorded for these numbers.
    """
    n, inputs, outputs, scales = layer.num_tokens, layer.in_features, layer.out_features, layer.num_scales
    num_inputs, num_outputs, bias = n * inputs, n * outputs, int(layer.has_bias)
    weights, row, minima = inputs * outputs, row_bytes(outputs, layer.weight_bits), scales * layer.has_minimum
    # One scale an output is no more than a bias: it does not count as memory for weights.
    scale_bytes = 0 if layer.is_coarse else layer.scale_bytes
    stored = inputs * row + (scale_bytes if scales + minima > 1 else 0)
    dense_weights = 0 if layer.is_coarse else weights
    if not n:
        return LayerCounts("projection", weight_count=dense_weights, stored_bytes=stored)
    recorded = {(reads.block_bytes, reads.shared_tokens): reads for reads in layer.weight_reads}
    reads = recorded.get((block_bytes, shared_tokens))
    if reads is None:
        have = ", ".join(f"{size} bytes with {tokens} tokens" for size, tokens in recorded) or "none"
        raise InputError(
            f"{layer.name}: expected reads recorded for blocks of {block_bytes} bytes shared by {shared_tokens} "
            f"tokens, got {have}. Use record(..., block_bytes=..., shared_tokens=...)."
        )
    has_zero_point = spikes.zero_point > 0
    rows, blocks = reads.num_rows, reads.num_blocks
    if spikes.num_active_channels != layer.num_active_channels:
        # Another code, with a zero point: nearly every channel fires. Which ones do not is not known together.
        rows = spikes.num_active_channels if shared_tokens == 1 else reads.num_groups * inputs
        blocks = reads.num_groups * -(-inputs * row // block_bytes)
    bits = accumulator_bits(layer, spikes.zero_point)
    num_synops = spikes.num_spikes * outputs
    num_corrections = num_outputs * scales if has_zero_point else 0
    width = adder_width(bits)
    num_count_sums = n * (inputs - scales) if minima or layer.is_coarse else 0
    num_lifts = num_outputs * scales if layer.is_coarse else 0
    num_adds = num_synops + num_corrections + num_count_sums + num_lifts
    timesteps = spikes.num_slots // inputs  # of all tokens together
    dense_scales = 1 if minima or layer.weight_bits != 8 else scales
    parameters = reads.num_groups * (scale_bytes + 2 * outputs * bias)
    once = {
        "num_activations": num_inputs,
        "num_encoded_tokens": n,
        "num_encode_abs": num_inputs,
        "num_encode_add": num_inputs - n,
        "num_encode_compare": 2 * n + layer.compares_per_channel * num_inputs,
        "num_encode_div": num_inputs + 2 * n,
        "num_encode_round": num_inputs,
        "activation_bytes": 2 * (2 * num_inputs + num_outputs),
    }
    spiking = OperationCounts(
        **({} if layer.is_coarse else once),
        num_spikes=spikes.num_spikes,
        num_synops=num_synops,
        **{f"num_add_int{width}": num_adds},
        num_mul_int32=num_corrections,
        num_shifts_per_spike=spikes.num_weighted_spikes * outputs,
        num_shifts_per_timestep=(timesteps - n) * outputs * scales if spikes.num_weighted_spikes else 0,
        weight_spike_bytes=spikes.num_spikes * row,
        weight_channel_bytes=rows * row,
        weight_block_bytes=blocks * block_bytes,
        parameter_bytes=parameters + (4 * reads.num_groups * outputs * scales if has_zero_point else 0),
        accumulator_bytes=2 * (width // 8) * (num_synops + num_corrections + num_lifts),
    )
    if layer.is_coarse:
        return LayerCounts("projection", spiking, stored_bytes=stored, accumulator_bits=bits)
    spiking += _rescaling_of_rows(layer, bits)
    products = OperationCounts(
        num_activations=num_inputs,
        num_macs=n * weights,
        num_mac_int8=n * weights,
        num_encoded_tokens=n,
        num_encode_abs=num_inputs,
        num_encode_compare=num_inputs - n,
        num_encode_div=num_inputs + n,
        num_encode_round=num_inputs,
        activation_bytes=2 * (2 * num_inputs + num_outputs),
    )
    same_weights = products + OperationCounts(
        num_add_int32=num_count_sums,
        weight_bytes=reads.num_groups * inputs * row,
        parameter_bytes=parameters,
    )
    same_weights += _rescaling_of_rows(layer, (127 * layer.largest_weight * -(-inputs // scales)).bit_length() + 1)
    int8 = products + OperationCounts(
        **_rescaling(num_outputs, dense_scales, bias),
        weight_bytes=reads.num_groups * weights,
        parameter_bytes=reads.num_groups * outputs * (4 * dense_scales + 2 * bias),
    )
    fp16 = OperationCounts(
        num_activations=num_inputs,
        num_macs=n * weights,
        num_mac_fp16=n * weights,
        num_rescale_add=num_outputs * bias,
        weight_bytes=2 * reads.num_groups * weights,
        parameter_bytes=2 * reads.num_groups * outputs * bias,
        activation_bytes=2 * (num_inputs + num_outputs),
    )
    sizes = {"weight_count": weights, "stored_bytes": stored, "accumulator_bits": bits}
    return LayerCounts("projection", spiking, int8, fp16, same_weights=same_weights, **sizes)


def _rescaling_of_rows(layer: LayerRecord, sum_bits: int) -> OperationCounts:
    """Return the operations that turn a layer's sums, of so many bits, into outputs with its scales and minima."""
    num_outputs = layer.num_tokens * layer.out_features
    of_groups, minima, bias = num_outputs * layer.num_scales, int(layer.has_minimum), int(layer.has_bias)
    if not layer.adds_scaled:
        of_minima = OperationCounts(
            num_rescale_convert=layer.num_tokens * layer.num_scales,
            num_rescale_mul=of_groups,
            num_rescale_add=of_groups,
        )
        return OperationCounts(**_rescaling(num_outputs, layer.num_scales, bias)) + of_minima * minima
    num_products = of_groups * (-(-min(sum_bits, 32) // 8) + _COUNT_BYTES * minima)
    of_minima = OperationCounts(
        num_rescale_convert=num_outputs, num_rescale_mul=num_outputs, num_rescale_add=num_outputs
    )
    products = OperationCounts(num_mul_int8=num_products, num_add_int32=num_products)
    return products + OperationCounts(**_rescaling(num_outputs, 1, bias)) + of_minima * minima


def _rescaling(num_outputs: int, scales: int, bias: int) -> dict[str, int]:
    """Return the operations that turn sums of some groups into outputs."""
    return {
        "num_rescale_convert": num_outputs * scales,
        "num_rescale_mul": num_outputs * (scales + 1),
        "num_rescale_add": num_outputs * (scales - 1 + bias),
    }
