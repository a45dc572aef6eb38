"""The workbench: the recipes, templates and scripts that a user copies, edits and runs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from difflib import get_close_matches
from pathlib import Path

from genrec.errors import ConfigError

FOLDERS = ("tokenizers", "prompts", "train", "serve")
_SKIPPED = ("__pycache__", ".gitkeep")
_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """Folder that holds the four workbench folders: inside the package, or above it in a development install.

    Raises ConfigError when neither is there.
    """
    for folder in (_PACKAGE / "_workbench", _PACKAGE.parent):
        if all((folder / name).is_dir() for name in FOLDERS):
            return folder
    raise ConfigError(f"no workbench in {_PACKAGE / '_workbench'} or {_PACKAGE.parent}", hint="reinstall genrec")


def files(folder: Path | None = None) -> list[str]:
    """Relative paths, with forward slashes, of all files of the workbench, sorted."""
    base = root() if folder is None else folder
    found = []
    for name in FOLDERS:
        for file in (base / name).rglob("*"):
            relative = file.relative_to(base)
            if file.is_file() and not any(part in _SKIPPED for part in relative.parts):
                found.append(relative.as_posix())
    return sorted(found)


def find(name: str) -> Path:
    """The file called ``name`` (``"tokenizers/rqkmeans.yaml"``). Raises ConfigError naming near ones."""
    known = files()
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        raise ConfigError(
            f"the workbench has no file {name!r}", hint=f"did you mean {', '.join(near)}?" if near else None
        )
    return root() / name


def copy(folder: str | Path) -> list[Path]:
    """Copy the workbench into ``folder`` and return the new files.

    Nothing is ever overwritten: raises ConfigError if one of the folders exists already.
    """
    target, source = Path(folder), root()
    if os.path.lexists(target) and not target.is_dir():
        raise ConfigError(f"{target} is not a folder")
    for name in FOLDERS:
        if os.path.lexists(target / name):
            raise ConfigError(f"{target / name} exists already", hint="give an empty or a new folder")
    written = []
    for name in files():
        new = target / name
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, new)
        written.append(new)
    return written


def problems(folder: Path | None = None) -> list[str]:
    """What would hide an installed module from a script of the workbench; empty when all is well.

    Python puts a script's own folder first on the path, and packages of the current folder before installed
    ones: ``train/datasets.py`` or ``tokenizers/__init__.py`` break every script that imports those libraries.
    """
    base = root() if folder is None else folder
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    found = []
    for name in FOLDERS:
        for file in (base / name).rglob("*.py"):
            relative = file.relative_to(base).as_posix()
            if file.name == "__init__.py":
                found.append(f"{relative}: the workbench holds no packages")
            elif file.stem in installed - {"genrec", *FOLDERS}:
                found.append(f"{relative}: hides the module {file.stem!r}")
        for child in (base / name).rglob("*"):
            if child.is_dir() and child.name in installed:
                found.append(f"{child.relative_to(base).as_posix()}/: hides the module {child.name!r}")
    return sorted(found)
