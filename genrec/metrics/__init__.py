"""Ranking metrics, what lists are like, and how sure a number is (numpy only)."""
