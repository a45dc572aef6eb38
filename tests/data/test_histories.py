import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories, concatenate
from genrec.errors import DataError

ragged = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=8)
few = settings(max_examples=60, deadline=None)


@few
@given(ragged)
def test_lists_survive(rows):
    h = Histories.from_lists(rows)
    assert h.to_lists() == rows
    assert h.offsets.dtype == np.int64 and h.items.dtype == np.int32
    assert h.lengths.tolist() == [len(r) for r in rows]
    assert [(u, i) for u, i in zip(h.rows().tolist(), h.items.tolist(), strict=True)] == [
        (u, i) for u, row in enumerate(rows) for i in row
    ]


@few
@given(ragged, st.data())
def test_take_picks_rows_by_position_and_by_mask(rows, data):
    h = Histories.from_lists(rows)
    at = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10)) if rows else []
    assert h.take(at).to_lists() == [rows[u] for u in at]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    assert h.take(mask).to_lists() == [row for row, yes in zip(rows, mask, strict=True) if yes]


@few
@given(ragged, st.integers(0, 7))
def test_last_keeps_the_newest(rows, n):
    assert Histories.from_lists(rows).last(n).to_lists() == [row[max(0, len(row) - n) :] for row in rows]


@few
@given(ragged, st.none() | st.integers(0, 7), st.sampled_from(["left", "right"]))
def test_padded_agrees_with_padding_every_row(rows, max_len, side):
    out = Histories.from_lists(rows).padded(max_len, pad=-7, side=side)
    width = max((len(r) for r in rows), default=0) if max_len is None else max_len
    expected = []
    for row in rows:
        kept = row[len(row) - width :] if len(row) > width else row
        fill = [-7] * (width - len(kept))
        expected.append(fill + kept if side == "left" else kept + fill)
    assert out.shape == (len(rows), width) and out.dtype == np.int32
    assert out.tolist() == expected


@few
@given(ragged, ragged)
def test_concatenate_stacks_rows(a, b):
    assert concatenate([Histories.from_lists(a), Histories.from_lists(b)]).to_lists() == a + b


def test_concatenate_nothing():
    assert len(concatenate([])) == 0


def test_rows_are_views_and_negative_positions_count_from_the_end():
    h = Histories.from_lists([[1, 2], [3]])
    assert np.shares_memory(h[0], h.items) and h[-1].tolist() == [3]
    with pytest.raises(IndexError):
        h[2]


@pytest.mark.parametrize(
    "offsets, items",
    [([], []), ([1, 2], [5, 6]), ([0, 2, 1, 2], [5, 6]), ([0, 1], [5, 6]), ([0, 3], [5, 6])],
)
def test_offsets_that_do_not_fit_are_refused(offsets, items):
    with pytest.raises(DataError, match="offsets"):
        Histories(np.array(offsets, np.int64), np.array(items, np.int32))


@pytest.mark.parametrize("items", [[[1]], [0.5], [2**31]])
def test_items_that_are_no_int32_are_refused(items):
    with pytest.raises(DataError):
        Histories(np.array([0, 1]), np.array(items))


def test_bad_side_and_negative_last_are_refused():
    h = Histories.from_lists([[1]])
    with pytest.raises(DataError, match="side"):
        h.padded(side="middle")
    with pytest.raises(DataError, match="n >= 0"):
        h.last(-1)
    with pytest.raises(DataError, match="end"):
        Histories.from_slices(h.items, np.array([1]), np.array([0]))
