"""The whole path over a pretrained model: train, evaluate, recommend, export."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from genrec import artifacts
from genrec.cli.main import app
from genrec.data.synthetic import tiny
from genrec.embeddings.text import LsaSettings
from genrec.errors import ConfigError
from genrec.models.adapters import LoraSettings
from genrec.models.backbone import DecoderSettings
from genrec.models.bundle import load_bundle
from genrec.models.pretrained import PretrainedSettings, hub_commit, pretrained_files
from genrec.pipeline import alignment, model_stages, parallel_stages, runner
from genrec.pipeline.parallel_stages import ParallelRecipe
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe
from genrec.pipeline.stages import stages
from genrec.testing.text_models import tiny_text_model
from genrec.training.settings import TrainSettings

RECIPE = PipelineRecipe(
    data=DataSettings(synthetic=tiny()),
    embeddings=(Block(lsa=LsaSettings(dim=8)),),
    tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 8, "collisions": "reassign"},
    train=TrainSettings(epochs=2, batch_size=32, warmup_steps=2, eval_every=1, eval_users=20, save_every=0),
    baselines=("popularity",),
)


@pytest.mark.parametrize(
    ("kind", "lora", "more"),
    [
        ("qwen3", LoraSettings(r=2), {}),
        ("t5", LoraSettings(r=2, target_modules="all-linear"), {"token_init": "text", "n_user_tokens": 3}),
        ("qwen2", None, {"token_init": "random"}),
    ],
)
def test_the_whole_path(tmp_path, kind, lora, more):
    for each in tiny_text_model(kind):
        each.save_pretrained(tmp_path / "base")
    recipe = replace(RECIPE, model=PretrainedSettings(str(tmp_path / "base")), lora=lora, **more)
    run = tmp_path / "run"
    runner.run(run, stages(recipe, run), lambda *_: None)
    assert [each.status for each in runner.plan(run, stages(recipe, run))] == ["done"] * len(stages(recipe, run))
    assert artifacts.exists(run / "eval" / "pretrained")
    assert (run / "bundle" / "model" / "adapter").exists() == (lora is not None)
    bundle = load_bundle(run)
    first = bundle.catalog.ids[0]
    command = ["recommend", str(run), "--history", first, "--top-k", "3", "--json"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0 and len(json.loads(said.stdout)["items"]) == 3, said.output
    said = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "plain"), "--merge"])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "plain" / "model.safetensors").exists()


def test_recipes_that_say_what_has_no_effect_are_refused(tmp_path):
    for change in (
        {"lora": LoraSettings()},
        {"lora": LoraSettings(), "model": PretrainedSettings("x", random_weights=True)},
        {"token_init": "text", "model": DecoderSettings()},
        {"model": PretrainedSettings("x", weights="8bit")},
        {"train": replace(RECIPE.train, rows_first=5)},
        {"train": replace(RECIPE.train, rows_first=5), "lora": LoraSettings(r=0)},
    ):
        with pytest.raises(ConfigError, match=r"pretrained|trained whole|rows_first"):
            replace(RECIPE, **change)


def test_another_base_of_the_same_shapes_is_another_training(tmp_path, monkeypatch):
    """Its files have the same names and sizes."""
    found = []
    monkeypatch.setattr(model_stages.artifacts, "read", lambda *_, **__: SimpleNamespace(digest="of data"))
    for seed in (0, 0, 1):
        for each in tiny_text_model("qwen3", seed=seed):
            each.save_pretrained(tmp_path / "base")
        recipe = replace(RECIPE, model=PretrainedSettings(str(tmp_path / "base")))
        sizes = pretrained_files(recipe.model)
        found.append((model_stages.training_key(tmp_path, recipe), alignment.files_read(recipe), sizes))
    one, same, other = found
    assert one == same and one[2] == other[2]
    assert one[0] != other[0] and one[1] != other[1]
    # the same model in another place, with files beside it that nothing reads
    shutil.copytree(tmp_path / "base", tmp_path / "moved")
    for name in ("README.md", ".gitattributes", "pytorch_model.bin", "model.onnx"):
        (tmp_path / "moved" / name).write_text("other")
    moved = replace(RECIPE, model=PretrainedSettings(str(tmp_path / "moved")))
    assert model_stages.training_key(tmp_path, moved) == other[0] and alignment.files_read(moved) == other[1]
    parallel = [
        ParallelRecipe(
            "rpg",
            {"kind": "product"},
            model=PretrainedSettings(str(tmp_path / name)),
            lora=LoraSettings(train_rows=False),
        )
        for name in ("base", "moved")
    ]
    keys = {parallel_stages._key(tmp_path, each, "model", "lora", "train") for each in parallel}
    assert len(keys) == 1
    assert hub_commit(PretrainedSettings("a/b/c")) == {}  # a folder that is gone, no name of a hub
