"""``genrec audit``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.export import export_neutral
from genrec.data.interactions import Interactions
from genrec.data.splits import Split
from genrec.item_tokenizers.codes import ItemCodes

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def published(finished: Path, tmp_path: Path) -> Path:
    """The raw codes of the finished run as other projects write them."""
    ids = ItemCatalog.load(finished / "catalog").ids
    rows = ItemCodes.load(finished / "codes").codes[:, :2].tolist()
    file = tmp_path / "Shop.index.json"
    file.write_text(json.dumps({i: [f"<a_{a}>", f"<b_{b}>"] for i, (a, b) in zip(ids, rows, strict=True)}))
    return file


def test_a_file_alone(genrec: Call, published: Path, finished: Path) -> None:
    code, out, err = genrec("audit", published)
    assert code == 0, err
    assert "read as: index json" in out and "give --data or --run" in out
    rows = list(map(tuple, ItemCodes.load(finished / "codes").codes[:, :2].tolist()))
    assert f"distinct identifiers         {len(set(rows))}" in out


def test_targets_of_a_run_and_of_a_data_set(genrec: Call, published: Path, finished: Path, tmp_path: Path) -> None:
    code, out, err = genrec("audit", published, "--run", finished, "--json", tmp_path / "x.json")
    assert code == 0 and "times recall counted on items" in out, err
    found = json.loads((tmp_path / "x.json").read_text())
    rows = ItemCodes.load(finished / "codes").codes[:, :2].tolist()
    split = Split.load(finished / "split")
    sizes = [rows.count(rows[item]) for item in split.queries("test").targets.items]
    assert found["inflation"] == pytest.approx(len(sizes) / sum(1 / s for s in sizes))
    catalog = ItemCatalog.load(finished / "catalog")
    users = [f"u{u}" for u in range(split.n_users) for _ in range(6)]
    log = Interactions.from_arrays(users, split.items, None, n_items=len(catalog), catalog=catalog.fingerprint)
    export_neutral(tmp_path / "data", catalog, log)
    code, out, err = genrec("audit", published, "--data", tmp_path / "data", "--json", tmp_path / "y.json")
    assert code == 0, err
    again = json.loads((tmp_path / "y.json").read_text())
    assert again["inflation"] == found["inflation"] and again["target_share"] == found["target_share"]


def test_saved_codes_can_be_inspected(genrec: Call, published: Path, finished: Path, tmp_path: Path) -> None:
    args = ("--catalog", finished / "catalog", "--save", tmp_path / "codes", "--level-size", 9)
    code, out, err = genrec("audit", published, *args)
    assert code == 0 and f"wrote {tmp_path / 'codes'}" in out, err
    codes = ItemCodes.load(tmp_path / "codes")
    assert codes.codes.tolist() == ItemCodes.load(finished / "codes").codes[:, :2].tolist()
    assert codes.level_sizes == (9, 9)
    code, out, err = genrec("inspect", tmp_path / "codes", "--catalog", finished / "catalog")
    assert code == 0 and "collision_rate" in out, err
    assert genrec("compare", tmp_path / "codes", finished / "codes")[0] == 0


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["nothing.json"], "no such file", "check the path"),
        (["FILE", "--save", "x"], "--save: codes belong to a catalog", "give --catalog"),
        (["FILE", "--catalog", "a", "--run", "b"], "at most one of", "--run brings"),
        (["FILE", "--level-size", "2"], "level_size: expected more than", ""),
        (["BAD"], "item 'y': expected a list of tokens, got 7", "correct the file; known forms"),
    ],
)
def test_errors_say_what_to_do(
    genrec: Call, published: Path, tmp_path: Path, args: list[str], said: str, hint: str
) -> None:
    (tmp_path / "bad.json").write_text('{"x": ["<a_1>"], "y": 7}')
    names = {"FILE": published, "BAD": tmp_path / "bad.json"}
    code, _, err = genrec("audit", *(names.get(arg, arg) for arg in args))
    assert code == 1 and err.startswith("error: ") and said in err and "Traceback" not in err
    assert not hint or f"hint: {hint}" in err
