"""New items on a version of a run: the stage, what it decides, and train/continual.py as a user starts it."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec import artifacts
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.data.interactions import Interactions
from genrec.data.splits import Split
from genrec.data.synthetic import tiny
from genrec.decoding.index import CatalogIndex
from genrec.embeddings.text import LsaSettings
from genrec.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from genrec.evaluation.report import EvalReport
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.backbone import DecoderSettings
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.pretrained import PretrainedSettings, extend_rows, load_pretrained
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.pipeline import data_stages, model_stages
from genrec.pipeline.catalog_life import append_items
from genrec.pipeline.continual_inputs import ContinualPaths, new_queries, read_inputs, read_log
from genrec.pipeline.continual_logs import log_rows
from genrec.pipeline.continual_stage import ContinualRecipe, _judged, continual_stage, of_lists
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe
from genrec.prompts.encode import ExampleEncoder
from genrec.prompts.tasks import load_task
from genrec.recipes import load, to_json
from genrec.testing.text_models import tiny_text_model
from genrec.training.continual import Grown
from genrec.training.settings import TrainSettings
from genrec.vocab.text_vocabulary import extend_vocabulary

ROOT = Path(__file__).parents[2]
SMALL = [
    "continual.steps=3", "train.batch_size=16", "train.warmup_steps=1", "train.bf16=false", "evaluate.n_bootstrap=10",
    "evaluate.n_beams=10", "evaluate.ks=[10]", "tolerance=1.0",
]  # fmt: skip


SPOILT = ["train.learning_rate=3", "continual.mix.replay=0", "continual.steps=9"]
RECIPE = PipelineRecipe(
    data=DataSettings(synthetic=tiny()),
    embeddings=(Block(lsa=LsaSettings(dim=8)),),
    tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 16, "collisions": "reassign"},
    n_user_tokens=3,
    model=DecoderSettings(hidden_size=16, n_layers=1, n_heads=2, d_ff=32, dropout=0.0),
    train=TrainSettings(epochs=1, batch_size=32, warmup_steps=2, eval_every=0, bf16=False),
)


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """A run with a model that was trained for a moment, and a version of it with five new items."""
    run = tmp_path_factory.mktemp("runs") / "run"
    run.mkdir()
    for stage in (data_stages.prepare, data_stages.split, data_stages.embed, data_stages.tokenize, model_stages.train):
        stage(run, RECIPE)
    artifacts.save_json(run / "recipe.json", to_json(RECIPE))
    old = ItemCatalog.load(run / "catalog")
    new = ItemCatalog(tuple(f"new-{n}" for n in range(5)), {"title": old.text("title")[:5]})
    append_items(run, new, run.parent / "run-2")
    for name, users in (("log", 6), ("ask", 9)):  # each: two old items, then a new one, then an old one
        with (run.parent / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["user_id", "item_id", "timestamp"])
            for user in range(users):
                items = [old.ids[user], old.ids[user + 9], f"new-{user % 5}", old.ids[user + 20]]
                rows.writerows([f"{name}-{user}", item, time] for time, item in enumerate(items))
    return run.parent / "run-2"


def recipe_of(*more):
    return load(ROOT / "train" / "continual" / "replay.yaml", ContinualRecipe, [*SMALL, *more]).value


def paths_of(version, out, **more):
    return ContinualPaths.of(version, out=out, log=version.parent / "log.csv", ask=version.parent / "ask.csv", **more)


def files(folder):
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_a_version_gets_a_new_bundle_and_keeps_its_own(version, tmp_path):
    before = files(version)
    paths, recipe = paths_of(version, tmp_path / "out"), recipe_of()
    outcome = continual_stage(paths, recipe)
    assert outcome.kept and files(version) == before
    asked = ("valid", "old", "new", "exposure", "first_code")
    names = {f"{name}.{when}" for name in asked for when in ("before", "after")}
    assert set(outcome.figures) == names | {"average", "forgetting", "learning"}
    assert outcome.figures["forgetting"] == pytest.approx(outcome.figures["old.before"] - outcome.figures["old.after"])
    old, new = (load_bundle(each).recommender for each in (version, tmp_path / "out"))
    assert new.settings == old.settings and (new.index.items == old.index.items).all() and 64 in new.index.items
    assert new.user_ids is None and not torch.equal(*(each.model.lm_head.weight for each in (old, new)))
    written = artifacts.read(tmp_path / "out" / "bundle")
    assert written.parents["bundle"] == artifacts.read(version / "bundle").digest
    assert load_bundle(tmp_path / "out").catalog.ids[-1] == "new-4"
    # the next batch goes on from what was learned
    titles = {"title": ["a scarf"] * 2}
    with pytest.raises(FingerprintMismatch, match="its identifiers are not those"):
        append_items(version, ItemCatalog(("x", "y"), titles), tmp_path / "run-3", bundle=version.parent / "run")
    append_items(version, ItemCatalog(("x", "y"), titles), tmp_path / "run-3", bundle=tmp_path / "out")
    third = load_bundle(tmp_path / "run-3").recommender
    assert torch.equal(third.model.lm_head.weight, new.model.lm_head.weight)
    assert third.model.config.genrec_n_items == 65 and 66 in third.index.items
    assert read_inputs(ContinualPaths.of(tmp_path / "run-3"), third).grown.new_N.sum() == 2
    # what is finished is read
    assert continual_stage(paths, recipe) == outcome and artifacts.read(tmp_path / "out" / "bundle") == written


def test_no_steps_leave_every_bit_of_the_model(version, tmp_path):
    outcome = continual_stage(paths_of(version, tmp_path), recipe_of("continual.steps=0", "tolerance=0"))
    assert outcome.kept and outcome.figures["new.before"] == outcome.figures["new.after"]
    fewer = continual_stage(paths_of(version, tmp_path), recipe_of("continual.steps=0", "users=7"))
    assert fewer.kept and len(EvalReport.load(tmp_path / "eval" / "old-after")) == 7
    old, new = (load_bundle(each).recommender for each in (version, tmp_path))
    for name, weight in new.model.named_parameters():
        assert torch.equal(weight, dict(old.model.named_parameters())[name]), name
    assert (new.score([[1, 2]], users=["somebody"]) == old.score([[1, 2]], users=["somebody"])).all()


def test_a_model_that_forgot_is_not_kept_and_nothing_of_it_is_left(version, tmp_path, caplog):
    paths, spoilt = (
        paths_of(version, tmp_path),
        ["train.learning_rate=3", "continual.mix.replay=0", "continual.steps=9"],
    )
    outcome = continual_stage(paths, recipe_of(*spoilt, "tolerance=0.02"))
    assert not outcome.kept and "not kept: recall@10 of old items fell" in caplog.text
    assert not (tmp_path / "bundle").exists() and (tmp_path / "training").is_dir()
    assert outcome.figures["valid.after"] < 0.98 * outcome.figures["valid.before"]
    caplog.clear()
    assert continual_stage(paths, recipe_of(*spoilt, "tolerance=0.02")) == outcome
    assert "not kept: recall@10 of old items fell" in caplog.text  # said again, though nothing was trained
    # the same training under another bound: only measured again
    steps = artifacts.read(tmp_path / "training").meta["wall_seconds"]
    assert continual_stage(paths, recipe_of(*spoilt)).kept and (tmp_path / "bundle").is_dir()
    assert artifacts.read(tmp_path / "training").meta["wall_seconds"] == steps


def test_a_bundle_of_adapters_learns_texts_too_and_stays_one(version, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(version.parent / "run", run, ignore=shutil.ignore_patterns("bundle", "training", "checkpoints"))
    for each in tiny_text_model("qwen3"):
        each.save_pretrained(tmp_path / "base")
    codes = ItemCodes.load(run / "codes")
    vocabulary = extend_vocabulary(tiny_text_model("qwen3")[1], codes)
    model = load_pretrained(PretrainedSettings(str(tmp_path / "base")))
    extend_rows(model, vocabulary)
    model = add_lora(model, vocabulary.token_map, LoraSettings(r=2))
    encoder = ExampleEncoder(vocabulary, codes, layout="decoder", max_tokens=256)
    asked = TemplatePrompts(load_task("sequential").template, encoder)
    index, settings = CatalogIndex.build(codes), DecodingSettings(n_beams=10, loss="vocab")
    recommender = GenerativeRecommender(model, vocabulary.token_map, codes, index, settings, prompts=asked)
    save_bundle(run / "bundle", recommender, vocabulary=vocabulary, catalog=ItemCatalog.load(run / "catalog"))
    titles = ItemCatalog.load(run / "catalog").text("title")[:5]
    append_items(run, ItemCatalog(tuple(f"new-{n}" for n in range(5)), {"title": titles}), tmp_path / "run-2")
    caplog.set_level("INFO")
    assert continual_stage(ContinualPaths.of(tmp_path / "run-2"), recipe_of("train.batch_size=8")).kept
    assert "text 6" in caplog.text  # 1 of 4 parts of 24 samples; there is no log
    out = tmp_path / "run-2" / "continual"
    assert (out / "bundle" / "model" / "adapter").is_dir()
    old, new = (load_bundle(each).recommender for each in (tmp_path / "run-2", out))
    assert new.prompts.template.fingerprint == asked.template.fingerprint
    assert not np.allclose(new.score([[1, 2]]), old.score([[1, 2]]))


def test_the_log_stands_behind_training_and_what_is_asked_is_not_learned():
    """Users of the run export all they did; item 6 and those behind it are new."""
    cut = Split(  # u0: train 0 1, valid 2, test 3; u1: train 4 0, test 1
        items=np.array([0, 1, 2, 3, 4, 0, 1]), offsets=np.array([0, 4, 7]), train_end=np.array([2, 6]),
        valid_end=np.array([3, 6]), n_items=6, catalog="c",
    )  # fmt: skip

    def events(*rows):
        users, items, times = zip(*rows, strict=True)
        return Interactions.from_arrays(users, np.array(items), np.array(times), n_items=9, catalog="c")

    whole = [("u0", item, time) for time, item in enumerate([0, 1, 2, 3])]
    log = events(*whole, ("u0", 5, 4), ("u0", 6, 5), ("u0", 7, 8), ("v", 1, 0), ("v", 6, 1), ("u1", 8, 9))
    ask = events(*whole, ("u0", 6, 5), ("u0", 8, 7), ("u0", 4, 9), ("u1", 7, 3), ("u1", 5, 4), ("w", 7, 0))
    learn, asked = log_rows(cut, ("u0", "u1"), log, ask, np.arange(9) >= 6)
    found = dict(zip(learn.users, learn.histories.to_lists(), strict=True))
    assert found == {"u0": [0, 1, 5, 6, 7], "u1": [4, 0, 8], "v": [1, 6]}  # 2 and 3 are validation and test targets
    found = dict(zip(asked.users, asked.histories.to_lists(), strict=True))
    # what the log says of the time before stands there, and not what came after: 7 and 8
    assert found == {"u0": [0, 1, 2, 3, 5, 6, 8, 4], "u1": [4, 0, 7, 5], "w": [7]}
    same, _ = log_rows(cut, ("u0", "u1"), ask, ask, np.arange(9) >= 6)
    found = dict(zip(same.users, same.histories.to_lists(), strict=True))
    assert found == {"u0": [0, 1, 6, 4], "u1": [4, 0, 5]}  # the questions 8 and 7 are gone
    nothing, nobody = log_rows(cut, (), None, None, np.arange(9) >= 6)
    assert len(nothing.histories) == len(nobody.histories) == 0


def test_a_model_is_kept_if_neither_old_nor_new_items_lose(caplog):
    def outcome(tolerance, **values):
        reports = {"before": {}, "after": {}}
        for name, pair in values.items():
            for when, value in zip(reports, pair, strict=True):
                reports[when][name] = SimpleNamespace(mean=lambda _, value=value: value)
        return _judged(reports, tolerance)

    old = {"valid": (0.5, 0.495), "old": (0.5, 0.49)}
    assert outcome(0.02, **old).kept and not outcome(0.001, **old).kept
    assert outcome(0.02, **old, new=(0.1, 0.1)).kept and not outcome(0.02, **old, new=(0.1, 0.09)).kept
    assert not caplog.text
    assert outcome(0.02, **old | {"valid": (0.0, 0.0)}).kept and "nothing is decided" in caplog.text


def test_how_often_new_items_are_listed_and_how_far_the_search_came_to_them():
    lists = np.array([[0, 3, *[1] * 8, 4], [3, 4, *[-1] * 9]])
    asked = SimpleNamespace(lists=np.array([[0, 1], [1, -1], [2, -1]]), targets=np.array([3, 4, 4]))
    new, first = np.arange(5) >= 3, np.array([0, 1, 2, 0, 2])
    # item 4 in the eleventh place does not count
    assert of_lists({"before": {"old": SimpleNamespace(lists=lists), "new": asked}}, new, first) == {
        "exposure.before": 3 / 12, "first_code.before": 2 / 3,
    }  # fmt: skip


def test_who_is_asked_and_what_is_refused(version, tmp_path):
    catalog = ItemCatalog.load(version / "catalog")
    grown = Grown(catalog, 60, np.ones((65, 2)))
    asked = new_queries(Histories.from_lists([[1, 60, 2, 61, 3], [62, 4], [5, 6], [7, 63, 64]]), grown, first_user=100)
    assert asked.users.tolist() == [100, 103]
    assert asked.histories.to_lists() == [[1, 60, 2], [7, 63]] and asked.targets.to_lists() == [[61], [64]]
    with pytest.raises(ArtifactError, match="not a version"):
        ContinualPaths.of(tmp_path)
    with pytest.raises(ConfigError, match="no file"):
        read_log(tmp_path / "log.csv", catalog)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,nothing,1\n")
    with pytest.raises(DataError, match="line 2"):
        read_log(tmp_path / "log.csv", catalog)
    run = version.parent / "run"
    append_items(run, ItemCatalog((), {"title": []}), tmp_path / "same")
    with pytest.raises(ConfigError, match="no items that its model was not trained on"):
        continual_stage(ContinualPaths.of(tmp_path / "same"), recipe_of())
    with pytest.raises(ConfigError, match="softmax"):
        continual_stage(paths_of(version, tmp_path / "x"), recipe_of("train.softmax=children"))
    other = tmp_path / "other"
    other.mkdir()
    for stage in (data_stages.prepare, data_stages.split):
        stage(other, replace(RECIPE, data=DataSettings(synthetic=tiny(1))))
    with pytest.raises(FingerprintMismatch, match="does not begin"):
        continual_stage(paths_of(version, tmp_path / "x", run=other), recipe_of())
    for change in ("tolerance=2", "users=0"):
        with pytest.raises(ConfigError, match=change.split("=")[0]):
            recipe_of(change)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(version, tmp_path):
    """With written samples, the distance to the model before and sharpness-aware steps (there is no dropout)."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    more = ["continual.mix.written=1.0", "continual.distil_weight=0.5", "train.sam_rho=0.05"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for name, first in (("one", [sys.executable]), ("two", launch)):
        command = [*first, str(ROOT / "train" / "continual.py"), str(version)]
        command += [str(ROOT / "train" / "continual" / "replay.yaml"), "--out", str(tmp_path / name)]
        command += [word for change in [*SMALL, *more] for word in ("--set", change)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
    one, two, before = (
        dict(load_bundle(each).recommender.model.named_parameters())
        for each in (tmp_path / "one", tmp_path / "two", version)
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-3, atol=1e-5, msg=name)
    assert any(not torch.allclose(weight, before[name], atol=1e-4) for name, weight in one.items())


@pytest.mark.slow
def test_script(version, tmp_path):
    out = tmp_path / "out"

    def start(*more, first=SMALL):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
        command = [sys.executable, str(ROOT / "train" / "continual.py"), str(version)]
        command += [str(ROOT / "train" / "continual" / "replay.yaml"), "--out", str(out)]
        command += [word for change in first for word in ("--set", change)] + list(more)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)

    logs = ["--log", str(version.parent / "log.csv"), "--ask", str(version.parent / "ask.csv")]
    stopped = start(*logs, "--max-seconds", "1e-6")
    assert stopped.returncode == 75 and "run the same command" in stopped.stderr, stopped.stderr
    assert not (out / "bundle").exists()
    done = start(*logs)
    assert done.returncode == 0 and "going on from step 1 of 3" in done.stderr, done.stderr
    assert "new items" in done.stdout and f"bundle: {out / 'bundle'}" in done.stdout
    assert json.loads((out / "training" / "genrec.json").read_text())["meta"]["steps"] == 3
    out = tmp_path / "spoilt"
    lost = start(
        *(word for change in SPOILT for word in ("--set", change)), "--set", "tolerance=0.02", first=SMALL[:-1]
    )
    assert lost.returncode == 3 and "not kept: no bundle was written" in lost.stdout, lost.stderr
