"""The clustering and quantization beneath the item tokenizers."""
