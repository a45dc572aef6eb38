"""Vectors that stay on the disk give the identifiers that the same vectors in memory give, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.embeddings import parquet_rows
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.stream import StreamedEmbeddings, open_vectors
from genrec.errors import DataError
from genrec.item_tokenizers import base, rqkmeans
from genrec.item_tokenizers.base import Scaling
from genrec.item_tokenizers.collisions import Quantized
from genrec.item_tokenizers.product import Product, ProductSettings
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.item_tokenizers.streamed import TableQuantized
from genrec.testing.tokenizer_contract import CATALOG, planted_source

N = 1100
SOURCE = planted_source(n_items=N, n_groups=9)
X = SOURCE.vectors()
SMALL = RqKMeansSettings(n_levels=2, level_size=16, rows_per_code=8, suffix_limit=N)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(parquet_rows, "PIECE", 50)
    monkeypatch.setattr(base, "_CHUNK", 128)
    monkeypatch.setattr(rqkmeans, "_CHUNK", 64)


def on_disk(folder: Path, form: str, x: np.ndarray = X) -> StreamedEmbeddings:
    path = folder / f"v.{form}"
    if form == "npy":
        np.save(path, x)
    else:
        values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
        pq.write_table(pa.table({"v": values}), path, row_group_size=170)
    return StreamedEmbeddings(open_vectors(path), CATALOG)


@pytest.mark.parametrize("form", ["npy", "parquet"])
@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        replace(SMALL, standardize=True, collisions="shared", rows_per_code=None),
        replace(SMALL, level_size=(64, 32), collisions="reassign"),
        replace(SMALL, level_size=(40, 30), collisions="reassign", standardize=True),  # prefixes overflow
        replace(SMALL, balance="last", collisions="shared"),
        replace(SMALL, balance="last", rows_per_code=None),
    ],
    ids=lambda s: f"{s.collisions}-{s.balance}-{s.rows_per_code}-{s.level_size}",
)
def test_fit_and_encode_are_those_of_the_vectors_in_memory(tmp_path, settings, form):
    streamed = replace(SOURCE, embeddings=on_disk(tmp_path, form))
    plain, other = RqKMeans(settings), RqKMeans(settings)
    expected, found = plain.fit(SOURCE, seed=3), other.fit(streamed, seed=3)
    assert found.codes.tobytes() == expected.codes.tobytes() and found.level_sizes == expected.level_sizes
    assert [b.tobytes() for b in found.codebooks] == [b.tobytes() for b in expected.codebooks]
    assert other.report == plain.report
    assert other.scaling.mean.tobytes() == plain.scaling.mean.tobytes()
    assert other.scaling.scale.tobytes() == plain.scaling.scale.tobytes()
    assert other.encode(streamed).codes.tobytes() == plain.encode(SOURCE).codes.tobytes()
    if settings.collisions == "reassign":
        assert plain.report["collisions"]["n_moved"] > 0


def test_another_kind_loads_the_vectors(tmp_path):
    streamed = replace(SOURCE, embeddings=on_disk(tmp_path, "npy"))
    settings = ProductSettings(n_levels=2, level_size=16, iterations=2)
    expected = Product(settings).fit(SOURCE, seed=0)
    assert Product(settings).fit(streamed, seed=0).codes.tobytes() == expected.codes.tobytes()


def test_scaling_is_the_mean_and_deviation_of_all_rows(tmp_path):
    x = X.copy()
    x[:, 2] = 7.0  # constant
    found = Scaling.fit(on_disk(tmp_path, "npy", x).vectors, standardize=True)
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(axis=0), rtol=1e-6)
    expected = x.astype(np.float64).std(axis=0)
    expected[2] = 1.0
    np.testing.assert_allclose(found.scale, expected, rtol=1e-5)


class Counting:
    """A table that notes how many rows each read gave."""

    scattered_is_slow = False

    def __init__(self, x):
        self.x, self.shape, self.reads = x, x.shape, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        found = self.x[rows].copy()
        self.reads.append(len(found))
        return found


def test_memory_is_a_block_and_the_sample():
    table = Counting(X)
    RqKMeans(SMALL).fit(replace(SOURCE, embeddings=StreamedEmbeddings(table, CATALOG)), seed=0)
    sample = SMALL.rows_per_code * SMALL.level_size
    assert sorted(set(table.reads), reverse=True)[0] == sample  # 128, as large as a block of the mean
    assert table.reads.count(sample) == 1 + N // 128
    assert sum(table.reads) == 3 * N + sample  # mean, codes, errors
    assert sum(n > 64 for n in table.reads) == 2 + N // 128


def test_rows_that_are_slow_to_read_are_read_once_for_a_policy():
    table = Counting(X)
    table.scattered_is_slow = True
    tokenizer = RqKMeans(replace(SMALL, collisions="shared"))
    codes = tokenizer.fit(SOURCE, seed=0).codes.astype(np.int64)
    prices = TableQuantized.of(table, tokenizer)
    plain = Quantized(X, tokenizer.codebooks, tokenizer.scaling)
    items = np.array([900, 5, 17, 900])
    assert prices.squared_error(codes, items).tolist() == plain.squared_error(codes, items).tolist()
    assert table.reads == [3]
    some = np.array([17, 900])
    assert prices.residuals(codes[some, :1], some).tobytes() == plain.residuals(codes[some, :1], some).tobytes()
    assert table.reads == [3]
    prices.residuals(codes[[6]], np.array([6]))
    assert table.reads == [3, 1]
    assert prices.distortion(codes) == plain.distortion(codes)
    assert prices.residuals(codes).tobytes() == plain.residuals(codes).tobytes()


def test_a_source_takes_rows_of_a_table(tmp_path):
    streamed = replace(SOURCE, embeddings=on_disk(tmp_path, "parquet"))
    some = streamed.take([700, 3])
    assert isinstance(some.embeddings, ItemEmbeddings)
    assert some.vectors().tobytes() == X[[700, 3]].tobytes()
    assert streamed.vectors().tobytes() == X.tobytes()
    with pytest.raises(DataError, match=r"expected 1100 rows .* got 5"):
        replace(SOURCE, embeddings=StreamedEmbeddings(X[:5], CATALOG))
