"""genrec.cli."""
