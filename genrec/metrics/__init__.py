"""genrec.metrics."""
