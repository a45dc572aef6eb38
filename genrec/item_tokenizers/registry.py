"""Which class an item tokenizer's ``kind`` means.

Built-in kinds have short names; a third-party one is named by its import path, ``"my_module:MyTokenizer"``.
The class is imported when it is asked for: nothing registers itself at import time. Most kinds give codes
(:class:`ItemTokenizer`); some give slots (:class:`SlotTokenizer`) or the tokens of whole histories
(:class:`HistorySegmenter`). :func:`build` and :func:`load_tokenizer`, behind which codes are expected, refuse those.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.errors import ConfigError
from genrec.item_tokenizers.base import KIND, ItemTokenizer, SlotTokenizer
from genrec.item_tokenizers.segmenter import HistorySegmenter

KINDS: dict[str, str] = {
    "rqkmeans": "genrec.item_tokenizers.rqkmeans:RqKMeans",
    "rqopq": "genrec.item_tokenizers.rqopq:RqOpq",
    "rqvae": "genrec.item_tokenizers.rqvae:RqVae",
    "fsq": "genrec.item_tokenizers.fsq:Fsq",
    "product": "genrec.item_tokenizers.product:Product",
    "spectral": "genrec.item_tokenizers.spectral:Spectral",
    "gaoq": "genrec.item_tokenizers.gaoq:Gaoq",
    "colarec": "genrec.item_tokenizers.colarec:ColaRec",
    "independent": "genrec.item_tokenizers.indexing:Independent",
    "random": "genrec.item_tokenizers.indexing:RandomIds",
    "sequential": "genrec.item_tokenizers.indexing:Sequential",
    "title": "genrec.item_tokenizers.text_indexing:Title",
    "category": "genrec.item_tokenizers.text_indexing:Category",
    "hybrid": "genrec.item_tokenizers.hybrid:Hybrid",
    "setrec": "genrec.item_tokenizers.sets:SetRec",
    "actionpiece": "genrec.item_tokenizers.actionpiece:ActionPiece",
}
# what a tokenizer may give, in words, and the functions that build and load such a one
_OTHERS = {
    "codes": ("codes", "build", "load_tokenizer"),
    "slots": ("sets of vectors (ItemSlots)", "build_slots", "load_slot_tokenizer"),
    "tokens": ("tokens of whole histories (TokenRows)", "build_segmenter", "load_segmenter"),
}


def tokenizer_class(kind: str) -> type[ItemTokenizer] | type[SlotTokenizer] | type[HistorySegmenter]:
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
        module = importlib.import_module(module_name)
        found = getattr(module, class_name)
    except ImportError as error:
        raise ConfigError(
            f"kind: cannot import {target!r} ({error})",
            hint=f"{module_name.partition('.')[0]}.py must lie where you run genrec, or on the Python path",
        ) from error
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}"
        raise ConfigError(f"kind: cannot import {target!r} ({place}: {error.msg})", hint="correct that file") from error
    except AttributeError as error:
        own = [v.__name__ for v in vars(module).values() if isinstance(v, type) and v.__module__ == module_name]
        found = ", ".join(f"{module_name}:{name}" for name in own if not _lacks(getattr(module, name, None)))
        raise ConfigError(
            f"kind: cannot import {target!r} (the module is there, but has no {class_name!r})",
            hint=f"item tokenizers in it: {found or 'none'}",
        ) from error
    missing = _lacks(found)
    if missing:
        raise ConfigError(f"kind: {target!r} is no item tokenizer: it has no {', '.join(missing)}")
    return found  # type: ignore[no-any-return]


def _lacks(found: Any) -> list[str]:
    """What an item tokenizer has and this lacks."""
    return [name for name in ("Settings", "fit", "encode", "save", "load") if not hasattr(found, name)]


def settings_class(kind: str) -> type[Any]:
    """The settings dataclass for ``kind``: what its recipe is validated against (stable)."""
    return tokenizer_class(kind).Settings


def gives(kind: str) -> str:
    """What ``kind`` gives: ``codes`` (an item tokenizer), ``slots`` or ``tokens`` (a segmenter) (experimental)."""
    return getattr(tokenizer_class(kind), "gives", "codes")


def gives_slots(kind: str) -> bool:
    """Whether ``kind`` gives set identifiers (:class:`ItemSlots`) and not codes (experimental)."""
    return gives(kind) == "slots"


def check_gives_codes(kind: str) -> None:
    """Raise ConfigError for a ``kind`` that gives slots or tokens: indexes and searches need codes (internal)."""
    found = gives(kind)
    if found != "codes":
        what, build_it, load_it = _OTHERS[found]
        raise ConfigError(
            f"kind: expected an item tokenizer that gives codes, got {kind!r}, which gives {what}",
            hint=("train/parallel.py trains a model on slots" if found == "slots" else "no model reads them yet")
            + f"; in Python, genrec.item_tokenizers.registry.{build_it} and {load_it} make and read such a tokenizer",
        )


def build(settings: Any) -> ItemTokenizer:
    """An unfitted item tokenizer for ``settings``; ConfigError for a kind that gives no codes (stable)."""
    check_gives_codes(settings.kind)
    make: Any = tokenizer_class(settings.kind)
    tokenizer: ItemTokenizer = make(settings)
    return tokenizer


def build_slots(settings: Any) -> SlotTokenizer:
    """An unfitted slot tokenizer for ``settings``; ConfigError for a kind that gives no slots (experimental)."""
    _check_gives(settings.kind, "slots")
    make: Any = tokenizer_class(settings.kind)
    tokenizer: SlotTokenizer = make(settings)
    return tokenizer


def build_segmenter(settings: Any) -> HistorySegmenter:
    """An unfitted segmenter for ``settings``; ConfigError for a kind that gives no tokens (experimental)."""
    _check_gives(settings.kind, "tokens")
    make: Any = tokenizer_class(settings.kind)
    tokenizer: HistorySegmenter = make(settings)
    return tokenizer


def load_tokenizer(path: str | Path, *, catalog: str | None = None) -> ItemTokenizer:
    """Read an ``item_tokenizer`` artifact of whatever kind (a third-party kind imports its module) (stable).

    ConfigError for a kind that gives no codes: :func:`load_slot_tokenizer` and :func:`load_segmenter` read those.
    """
    kind = _kind_at(path)
    check_gives_codes(kind)
    tokenizer: ItemTokenizer = tokenizer_class(kind).load(path, catalog=catalog)  # type: ignore[assignment]
    return tokenizer


def load_slot_tokenizer(path: str | Path, *, catalog: str | None = None) -> SlotTokenizer:
    """Read an ``item_tokenizer`` artifact of whatever kind gives slots (experimental)."""
    kind = _kind_at(path)
    _check_gives(kind, "slots")
    tokenizer: SlotTokenizer = tokenizer_class(kind).load(path, catalog=catalog)  # type: ignore[assignment]
    return tokenizer


def load_segmenter(path: str | Path, *, catalog: str | None = None) -> HistorySegmenter:
    """Read an ``item_tokenizer`` artifact of whatever kind gives tokens (experimental)."""
    kind = _kind_at(path)
    _check_gives(kind, "tokens")
    tokenizer: HistorySegmenter = tokenizer_class(kind).load(path, catalog=catalog)  # type: ignore[assignment]
    return tokenizer


def _kind_at(path: str | Path) -> str:
    return str(artifacts.read(Path(path), kind=KIND).recipe.get("kind"))


def _check_gives(kind: str, expected: str) -> None:
    found = gives(kind)
    if found != expected:
        raise ConfigError(
            f"kind: expected an item tokenizer that gives {expected}, got {kind!r}, which gives {found}",
            hint="{1} and {2} of genrec.item_tokenizers.registry are for {0}".format(*_OTHERS[found]),
        )
