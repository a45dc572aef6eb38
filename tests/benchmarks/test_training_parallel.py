"""benchmarks/training_parallel.py on a tiny prepared run: the recipes fit, and a figure comes out."""

import sys
from pathlib import Path

import pytest

from genrec import artifacts
from genrec.data.splits import leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.embeddings.text import LsaSettings, lsa
from genrec.recipes import load

SMALL = {
    "setrec": ("collaborative_dim=8", "tokenizer.epochs=1", "tokenizer.dim=8", "tokenizer.hidden=[8]"),
    "recgpt": ("tokenizer.epochs=1", "tokenizer.levels=[4, 4]"),
    "rpg": ("tokenizer.level_size=8", "tokenizer.n_levels=4"),
}


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import training_parallel

    yield training_parallel
    sys.modules.pop("training_parallel", None)


def test_small_form(suite, tmp_path):
    shop = make(tiny())
    shop.catalog.save(tmp_path / "catalog")
    leave_one_out(shop.interactions).save(tmp_path / "split")
    lsa(shop.catalog, LsaSettings(dim=16)).save(tmp_path / "embeddings")
    recipe = {
        "data": {"synthetic": {}},
        "model": {"kind": "decoder", "hidden_size": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
        "train": {"epochs": 1, "batch_size": 80, "warmup_steps": 0, "eval_every": 0, "eval_users": 20},
        "evaluate": {"n_bootstrap": 10},
    }
    artifacts.save_json(tmp_path / "recipe.json", recipe)
    names = [figure.name for figure in suite.FIGURES]
    kinds = ("setrec", "fsq", "product", "sequential")
    assert names.pop() == "recgpt_zero_shot_office_recall10"
    assert names == [f"{kind}_{end}" for end in ("beauty_neutral_recall10", "games_warm_recall10") for kind in kinds]
    for method, changes in SMALL.items():
        found = suite.measured(tmp_path, tmp_path / method, suite.recipe_of(method, tmp_path, changes))
        assert 0 <= found.value <= 1 and method in found.note and "1 epochs" in found.budget


def test_small_form_elsewhere(suite, tmp_path):
    for seed, name in enumerate(("one", "other")):
        shop, run = make(tiny(seed=seed)), tmp_path / name
        shop.catalog.save(run / "catalog")
        leave_one_out(shop.interactions).save(run / "split")
        lsa(shop.catalog, LsaSettings(dim=16)).save(run / "embeddings")
    changes = [
        *SMALL["recgpt"],
        "train.max_steps=2",
        "train.warmup_steps=1",
        "train.epochs=1",
        "evaluate.n_bootstrap=0",
    ]
    changes += ["model.hidden_size=16", "model.n_layers=1", "model.n_heads=2"]
    recipe = load(suite.ROOT / "train" / "parallel" / "recgpt.yaml", suite.ParallelRecipe, changes).value
    found = suite.elsewhere(tmp_path / "one", tmp_path / "other", recipe)
    assert set(found.spread) == {"zero_shot", "trained_there", "popularity", "content_knn"}
    assert found.value == found.spread["zero_shot"]["recall@10"] <= 1
