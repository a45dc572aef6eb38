"""Errors of genrec: what was expected, what was found and where, and what to do (as a note).

Every error derives from :class:`GenrecError` and from the builtin a caller would expect.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class GenrecError(Exception):
    """Base of all errors raised on purpose by genrec.

    ``hint`` says what to do about it; it is attached as an exception note, so tracebacks show it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")


class ConfigError(GenrecError, ValueError):
    """A recipe, an option or an argument is wrong."""


class DataError(GenrecError, ValueError):
    """Input data is malformed: the message names file, line (or row) and field."""


class NotFitted(GenrecError, RuntimeError):
    """A component was used before ``fit``."""


class ArtifactError(GenrecError, OSError):
    """An artifact folder is missing, incomplete, damaged or of another kind or schema."""


class FingerprintMismatch(ArtifactError):
    """Two artifacts derive from different catalogs or vocabularies."""


class TrainingPaused(GenrecError):
    """Training stopped before its end, with a checkpoint: by a signal, or at a limit of time."""


class MissingExtra(GenrecError, ImportError):
    """An optional dependency is not installed; the hint names the extra."""


def require(module: str, extra: str) -> Any:
    """Import ``module``, or raise :class:`MissingExtra` naming the extra that brings it."""
    try:
        found: ModuleType = importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs the package {module!r}, which is not installed ({error})",
            hint=f"pip install 'genrec[{extra}]'",
        ) from error
    return found


def imported(target: str, option: str) -> Any:
    """What ``module:name`` names (internal). Raises ConfigError, naming the option, where it cannot be imported."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{option}: cannot import {target!r} ({error})", hint="is its folder on the Python path?"
        ) from error
