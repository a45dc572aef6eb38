"""Which class an item tokenizer's ``kind`` means.

Built-in kinds have short names; a third-party one is named by its import path, ``"my_module:MyTokenizer"``.
The class is imported when it is asked for: nothing registers itself at import time.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.errors import ConfigError
from genrec.item_tokenizers.base import KIND, ItemTokenizer

KINDS: dict[str, str] = {
    "rqkmeans": "genrec.item_tokenizers.rqkmeans:RqKMeans",
    "rqvae": "genrec.item_tokenizers.rqvae:RqVae",
    "fsq": "genrec.item_tokenizers.fsq:Fsq",
    "product": "genrec.item_tokenizers.product:Product",
}


def tokenizer_class(kind: str) -> type[ItemTokenizer]:
    """The class for ``kind``; raises ConfigError, with the nearest name, when there is none (stable)."""
    target = KINDS.get(kind, kind)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        near = get_close_matches(kind, KINDS, n=1)
        raise ConfigError(
            f"kind: expected one of {', '.join(sorted(KINDS))} or 'module:Class', got {kind!r}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"kind: cannot import {target!r} ({error})", hint="is its folder on the Python path?"
        ) from error
    missing = [name for name in ("Settings", "fit", "encode", "save", "load") if not hasattr(found, name)]
    if missing:
        raise ConfigError(f"kind: {target!r} is no item tokenizer: it has no {', '.join(missing)}")
    return found  # type: ignore[no-any-return]


def settings_class(kind: str) -> type[Any]:
    """The settings dataclass for ``kind``: what its recipe is validated against (stable)."""
    return tokenizer_class(kind).Settings


def build(settings: Any) -> ItemTokenizer:
    """An unfitted item tokenizer for ``settings`` (stable)."""
    make: Any = tokenizer_class(settings.kind)
    tokenizer: ItemTokenizer = make(settings)
    return tokenizer


def load_tokenizer(path: str | Path, *, catalog: str | None = None) -> ItemTokenizer:
    """Read an ``item_tokenizer`` artifact of whatever kind it is (a third-party kind imports its module) (stable)."""
    manifest = artifacts.read(Path(path), kind=KIND)
    return tokenizer_class(str(manifest.recipe.get("kind"))).load(path, catalog=catalog)
