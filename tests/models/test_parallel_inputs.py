"""Positions and masks of parallel sequences, against the rules of the papers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.slots import ItemSlots
from genrec.models.backbone import T5Settings
from genrec.models.parallel_inputs import Arrangement, ParallelItems, Sequence
from genrec.models.parallel_settings import ParallelSettings, preset
from genrec.testing.parallel_cases import NAMES, parallel_case

# SETRec, one instruction token, two items of two slots, one response token, two queries
PUBLISHED = ["10000000", "11000000", "10100000", "11110000", "11101000", "11111100", "11111110", "11111101"]


def rows_of(mask):
    return ["".join(str(int(x)) for x in row) for row in mask.tolist()]


def ranked(n_before, n_items, n, n_after, n_queries, real=None):
    """The sequence with text around the items, as SETRec's has it."""
    items = np.repeat(2 * np.arange(n_items), n)
    rank = [
        *range(-n_before, 0),
        *items,
        *range(2 * n_items, 2 * n_items + n_after),
        *[3 * n_items + n_after + 9] * n_queries,
    ]
    query = torch.arange(len(rank)) >= len(rank) - n_queries
    real = torch.ones(1, len(rank), dtype=torch.bool) if real is None else torch.tensor(real)[None]
    return Sequence(torch.zeros(1, len(rank)), torch.tensor(rank)[None], real, query)


def test_mask_of_the_published_example():
    assert rows_of(ranked(1, 2, 2, 1, 2).mask(together=False)[0]) == PUBLISHED


@given(
    st.integers(0, 3), st.integers(0, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 4), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_mask_is_the_rule_of_the_paper(n_before, n_items, n, n_after, n_queries, seed):
    """Causal; within an item only itself; a query sees no other query; nobody sees padding."""
    length = n_before + n_items * n + n_after + n_queries
    real = np.random.default_rng(seed).random(length) < 0.8
    found = ranked(n_before, n_items, n, n_after, n_queries, real).mask(together=False)[0].numpy()

    def item(at):
        return (at - n_before) // n if n_before <= at < n_before + n_items * n else None

    for q in range(length):
        for k in range(length):
            expected = k <= q and real[k]
            if k != q and item(q) is not None and item(q) == item(k):
                expected = False
            if k != q and min(q, k) >= length - n_queries:
                expected = False
            assert found[q, k] == expected, (q, k)


def test_the_model_has_the_published_mask_and_positions_but_for_the_response():
    """One start vector, no response token; queries have the number of the item to come, not of their place."""
    arranged = Arrangement(n_start=1, per_item=2, n_queries=2, counted=False)
    sequence = arranged.of(torch.tensor([2]), 2, torch.tensor([[2]]))
    assert sequence.position_BT.tolist() == [[0, 1, 1, 2, 2, 3, 3]]
    without = [row[:5] + row[6:] for at, row in enumerate(PUBLISHED) if at != 5]
    assert rows_of(sequence.mask(together=False)[0]) == without


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.data())
@settings(max_examples=40, deadline=None)
def test_queries_at_every_place_see_what_the_history_up_to_there_shows(n, n_items, n_queries, data):
    length = data.draw(st.integers(0, n_items))
    places = list(range(length + 1))
    arranged = Arrangement(1, n, n_queries, counted=False)
    mask = arranged.of(torch.tensor([length]), n_items, torch.tensor([places])).mask(together=False)[0]
    first = 1 + n_items * n
    read = arranged.read_at(n_items, torch.tensor([places]))[0]
    for place in places:
        for number, at in enumerate(read[place].tolist()):
            assert at == first + place * n_queries + number
            seen = set(np.flatnonzero(mask[at].numpy()).tolist())
            assert seen == {at} | set(range(1 + place * n))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_hybrid_mask(n):
    """Position q sees k where k // n <= q // n, padding excepted (RecGPT; the start is one more item)."""
    n_items, length = 15, 12
    arranged = Arrangement(n_start=n, per_item=n, n_queries=0, counted=True)
    sequence = arranged.of(torch.tensor([length]), n_items, torch.tensor([[0, length]]))
    width = (n_items + 1) * n
    assert sequence.position_BT.tolist()[0][:width] == list(range(width))
    mask = sequence.mask(together=True)[0, :width, :width].numpy()
    q, k = np.mgrid[:width, :width]
    assert np.array_equal(mask, (k // n <= q // n) & (k < (length + 1) * n))
    read = arranged.read_at(n_items, torch.tensor([[0, 3]]))
    assert read[0].tolist() == [list(range(n)), list(range(3 * n, 4 * n))]


def test_settings_that_do_not_fit_together():
    for wrong in (
        {"readout": "positions", "item": "pooled"},
        {"readout": "positions", "backbone": T5Settings()},
        {"temperature": 0.0},
        {"target": "vectors", "temperature": 0.1},
        {"target": "vectors", "content": True},
        {"readout": "tea"},
    ):
        with pytest.raises(ConfigError):
            ParallelSettings(**wrong)
    with pytest.raises(ConfigError, match="setrec, recgpt, rpg"):
        preset("tiger")


def test_items_that_do_not_fit():
    settings_, items = parallel_case("recgpt")
    with pytest.raises(DataError, match="content"):
        ParallelItems(items.identifiers).tables(settings_)
    with pytest.raises(DataError, match="content"):
        ParallelItems(items.identifiers, items.content[:-1])
    with pytest.raises(DataError, match="ItemSlots"):
        ParallelItems(ItemSlots(np.ones((2, 3, 4), np.float32), NAMES, "c"), np.ones((2, 3))).tables(settings_)
    with pytest.raises(DataError, match="one length"):
        ParallelItems(ItemCodes.from_int([[1, 2], [1, -1]], (4, 4), "c"))
    other = ParallelItems(ItemCodes(np.zeros((3, 3), int), (9, 9, 9), "c", shared_vocabulary=True), np.ones((3, 10)))
    with pytest.raises(FingerprintMismatch, match="sizes"):
        items.shape.check(other.shape)
    books = tuple(np.full((8, 2), value, np.float32) for value in (1, 1, 1))
    own, foreign = (
        ItemCodes(np.zeros((3, 3), int), (8, 8, 8), "c", codebooks=tuple(book * by for book in books)) for by in (1, 2)
    )
    with pytest.raises(FingerprintMismatch, match="codebooks"):
        ParallelItems(own).shape.check(ParallelItems(foreign).shape)


def test_pieces_are_contiguous_and_filled_with_zeros():
    settings_, items = parallel_case("recgpt")
    pieces = items.tables(settings_).vectors.numpy()
    assert pieces.shape == (40, 3, 4)
    assert np.array_equal(pieces[:, 0], items.content[:, :4]) and np.array_equal(
        pieces[:, 1, :3], items.content[:, 4:7]
    )
    assert (pieces[:, 1:, 3] == 0).all()
