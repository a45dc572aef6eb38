"""train/pipelines/own.yaml: three edits, and a shop's own files run through the whole job."""

from __future__ import annotations

import csv
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from genrec import artifacts, workbench
from genrec.cli.main import app
from genrec.data.catalog import ItemCatalog
from genrec.data.synthetic import make, tiny
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.text import item_text
from genrec.errors import DataError
from genrec.evaluation.report import EvalReport

OWN, IMAGES = (
    Path(workbench.find(f"train/pipelines/{name}.yaml")).read_text(encoding="utf-8") for name in ("own", "own-images")
)
EDITS = {
    # EDIT 1
    "path: data/shop": "path: {folder}",
    "interactions: orders.csv": "interactions: sales.csv",
    "items: products.csv": "items: articles.csv",
    # EDIT 2
    "user_column: customer": "user_column: buyer",
    "item_column: sku": "item_column: article",
    "time_column: ordered_at": "time_column: sold",
    "title_column: name": "title_column: label",
    # EDIT 3
    '- "Made by: {maker}"': '- "Producer: {producer}"',
    '- "Department: {department}"': '- "Aisle: {aisle}"',
}
TINY = [
    "embeddings.0.lsa.dim=8", "embeddings.1.ppmi.dim=8", "tokenizer.level_size=8", "model.hidden_size=16",
    "model.n_layers=1", "model.n_heads=2", "model.d_ff=32", "train.epochs=2", "train.warmup_steps=2",
    "train.eval_every=0", "evaluate.n_beams=10", "evaluate.n_bootstrap=10", "sasrec.dim=8", "sasrec.epochs=1",
]  # fmt: skip


def write_shop(folder: Path) -> None:
    """Two csv files under names that the recipe does not know, with a column that nobody asked for."""
    shop = make(tiny())
    ids, titles = shop.catalog.ids, shop.catalog.text("title")
    brands, aisles = shop.catalog.text("brand"), shop.catalog.text("categories")
    with (folder / "articles.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [[ids[n], titles[n], brands[n], aisles[n], 9.5 + n] for n in range(len(ids))]
        csv.writer(file).writerows([["article", "label", "producer", "aisle", "list_price"], *rows])
    log = shop.interactions
    with (folder / "sales.csv").open("w", encoding="utf-8", newline="") as file:
        events = zip(log.user.tolist(), log.item.tolist(), log.time.tolist(), strict=True)
        when = {t: datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S") for t in log.time.tolist()}
        rows = [[when[t], log.user_ids[u], ids[i], "web"] for u, i, t in events]
        csv.writer(file).writerows([["sold", "buyer", "article", "till"], *rows])


def edited(folder: Path, text: str = OWN) -> str:
    for old, new in EDITS.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new.replace("{folder}", str(folder)))
    return text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two files, the edited recipe, and the finished run of it."""
    folder = tmp_path_factory.mktemp("own")
    write_shop(folder)
    (folder / "own.yaml").write_text(edited(folder), encoding="utf-8")
    options = [word for change in TINY for word in ("--set", change)]
    done = CliRunner().invoke(app, ["run", str(folder / "own.yaml"), "--out", str(folder / "run"), *options])
    assert done.exit_code == 0, done.output + str(done.exception)
    return folder


def test_the_edits_are_in_the_marked_places() -> None:
    """Every edit stands below the mark it belongs to, and nothing else has to change."""
    parts = re.split(r"# EDIT \d", OWN)
    assert len(parts) == 4
    for n, edits in enumerate((list(EDITS)[:3], list(EDITS)[3:7], list(EDITS)[7:]), 1):
        assert all(old in parts[n] for old in edits)
    uncommented = "\n".join(line.split("#")[0] for line in OWN.splitlines())
    assert set(re.findall(r"{(\w+)}", uncommented)) == {"title", "maker", "department"}


def test_the_files_are_what_the_run_saw(shop: Path) -> None:
    catalog = ItemCatalog.load(shop / "run" / "catalog")
    known = make(tiny())
    assert catalog.ids == known.catalog.ids and catalog.text("title") == known.catalog.text("title")
    assert artifacts.read(shop / "run" / "interactions").meta["n_events"] == len(known.interactions)
    text = artifacts.read(shop / "run" / "embeddings").recipe["blocks"][0]["text"]
    first = item_text(catalog, text)[0]
    assert catalog.text("title")[0] in first and "Producer: " in first and "Aisle: " in first


def test_every_model_of_the_recipe_is_in_the_results(shop: Path) -> None:
    models = ("popularity", "copy_last", "markov", "item_knn", "content_knn", "sasrec", "decoder")
    found = {name: EvalReport.load(shop / "run" / "eval" / name).mean("recall@20") for name in models}
    assert found["item_knn"] > found["popularity"]
    assert (shop / "run" / "report" / "report.md").exists()


def test_vectors_of_images_are_a_third_of_what_identifiers_are_made_of(shop: Path, tmp_path: Path) -> None:
    """A file of image vectors, by the ids of the items, one of which has no picture."""
    ids = ItemCatalog.load(shop / "run" / "catalog").ids
    images = np.random.default_rng(0).normal(size=(len(ids), 12)).astype(np.float32)
    images[3] = 0
    order = np.random.default_rng(1).permutation(len(ids))
    table = pa.table({"item_id": [ids[n] for n in order], "vector": list(images[order])})
    pq.write_table(table, tmp_path / "images.parquet")
    text = edited(shop, IMAGES).replace("data/shop/images.parquet", str(tmp_path / "images.parquet"))
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    changes = ["embeddings.0.lsa.dim=8", "embeddings.1.dim=6", "embeddings.2.ppmi.dim=8", "tokenizer.level_size=8"]
    options = [word for change in changes for word in ("--set", change)]
    command = ["run", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run"), "--until", "tokenize", *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output + str(done.exception)
    vectors = ItemEmbeddings.load(tmp_path / "run" / "embeddings").vectors.astype(np.float64)
    shares = [part.var(axis=0).sum() for part in np.split(vectors, [8, 14], axis=1)]
    assert vectors.shape[1] == 22 and np.allclose(shares, np.mean(shares), rtol=0.02)
    assert np.allclose(vectors[:, 8:14].var(axis=0), shares[1] / 6, rtol=0.1)  # whitened


def test_a_shop_without_its_files_is_told_about_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN, encoding="utf-8")
    command = ["run", str(tmp_path / "own.yaml"), "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    missing = CliRunner().invoke(app, command)
    assert isinstance(missing.exception, DataError)
    assert "your own files" in str(missing.exception.hint) and "Amazon" not in str(missing.exception.hint)
