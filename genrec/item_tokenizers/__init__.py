"""Item tokenizers: from item vectors to identifiers."""
