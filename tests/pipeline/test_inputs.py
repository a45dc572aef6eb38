"""What the first stage reads: changed files are noticed, rejects are kept, predefined parts are respected."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrec import artifacts
from genrec.data.interactions import Interactions
from genrec.data.readers import ReaderSettings
from genrec.data.splits import Split
from genrec.data.synthetic import tiny
from genrec.embeddings.text import LsaSettings, SentenceSettings
from genrec.errors import DataError
from genrec.pipeline import data_stages, runner
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe, SplitSettings
from genrec.pipeline.stages import stages, stages_until

LOG = "user_id,item_id,timestamp\n" + "".join(f"u{n % 4},i{n % 7},{n}\n" for n in range(40))


def recipe_of(folder: Path, log: str = "log.csv", **data: object) -> PipelineRecipe:
    reader = ReaderSettings(
        "tabular", folder, interactions=log, time_column="timestamp", context=(), unknown_items="add"
    )
    return PipelineRecipe(data=DataSettings(reader=reader, **data))


def status(recipe: PipelineRecipe, run: Path) -> tuple[str, str]:
    planned = runner.plan(run, stages_until(stages(recipe, run), "prepare"))[0]
    return planned.status, planned.reason


@pytest.mark.parametrize("where", ["log.csv", "raw/log.csv", "absolute"])
def test_a_changed_file_is_read_again_wherever_it_lies(tmp_path: Path, where: str) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    (data / "raw").mkdir(parents=True)
    log = tmp_path / "elsewhere.csv" if where == "absolute" else data / where
    log.write_text(LOG)
    recipe = recipe_of(data, str(log) if where == "absolute" else where)
    todo = stages_until(stages(recipe, run), "split")
    before = runner.run(run, todo, lambda *_: None)
    assert status(recipe, run) == ("done", "unchanged")
    (data / "README.md").write_text("which is not read")
    assert status(recipe, run) == ("done", "unchanged")
    log.write_text(LOG + "u0,i0,99\n")
    assert status(recipe, run) == ("changed", "the files it reads changed")
    log.write_text(LOG.replace("u0,i0,0\n", "u0,i0,00\n"))  # other bytes, the same data
    after = runner.run(run, stages_until(stages(recipe, run), "split"), lambda *_: None)
    assert after["prepare"]["inputs"] != before["prepare"]["inputs"]
    assert after["split"] == before["split"]  # not run again


def test_a_file_that_is_missing_is_told_when_it_is_read(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    recipe = recipe_of(data)
    assert status(recipe, run)[0] == "run"
    with pytest.raises(DataError, match=r"log\.csv: no such file"):
        runner.run(run, stages_until(stages(recipe, run), "prepare"), lambda *_: None)


@pytest.mark.parametrize(
    ("log", "items", "said"),
    [
        ("user,item_id,timestamp\nu,i,1\n", None, r"log\.csv, line 1, field 'header': column 'user_id' is missing"),
        (LOG, "item_id,name\ni0,pot\n", r"items\.csv, line 1, field 'header': column 'title' is missing"),
        (None, None, r"no such file"),
    ],
)
def test_the_plan_reads_the_headers(tmp_path: Path, log: str | None, items: str | None, said: str) -> None:
    for name, text in (("log.csv", log), ("items.csv", items)):
        if text is not None:
            (tmp_path / name).write_text(text)
    recipe = recipe_of(tmp_path)
    assert re.search(f"not done yet; it will fail: .*{said}", status(recipe, tmp_path / "run")[1])
    with pytest.raises(DataError, match=said):
        runner.run(tmp_path / "run", stages_until(stages(recipe, tmp_path / "run"), "prepare"), lambda *_: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("columns", [{"user_column": "nope"}, {"context": ("nope",)}, {"interactions": "no.parquet"}])
def test_the_plan_reads_the_headers_of_other_files_too(tmp_path: Path, columns: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}), tmp_path / "log.parquet")
    assert status(recipe_of(tmp_path, "log.parquet"), tmp_path / "run") == ("run", "not done yet")
    recipe = recipe_of(tmp_path, "log.parquet")
    assert recipe.data.reader is not None
    recipe = replace(recipe, data=DataSettings(reader=replace(recipe.data.reader, **columns)))
    assert "it will fail: " in status(recipe, tmp_path / "run")[1]
    (tmp_path / "log.parquet").write_text("text")
    assert "not a readable parquet file" in status(recipe_of(tmp_path, "log.parquet"), tmp_path / "run")[1]
    (tmp_path / "items.jsonl").write_text('{"item_id": "i", "title": "pot"}\n')
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp,weather\nu,i,1,wet\n")
    neutral = PipelineRecipe(data=DataSettings(reader=ReaderSettings("neutral", tmp_path)))
    assert "unknown column 'weather'" in status(neutral, tmp_path / "run")[1]


def test_one_file_that_is_gone_does_not_undo_what_was_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log, without which nothing can be read, and the items, without which something else would be read."""
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    (data / "log.csv").write_text(LOG)
    (data / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},title {n}\n" for n in range(7)))
    recipe = recipe_of(data)
    runner.run(run, stages_until(stages(recipe, run), "prepare"), lambda *_: None)
    for name in ("items.csv", "log.csv"):
        caplog.clear()
        (data / name).rename(tmp_path / name)
        assert status(recipe, run) == ("done", "unchanged") and f"{name} is gone" in caplog.text
        other = replace(recipe, data=replace(recipe.data, item_core=2))
        assert len(stages(other, run)[0].inputs) == (1 if name == "items.csv" else 2)  # the log alone can be read
        (tmp_path / name).rename(data / name)
    (data / "items.csv").rename(data / "items.tsv")  # another file in its place is read
    (data / "items.tsv").write_text("item_id\ttitle\ni0\tpot\n")
    assert status(recipe, run) == ("changed", "the files it reads changed")


def test_a_digest_of_a_folder_follows_what_lies_deep_in_it(tmp_path: Path) -> None:
    (tmp_path / "pooling").mkdir()
    (tmp_path / "pooling" / "config.json").write_text("{}")
    first = runner.file_digest(tmp_path)
    (tmp_path / "pooling" / "config.json").write_text("{ }")
    assert runner.file_digest(tmp_path) != first


@pytest.mark.parametrize("kind", ["folder", "package"])
def test_the_content_of_an_encoder_counts_wherever_it_lies(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, run = tmp_path / "encoder", tmp_path / "run"
    model.mkdir()
    (model / "model.safetensors").write_text("1")
    package = SimpleNamespace(get_model_path=lambda: str(model))
    monkeypatch.setitem(sys.modules, "some_encoder", package)
    name = str(model) if kind == "folder" else "package:some-encoder"
    blocks = (Block(sentence=SentenceSettings(model=name)),)
    recipe = PipelineRecipe(data=DataSettings(synthetic=tiny()), embeddings=blocks, baselines=())

    def inputs() -> dict[str, str]:
        return next(stage.inputs for stage in stages(recipe, run) if stage.name == "embed")

    first = inputs()
    assert first == {name: runner.file_digest(model)}
    (model / "model.safetensors").write_text("2")
    assert inputs()[name] not in (first[name], "missing")
    run.mkdir()
    (run / runner.LEDGER).write_text(json.dumps({"embed": {"inputs": first}}))
    assert inputs() != first
    shutil.rmtree(model)
    monkeypatch.setitem(sys.modules, "some_encoder", None)  # not installed
    assert inputs() == first and f"{name} is gone" in caplog.text  # a machine that only goes on
    hub = replace(recipe, embeddings=(Block(sentence=SentenceSettings(model="someone/some-encoder")),))
    assert all(not stage.inputs for stage in stages(hub, run))


def test_rows_left_out_are_counted_in_the_artifacts(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG + "u0,i0\n,i1,5\nu1,i1,never\nu2,i1,later\n")
    recipe = recipe_of(tmp_path, on_error="skip")
    data_stages.prepare(tmp_path / "run", recipe)
    expected = {
        "log.csv": {
            "rows_in": 44, "rows_kept": 40, "rows_rejected": 4,
            "reasons": {"ragged row": 1, "empty id": 1, "wrong type": 2},
        }
    }  # fmt: skip
    for name in ("catalog", "interactions"):
        assert artifacts.read(tmp_path / "run" / name).meta["rejected"] == expected
    assert len(Interactions.load(tmp_path / "run" / "interactions")) == 40
    (tmp_path / "log.csv").write_text(LOG)
    data_stages.prepare(tmp_path / "run", recipe)
    assert "rejected" not in artifacts.read(tmp_path / "run" / "interactions").meta


def test_a_predefined_split_keeps_its_parts_for_every_seed(tmp_path: Path) -> None:
    """Each user's events of day 1 are partly train, partly valid; those of day 2 valid and test."""
    parts = ["train", "train", "train", "valid", "valid", "test"]
    rows = [f"u{u},i{(u + n) % 9},{1 + n // 4},{part}" for u in range(8) for n, part in enumerate(parts)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,split\n" + "\n".join(rows) + "\n")
    source = ReaderSettings(
        "tabular", tmp_path, interactions="log.csv", time_column="timestamp", context=("split",), unknown_items="add"
    )
    orders = set()
    for seed in range(6):
        recipe = PipelineRecipe(
            data=DataSettings(reader=source), seed=seed, split=SplitSettings(kind="predefined", ties="neutral")
        )
        if not seed:
            data_stages.prepare(tmp_path / "run", recipe)
        data_stages.split(tmp_path / "run", recipe)
        log, cut = Interactions.load(tmp_path / "run" / "interactions"), Split.load(tmp_path / "run" / "split")
        assert cut.rows is not None and cut.tied is not None
        names = np.array(["train", "valid", "test"], object)[cut.parts()]
        assert names.tolist() == log.columns["split"][cut.rows].tolist()
        assert cut.train_ties().tolist() == [False, True, True] * 8
        orders.add(tuple(cut.train().items.tolist()))
    assert len(orders) == 6  # ties inside a part are drawn


def test_a_block_wider_than_a_small_catalog_is_capped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    titles = ("red pot", "red pan", "blue pot", "blue pan", "green pot", "green pan", "red blue lid")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},{t}\n" for n, t in enumerate(titles)))
    reader = ReaderSettings(
        "tabular", tmp_path, interactions="log.csv", items="items.csv", time_column="timestamp", context=()
    )
    blocks = (Block(lsa=LsaSettings(dim=128), dim=128),)
    recipe = PipelineRecipe(data=DataSettings(reader=reader), embeddings=blocks, baselines=())
    for stage in (data_stages.prepare, data_stages.split, data_stages.embed):
        stage(tmp_path / "run", recipe)
    width = artifacts.read(tmp_path / "run" / "embeddings").meta["dim"]
    assert 2 <= width <= 7 and f"block 0: dim 128, but the vectors have {width} directions" in caplog.text
