"""Count the operations of a layer on spikes, and of the dense layers it replaces."""

from __future__ import annotations

from ..errors import InputError
from ..models import LayerRecord
from .counts import LayerCounts, OperationCounts
from .recode import Recoded

WIDTHS = (8, 16, 32)
# The largest INT8 weight.
_WEIGHT = 127


def accumulator_bits(layer: LayerRecord, zero_point: int = 0) -> int:
    """Return the bits, sign included, that hold every sum of a layer whatever its input.

    The neuron bounds the mean |count| of K channels (the adaptive threshold by k + 1/2), so no sum of INT8 weights
    exceeds 127 * (bound + zero_point) * K. For a neuron without such a bound, the largest count that was seen is taken,
    in every channel.

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
    bound = int(_WEIGHT * (per_channel + zero_point) * layer.in_features)
    return bound.bit_length() + 1


def adder_width(bits: int) -> int:
    """Return the narrowest of 8, 16 and 32 bits that holds a number of bits.

    32 for more, too: the bound may be larger, but a layer raises where a sum leaves 32 bits, so those that ran fit.
    """
    return next((width for width in WIDTHS if bits <= width), WIDTHS[-1])


def count_spiking_layer(layer: LayerRecord, spikes: Recoded, block_bytes: int, shared_tokens: int) -> LayerCounts:
    """Return the operations of a layer in the three systems.

    Spiking, for each of n tokens, K channels, N outputs, G groups of weight scales, T timesteps:

    - encode: K magnitudes, K - 1 additions and 2 divisions for the threshold (mean, k), 2 comparisons for its limits,
      K divisions by it, K roundings;
    - one addition per spike and output, as wide as `accumulator_bits` says; with digit weights either one shift for
      each addition whose digit is not 1, or (T - 1) N shifts of the sums;
    - with a zero point, one multiplication and one subtraction for each output and group (row sums are stored);
    - rescale: G conversions, G products with a weight scale and G - 1 additions per output, one product with the
      threshold, and the bias;
    - activations of 2 bytes are read twice (threshold, counts) and written once.

    INT8: one MAC per weight and token, the same rescaling, and the same kind of encoding, with the largest magnitude
    (K - 1 comparisons, one division by 127) in place of the mean. FP16: the MACs and the bias.

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
    weights = inputs * outputs
    if not n:
        return LayerCounts("projection", weight_count=weights)
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
        blocks = reads.num_groups * -(-weights // block_bytes)
    bits = accumulator_bits(layer, spikes.zero_point)
    num_synops = spikes.num_spikes * outputs
    num_corrections = num_outputs * scales if has_zero_point else 0
    width = adder_width(bits)
    additions = {f"num_add_int{width}": num_synops + num_corrections}
    timesteps = spikes.num_slots // inputs  # of all tokens together
    parameters = reads.num_groups * outputs * (4 * scales + 2 * bias)
    rescale = {
        "num_rescale_convert": num_outputs * scales,
        "num_rescale_mul": num_outputs * (scales + 1),
        "num_rescale_add": num_outputs * (scales - 1 + bias),
    }
    spiking = OperationCounts(
        num_activations=num_inputs,
        num_spikes=spikes.num_spikes,
        num_synops=num_synops,
        **additions,
        num_mul_int32=num_corrections,
        num_shifts_per_spike=spikes.num_weighted_spikes * outputs,
        num_shifts_per_timestep=(timesteps - n) * outputs * scales if spikes.num_weighted_spikes else 0,
        num_encoded_tokens=n,
        num_encode_abs=num_inputs,
        num_encode_add=num_inputs - n,
        num_encode_compare=2 * n,
        num_encode_div=num_inputs + 2 * n,
        num_encode_round=num_inputs,
        **rescale,
        weight_spike_bytes=num_synops,
        weight_channel_bytes=rows * outputs,
        weight_block_bytes=blocks * block_bytes,
        parameter_bytes=parameters + (4 * reads.num_groups * outputs * scales if has_zero_point else 0),
        activation_bytes=2 * (2 * num_inputs + num_outputs),
        accumulator_bytes=2 * (width // 8) * (num_synops + num_corrections),
    )
    int8 = OperationCounts(
        num_activations=num_inputs,
        num_macs=n * weights,
        num_mac_int8=n * weights,
        num_encoded_tokens=n,
        num_encode_abs=num_inputs,
        num_encode_compare=num_inputs - n,
        num_encode_div=num_inputs + n,
        num_encode_round=num_inputs,
        **rescale,
        weight_bytes=reads.num_groups * weights,
        parameter_bytes=parameters,
        activation_bytes=2 * (2 * num_inputs + num_outputs),
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
    return LayerCounts("projection", spiking, int8, fp16, weight_count=weights, accumulator_bits=bits)
