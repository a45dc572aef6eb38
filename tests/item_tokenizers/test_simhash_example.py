"""The worked custom tokenizer of the workbench keeps the promises of every item tokenizer."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from genrec import workbench
from genrec.errors import ConfigError
from genrec.testing.tokenizer_contract import TokenizerContract, planted_source

FOLDER = Path(workbench.find("tokenizers/simhash.py")).parent


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    sys.modules.pop("simhash", None)


def module():
    return importlib.import_module("simhash")


class TestSimHash(TokenizerContract):
    def make(self):
        return module().SimHash(module().SimHashSettings(n_levels=2, bits=3))


def test_codes_are_the_sides_of_the_hyperplanes():
    source, tokenizer = planted_source(), module().SimHash(module().SimHashSettings(n_levels=2, bits=3))
    tokenizer.fit(source, seed=1)
    x = source.vectors()
    codes = tokenizer.encode(x).as_int()
    planes, mean = tokenizer._arrays["planes"], tokenizer._arrays["mean"]
    for n in range(0, len(x), 11):
        for level in range(2):
            bits = [float((x[n] - mean) @ planes[:, 3 * level + b]) > 0 for b in range(3)]
            assert codes[n, level] == sum(2**b for b, bit in enumerate(bits) if bit)
    assert np.unique(codes, axis=0).shape[0] > 4


def test_reassignment_is_refused():
    with pytest.raises(ConfigError, match="reassign"):
        module().SimHashSettings(collisions="reassign")
