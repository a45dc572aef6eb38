"""What a run may not replace in its folder without being allowed to: another run, a training that took long."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from genrec import artifacts, recipes
from genrec.data.readers import ReaderSettings
from genrec.data.synthetic import tiny
from genrec.errors import ConfigError
from genrec.pipeline import replacement, runner
from genrec.pipeline.recipe import DataSettings, PipelineRecipe
from genrec.pipeline.stages import stages, stages_until
from genrec.training.settings import TrainSettings

SHOP = PipelineRecipe(data=DataSettings(synthetic=tiny()), name="shop", baselines=())
LONG, SHORT = replacement.FREE_SECONDS + 1, replacement.FREE_SECONDS - 1


def write(folder: Path, name: str, kind: str = "thing", **meta: object) -> None:
    with artifacts.write(folder / name, kind=kind, meta=meta, overwrite=True) as draft:
        (draft.dir / "file.txt").write_text(name)


def fake(recipe: PipelineRecipe, folder: Path, cpu_seconds: float) -> list[runner.Stage]:
    """The stages of the recipe up to the training, which only write that they ran."""

    def run(there: Path, outputs: tuple[str, ...]) -> None:
        for name in outputs:
            kind = name if name in ("training", "bundle") else "thing"
            write(there, name, kind, cpu_seconds=cpu_seconds)

    todo = stages_until(stages(recipe, folder), "train")
    return [replace(stage, run=partial(run, outputs=stage.outputs)) for stage in todo]


def run(folder: Path, recipe: PipelineRecipe, cpu_seconds: float = LONG, allowed: bool = False) -> list[str]:
    """As the command does; returns what was replaced."""
    todo = fake(recipe, folder, cpu_seconds)
    lost = replacement.guard(folder, recipe, todo, allowed=allowed)
    runner.run(folder, todo, lambda *_: None, recipe=recipes.to_json(recipe))
    return [str(each) for each in lost]


def epochs(n: int) -> PipelineRecipe:
    return replace(SHOP, train=TrainSettings(epochs=n))


def test_a_training_that_took_long_is_kept_unless_the_run_is_allowed_to_replace_it(tmp_path: Path) -> None:
    assert run(tmp_path, SHOP) == run(tmp_path, SHOP) == []
    before = runner.read_ledger(tmp_path)
    with pytest.raises(
        ConfigError, match=r"replaces a finished model \(trained in 2 CPU-minutes\): train.epochs: 16"
    ) as e:
        run(tmp_path, epochs(1))
    assert "--replace" in str(e.value.hint) and runner.read_ledger(tmp_path) == before
    assert len(run(tmp_path, epochs(1), allowed=True)) == 1
    assert runner.read_ledger(tmp_path)["train"] != before["train"]


def test_a_short_training_is_replaced_with_a_warning(tmp_path: Path) -> None:
    run(tmp_path, SHOP, SHORT)
    (said,) = run(tmp_path, epochs(1), SHORT)
    assert "119 CPU-seconds" in said and "train.epochs: 16 -> 1" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": 1}, "seed: 0 -> 1 (stage split)"),
        ({"tokenizer": {"kind": "rqkmeans", "level_size": 9}}, "tokenizer.level_size: None -> 9 (stage tokenize)"),
    ],
)
def test_a_setting_of_an_earlier_stage_replaces_the_training_too(tmp_path: Path, change: dict, why: str) -> None:
    run(tmp_path, SHOP)
    with pytest.raises(ConfigError) as error:
        run(tmp_path, replace(SHOP, **change))
    assert why in str(error.value)


def test_what_does_not_train_anew_goes_on(tmp_path: Path) -> None:
    run(tmp_path, SHOP)
    for name in ("bundle", "split"):  # lost, so it is made again
        shutil.rmtree(tmp_path / name)
        assert run(tmp_path, SHOP) == []
    assert run(tmp_path, replace(SHOP, train=replace(SHOP.train, save_every=7))) == []
    shutil.rmtree(tmp_path / "bundle")
    assert run(tmp_path, epochs(1)) == []  # nothing finished is there


def test_a_training_from_another_machine_is_asked_whether_it_is_the_wanted_one(tmp_path: Path, monkeypatch) -> None:
    run(tmp_path, SHOP)
    for wanted in (True, False):
        monkeypatch.setitem(replacement._TRAININGS, "train", ("model", "training", lambda *_, w=wanted: w))
        assert len(replacement.replaced(tmp_path, epochs(1), fake(epochs(1), tmp_path, 1.0))) == (not wanted)


def other_name(recipe: PipelineRecipe) -> PipelineRecipe:
    return replace(recipe, name="demo")


def other_data(recipe: PipelineRecipe) -> PipelineRecipe:
    return replace(recipe, data=DataSettings(synthetic=tiny(1)))


@pytest.mark.parametrize("change", [other_name, other_data])
def test_another_run_is_refused_before_anything_changes(tmp_path: Path, change) -> None:
    run(tmp_path, SHOP, SHORT)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="holds the run 'shop'") as error:
        run(tmp_path, change(SHOP), SHORT)
    assert "--replace" in str(error.value.hint) and sorted(tmp_path.rglob("*")) == before
    run(tmp_path, change(SHOP), allowed=True)
    assert artifacts.load_json(tmp_path / "recipe.json")["name"] == change(SHOP).name


def test_a_run_on_other_data_begins_anew_and_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    run(tmp_path, SHOP)
    write(tmp_path / "cache", "vectors")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "x").mkdir(parents=True)
    shop = other_data(SHOP)
    todo = stages_until(fake(shop, tmp_path, 1.0), "split")
    replacement.guard(tmp_path, shop, todo, allowed=True)
    runner.run(tmp_path, todo, lambda *_: None, recipe=recipes.to_json(shop))
    kept = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert kept == {"cache", "notes.txt", "catalog", "interactions", "split", "ledger.json", "recipe.json"}
    assert sorted(runner.read_ledger(tmp_path)) == ["prepare", "split"]


def test_another_name_on_the_same_data_keeps_what_is_the_same(tmp_path: Path) -> None:
    run(tmp_path, SHOP)
    before = runner.read_ledger(tmp_path)
    run(tmp_path, other_name(SHOP), allowed=True)
    assert runner.read_ledger(tmp_path) == before


def tables(folder: Path, text: str = "a") -> PipelineRecipe:
    folder.mkdir()
    (folder / "log.csv").write_text(f"user_id,item_id,timestamp\nu,{text},1\n")
    reader = ReaderSettings("tabular", folder, interactions="log.csv", time_column="timestamp", unknown_items="add")
    return replace(SHOP, data=DataSettings(reader=reader))


def test_the_data_of_a_run_may_move_or_grow_but_not_be_others(tmp_path: Path) -> None:
    out, first = tmp_path / "out", tables(tmp_path / "a")
    run(out, first)
    moved = tables(tmp_path / "b")
    assert run(out, moved) == []  # the same bytes elsewhere
    with pytest.raises(ConfigError, match="holds the run 'shop' on other data, got the run 'shop'"):
        run(out, tables(tmp_path / "c", "another"))
    with pytest.raises(ConfigError, match="on other data"):
        run(out, SHOP)
    with (tmp_path / "b" / "log.csv").open("a") as log:
        log.write("u,b,2\n")
    with pytest.raises(ConfigError, match=r"finished model .*: the files it reads changed \(stage prepare\)"):
        run(out, moved)


def test_a_folder_without_a_run_is_free(tmp_path: Path) -> None:
    assert run(tmp_path / "new", SHOP) == []
    (tmp_path / "failed").mkdir()
    artifacts.save_json(tmp_path / "failed" / "recipe.json", {"name": "other"})  # it failed before a stage ended
    assert run(tmp_path / "failed", SHOP) == []
