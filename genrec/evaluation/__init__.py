"""genrec.evaluation."""
