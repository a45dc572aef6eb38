"""genrec.data.readers."""
