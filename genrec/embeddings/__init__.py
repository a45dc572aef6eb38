"""Item vectors: from text, from training interactions, from a file, and combinations of them."""
