"""genrec.decoding."""
