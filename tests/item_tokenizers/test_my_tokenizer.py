"""The worked custom tokenizer of the workbench keeps the promises of every item tokenizer."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from genrec import artifacts, workbench
from genrec.data.synthetic import tiny
from genrec.embeddings.text import LsaSettings
from genrec.errors import ConfigError
from genrec.models.backbone import DecoderSettings
from genrec.pipeline import runner
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe
from genrec.pipeline.stages import stages, stages_until
from genrec.testing.tokenizer_contract import TokenizerContract, planted_source
from genrec.training.settings import TrainSettings

FOLDER = Path(workbench.find("tokenizers/my_tokenizer.py")).parent


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    sys.modules.pop("my_tokenizer", None)


def module():
    return importlib.import_module("my_tokenizer")


class TestSimHash(TokenizerContract):
    def make(self):
        return module().SimHash(module().SimHashSettings(n_levels=2, bits=3))


def test_codes_are_the_sides_of_the_hyperplanes():
    source, tokenizer = planted_source(), module().SimHash(module().SimHashSettings(n_levels=2, bits=3))
    tokenizer.fit(source, seed=1)
    x = source.vectors()
    codes = tokenizer.encode(source).as_int()
    planes, mean = tokenizer._arrays["planes"], tokenizer._arrays["mean"]
    for n in range(0, len(x), 11):
        for level in range(2):
            bits = [float((x[n] - mean) @ planes[:, 3 * level + b]) > 0 for b in range(3)]
            assert codes[n, level] == sum(2**b for b, bit in enumerate(bits) if bit)
    assert np.unique(codes, axis=0).shape[0] > 4


def test_reassignment_is_refused():
    with pytest.raises(ConfigError, match="reassign"):
        module().SimHashSettings(collisions="reassign")


def test_a_pipeline_trains_on_it(tmp_path: Path) -> None:
    recipe = PipelineRecipe(
        data=DataSettings(synthetic=tiny()),
        embeddings=(Block(lsa=LsaSettings(dim=8)),),
        tokenizer={"kind": "my_tokenizer:SimHash", "n_levels": 2, "bits": 3},
        model=DecoderSettings(hidden_size=16, n_layers=1, n_heads=2, d_ff=32, dropout=0.0),
        train=TrainSettings(epochs=1, max_steps=2, batch_size=32, eval_every=0),
        baselines=("popularity",),
    )
    runner.run(tmp_path / "run", stages_until(stages(recipe, tmp_path / "run"), "evaluate"), lambda *_: None)
    assert artifacts.exists(tmp_path / "run" / "eval" / "decoder")
