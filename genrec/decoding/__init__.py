"""Constrained decoding: the catalog index, exact beam search inside it, and what recommenders answer.

``index``, ``deny``, ``listing`` and ``interface`` need numpy only; the search itself needs torch.
"""
