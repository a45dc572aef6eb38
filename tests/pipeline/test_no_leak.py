"""Nothing of the valid and test parts reaches what is trained: two splits that differ in these parts only.

Every stage that learns writes the same for both. Early stopping may look at the valid part, and at nothing else.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genrec import artifacts
from genrec.baselines.sasrec import SasRecSettings
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.data.synthetic import tiny
from genrec.embeddings.aligned import AlignSettings
from genrec.embeddings.collaborative import PpmiSettings, SvdSettings
from genrec.embeddings.famae import FamaeSettings
from genrec.embeddings.graph import GraphSettings
from genrec.embeddings.text import LsaSettings
from genrec.models.backbone import DecoderSettings, T5Settings
from genrec.pipeline import baseline_stages, data_stages, model_stages
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe
from genrec.training.settings import TrainSettings

TEXT = Block(lsa=LsaSettings(dim=8))
RECIPE = PipelineRecipe(
    data=DataSettings(synthetic=tiny()),
    embeddings=(TEXT, Block(ppmi=PpmiSettings(dim=4))),
    tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 8, "collisions": "reassign"},
    model=DecoderSettings(hidden_size=16, n_layers=1, n_heads=2, d_ff=32, dropout=0.0),
    train=TrainSettings(epochs=1, batch_size=32, warmup_steps=2, eval_every=0, save_every=0),
    sasrec=SasRecSettings(dim=8, n_layers=1, n_heads=1, epochs=1, batch_size=32, warmup_steps=2, patience=0),
)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two run folders after the stage "split"; in the second every valid and test item is another one."""
    folders = [tmp_path / "run", tmp_path / "other"]
    data_stages.prepare(folders[0], RECIPE)
    data_stages.split(folders[0], RECIPE)
    shutil.copytree(folders[0], folders[1])
    cut = Split.load(folders[0] / "split")
    later = cut.parts() != 0
    items = np.where(later, (cut.items + 1) % cut.n_items, cut.items).astype(np.int32)
    assert later.any() and not later.all()
    replace(cut, items=items).save(folders[1] / "split", overwrite=True)
    return folders


def files_of(artifact: Path) -> dict[str, str]:
    """Digest of every file of an artifact; manifests name what they were made from, so they may differ."""
    return {name: entry["sha256"] for name, entry in artifacts.read(artifact).files.items()}


@pytest.mark.parametrize(
    "blocks",
    [
        (TEXT,),
        (Block(ppmi=PpmiSettings(dim=4)),),
        (Block(svd=SvdSettings(dim=4)),),
        (Block(famae=FamaeSettings(dim=4, epochs=1)),),
        (replace(TEXT, align=AlignSettings(epochs=1)),),
        (replace(TEXT, neighbours=2),),
        (replace(TEXT, graph=GraphSettings(dim=4, inner=8, epochs=1)),),
    ],
    ids=["text", "ppmi", "svd", "famae", "align", "neighbours", "graph"],
)
def test_item_vectors(pair: list[Path], blocks: tuple[Block, ...]) -> None:
    for folder in pair:
        data_stages.embed(folder, replace(RECIPE, embeddings=blocks))
    assert files_of(pair[0] / "embeddings") == files_of(pair[1] / "embeddings")


@pytest.mark.parametrize("kind", ["rqkmeans", "spectral", "sequential", "colarec"])
def test_identifiers(pair: list[Path], kind: str) -> None:
    tokenizer = RECIPE.tokenizer if kind == "rqkmeans" else {"kind": kind}
    recipe = replace(RECIPE, tokenizer=tokenizer, collaborative=Block(ppmi=PpmiSettings(dim=4)))
    for folder in pair:
        for stage in (data_stages.embed, data_stages.collaborative, data_stages.tokenize):
            stage(folder, recipe)
    for name in ("collaborative", "item_tokenizer", "codes"):
        assert files_of(pair[0] / name) == files_of(pair[1] / name), name


@pytest.mark.parametrize("model", [RECIPE.model, T5Settings(d_model=16, d_kv=8, d_ff=32, n_layers=1, n_heads=2)])
def test_the_model(pair: list[Path], model: DecoderSettings | T5Settings) -> None:
    for folder in pair:
        data_stages.embed(folder, RECIPE)
        data_stages.tokenize(folder, RECIPE)
        model_stages.train(folder, replace(RECIPE, model=model))
    first, second = (
        {name: digest for name, digest in files_of(folder / "bundle").items() if name.endswith(".safetensors")}
        for folder in pair
    )
    assert first == second and any("model" in name for name in first)


@pytest.mark.parametrize(
    "name", ["popularity", "markov", "item_knn", "item_knn_larger_id", "content_knn", "content_knn_unseen", "sasrec"]
)
def test_baselines(pair: list[Path], name: str) -> None:
    """The same scores for the same histories."""
    histories = Split.load(pair[0] / "split").train()
    scores = []
    for folder in pair:
        data_stages.content(folder, RECIPE)
        if name == "sasrec":
            baseline_stages.fit_sasrec(folder, RECIPE)
        fitted = baseline_stages.baseline(name, folder, Split.load(folder / "split"), RECIPE)
        scores.append(fitted.score_all(histories))
    np.testing.assert_array_equal(*scores)


def test_what_stops_a_training_early_is_the_valid_part(pair: list[Path]) -> None:
    folder = pair[0]
    data_stages.embed(folder, RECIPE)
    data_stages.tokenize(folder, RECIPE)
    cut = Split.load(folder / "split")
    asked = (model_stages._training_data(folder, RECIPE).valid, baseline_stages._sasrec_inputs(cut, RECIPE)["valid"])
    for found in asked:
        assert found is not None
        expected = cut.queries("valid")
        np.testing.assert_array_equal(found.targets.items, expected.targets.items)
        np.testing.assert_array_equal(found.histories.items, expected.histories.items)
    assert len(ItemCatalog.load(folder / "catalog")) == cut.n_items
