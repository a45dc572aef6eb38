"""``genrec pieces``: identifiers as features of a ranking model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from genrec.artifacts import load_json, load_table
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.pieces import NgramSettings, SentencePieceSettings, learn_pieces, load_rows, use_counts

Call = Callable[..., tuple[int, str, str]]
needs_package = pytest.mark.skipif(find_spec("sentencepiece") is None, reason="needs the extra pieces")


def test_a_run_is_exported(genrec: Call, finished: Path, tmp_path: Path) -> None:
    code, out, err = genrec("pieces", finished, "--kind", "ngram", "--n", 2, "--out", tmp_path / "p")
    assert code == 0, err
    codes = ItemCodes.load(finished / "codes")
    used = len({tuple(row) for row in codes.codes[:, :2].tolist()}) + len(set(codes.codes[:, 2].tolist()))
    assert out.splitlines() == [
        f"90 items, ngram: 85 rows, {used} of them used; 2.00 pieces an item, 2.00 a use",
        f"wrote {tmp_path / 'p'}",
    ]
    table = load_table(tmp_path / "p" / "pieces.parquet")
    assert table.column("item_id").to_pylist() == list(ItemCatalog.load(finished / "catalog").ids)
    expected = learn_pieces(codes, NgramSettings(n=2)).encode(codes)
    assert table.column("pieces").to_pylist() == expected.to_lists()
    told = load_json(tmp_path / "p" / "tables.json")
    assert told["n_rows"] == 9 * 9 + 4 and [t["offset"] for t in told["tables"]] == [0, 81]
    again = genrec("pieces", finished / "codes", "--kind", "ngram", "--out", tmp_path / "p")
    assert again[0] == 1 and "exists already" in again[2]
    assert genrec("pieces", finished / "codes", "--kind", "ngram", "--out", tmp_path / "p", "--overwrite")[0] == 0


def test_hashed_tables_are_marked(genrec: Call, finished: Path, tmp_path: Path) -> None:
    out = genrec("pieces", finished, "--kind", "prefix", "--max-rows", 20, "--out", tmp_path / "p")[1]
    assert "! levels 1 to 3: hashed into 20 rows; " in out and "levels 1 to 1" not in out


@needs_package
def test_sentencepiece_learns_from_the_training_part(genrec: Call, finished: Path, tmp_path: Path) -> None:
    kind = ["--kind", "sentencepiece", "--n-longer", 12]
    code, out, err = genrec("pieces", finished, *kind, "--out", tmp_path / "p")
    assert code == 0 and "12 pieces of two codes or more" in out, err
    codes = ItemCodes.load(finished / "codes")
    counts = use_counts(Split.load(finished / "split").train(), len(codes))
    settings = SentencePieceSettings(n_longer=12)
    rows = [learn_pieces(codes, settings, counts=c).encode(codes).to_lists() for c in (counts, None)]
    assert rows[0] != rows[1]
    assert load_rows(tmp_path / "p")[1].to_lists() == rows[0]
    for name in ("codes", "catalog"):
        shutil.copytree(finished / name, tmp_path / "bare" / name)
    code, _, err = genrec("pieces", tmp_path / "bare", *kind, "--out", tmp_path / "q")
    assert code == 1 and "no split beside the codes" in err and "--equal" in err
    given = ["--split", finished / "split"]
    assert genrec("pieces", tmp_path / "bare", *kind, *given, "--out", tmp_path / "q")[0] == 0
    assert load_rows(tmp_path / "q")[1].to_lists() == rows[0]
    for folder in (tmp_path / "bare", finished):
        assert genrec("pieces", folder, *kind, "--equal", "--out", tmp_path / "q", "--overwrite")[0] == 0
        assert load_rows(tmp_path / "q")[1].to_lists() == rows[1]


@pytest.mark.parametrize("kind", ["ngram", pytest.param("sentencepiece", marks=needs_package)])
def test_new_items_get_rows_like_the_old_ones(genrec: Call, finished: Path, tmp_path: Path, kind: str) -> None:
    items, codes = ItemCatalog.load(finished / "catalog"), ItemCodes.load(finished / "codes")
    assert genrec("pieces", finished, "--kind", kind, "--out", tmp_path / "p")[0] == 0
    child = items.append(["new"], {"title": ["new"]})
    more = np.concatenate([codes.codes, 1 + codes.codes[:1] % 3])
    child.save(tmp_path / "v2" / "catalog")
    ItemCodes(more, codes.level_sizes, child.fingerprint).save(tmp_path / "v2" / "codes")
    code, out, err = genrec("pieces", tmp_path / "v2", "--like", tmp_path / "p", "--out", tmp_path / "p2")
    assert code == 0 and "91 items" in out and "a use" not in out, err
    ids, rows = load_rows(tmp_path / "p2")
    assert ids[-1] == "new" and rows.to_lists()[:-1] == load_rows(tmp_path / "p")[1].to_lists()
    ItemCodes(more[::-1], codes.level_sizes, child.fingerprint).save(tmp_path / "v2" / "codes", overwrite=True)
    code, _, err = genrec("pieces", tmp_path / "v2", "--like", tmp_path / "p", "--out", tmp_path / "p3")
    assert code == 1 and "learned on other codes" in err and "hint: learn pieces anew" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "--kind", "word"], "--kind: expected one of ngram, prefix, sentencepiece, got word"),
        (["run"], "--kind: expected one of ngram, prefix, sentencepiece, got nothing"),
        (["run", "--kind", "prefix", "--n", "2"], "--n: no effect with --kind prefix"),
        (["run", "--kind", "ngram", "--equal"], "--equal: no effect with --kind ngram"),
        (["run", "--like", "x", "--max-rows", "5"], "--like: the earlier export has the settings"),
        (["nowhere", "--kind", "ngram"], "nowhere: no codes there"),
        (["bare", "--kind", "ngram"], "no catalog beside the codes"),
        (["run", "--kind", "ngram", "--catalog", "other/catalog"], "codes belong to catalog"),
        (["run", "--kind", "ngram", "--split", "other/split"], "split and codes are of two catalogs"),
        (["run", "--kind", "ngram", "--n", "0"], "n: expected 1 or more, got 0"),
    ],
)
def test_errors_say_what_to_give(
    genrec: Call, finished: Path, make_run: Callable[..., Path], tmp_path: Path, args: list[str], said: str
) -> None:
    (tmp_path / "run").symlink_to(finished)
    ItemCodes.load(finished / "codes").save(tmp_path / "bare")
    if any("other" in arg for arg in args):
        make_run(tmp_path / "other", prefix="another")
    paths = {"run", "bare", "nowhere", "x", "other/catalog", "other/split"}
    code, _, err = genrec("pieces", *(tmp_path / a if a in paths else a for a in args), "--out", tmp_path / "p")
    assert code == 1 and said in err and "Traceback" not in err
    assert not (tmp_path / "p").exists()


def test_help_teaches(genrec: Call) -> None:
    code, out, _ = genrec("pieces", "--help")
    assert code == 0 and "--like" in out and "identifiers" in out
