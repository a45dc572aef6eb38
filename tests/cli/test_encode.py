"""``genrec encode``: the identifiers of a fit in memory, from shards that are complete or not there."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.embeddings import parquet_rows
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.text import SentenceSettings, sentence_embeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers import rqkmeans
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.encode_batch import EncodeBatch
from genrec.item_tokenizers.fsq import FsqSettings
from genrec.item_tokenizers.gaoq import GaoqSettings
from genrec.item_tokenizers.product import ProductSettings
from genrec.item_tokenizers.registry import build, load_tokenizer
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.item_tokenizers.rqvae_settings import RqVaeSettings
from genrec.item_tokenizers.text_indexing import TitleSettings
from genrec.pipeline import encode_shards
from genrec.pipeline.encode import EncodeSettings, encode_items

N, D = 700, 8
SMALL = RqKMeansSettings(n_levels=2, level_size=12, rows_per_code=20, suffix_limit=N)
EMBEDDER = '''
import hashlib
import numpy as np

class Hashed:
    """A vector of an item's words alone, whatever else is in the batch."""
    def encode(self, texts, *, batch_size):
        rows = [np.frombuffer(hashlib.sha256(t[:9].encode()).digest(), np.uint8)[:8] for t in texts]
        return np.stack(rows).astype(np.float32) / 99
'''


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(parquet_rows, "PIECE", 64)
    monkeypatch.setattr(rqkmeans, "_CHUNK", 32)


@pytest.fixture(scope="module")
def shop():
    """A catalog with vectors in groups and a hundred exact copies."""
    generator = np.random.default_rng(0)
    vectors = (4 * np.eye(9, D)[generator.integers(9, size=N)] + generator.normal(size=(N, D))).astype(np.float32)
    vectors[600:] = vectors[:100]
    catalog = ItemCatalog(tuple(f"i{n}" for n in range(N)), {"title": [f"{n % 600:04d} thing" for n in range(N)]})
    return catalog, vectors


def table_of(shop, rows=slice(None), ids=None, vectors=None):
    catalog, given = shop
    x = given[rows] if vectors is None else vectors
    return pa.table(
        {
            "item_id": list(catalog.ids[rows] if ids is None else ids),
            "title": catalog.fields["title"][rows],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1]),
        }
    )


@pytest.fixture
def items(shop, tmp_path):
    """Two files of several row groups."""
    folder = tmp_path / "items"
    folder.mkdir()
    pq.write_table(table_of(shop, slice(0, 300)), folder / "a.parquet", row_group_size=128)
    pq.write_table(table_of(shop, slice(300, N)), folder / "b.parquet", row_group_size=128)
    return folder


def in_memory(shop, settings, vectors=None):
    catalog, given = shop
    embeddings = ItemEmbeddings(given if vectors is None else vectors, catalog.fingerprint)
    tokenizer = build(settings)
    return tokenizer, tokenizer.fit(TokenizerSource.of(catalog, embeddings=embeddings, seed=0), seed=0)


def same(found: ItemCodes, expected: ItemCodes) -> None:
    assert found.fingerprint == expected.fingerprint
    assert found.shared_vocabulary == expected.shared_vocabulary
    assert [b.tobytes() for b in found.codebooks] == [b.tobytes() for b in expected.codebooks]


@pytest.mark.parametrize("collisions", ["suffix", "reassign", "shared"])
def test_fit_and_encode_give_the_codes_of_a_fit_in_memory(shop, items, tmp_path, collisions):
    settings = replace(SMALL, collisions=collisions, level_size=30)
    _, expected = in_memory(shop, settings)
    made = encode_items(items, tmp_path / "out", EncodeSettings(fit=settings))
    same(made.codes, expected)
    same(ItemCodes.load(tmp_path / "out" / "codes", catalog=shop[0].fingerprint), expected)
    assert ItemCatalog.load(tmp_path / "out" / "catalog").fields == shop[0].fields
    assert made.report["raw"]["collision_share"] >= 200 / N


@pytest.mark.parametrize(
    "settings",
    [
        ProductSettings(n_levels=2, level_size=30, iterations=1, collisions="reassign"),
        RqKMeansSettings(n_levels=2, level_size=30, standardize=True, collisions="reassign"),
        RqVaeSettings(n_levels=2, level_size=30, dim=4, hidden=(8,), epochs=2, warmup_epochs=1, collisions="reassign"),
        RqVaeSettings(n_levels=2, level_size=30, dim=4, hidden=(8,), epochs=2, warmup_epochs=1, shared_codebook=True,
                      collisions="shared"),
        FsqSettings(n_tokens=2, levels=(4, 3), dim=8, n_heads=2, hidden=8, epochs=1),
        FsqSettings(n_tokens=2, levels=(4, 3), dim=8, n_heads=2, hidden=8, epochs=1, collisions="suffix",
                    suffix_limit=N),
    ],
    ids=lambda s: f"{s.kind}-{s.collisions}",
)  # fmt: skip
def test_a_fitted_item_tokenizer_of_any_kind(shop, items, tmp_path, settings):
    tokenizer, expected = in_memory(shop, settings)
    tokenizer.save(tmp_path / "run" / "item_tokenizer")
    made = encode_items(items, tmp_path / "out", EncodeSettings(tokenizer=tmp_path / "run"))
    same(made.codes, expected)


def test_fitting_on_a_sample_loads_only_that(shop, items, tmp_path):
    settings = ProductSettings(n_levels=2, level_size=8, iterations=1, suffix_limit=N)
    made = encode_items(items, tmp_path / "out", EncodeSettings(fit=settings, sample=100))
    assert len(made.codes) == N
    assert load_tokenizer(tmp_path / "out" / "item_tokenizer").report["raw"]["n_items"] == 100


@pytest.mark.parametrize("collisions", ["suffix", "reassign"])
@pytest.mark.parametrize("fit", [True, False])
def test_texts_are_embedded_on_the_way(shop, items, tmp_path, monkeypatch, fit, collisions):
    (tmp_path / "my_embedder.py").write_text(EMBEDDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_embedder", raising=False)
    encoder = EncodeBatch(None, text=("{title}",), model="my_embedder:Hashed")
    vectors = sentence_embeddings(
        shop[0], SentenceSettings(model="x", text=("{title}",)), embedder=encoder._embedder, progress=False
    ).vectors
    tokenizer, expected = in_memory(shop, replace(SMALL, collisions=collisions, level_size=30), vectors)
    tokenizer.save(tmp_path / "fitted")
    given = {"fit": tokenizer.settings} if fit else {"tokenizer": tmp_path / "fitted"}
    settings = EncodeSettings(**given, text=("{title}",), model="my_embedder:Hashed")
    same(encode_items(items, tmp_path / "out", settings).codes, expected)
    assert (tmp_path / "out" / "vectors").exists() == fit
    names = pq.read_schema(encode_shards.shard_file(tmp_path / "out" / "shards", 0)).names
    assert names == ["item_id", "codes"] + ["vector"] * (not fit and collisions == "reassign")


def test_a_call_goes_on_where_one_stopped(shop, items, tmp_path, monkeypatch):
    out, settings = tmp_path / "out", EncodeSettings(fit=SMALL)
    done, whole = [], encode_shards.ShardEncoder.do

    def stops(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return whole(self, number)

    monkeypatch.setattr(encode_shards.ShardEncoder, "do", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_items(items, out, settings)
    assert not (out / "codes").exists()
    (out / "shards" / ".00000003.parquet.genrec-tmp-0123456789ab").write_bytes(b"half")
    encode_shards.shard_file(out / "shards", 1).write_bytes(b"PAR1 cut short")
    before = encode_shards.shard_file(out / "shards", 0).stat().st_mtime_ns
    monkeypatch.setattr(encode_shards.ShardEncoder, "do", lambda self, n: done.append(n) or whole(self, n))
    made = encode_items(items, out, settings)
    assert done == [1, 3, 4, 5, 6] and made.reused == 2
    assert encode_shards.shard_file(out / "shards", 0).stat().st_mtime_ns == before
    assert not list((out / "shards").glob(".*genrec-tmp*"))
    same(made.codes, in_memory(shop, SMALL)[1])
    again = encode_items(items, out, settings)
    assert done == [1, 3, 4, 5, 6] and again.reused == 7
    same(again.codes, made.codes)


@pytest.mark.parametrize("fit", [True, False])
def test_an_input_that_changed_is_not_mixed_in(shop, items, tmp_path, fit):
    tokenizer, _ = in_memory(shop, SMALL)
    tokenizer.save(tmp_path / "fitted")
    settings = EncodeSettings(fit=SMALL) if fit else EncodeSettings(tokenizer=tmp_path / "fitted")
    first = encode_items(items, tmp_path / "out", settings)
    pq.write_table(table_of(shop, slice(300, N), vectors=shop[1][300:] + 1), items / "b.parquet", row_group_size=128)
    with pytest.raises(DataError, match=r"b\.parquet: changed since its first items were encoded") as error:
        encode_items(items, tmp_path / "out", settings)
    assert "--overwrite" in error.value.hint
    second = encode_items(items, tmp_path / "out", settings, overwrite=True)
    assert second.reused == 0 and second.codes.fingerprint != first.codes.fingerprint


def test_a_folder_of_another_job_is_refused(shop, items, tmp_path):
    encode_items(items, tmp_path / "out", EncodeSettings(fit=SMALL))
    with pytest.raises(ConfigError, match="fitted otherwise, or on other items"):
        encode_items(items, tmp_path / "out", EncodeSettings(fit=replace(SMALL, level_size=9)))
    tokenizer, _ = in_memory(shop, replace(SMALL, level_size=9))
    tokenizer.save(tmp_path / "other")
    with pytest.raises(ConfigError, match="begun with another item tokenizer"):
        encode_items(items, tmp_path / "out", EncodeSettings(tokenizer=tmp_path / "other"))


def test_a_call_that_made_nothing_does_not_block_the_folder(shop, items, tmp_path):
    for name, vectors in (("narrow", shop[1][:, :3]), ("right", shop[1])):
        in_memory(shop, SMALL, vectors)[0].save(tmp_path / name)
    with pytest.raises(DataError, match="expected"):
        encode_items(items, tmp_path / "out", EncodeSettings(tokenizer=tmp_path / "narrow"))
    assert len(encode_items(items, tmp_path / "out", EncodeSettings(tokenizer=tmp_path / "right")).codes) == N


def test_a_damaged_or_exchanged_shard_is_noticed(items, tmp_path):
    out, settings = tmp_path / "out", EncodeSettings(fit=SMALL)
    encode_items(items, out, settings)
    shutil.copy(encode_shards.shard_file(out / "shards", 1), encode_shards.shard_file(out / "shards", 0))
    with pytest.raises(DataError, match=r"shard 0 does not hold the items of .*a\.parquet, row group 0"):
        encode_items(items, out, settings)


def broken(shop, case):
    """A table with one fault, in its second row group of 100."""
    catalog, vectors = shop
    ids, x = list(catalog.ids), vectors.copy()
    if case == "twice":
        ids[250] = ids[7]
    if case == "empty id":
        ids[150] = ""
    if case == "not finite":
        x[150, 3] = np.inf
    made = table_of(shop, ids=ids, vectors=x)
    if case in ("ragged", "missing"):
        rows = x.tolist()
        rows[150] = rows[150][:-1] if case == "ragged" else None
        made = made.set_column(2, "vector", pa.array(rows, pa.list_(pa.float32())))
    if case == "narrow":
        made = table_of(shop, vectors=x[:, :-1].copy())
    return made


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("twice", r"'i7' is there twice: .*p, row group 0, row 7, and .*row group 2, row 50"),
        ("empty id", "row group 1, row 50: the item id is missing"),
        ("not finite", r"row group 1, row 50: the vector is not finite in float32 \(dimension 3: inf\)"),
        ("ragged", "row group 1, row 50: expected a vector of 8 numbers, got 7"),
        ("missing", "row group 1, row 50: expected a vector of 8 numbers, got nothing"),
        ("narrow", r"row group 0: vectors: expected \[N, 8\], got \(32, 7\)"),
    ],
)
def test_faults_of_the_data_are_named_with_their_place(shop, tmp_path, case, message):
    tokenizer, _ = in_memory(shop, SMALL)
    tokenizer.save(tmp_path / "fitted")
    pq.write_table(broken(shop, case), tmp_path / "items.p", row_group_size=100)
    with pytest.raises(DataError, match=message):
        encode_items(tmp_path / "items.p", tmp_path / "out", EncodeSettings(tokenizer=tmp_path / "fitted"))
    assert not (tmp_path / "out" / "codes").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a fitted item tokenizer or the settings"),
        ({"fit": SMALL, "text": ("{title}",)}, "text and model go together"),
        ({"fit": SMALL, "text": ("{title}",), "model": "m", "vector_column": "v"}, "either vector_column or text"),
        ({"fit": SMALL, "engine": "spark"}, "local or ray"),
        ({"fit": SMALL, "workers": 0}, "workers: expected 1 or more"),
        ({"fit": SMALL, "collisions": "sum"}, "collisions: expected one of"),
        ({"fit": replace(SMALL, balance="last")}, "balance: clusters of equal size"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        EncodeSettings(**options)


def test_batches_as_other_engines_hand_them_over(shop, tmp_path):
    tokenizer, _ = in_memory(shop, SMALL)
    tokenizer.save(tmp_path / "fitted")
    ids, x = np.array(shop[0].ids[:5], dtype=object), shop[1][:5]
    expected = tokenizer.encode(TokenizerSource.of_vectors(x)).as_int()
    encode = EncodeBatch(str(tmp_path / "fitted"), vector_column="v", keep_vectors=True)
    nested = np.empty(5, dtype=object)
    nested[:] = list(x)
    for given in (x, nested):
        found = encode({"item_id": ids, "v": given})
        assert found["codes"].tolist() == expected.tolist() and found["item_id"].tolist() == ids.tolist()
        assert found["vector"].tobytes() == x.tobytes()
    nested[3] = x[3, :4]
    for wrong, message in (({"v": nested}, "vectors of one width"), ({"w": x}, "expected a column 'v', got"),
                           ({"v": ids}, "expected vectors")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            encode(wrong)
    for options in ({}, {"text": ("{title}",)}, {"vector_column": "v", "text": ("{t}",), "model": "m"}):
        with pytest.raises(ConfigError, match="either vector_column, or text and model"):
            EncodeBatch(str(tmp_path / "fitted"), **options)
    with pytest.raises(ConfigError, match="cannot import 'my_nothing:X'"):
        EncodeBatch(None, text=("{title}",), model="my_nothing:X")


def test_the_command(genrec, shop, items, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text("kind: rqkmeans\nn_levels: 2\nlevel_size: 12\nsuffix_limit: 700\n")
    fitting = ("--fit", "--set", "rows_per_code=20", "--out", tmp_path / "out")
    code, out, err = genrec("encode", items, "--tokenizer", recipe, *fitting)
    assert code == 0, err
    expected = in_memory(shop, SMALL)[1]
    same(ItemCodes.load(tmp_path / "out" / "codes"), expected)
    assert "700 items" in out and "collision policy: suffix" in out and str(tmp_path / "out" / "codes") in out
    code, out, err = genrec("encode", items, "--tokenizer", tmp_path / "out", "--out", tmp_path / "two", "--json",
                            "--collisions", "shared")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["collisions"] == {"policy": "shared"}
    assert ItemCodes.load(tmp_path / "two" / "codes").codes.tolist() == expected.codes[:, :2].tolist()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--tokenizer", "rqkmeans"), "expected the folder of a fitted item tokenizer, got 'rqkmeans'"),
        (("--tokenizer", "no.yaml", "--fit"), "no file no.yaml"),
        (("--tokenizer", "rqkmean", "--fit"), "did you mean 'rqkmeans'"),
        (("--tokenizer", "random", "--fit"), "cannot encode items by themselves"),
        (("--tokenizer", "{items}", "--fit"), "is a folder, expected a recipe or a kind"),
        (("--tokenizer", "{items}", "--sample", "5"), "--set and --sample"),
        (("--tokenizer", "rqkmeans", "--fit", "--vector-column", "v"), "expected a column 'v', got"),
        (("--tokenizer", "rqkmeans", "--fit", "--id-column", "sku"), "expected a column 'sku', got"),
        (("--tokenizer", "rqkmeans", "--fit", "--text", "{name}", "--model", "m:M"), "expected a column 'name', got"),
    ],
)
def test_what_the_command_refuses(genrec, items, tmp_path, args, message):
    filled = [str(a).replace("{items}", str(items)) for a in args]
    code, _, err = genrec("encode", items, *filled, "--out", tmp_path / "out")
    assert code == 1 and message in err, err


def test_ray_that_is_not_there_is_named(genrec, items, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = genrec("encode", items, "--tokenizer", "rqkmeans", "--fit", "--set", "level_size=8", "--engine",
                          "ray", "--out", tmp_path / "out")  # fmt: skip
    assert code == 1 and "genrec[ray]" in err


def test_rqkmeans_learns_without_encoding(shop):
    source = TokenizerSource.of_vectors(shop[1])
    fitted, learned = RqKMeans(SMALL), RqKMeans(SMALL)
    fitted.fit(source, seed=0)
    learned.learn(source, seed=0)
    assert [b.tobytes() for b in learned.codebooks] == [b.tobytes() for b in fitted.codebooks]
    assert learned.report == {}


def test_an_input_where_shards_are_written_is_refused_and_kept(shop, tmp_path):
    file = tmp_path / "data" / "shards" / "00000000.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(table_of(shop), file)
    before = file.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="the input lies in"):
            encode_items(file.parent, tmp_path / "data", EncodeSettings(fit=SMALL), overwrite=overwrite)
    assert file.read_bytes() == before


def test_a_refused_call_changes_nothing(shop, items, tmp_path):
    """Another item tokenizer, and a job that cannot begin although it may overwrite."""
    one, two = tmp_path / "one", tmp_path / "two"
    made = encode_items(items, one, EncodeSettings(fit=SMALL))
    encode_items(items, two, EncodeSettings(fit=replace(SMALL, level_size=9)))
    before = {file: file.read_bytes() for file in one.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="begun with another item tokenizer"):
        encode_items(items, one, EncodeSettings(tokenizer=two / "item_tokenizer"))
    with pytest.raises(DataError, match="nope"):
        encode_items(items, one, EncodeSettings(fit=SMALL, vector_column="nope"), overwrite=True)
    assert {file: file.read_bytes() for file in one.rglob("*") if file.is_file()} == before
    again = encode_items(items, one, EncodeSettings(fit=SMALL))
    assert again.reused > 0 and np.array_equal(again.codes.codes, made.codes.codes)


def test_a_tokenizer_fitted_on_another_column_is_not_gone_on_with(shop, tmp_path):
    table = table_of(shop)
    table = table.append_column("other", pa.FixedSizeListArray.from_arrays(pa.array(-(shop[1].reshape(-1) ** 3)), D))
    pq.write_table(table, tmp_path / "items.parquet")
    encode_items(tmp_path / "items.parquet", tmp_path / "out", EncodeSettings(fit=SMALL, vector_column="vector"))
    shutil.rmtree(tmp_path / "out" / "shards")  # as if it had stopped before the first shard
    with pytest.raises(ConfigError, match="fitted otherwise"):
        encode_items(tmp_path / "items.parquet", tmp_path / "out", EncodeSettings(fit=SMALL, vector_column="other"))


def test_an_input_written_again_meanwhile_is_an_error(shop, items, tmp_path, monkeypatch):
    written = []
    real = encode_shards.ShardEncoder.do

    def do(self, number):
        rows = real(self, number)
        if not written:
            written.append(number)
            for file in [items] if items.is_file() else sorted(items.glob("*.parquet")):
                pq.write_table(
                    pq.read_table(file), file, row_group_size=pq.ParquetFile(file).metadata.row_group(0).num_rows
                )
        return rows

    monkeypatch.setattr(encode_shards.ShardEncoder, "do", do)
    with pytest.raises(DataError, match="changed since"):
        encode_items(items, tmp_path / "out", EncodeSettings(fit=SMALL))
    assert not (tmp_path / "out" / "codes").exists()


def test_the_policy_of_the_call_counts_while_fitting_too(tmp_path):
    """Three hundred equal items, a suffix level of 256: a tokenizer without `learn` must not apply its own policy."""
    x = np.random.default_rng(0).normal(size=(400, D)).astype(np.float32)
    x[100:] = x[0]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), D)
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(400)], "vector": rows}), tmp_path / "items.parquet")
    settings = EncodeSettings(fit=ProductSettings(n_levels=2, level_size=8), collisions="shared")
    found = encode_items(tmp_path / "items.parquet", tmp_path / "out", settings)
    assert found.codes.n_levels == 2 and len(found.codes) == 400
    assert load_tokenizer(tmp_path / "out" / "item_tokenizer").settings == settings.fit


@pytest.mark.parametrize(
    ("kind", "policy", "message"),
    [
        (GaoqSettings(level_size=(30, 30, 2)), None, "'refuse' does not work with an item tokenizer of kind 'gaoq'"),
        (GaoqSettings(level_size=(30, 30, 2)), "reassign", "'reassign' does not work .* it has no codebooks"),
        (TitleSettings(), None, "kind 'title' cannot encode items by their vectors"),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["fit", "fitted"])
def test_a_policy_or_kind_that_cannot_work_is_refused_before_anything_is_encoded(
    shop, items, tmp_path, kind, policy, message, before
):
    options = {"fit": kind}
    if before:
        in_memory(shop, replace(kind, suffix_limit=N))[0].save(tmp_path / "run" / "item_tokenizer")
        options = {"tokenizer": tmp_path / "run"}
    with pytest.raises(ConfigError, match=message):
        encode_items(items, tmp_path / "out", EncodeSettings(**options, collisions=policy))
    assert not any((tmp_path / "out").rglob("*.parquet"))


def test_identifiers_that_are_refused_twice_are_told_apart_by_a_suffix(items, tmp_path):
    settings = EncodeSettings(fit=GaoqSettings(level_size=(30, 30, 2)), collisions="suffix")
    found = encode_items(items, tmp_path / "out", settings)
    assert found.codes.n_levels == 4 and not found.codes.collisions()


def test_a_suffix_of_the_command_does_not_hide_collisions_from_a_report(genrec, items, tmp_path):
    """The item tokenizer itself lets items share identifiers."""
    settings = EncodeSettings(fit=replace(SMALL, collisions="shared", level_size=30), collisions="suffix")
    made = encode_items(items, tmp_path / "out", settings)
    code, out, err = genrec("inspect", tmp_path / "out", "--json", tmp_path / "report.json")
    assert code == 0 and "(collisions: suffix)" in out, err
    raw = json.loads((tmp_path / "report.json").read_text())["reports"]["raw"]["figures"]
    assert raw["collision_share"] == pytest.approx(made.report["raw"]["collision_share"])
    assert raw["collision_share"] > 0.2
