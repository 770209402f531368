"""Counts of a made-up layer, for tests of energy."""

from spikebrain.energy import LayerCounts, ModelCounts, OperationCounts


def layer_with(num_spikes, channels=100, outputs=10, read=0.816):
    """One token through a layer; what is counted besides is as count_spiking_layer says."""
    macs, encoded = channels * outputs, {"num_encoded_tokens": 1, "num_encode_abs": channels}
    rescale = {"num_rescale_convert": outputs, "num_rescale_mul": 2 * outputs, "num_rescale_add": outputs}
    activation_bytes = 2 * (2 * channels + outputs)
    spiking = OperationCounts(
        num_activations=channels,
        num_spikes=num_spikes,
        num_synops=num_spikes * outputs,
        num_add_int32=num_spikes * outputs,
        num_shifts_per_timestep=40,
        num_shifts_per_spike=300,
        **encoded,
        num_encode_add=channels - 1,
        num_encode_compare=2,
        num_encode_div=channels + 2,
        num_encode_round=channels,
        **rescale,
        weight_spike_bytes=num_spikes * outputs,
        weight_channel_bytes=round(read * macs),
        weight_block_bytes=macs,
        activation_bytes=activation_bytes,
        accumulator_bytes=8 * num_spikes * outputs,
    )
    int8 = OperationCounts(num_macs=macs, num_mac_int8=macs, weight_bytes=macs, activation_bytes=activation_bytes)
    fp16 = OperationCounts(num_macs=macs, num_mac_fp16=macs, weight_bytes=2 * macs)
    return LayerCounts("projection", spiking, int8, fp16, weight_count=macs, accumulator_bits=17)


def counts_with(num_spikes=113, **more):
    return ModelCounts({"layer": layer_with(num_spikes, **more)}, 1, "Model", "k=3", "code")
