"""genrec.item_tokenizers.quantizers."""
