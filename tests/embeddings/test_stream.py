"""Vectors on the disk are the vectors in memory, whatever the file and whichever rows are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.embeddings import parquet_rows, stream
from genrec.embeddings.stream import open_vectors
from genrec.errors import DataError

N, D = 1000, 6
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def fixed(x):
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])


def write(folder: Path, form: str, x: np.ndarray = X) -> Path:
    """The same rows as ``form`` says."""
    path = folder / f"v.{form.partition('-')[0]}"
    if form == "npy":
        np.save(path, x)
    elif form == "npy-half":
        np.save(path, x.astype(np.float16))
    elif form == "safetensors":
        from safetensors.numpy import save_file

        save_file({"vectors": x, "other": x[0]}, path)
    elif form == "parquet":
        pq.write_table(pa.table({"item_id": [str(n) for n in range(len(x))], "v": fixed(x)}), path, row_group_size=130)
    else:  # a folder; lists of float64, an empty file among them
        path = folder / "v"
        path.mkdir()
        for name, part in (("a", x[:300]), ("b", x[:0]), ("c", x[300:])):
            values = pa.array(list(part.astype(np.float64)), pa.list_(pa.float64()))
            pq.write_table(pa.table({"v": values}), path / f"{name}.parquet", row_group_size=256)
    return path


FORMS = ["npy", "safetensors", "parquet", "folder"]


@pytest.fixture(scope="module", params=FORMS)
def table(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_rows, "PIECE", 64)  # so that row groups have pieces
        found = open_vectors(write(tmp_path_factory.mktemp(request.param), request.param))
        found._gap = 5
        yield found


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.one_of(st.tuples(st.integers(0, N), st.integers(0, N)), st.lists(st.integers(0, N - 1))), max_size=6)
)
def test_any_rows_in_any_order(table, asked):
    assert table.shape == (N, D) and len(table) == N
    for rows in asked:
        at = slice(*rows) if isinstance(rows, tuple) else np.array(rows, dtype=np.int64)
        found = table[at]
        assert found.dtype == np.float32 and found.flags.c_contiguous
        assert found.tobytes() == X[at].tobytes()


def test_all_rows_and_none_beyond(table):
    assert table[:].tobytes() == X.tobytes()
    with pytest.raises(IndexError, match=r"expected 0\.\.999, got 3 \.\. 1000"):
        table[np.array([3, N])]


def test_half_precision_is_widened(tmp_path):
    assert open_vectors(write(tmp_path, "npy-half"))[5:9].tolist() == X[5:9].astype(np.float16).tolist()


def test_close_rows_are_read_together_and_far_ones_apart(tmp_path, monkeypatch):
    table, reads = open_vectors(write(tmp_path, "npy")), []
    read = stream.RawVectors._read
    monkeypatch.setattr(stream.RawVectors, "_read", lambda self, a, b: reads.append((a, b)) or read(self, a, b))
    table._gap = 10
    table[np.array([500, 3, 12, 990])]
    assert reads == [(3, 13), (500, 501), (990, 991)]
    reads.clear()
    monkeypatch.setattr(stream, "_MOST", 100)
    table[np.arange(0, 900, 9)]  # none is far from the next, but together they are all
    assert max(b - a for a, b in reads) <= 100 and len(reads) == 9


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_not_finite_is_named(tmp_path, form):
    bad = X.copy()
    bad[777, 2] = np.nan
    table = open_vectors(write(tmp_path, form, bad))
    table[:777]
    place = {"parquet": "row group 5, row 127", "folder": r"c\.parquet, row group 1, row 221"}.get(form, "row 777")
    with pytest.raises(DataError, match=rf"{place}: the vector is not finite in float32 \(dimension 2: nan\)"):
        table[np.array([3, 777])]


def column(values, kind):
    return pa.table({"item_id": ["a", "b", "c"], "v": pa.array(values, kind)})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (column([[1, 2], [3, 4], [5]], pa.list_(pa.float32())), "row group 1, row 0: expected a vector of 2 .* got 1"),
        (column([[1, 2], None, [5, 6]], pa.list_(pa.float32())), "row group 0, row 1: .* got nothing"),
        (column([[1, 2], [3, None], [5, 6]], pa.list_(pa.float32())), "row group 0, row 1: a number .* missing"),
        (column([["x"], ["y"], ["z"]], pa.list_(pa.string())), "one column of lists of numbers"),
        (column([1.0, 2.0, 3.0], pa.float32()), "one column of lists of numbers"),
        (pa.table({"v": pa.array([], pa.list_(pa.float32()))}), "no rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_parquet_file(tmp_path, table, message):
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=2)
    with pytest.raises(DataError, match=message) as found:
        open_vectors(tmp_path / "v.parquet")[:]
    assert "v.parquet" in str(found.value) or message == "no rows"


def test_several_list_columns_want_a_name(tmp_path):
    pq.write_table(pa.table({"v": fixed(X), "w": fixed(X + 1)}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="one column of lists of numbers, got"):
        open_vectors(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="expected a column 'x'"):
        open_vectors(tmp_path / "v.parquet", vector_column="x")
    assert open_vectors(tmp_path / "v.parquet", vector_column="w")[7:8].tolist() == (X + 1)[7:8].tolist()


def test_files_that_hold_something_else(tmp_path):
    np.save(tmp_path / "cube.npy", X[None])
    np.save(tmp_path / "ints.npy", X.astype(int))
    np.save(tmp_path / "turned.npy", np.asfortranarray(X))
    np.save(tmp_path / "cut.npy", X)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    for name in ("text.npy", "text.safetensors", "text.parquet"):
        (tmp_path / name).write_text("not this, and long enough")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("cube.npy", "expected one"),
        ("ints.npy", "expected one .* got int64"),
        ("turned.npy", "column by column"),
        ("cut.npy", "cut short"),
        ("text.npy", "cannot be read as vectors"),
        ("text.safetensors", "no safetensors file"),
        ("text.parquet", "no parquet file"),
        ("missing.npy", "no such file"),
        ("missing.parquet", "no such file"),
        ("empty", "found none"),
        ("vectors.txt", r"expected .*, got '.txt'"),
    ):
        with pytest.raises(DataError, match=message):
            open_vectors(tmp_path / name)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    table = open_vectors(write(tmp_path, "npy"))
    with (tmp_path / "v.npy").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match="ends inside row"):
        table[:]
