from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes


@st.composite
def int_codes(draw):
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 300, 70_000]), min_size=1, max_size=4)))
    n = draw(st.integers(0, 12))
    rows = []
    for _ in range(n):
        length = draw(st.integers(1, len(sizes)))
        row = [draw(st.integers(0, size - 1)) for size in sizes[:length]]
        rows.append(row + [-1] * (len(sizes) - length))
    return np.array(rows, dtype=np.int64).reshape(n, len(sizes)), sizes


@given(int_codes())
@settings(max_examples=60, deadline=None)
def test_int_round_trip_and_collisions_match_a_dict(case):
    rows, sizes = case
    codes = ItemCodes.from_int(rows, sizes, "c" * 32)
    assert codes.as_int().tolist() == rows.tolist()
    assert codes.as_int().dtype == np.int32
    assert codes.codes.dtype == (np.uint8 if max(sizes) <= 256 else np.uint16 if max(sizes) <= 65536 else np.uint32)

    groups: dict[tuple, list[int]] = {}
    for n, row in enumerate(rows.tolist()):
        groups.setdefault(tuple(row), []).append(n)
    expected = sorted(g for g in groups.values() if len(g) > 1)
    assert sorted(g.tolist() for g in codes.collisions()) == expected
    number = {key: i for i, key in enumerate(sorted(groups))}
    assert codes.collision_ids().tolist() == [number[tuple(row)] for row in rows.tolist()]
    report = codes.report()
    if len(rows):
        assert report["distinct_share"] == len(groups) / len(rows)
        assert report["largest_group"] == max(map(len, groups.values()))
        assert report["collision_share"] == sum(map(len, expected)) / len(rows)


def test_usage_and_perplexity_are_what_they_say():
    codes = ItemCodes(np.array([[0, 0], [0, 1], [0, 2], [1, 3]]), (4, 4), "c")
    assert codes.level_usage().tolist() == [2 / 4, 4 / 4]
    entropy = -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
    assert codes.perplexity() == pytest.approx([np.exp(entropy), 4.0])


def test_padding_does_not_count_as_code_zero():
    codes = ItemCodes.from_int([[0, 1], [1, -1]], (2, 2), "c")
    assert codes.ragged
    assert codes.level_counts()[1].tolist() == [0, 1]
    same_without_lengths = ItemCodes(np.array([[0, 1], [1, 0]]), (2, 2), "c")
    assert not same_without_lengths.ragged
    assert codes.fingerprint != same_without_lengths.fingerprint


@pytest.mark.parametrize(
    ("codes", "sizes", "lengths", "place"),
    [
        ([[0, 1], [0, 2]], (2, 2), None, "row 1, level 1"),
        ([[0, -1]], (2, 2), None, "row 0, level 1"),
        ([[0, 1, 0]], (2, 2), None, "2 levels"),
        ([[0.5, 1.0]], (2, 2), None, "integers"),
        ([0, 1], (2, 2), None, "shape"),
        ([[0, 1]], (2, 0), None, "level_sizes"),
        ([[0, 1]], (2, 2), [3], "lengths: row 0"),
        ([[0, 1]], (2, 2), [0], "lengths: row 0"),
        ([[0, 1]], (2, 2), [1, 1], "lengths: expected shape"),
        ([[0, 1]], (2, 2), [1], "beyond its length"),
    ],
)
def test_malformed_codes_are_refused_with_the_place(codes, sizes, lengths, place):
    with pytest.raises(DataError, match=place):
        ItemCodes(np.array(codes), sizes, "c", lengths=None if lengths is None else np.array(lengths))


def test_gap_in_padding_and_unequal_shared_sizes_are_refused():
    with pytest.raises(DataError, match="row 1 has -1 before a code"):
        ItemCodes.from_int([[0, 0], [-1, 0]], (2, 2), "c")
    with pytest.raises(DataError, match="share"):
        ItemCodes(np.zeros((1, 2), dtype=int), (2, 3), "c", shared_vocabulary=True)


def test_fingerprint_depends_on_everything():
    rows = np.array([[0, 1], [1, 0]])
    all_codes = [
        ItemCodes(rows, (2, 2), "c"),
        ItemCodes(rows[::-1], (2, 2), "c"),
        ItemCodes(rows, (2, 3), "c"),
        ItemCodes(rows, (2, 2), "d"),
        ItemCodes(rows, (2, 2), "c", shared_vocabulary=True),
    ]
    assert len({codes.fingerprint for codes in all_codes}) == len(all_codes)
    assert ItemCodes(rows.astype(np.uint8), (2, 2), "c").fingerprint == all_codes[0].fingerprint


@pytest.mark.parametrize("ragged", [False, True])
def test_save_and_load(tmp_path, ragged):
    rows = [[3, 299], [1, -1 if ragged else 7]]
    codes = ItemCodes.from_int(rows, (4, 300), "a" * 32)
    codes.save(tmp_path / "codes", recipe={"kind": "x"})
    back = ItemCodes.load(tmp_path / "codes", catalog="a" * 32)
    assert back.as_int().tolist() == rows
    assert back.fingerprint == codes.fingerprint
    assert (back.level_sizes, back.catalog, back.ragged) == (codes.level_sizes, codes.catalog, ragged)
    with pytest.raises(FingerprintMismatch):
        ItemCodes.load(tmp_path / "codes", catalog="b" * 32)


def test_codes_need_no_torch():
    script = "import sys; sys.modules['torch'] = None; import genrec.item_tokenizers.codes"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_codebooks_travel_with_the_codes_and_must_fit_them(tmp_path):
    books = (np.arange(8, dtype=np.float32).reshape(4, 2), np.ones((3, 5), np.float32))
    codes = ItemCodes(np.array([[3, 2, 0], [0, 1, 1]]), (4, 3, 2), "c", codebooks=books)
    codes.save(tmp_path / "codes")
    again = ItemCodes.load(tmp_path / "codes")
    assert len(again.codebooks) == 2
    for kept, book in zip(again.codebooks, books, strict=True):
        np.testing.assert_array_equal(kept, book)
    assert again.fingerprint == codes.fingerprint == replace(codes, codebooks=()).fingerprint
    assert codes.take([1, 0]).codebooks == books
    for wrong in ((books[1],), (books[0].astype(np.float64),), (books[0] * np.nan,), (*books, books[0], books[0])):
        with pytest.raises(DataError, match="codebooks"):
            replace(codes, codebooks=wrong)


def test_pieces_travel_with_the_codes_and_must_fit_them(tmp_path):
    plain = ItemCodes.from_int([[0, 1], [2, -1]], (3, 3), "c", shared_vocabulary=True)
    codes = replace(plain, pieces=("\u2581red", "1", "\u2581\u00e9"))
    codes.save(tmp_path / "codes")
    again = ItemCodes.load(tmp_path / "codes")
    assert again.pieces == codes.pieces
    assert again.take([1, 1, 0]).pieces == codes.pieces
    assert again.fingerprint == codes.fingerprint != plain.fingerprint
    assert replace(codes, pieces=("\u2581red", "2", "\u2581\u00e9")).fingerprint != codes.fingerprint
    assert ItemCodes.from_int([[0, 1]], (2, 2), "c", shared_vocabulary=True, pieces=("a", "b")).pieces == ("a", "b")
    plain.save(tmp_path / "plain")
    assert ItemCodes.load(tmp_path / "plain").pieces == ()


@pytest.mark.parametrize(
    ("pieces", "shared", "message"),
    [
        (("a", "b"), False, "shared vocabulary"),
        (("a",), True, "expected 2, one per code, got 1"),
        (("a", ""), True, "code 1: expected a text"),
        (("a", 3), True, "code 1: expected a text"),
        (("a", "a"), True, "code 1: 'a' is already the text of code 0"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(pieces, shared, message):
    with pytest.raises(DataError, match=message):
        ItemCodes(np.array([[0, 1]]), (2, 2), "c", shared_vocabulary=shared, pieces=pieces)
