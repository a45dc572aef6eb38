"""genrec.training."""
