import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.base import ItemEmbeddings, load_vectors
from genrec.errors import ArtifactError, DataError, FingerprintMismatch

SHOP = ItemCatalog(("a", "b", "c"), {"title": ["A", "B", "C"]})
VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2) / 7


def test_save_and_load_give_equal_vectors(tmp_path):
    made = ItemEmbeddings(VECTORS, SHOP.fingerprint, {"kind": "test", "text": ("a", "b"), "none": None})
    made.save(tmp_path / "embeddings")
    read = ItemEmbeddings.load(tmp_path / "embeddings")
    assert read.vectors.tobytes() == VECTORS.tobytes() and read.vectors.dtype == np.float32
    assert read.catalog == SHOP.fingerprint and read.recipe == made.recipe
    with pytest.raises(ArtifactError):
        made.save(tmp_path / "embeddings")


def test_not_finite_names_the_first_bad_row():
    bad = VECTORS.copy()
    bad[1, 1] = np.nan
    bad[2, 0] = np.inf
    with pytest.raises(DataError, match=r"2 of 3 rows.*row 1 \(column 1: nan\)"):
        ItemEmbeddings(bad, "x")


def test_overflow_of_float32_is_not_finite():
    with pytest.raises(DataError, match="row 0"):
        ItemEmbeddings(np.full((2, 2), 1e300), "x")


@pytest.mark.parametrize("vectors", [np.zeros(3, np.float32), np.zeros((3, 0), np.float32), np.zeros((3, 2), int)])
def test_wrong_shapes_and_types_are_refused(vectors):
    with pytest.raises(DataError):
        ItemEmbeddings(vectors, "x")


def test_known_rows_and_catalog_check():
    made = ItemEmbeddings(VECTORS * [[0], [1], [1]], SHOP.fingerprint)
    assert made.known.tolist() == [False, True, True]
    assert made.check(SHOP) is made
    with pytest.raises(FingerprintMismatch):
        made.check(ItemCatalog(("a", "b", "d"), SHOP.fields))


@settings(max_examples=12, deadline=None)
@given(st.permutations(["a", "b", "c", "unknown"]))
def test_rows_with_ids_are_aligned(tmp_path_factory, ids):
    value = {"a": [0.0, 1.0], "b": [2.0, 3.0], "c": [4.0, 5.0], "unknown": [np.nan, 9.0]}
    rows = np.array([value[i] for i in ids])
    expected = np.array([value[i] for i in "abc"], np.float32)
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "v.npy", rows)
    assert np.array_equal(load_vectors(folder / "v.npy", SHOP, ids=ids).vectors, expected)
    save_file({"v": rows, "note": np.zeros(1)}, folder / "v.safetensors")
    assert np.array_equal(load_vectors(folder / "v.safetensors", SHOP, ids=ids).vectors, expected)
    pq.write_table(pa.table({"item_id": ids, "v": rows.tolist()}), folder / "v.parquet")
    assert np.array_equal(load_vectors(folder / "v.parquet", SHOP).vectors, expected)
    pq.write_table(pa.table({"asin": ids, "x": rows[:, 0], "y": rows[:, 1]}), folder / "w.parquet")
    assert np.array_equal(load_vectors(folder / "w.parquet", SHOP, id_column="asin").vectors, expected)


def test_rows_without_ids_are_in_catalog_order(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS.astype(np.float16))
    found = load_vectors(tmp_path / "v.npy", SHOP)
    assert np.array_equal(found.vectors, VECTORS.astype(np.float16).astype(np.float32))
    assert found.catalog == SHOP.fingerprint
    np.save(tmp_path / "v.npy", VECTORS[:2])
    with pytest.raises(DataError, match="expected 3 rows in catalog order, got 2"):
        load_vectors(tmp_path / "v.npy", SHOP)


def test_missing_and_repeated_ids_are_named(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(DataError, match="1 of 3 items have no vector, such as c"):
        load_vectors(tmp_path / "v.npy", SHOP, ids=["a", "b", "z"])
    with pytest.raises(DataError, match="item 'a' occurs twice"):
        load_vectors(tmp_path / "v.npy", SHOP, ids=["a", "a", "b"])
    with pytest.raises(DataError, match="3 rows but 2 ids"):
        load_vectors(tmp_path / "v.npy", SHOP, ids=["a", "b"])


def test_files_that_are_no_vectors_are_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"object\.npy: cannot be read as vectors .*allow_pickle"):
        load_vectors(tmp_path / "object.npy", SHOP)
    with pytest.raises(DataError, match=r"\.csv"):
        load_vectors(tmp_path / "v.csv", SHOP)
    save_file({"a": VECTORS, "b": VECTORS}, tmp_path / "two.safetensors")
    with pytest.raises(DataError, match="exactly one"):
        load_vectors(tmp_path / "two.safetensors", SHOP)
    assert load_vectors(tmp_path / "two.safetensors", SHOP, vector_column="b").dim == 2
    ragged = pa.table({"item_id": ["a", "b", "c"], "v": [[1.0, 2.0], [1.0], [2.0, 3.0]]})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="row 1: expected 2 numbers, got 1"):
        load_vectors(tmp_path / "ragged.parquet", SHOP)
    with pytest.raises(DataError, match="id column 'asin'"):
        load_vectors(tmp_path / "ragged.parquet", SHOP, id_column="asin")


def write_vectors(path):
    if path.suffix == ".npy":
        np.save(path, VECTORS)
    elif path.suffix == ".safetensors":
        save_file({"v": VECTORS}, path)
    else:
        pq.write_table(pa.table({"item_id": ["a", "b", "c"], "v": VECTORS.tolist()}), path)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_missing_and_damaged_files_are_data_errors_that_say_what_to_do(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    with pytest.raises(DataError, match=rf"v\{suffix}: no such file"):
        load_vectors(path, SHOP)
    write_vectors(path)
    raw = path.read_bytes()
    draw = np.random.default_rng(0)
    flipped = [raw[:k] + bytes([raw[k] ^ 1 << int(draw.integers(8))]) + raw[k + 1 :] for k in range(0, len(raw), 3)]
    refused = 0
    for damaged in (b"", b"no vectors", raw[: len(raw) // 2], *flipped):
        path.write_bytes(damaged)
        try:
            load_vectors(path, SHOP)
        except DataError as error:
            refused += 1
            assert path.name in str(error) or "not finite" in str(error)
            assert "cannot be read" not in str(error) or error.hint
    assert refused >= 3


def test_a_lack_of_memory_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    np.save(tmp_path / "v.npy", VECTORS)

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "load", full)
    with pytest.raises(MemoryError):
        load_vectors(tmp_path / "v.npy", SHOP)


def test_vectors_that_are_no_numbers_are_data_errors(tmp_path):
    np.save(tmp_path / "text.npy", np.array([["x"], ["y"], ["z"]]))
    with pytest.raises(DataError, match=r"text\.npy: expected one \[rows, D\] array of numbers, got <U1"):
        load_vectors(tmp_path / "text.npy", SHOP)
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "v": [["x"], ["y"], ["z"]]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"text\.parquet: cannot be read as vectors .*could not convert"):
        load_vectors(tmp_path / "text.parquet", SHOP)
    np.save(tmp_path / "whole.npy", np.arange(6).reshape(3, 2))
    assert load_vectors(tmp_path / "whole.npy", SHOP).vectors.tolist() == [[0, 1], [2, 3], [4, 5]]
