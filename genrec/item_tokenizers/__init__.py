"""genrec.item_tokenizers."""
