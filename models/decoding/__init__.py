"""Fast decoding: one token through a whole model in one compiled call."""

from .attach import attach_decoder, decoder_of, describe_decoding

__all__ = ["attach_decoder", "decoder_of", "describe_decoding"]
