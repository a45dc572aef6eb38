"""genrec.baselines."""
