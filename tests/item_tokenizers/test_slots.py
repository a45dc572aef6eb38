from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import svdvals

from genrec.errors import ArtifactError, DataError, FingerprintMismatch
from genrec.item_tokenizers.slots import ItemSlots, semantic_name
from genrec.testing.slot_contract import reordered, summed_scores

CATALOG = "c0ffee" * 5 + "00"
NAMES = ("collaborative", *(semantic_name(k) for k in range(1, 12)))


def continuous(n_items=30, n_slots=3, dim=4, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n_items, n_slots, dim)).astype(np.float32)
    return ItemSlots(vectors, NAMES[:n_slots], CATALOG)


def discrete(n_items=30, n_slots=3, dim=4, sizes=(5, 300, 7), seed=0):
    generator = np.random.default_rng(seed)
    books = [generator.normal(size=(size, dim)).astype(np.float32) for size in sizes[:n_slots]]
    codes = np.column_stack([generator.integers(len(book), size=n_items) for book in books])
    return ItemSlots.of_codes(codes, books, NAMES[:n_slots], CATALOG)


MADE = pytest.mark.parametrize("make", [continuous, discrete])


@MADE
def test_names_sort_slots_and_numbers_count_by_value(make):
    slots = make()
    assert slots.names == ("collaborative", "semantic 1", "semantic 2")
    turned = reordered(slots, [2, 0, 1])
    assert turned.names == slots.names
    np.testing.assert_array_equal(turned.vectors, slots.vectors)
    if slots.discrete:
        np.testing.assert_array_equal(turned.codes, slots.codes)
        assert turned.slot_sizes == slots.slot_sizes == (5, 300, 7)
    many = continuous(n_slots=12)
    assert reordered(many, np.arange(12)[::-1]).names == NAMES  # semantic 2 before semantic 10


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.booleans(), st.integers(0, 3))
def test_order_is_nothing(order, is_discrete, n_items):
    slots = discrete(n_items, 4, sizes=(3, 2, 4, 3)) if is_discrete else continuous(n_items, 4)
    turned = reordered(slots, order)
    assert turned == slots
    assert hash(turned) == hash(slots)
    assert turned.report() == slots.report()
    queries = {name: np.random.default_rng(1).normal(size=(2, 4)) for name in slots.names}
    both = [summed_scores(found, queries, found.names) for found in (slots, turned)]
    np.testing.assert_array_equal(*both)


def test_names_are_no_order():
    """The same vectors under exchanged names are other slots: they meet other queries."""
    slots = continuous()
    swapped = ItemSlots(slots.vectors, (slots.names[1], slots.names[0], slots.names[2]), CATALOG)
    assert swapped != slots
    np.testing.assert_array_equal(swapped.slot("collaborative"), slots.slot("semantic 1"))


@MADE
def test_fingerprint_sees_everything(make):
    slots = make()
    others = [
        replace(slots, catalog="0" * 32),
        replace(slots, names=("collaborative", "semantic 1", "semantic 3")),
        slots.take([1, 0, *range(2, 30)]),
        slots.take(range(29)),
        slots.select(slots.names[:2]),
    ]
    if slots.discrete:
        others.append(ItemSlots(slots.vectors, slots.names, CATALOG))
        grown = [*slots.codebooks[:2], np.concatenate([slots.codebooks[2], slots.codebooks[2][:1]])]
        others.append(ItemSlots.of_codes(slots.codes, grown, slots.names, CATALOG))
    else:
        vectors = slots.vectors.copy()
        vectors[7, 1, 2] = np.nextafter(vectors[7, 1, 2], np.float32(9))
        others.append(replace(slots, vectors=vectors))
    assert len({found.fingerprint for found in (slots, *others)}) == 1 + len(others)
    assert all(found != slots for found in others)
    assert slots != "slots"


def test_sign_of_zero_is_nothing():
    zeros = np.zeros((2, 1, 3), dtype=np.float32)
    mixed = zeros.copy()
    mixed[1] = -0.0
    assert ItemSlots(zeros, ("a",), CATALOG) == ItemSlots(mixed, ("a",), CATALOG)
    assert [group.tolist() for group in ItemSlots(mixed, ("a",), CATALOG).collisions()] == [[0, 1]]


@MADE
def test_slot_select_take(make):
    slots = make()
    np.testing.assert_array_equal(slots.slot("semantic 2"), slots.vectors[:, 2])
    chosen = slots.select(["semantic 2", "collaborative"])
    assert chosen == slots.select(["collaborative", "semantic 2"])
    assert chosen.names == ("collaborative", "semantic 2")
    np.testing.assert_array_equal(chosen.slot("semantic 2"), slots.slot("semantic 2"))
    taken = slots.take([4, 4, 0])
    np.testing.assert_array_equal(taken.vectors, slots.vectors[[4, 4, 0]])
    assert taken.discrete == slots.discrete
    assert [group.tolist() for group in taken.collisions()] == [[0, 1]]
    with pytest.raises(DataError, match="'semantic 9'"):
        slots.slot("semantic 9")
    with pytest.raises(DataError, match="names 2 slots"):
        slots.select(["semantic 1", "semantic 1"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), max_size=12), st.booleans())
def test_collisions_equal_a_loop(rows, is_discrete):
    codes = np.array(rows, dtype=np.int64).reshape(-1, 4)
    if is_discrete:
        books = [np.eye(3, dtype=np.float32)] * 4
        slots = ItemSlots.of_codes(codes, books, NAMES[:4], CATALOG)
    else:
        slots = ItemSlots(codes.reshape(-1, 2, 2).astype(np.float32), NAMES[:2], CATALOG)
    groups = {}
    for item, row in enumerate(rows):
        groups.setdefault(row, []).append(item)
    assert sorted(g.tolist() for g in slots.collisions()) == sorted(g for g in groups.values() if len(g) > 1)
    ids = slots.collision_ids()
    assert all((ids[a] == ids[b]) == (rows[a] == rows[b]) for a in range(len(rows)) for b in range(a))
    assert slots.report()["collision_share"] == sum(len(g) for g in groups.values() if len(g) > 1) / max(len(rows), 1)


def test_rows_with_equal_hashes_are_compared(monkeypatch):
    slots = continuous(6).take([0, 1, 0, 2, 1, 3])
    monkeypatch.setattr("genrec.item_tokenizers.slots.first_equal", lambda rows: np.zeros(len(rows), dtype=np.int32))
    assert [group.tolist() for group in slots.collisions()] == [[0, 2], [1, 4]]


def test_report_equals_definitions():
    generator = np.random.default_rng(3)
    vectors = generator.normal(size=(50, 3, 4)) @ np.diag([4, 2, 1, 0.1]) + 1
    vectors[:7, 0] = 0  # cold
    vectors[5:9, 2] = 0
    slots = ItemSlots(vectors, NAMES[:3], CATALOG)
    found = slots.report()
    stored = slots.vectors.astype(float)
    for at, name in enumerate(slots.names):
        rows = np.array([row for row in stored[:, at] if np.abs(row).max() > 0])
        singular = svdvals(rows - rows.mean(axis=0))
        share = singular / singular.sum()
        expected = {
            "mean_norm": np.mean([np.sqrt((row**2).sum()) for row in rows]),
            "spread": np.sqrt(np.mean([((row - rows.mean(axis=0)) ** 2).sum() for row in rows])),
            "effective_rank": np.exp(-(share * np.log(share)).sum()),
            "unknown_share": 1 - len(rows) / 50,
        }
        assert found["slots"][name] == pytest.approx(expected, rel=1e-4)
    cosines = [abs(row[1] @ row[2]) / np.sqrt((row[1] @ row[1]) * (row[2] @ row[2])) for row in stored if row[2].any()]
    assert found["semantic_cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
    assert found["incomplete_share"] == 9 / 50
    assert found["bytes_per_item"] == slots.vectors.nbytes / 50
    np.testing.assert_array_equal(slots.known, [[row.any() for row in item] for item in stored])


def test_parallel_semantic_slots_raise_the_alarm():
    vectors = np.repeat(np.random.default_rng(0).normal(size=(20, 1, 4)), 3, axis=1)
    vectors[:, 2] *= -2
    assert ItemSlots(vectors, NAMES[:3], CATALOG).report()["semantic_alike"] is True
    alone = ItemSlots(vectors[:, :2], NAMES[:2], CATALOG).report()
    assert (alone["semantic_cosine"], alone["semantic_alike"]) == (None, False)


def test_equal_vectors_have_no_spread():
    vectors = np.full((9, 1, 3), 0.1)
    found = ItemSlots(vectors, ("a",), CATALOG).report()["slots"]["a"]
    assert (found["spread"], found["effective_rank"]) == (0, 0)


def test_use_of_codes_equals_counts():
    book = np.eye(4, dtype=np.float32)
    slots = ItemSlots.of_codes([[0], [0], [3], [1]], [book], ["semantic 1"], CATALOG)
    found = slots.report()["slots"]["semantic 1"]
    assert found["usage"] == 3 / 4
    assert found["perplexity"] == pytest.approx(np.exp(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))), abs=1e-4)
    assert slots.report()["bytes_per_item"] == 4 * 4 + 1


def test_codes_are_narrow_and_look_up_their_vectors():
    slots = discrete()
    assert slots.codes.dtype == np.uint16  # one slot has 300
    assert slots.select(["collaborative"]).codes.dtype == np.uint8
    for item in range(len(slots)):
        for at in range(3):
            assert slots.vectors[item, at].tolist() == slots.codebooks[at][int(slots.codes[item, at])].tolist()
    levels = slots.codes_for_metrics()
    assert levels.codes.tolist() == slots.codes.tolist()
    assert levels.level_sizes == (5, 300, 7)
    with pytest.raises(DataError, match="continuous"):
        continuous().codes_for_metrics()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.zeros((3, 4), np.float32)}, "shape"),
        ({"vectors": np.zeros((3, 0, 4), np.float32)}, "shape"),
        ({"vectors": np.zeros((30, 3, 4), np.int64)}, "floating"),
        ({"vectors": np.full((30, 3, 4), 1e300)}, "item 0, slot 0: not finite"),
        ({"vectors": np.full((30, 3, 4), np.nan)}, "not finite"),
        ({"names": ("a", "b")}, "expected 3"),
        ({"names": ("a", "b", "a")}, "names 2 slots"),
        ({"names": ("a", "b", " ")}, "not empty"),
        ({"codes": None}, "none without codes"),
        ({"codes": np.zeros((29, 3), int)}, "expected shape"),
        ({"codes": np.zeros((30, 2), int)}, "levels|slots"),
        ({"codes": np.full((30, 3), 6)}, "expected 0..4, got 6"),
        ({"codes": np.zeros((30, 3))}, "integers"),
        ({"codebooks": ()}, "at least one"),
        ({"codebooks": (np.zeros((5, 4)),) * 3}, "float32|range|expected"),
    ],
)
def test_wrong_parts_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        replace(discrete(), **change)


def test_codes_of_other_vectors_are_refused():
    slots = discrete()
    vectors = slots.vectors.copy()
    vectors[11, 1, 0] += 1
    with pytest.raises(DataError, match="item 11, slot 1"):
        replace(slots, vectors=vectors)
    books = [slots.codebooks[0], slots.codebooks[1], slots.codebooks[2][:, :2]]
    with pytest.raises(DataError, match="one width"):
        ItemSlots.of_codes(slots.codes, books, slots.names, CATALOG)


@MADE
def test_save_and_load_to_the_last_bit(make, tmp_path):
    slots = make()
    slots.save(tmp_path / "slots", recipe={"kind": "test"}, parents={"catalog": "x"})
    back = ItemSlots.load(tmp_path / "slots", catalog=CATALOG)
    assert back == slots
    assert back.names == slots.names
    assert back.vectors.tobytes() == slots.vectors.tobytes()
    assert back.discrete == slots.discrete
    with pytest.raises(FingerprintMismatch):
        ItemSlots.load(tmp_path / "slots", catalog="0" * 32)
    file = tmp_path / "slots" / "slots.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    file.write_bytes(bytes(damaged))
    with pytest.raises(ArtifactError, match=r"slots\.safetensors"):
        ItemSlots.load(tmp_path / "slots")


@MADE
def test_files_do_not_know_the_order_given(make, tmp_path):
    from genrec import artifacts

    slots = make()
    slots.save(tmp_path / "a")
    reordered(slots, [1, 2, 0]).save(tmp_path / "b")
    assert artifacts.read(tmp_path / "a").files == artifacts.read(tmp_path / "b").files


def test_another_catalog_is_refused():
    slots = continuous()
    assert slots.check(CATALOG, 30) is slots
    with pytest.raises(FingerprintMismatch, match="slots belong to catalog"):
        slots.check("0" * 32, 30)
    with pytest.raises(DataError, match="expected 31 rows"):
        slots.check(CATALOG, 31)


def test_the_type_needs_no_torch():
    code = "import sys, genrec.item_tokenizers.slots; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
