"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import genrec

FOLDER = Path(genrec.__file__).parent
WITH_EXAMPLES = sorted(file for file in FOLDER.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: file.relative_to(FOLDER).as_posix())
def test_docstring_examples(file: Path) -> None:
    name = ".".join(("genrec", *file.relative_to(FOLDER).with_suffix("").parts)).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0 and found.failed == 0
