"""The vocabulary of a model over item codes."""
