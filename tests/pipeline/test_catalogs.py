"""Two catalogs of one size in one run folder: refused by every stage that would mix them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from genrec import artifacts
from genrec.baselines.sasrec import SasRecSettings
from genrec.data.synthetic import tiny
from genrec.embeddings.text import LsaSettings
from genrec.errors import FingerprintMismatch
from genrec.models.backbone import DecoderSettings
from genrec.pipeline import baseline_stages, data_stages, model_stages
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe
from genrec.training.settings import TrainSettings

MIXED = PipelineRecipe(
    data=DataSettings(synthetic=tiny()),
    embeddings=(Block(lsa=LsaSettings(dim=8)),),
    tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 8, "collisions": "reassign"},
    n_user_tokens=3,
    model=DecoderSettings(hidden_size=16, n_layers=1, n_heads=2, d_ff=32, dropout=0.0),
    train=TrainSettings(epochs=2, batch_size=32, warmup_steps=2, eval_every=0, max_steps=1),
    baselines=("content_knn",),
    sasrec=SasRecSettings(dim=8, epochs=1),
)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Finished runs on two catalogs of the same size; what is tiny in one fits the arrays of the other."""
    folders = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for seed, folder in enumerate(folders):
        recipe = replace(MIXED, data=DataSettings(synthetic=tiny(seed)))
        for stage in (
            data_stages.prepare,
            data_stages.split,
            baseline_stages.fit_sasrec,
            data_stages.embed,
            data_stages.content,
        ):
            stage(folder, recipe)
        data_stages.tokenize(folder, recipe)
        model_stages.train(folder, recipe)
    return folders


def retrain(folder: Path, recipe: PipelineRecipe) -> None:
    model_stages.train(folder, replace(recipe, train=replace(recipe.train, epochs=3)))


def measured(name: str):
    return lambda folder, recipe: baseline_stages.evaluate_baseline(folder, recipe, name)


@pytest.mark.parametrize(
    ("artifact", "stage"),
    [
        ("split", retrain),
        ("codes", retrain),
        ("index", retrain),
        ("catalog", retrain),
        ("interactions", retrain),
        ("split", model_stages.evaluate_model),
        ("bundle", model_stages.evaluate_model),
        ("interactions", model_stages.evaluate_model),
        ("sasrec", measured("sasrec")),
        ("text_embeddings", measured("content_knn")),
        ("text_embeddings", measured("content_knn_unseen")),
        ("catalog", measured("item_knn_larger_id")),
        ("catalog", measured("oracle")),
        ("split", measured("sasrec")),
    ],
)
def test_an_artifact_of_another_catalog_is_refused(artifact: str, stage, two_runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    shutil.rmtree(run / artifact)
    shutil.copytree(two_runs[1] / artifact, run / artifact)
    checkpoints = sorted((run / "checkpoints").iterdir())
    with pytest.raises(FingerprintMismatch, match="belong") as error:
        stage(run, MIXED)
    assert error.value.hint
    assert sorted((run / "checkpoints").iterdir()) == checkpoints  # said before any training


def test_identifiers_of_another_catalog_are_refused_where_there_is_no_catalog(two_runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for source, names in zip(two_runs, (("split", "interactions"), ("codes", "index")), strict=True):
        for name in names:
            shutil.copytree(source / name, run / name)
    with pytest.raises(FingerprintMismatch, match="codes belong to catalog"):
        model_stages.train(run, MIXED)


def test_a_run_is_evaluated_at_any_list_lengths(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    recipe = replace(MIXED, evaluate=replace(MIXED.evaluate, ks=(1, 5), n_bootstrap=0))
    baseline_stages.evaluate_baseline(run, recipe, "popularity")
    model_stages.evaluate_model(run, recipe)
    assert artifacts.exists(run / "eval" / "popularity") and artifacts.exists(run / "eval" / "decoder")
