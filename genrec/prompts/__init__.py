"""Alignment tasks: what ties item tokens to text, as templates and small functions."""
