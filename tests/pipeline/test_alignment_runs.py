"""Tasks in a pipeline: the model is asked with the prompt that it was trained with, from the recipe to the bundle."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec import artifacts, workbench
from genrec.cli.main import app
from genrec.data.histories import Histories
from genrec.data.synthetic import tiny
from genrec.embeddings.text import LsaSettings
from genrec.errors import ArtifactError, ConfigError, MissingExtra
from genrec.models.adapters import LoraSettings
from genrec.models.backbone import DecoderSettings, T5Settings
from genrec.models.bundle import load_bundle
from genrec.models.pretrained import PretrainedSettings
from genrec.pipeline import alignment, model_stages, runner
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe
from genrec.pipeline.recipe_files import described, load_recipe
from genrec.pipeline.stages import stages, stages_until
from genrec.prompts.data import TaskData
from genrec.prompts.mixture import AskSettings, MixedTask, MixtureSettings
from genrec.prompts.tasks import load_task
from genrec.testing.text_models import tiny_text_model
from genrec.training.settings import TrainSettings
from genrec.training.tasks import task_encoder
from genrec.vocab import text_vocabulary
from genrec.vocab.user_index import UserSettings

MIXTURE = MixtureSettings(
    (MixedTask("sequential", samples=40), MixedTask("item_from_text", samples=24)),
    ask=AskSettings(wording=1), wrapper="instruction", max_items=6, max_text=40, max_tokens=400,
)  # fmt: skip
OF_USERS = {"kind": "rqkmeans", "n_levels": 2, "level_size": 4, "collisions": "suffix"}


def recipe_of(base, mixture=MIXTURE, **more):
    return PipelineRecipe(
        data=DataSettings(synthetic=tiny()),
        embeddings=(Block(lsa=LsaSettings(dim=8)),),
        tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 8, "collisions": "reassign"},
        model=PretrainedSettings(str(base)),
        alignment=mixture,
        train=TrainSettings(
            epochs=1, batch_size=32, warmup_steps=1, eval_users=10, eval_beams=4, save_every=0, max_items=6
        ),
        baselines=(),
        **more,
    )


def finished(folder, kind, **more):
    for each in tiny_text_model(kind):
        each.save_pretrained(folder / "base")
    shutil.copy(workbench.find("prompts/sequential.jinja"), folder / "mine.jinja")
    tasks = (replace(MIXTURE.tasks[0], template=folder / "mine.jinja"), *MIXTURE.tasks[1:])
    recipe, run = recipe_of(folder / "base", replace(MIXTURE, tasks=tasks), **more), folder / "run"
    runner.run(run, stages(recipe, run), lambda *_: None)
    return recipe, run


@pytest.fixture(scope="module")
def decoder_run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("decoder"), "qwen3", lora=LoraSettings(r=2))


def same_prompts(recipe, run):
    """Every fifth training step: the ids of its prompt in training, and those that the bundle asks with."""
    made = model_stages.started(run, recipe)
    encoder, task = task_encoder(made.model, made.data, made.tasks), load_task("sequential", run.parent / "mine.jinja")
    with_users = recipe.knows_users
    data = TaskData(made.tasks.catalog, made.data.histories, max_items=6, with_users=with_users)
    serving = load_bundle(run, user_ids=made.data.user_ids).recommender
    rows = [data.row("steps", place) for place in range(0, data.n_rows("steps"), 5)]
    examples = [task.template.render(task.draw(data, row, np.random.default_rng(0)), 1) for row in rows]
    users = [row.user for row in rows] if with_users else None
    found = [ids for _, part in serving._batches(Histories.from_lists([r.history for r in rows]), users) for ids in
             (part.tokens_BT[n][part.mask_BT[n]].tolist() for n in range(len(part.tokens_BT)))]  # fmt: skip
    assert len(found) == len(rows) > 20
    return sorted(list(encoder(example).prompt) for example in examples), sorted(found)


def test_served_prompts_are_those_of_training(decoder_run):
    recipe, run = decoder_run
    wanted, found = same_prompts(recipe, run)
    assert found == wanted
    text = load_bundle(run).vocabulary.decode(found[0])
    assert "## Task" in text and "Somebody had" in text, text  # the wrapper, and the wording that was asked for
    assert artifacts.read(run / "bundle").schema == 2


@pytest.mark.slow
@pytest.mark.parametrize("users", [{"n_user_tokens": 3}, {"users": UserSettings(tokenizer=OF_USERS)}])
def test_served_prompts_of_an_encoder_with_user_tokens(tmp_path, users):
    wanted, found = same_prompts(*finished(tmp_path, "t5", **users, token_init="text"))
    assert found == wanted


def test_recommend_and_export_know_such_bundles(decoder_run, tmp_path):
    _, run = decoder_run
    first = load_bundle(run).catalog.ids[0]
    said = CliRunner().invoke(app, ["recommend", str(run), "--history", first, "--top-k", "3", "--json"])
    assert said.exit_code == 0 and len(json.loads(said.stdout)["items"]) == 3, said.output
    said = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "plain"), "--merge"])
    assert said.exit_code == 0, said.output


def statuses(recipe, run):
    return {each.stage.name: each.status for each in runner.plan(run, stages(recipe, run))}


def test_a_changed_template_trains_again_and_a_lost_one_does_not(decoder_run, tmp_path, caplog):
    recipe, run = decoder_run
    assert set(statuses(recipe, run).values()) == {"done"}
    mine = run.parent / "mine.jinja"
    before = mine.read_text()
    try:
        mine.write_text(before.replace("Which item comes next?", "What comes next?"))
        found = statuses(recipe, run)
        assert found["tokenize"] == "done" and found["train"] == "changed" and found["evaluate"] == "changed"
        assert not model_stages.trained(run, recipe)
        mine.unlink()
        assert set(statuses(recipe, run).values()) == {"done"}
        assert "going on with what was read before" in caplog.text
    finally:
        mine.write_text(before)
    assert statuses(replace(recipe, alignment=MIXTURE), run)["train"] == "changed"


def test_damaged_prompts_are_named(decoder_run, tmp_path):
    from genrec.models.template_prompts import TemplatePrompts

    bundle = load_bundle(decoder_run[1])
    bundle.recommender.prompts.save(tmp_path)
    (tmp_path / "prompt.json").write_text('{"wording": 0}')
    with pytest.raises(ArtifactError, match=r"prompt\.json"):
        TemplatePrompts.load(tmp_path, bundle.vocabulary, bundle.recommender.codes, layout="decoder")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": DecoderSettings()}, "alignment: expected a model of kind pretrained"),
        ({"train": TrainSettings(max_items=5)}, r"alignment\.max_items"),
        ({"train": TrainSettings(max_items=6, prefix_drop=0.1)}, r"train\.prefix_drop"),
        ({"alignment": replace(MIXTURE, ask=AskSettings("search"))}, r"alignment\.ask\.task"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        replace(recipe_of("x"), **change)


def check(recipe, folder):
    """What is said before anything runs."""
    (stage,) = [each for each in stages(recipe, folder / "run") if each.name == "train"]
    stage.check()


def test_what_is_missing_is_said_before_anything_runs(tmp_path, monkeypatch):
    base = tmp_path / "models" / "here"
    for each in tiny_text_model("qwen3"):
        each.save_pretrained(base)
    check(recipe_of(base), tmp_path)
    check(recipe_of("some/model-of-the-hub"), tmp_path)  # nothing is looked up there
    with pytest.raises(ArtifactError, match="no folder") as caught:
        check(recipe_of(tmp_path / "models" / "hree"), tmp_path)
    assert "here" in caught.value.hint
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        check(recipe_of(tmp_path / "models"), tmp_path)
    for changed, said in (
        ({"ask": AskSettings(wording=9)}, r"wording: expected 0\.\.5"),
        ({"wrapper": "chat"}, "no chat template"),
        ({"wrapper": "nowhere.jinja"}, "nowhere"),
        ({"queries": tmp_path / "none.jsonl"}, "queries: no file"),
        ({"tasks": (MixedTask("sequential", template=tmp_path / "gone.jinja"),)}, "gone"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(recipe_of(base, replace(MIXTURE, **changed)), tmp_path)
    with pytest.raises(ConfigError, match="report_to: expected names"):
        check(replace(recipe_of(base), train=TrainSettings(max_items=6, report_to=("wandbb",))), tmp_path)
    if find_spec("bitsandbytes") is None:
        few = PretrainedSettings(str(base), weights="4bit")
        with pytest.raises(MissingExtra, match="bitsandbytes"):
            check(replace(recipe_of(base), model=few, lora=LoraSettings()), tmp_path)
    packing = TrainSettings(max_items=6, packing=True)
    check(replace(recipe_of(base), train=packing), tmp_path)
    for each in tiny_text_model("t5"):
        each.save_pretrained(tmp_path / "t5")
    for model in (PretrainedSettings(str(tmp_path / "t5")), T5Settings()):
        with pytest.raises(ConfigError, match="packing: an encoder-decoder"):
            check(replace(recipe_of(base), model=model, train=packing, alignment=None), tmp_path)
    monkeypatch.setattr(alignment, "load_tokenizer", lambda path: SimpleNamespace(is_fast=False))
    with pytest.raises(ConfigError, match="fast Hugging Face tokenizer"):
        check(recipe_of(base), tmp_path)
    monkeypatch.setattr(alignment, "load_tokenizer", text_vocabulary.load_tokenizer)
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a loadable Hugging Face tokenizer"):
        check(recipe_of(base), tmp_path)


def test_a_recipe_file(tmp_path):
    (tmp_path / "p.yaml").write_text(
        """
data: {synthetic: {n_items: 200}}
model: {kind: pretrained, path: some/model}
lora: {r: 8}
alignment:
  tasks: [{task: sequential}, {task: fused, share: 0.25}]
  ask: {task: sequential, wording: 2}
  wrapper: instruction
"""
    )
    resolved = load_recipe(tmp_path / "p.yaml")
    found = resolved.value
    (rate,) = [row for row in described(resolved) if row.path == "train.learning_rate"]
    assert found.train.learning_rate == rate.value == 3e-4 and rate.origin == "derived"
    for changes, expected in (
        (["lora=null"], 1e-4),
        (["train.learning_rate=2e-3"], 2e-3),
        (["model={kind: t5}"], 2e-3),
    ):
        more = ["lora=null", "alignment=null"] if "t5" in changes[0] else []
        assert load_recipe(tmp_path / "p.yaml", [*changes, *more]).value.train.learning_rate == expected
    assert found.alignment.ask == AskSettings("sequential", 2) and found.alignment.tasks[1].share == 0.25
    assert [s.name for s in stages_until(stages(found, tmp_path / "run"), "train")] == [
        "prepare", "split", "embed", "tokenize", "train"
    ]  # fmt: skip
