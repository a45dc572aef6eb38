"""The distribution: what the wheel holds, what importing costs, what the public names are."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import genrec

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs a source checkout")
def test_the_wheel_has_the_library_the_workbench_and_nothing_else(tmp_path: Path) -> None:
    wheel_module = pytest.importorskip("hatchling.builders.wheel")
    wheel = next(iter(wheel_module.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "genrec/py.typed",
        "genrec/cli/main.py",
        "genrec/_workbench/train/finetune.py",
        "genrec/_workbench/train/pipelines/demo.yaml",
        "genrec/_workbench/tokenizers/rqkmeans.yaml",
        "genrec/_workbench/prompts/README.md",
        "genrec/_workbench/prompts/sequential.jinja",
        "genrec/_workbench/prompts/wrappers/plain.jinja",
        "genrec/_workbench/serve/README.md",
    ):
        assert expected in names
    top = {name.split("/")[0] for name in names}
    assert top == {"genrec", f"genrec-{genrec.__version__}.dist-info"}
    assert not [n for n in names if n.startswith("genrec/_workbench") and n.endswith("__init__.py")]
    assert not [n for n in names if "__pycache__" in n]


def test_import_is_light() -> None:
    heavy = ["torch", "transformers", "numpy", "scipy", "sklearn", "pyarrow", "pydantic"]
    code = f"import sys, genrec; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in dir(genrec):
        assert getattr(genrec, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = genrec.nothing_like_this
