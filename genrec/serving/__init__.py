"""The endpoint: recommendations over HTTP from a trained run, with a catalog that changes while it serves."""
