"""Catalogs of items, interactions with them, and splits; readers of files and a synthetic shop."""
