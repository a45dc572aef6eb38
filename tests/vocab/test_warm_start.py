"""Rows of tokens that only new items have: started from trained ones of their level."""

from dataclasses import replace

import numpy as np
import torch

from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.new_rows import warm_start
from genrec.vocab.token_map import TokenMap

BOOK = np.array([[0, 0], [1, 0], [0, 1], [5, 5], [4, 5]], np.float32)
CODES = [[0, 0], [3, 1], [1, 0], [4, 2], [2, 3]]  # the last two items are new: codes 4, 2 and 2, 3
SEEN = np.array([True, True, False, False, False])  # the third is old too: its text alone was learned, or it is retired


def rows_of(token_map, width=3):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(sum(token_map.level_sizes), width))).float()


def test_the_nearest_trained_code_of_the_level_or_a_draw_like_the_trained_ones():
    codes = replace(ItemCodes.from_int(np.array(CODES), (5, 4), "c"), codebooks=(BOOK,))
    token_map = TokenMap.of(codes)
    rows = rows_of(token_map, width=400)
    rows[5:7] += 3  # the trained rows of the second level lie elsewhere
    before = rows.clone()
    changed = warm_start(rows, token_map, codes, SEEN, 3, seed=0)
    assert changed.tolist() == [2, 4, 7, 8]
    assert torch.equal(rows[4], before[3])  # (4, 5) is nearest to (5, 5), which is trained
    assert torch.equal(rows[2], before[0])  # (0, 1) to (0, 0)
    assert not torch.equal(rows[7], rows[8]) and abs(float(rows[7:9].mean()) - 3) < 0.4
    kept = [0, 1, 3, 5, 6]
    assert torch.equal(rows[kept], before[kept])
    again = before.clone()
    warm_start(again, token_map, codes, SEEN, 3, seed=0)
    assert torch.equal(again, rows)
    assert not len(warm_start(rows, token_map, codes, np.ones(5, np.bool_), 5, seed=0))
    assert not len(warm_start(rows, token_map, codes, np.zeros(5, np.bool_), 3, seed=0))  # nothing to start from


def test_levels_that_share_their_tokens_are_one():
    codes = ItemCodes.from_int(np.array([[0, 1], [1, 2], [2, 3]]), (5, 5), "c", shared_vocabulary=True)
    rows = rows_of(TokenMap.of(codes))[:5]
    before = rows.clone()
    changed = warm_start(rows, TokenMap.of(codes), codes, np.array([True, True, False]), 2, seed=0)
    assert changed.tolist() == [3] and torch.equal(rows[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
    assert not torch.equal(rows[3], before[3])


def test_rows_that_an_old_item_has_are_left_and_those_that_nothing_has_too():
    """Also of old items in no history: theirs were learned from texts, or stand in histories of retired ones."""
    codes = ItemCodes.from_int(np.array([[0, 0], [1, 1], [2, 2], [2, 3]]), (5, 5), "c")  # the last item is new
    rows = rows_of(TokenMap.of(codes))
    seen = np.array([True, True, False, True])
    assert warm_start(rows, TokenMap.of(codes), codes, seen, 3, seed=0).tolist() == [5 + 3]
