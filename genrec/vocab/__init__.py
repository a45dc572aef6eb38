"""genrec.vocab."""
