"""genrec.testing."""
