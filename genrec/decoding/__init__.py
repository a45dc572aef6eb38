"""Constrained decoding: the catalog index, exact beam search inside it, and what recommenders answer.

``index``, ``deny``, ``listing`` and ``types`` need numpy only; the search itself needs torch.
"""
