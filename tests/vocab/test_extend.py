import numpy as np
import pytest
import torch

from genrec.errors import DataError
from genrec.vocab.extend import start_from_codebooks
from genrec.vocab.token_map import TokenMap


def start(books, sizes=(40, 30, 5), width=600, seed=0):
    tokens = TokenMap(sizes)
    weight = torch.randn(tokens.vocab_size, width, generator=torch.Generator().manual_seed(1)) * 0.02
    made = torch.nn.Parameter(weight.clone())
    start_from_codebooks(made, tokens, books, seed=seed)
    return tokens, weight, made.detach()


def test_rows_are_as_alike_as_the_codebook_vectors():
    draw = np.random.default_rng(0)
    books = [draw.normal(3, 2, size=(40, 12)).astype(np.float32), draw.normal(size=(30, 12)).astype(np.float32)]
    tokens, before, after = start(books)
    for level, book in enumerate(books):
        rows = after[tokens.level_offset[level] :][: len(book)].numpy()
        centred = book - book.mean(axis=0)
        want = np.corrcoef((centred @ centred.T).ravel(), (rows @ rows.T).ravel())[0, 1]
        assert want > 0.9
        assert rows.std() == pytest.approx(0.02, rel=0.05)
    others = np.r_[: tokens.level_offset[0], tokens.level_offset[2] : tokens.vocab_size]
    assert torch.equal(after[others], before[others])  # specials, and the level without a codebook
    assert torch.equal(after, start(books)[2]) and not torch.equal(after, start(books, seed=1)[2])


def test_equal_vectors_stay_apart_and_a_constant_codebook_changes_nothing():
    book = np.ones((40, 3), np.float32)
    book[:20] = 2
    _, _, after = start([book])
    rows = after[3:43]
    assert len(torch.unique(rows, dim=0)) == 40
    _, before, same = start([np.ones((40, 3), np.float32)])
    assert torch.equal(before, same)


def test_codebooks_of_other_levels_are_refused():
    with pytest.raises(DataError, match="level 0 has 40 codes"):
        start([np.zeros((39, 3), np.float32)])
    with pytest.raises(DataError, match="at most 3"):
        start([np.zeros((40, 3), np.float32)] * 4)
    shared = TokenMap((4, 4), shared_vocabulary=True)
    with pytest.raises(DataError, match="one codebook only"):
        start_from_codebooks(torch.zeros(shared.vocab_size, 2), shared, [np.zeros((4, 3), np.float32)] * 2, seed=0)
