"""The pip command lines of `make install`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / ".ci" / "install.py").exists(), reason="needs a source checkout")


def load():
    spec = importlib.util.spec_from_file_location("genrec_install", ROOT / ".ci" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(**kwargs) -> list[str]:
    return [" ".join(line) for line in load().commands(Path("/env"), "plots", **kwargs)]


def test_without_a_wheel_source_pip_decides() -> None:
    found = lines(gpu=False, cpu_wheels=None)
    assert len(found) == 2
    assert found[0].endswith("-m venv /env")
    assert found[1] == f"/env/bin/python -m pip install --quiet -c {ROOT}/constraints.txt -e {ROOT}[plots]"


def test_an_index_url_is_used_for_torch_only() -> None:
    found = lines(gpu=False, cpu_wheels="https://example.org/whl/cpu")
    assert found[1].endswith("--no-deps torch==2.13.0 --index-url https://example.org/whl/cpu")
    assert "example.org" not in found[2]


def test_a_folder_is_used_for_torch_only() -> None:
    found = lines(gpu=False, cpu_wheels="/wheels")
    assert found[1].endswith("--no-deps torch==2.13.0 --find-links /wheels")
    assert "/wheels" not in found[2]


def test_a_gpu_wants_the_default_wheel() -> None:
    assert lines(gpu=True, cpu_wheels="/wheels") == lines(gpu=True, cpu_wheels=None)


def test_print_shows_the_commands_and_runs_none(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, ROOT / ".ci" / "install.py", "--venv", tmp_path / "venv", "--print"],
        capture_output=True, text=True, check=True, env={**os.environ, "GENREC_TORCH_CPU": "/wheels"},
    )  # fmt: skip
    assert "pip install" in shown.stdout
    assert not (tmp_path / "venv").exists()


def test_the_stamp_follows_the_extras() -> None:
    module = load()
    assert module.stamp_of("plots") != module.stamp_of("plots,dev")
