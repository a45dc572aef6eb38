"""Identifiers that people can read: the title's words, the category path.

Axes: N items, L levels (pieces, or categories of a path). From Hua et al. 2023 ("How to Index Item IDs for
Recommendation Foundation Models", 2305.06569). Vocabularies are in the order of their texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import clean_text
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource, check_at_least
from genrec.item_tokenizers.codes import ItemCodes, row_numbers
from genrec.item_tokenizers.fitted import Indexing, append_code, numbers_within
from genrec.item_tokenizers.text_pieces import (
    SPACE,
    frequent_or_spelled,
    padded,
    pretrained_splitter,
    spell,
    split_words,
    widened,
)

Ints = npt.NDArray[np.int64]
Qualify = Literal["path", "name"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TitleSettings:
    """Settings of :class:`Title`; ConfigError for values out of range (stable).

    field: of the catalog. max_levels: pieces; longer titles are cut. min_count: words that occur less often are
    spelled out (not with text_tokenizer). lowercase: ignore the case. text_tokenizer: a Hugging Face text tokenizer
    that splits the titles (None = words, digits and signs). suffix_limit: largest group of equal titles.
    """

    kind: Literal["title"] = "title"
    field: str = "title"
    max_levels: int = 32
    min_count: int = 2
    lowercase: bool = False
    text_tokenizer: str | None = None
    suffix_limit: int = 256

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("max_levels", "min_count", "suffix_limit"), 1))
        if self.max_levels > 254:
            raise ConfigError(f"max_levels: expected at most 254, got {self.max_levels}")


class Title(Indexing):
    """The title as a sequence of word pieces (TID); recipe: ``tokenizers/title.yaml`` (stable).

    ::

        pieces = words, single digits and single signs of the title (rare words letter by letter), or what a text
                 tokenizer makes of it;  the first max_levels of them are the identifier
        items with equal identifiers:  every one gets one more piece, <1>, <2>, … in key order

    ``pieces`` of the codes are these texts, so a language model can write identifiers with its own tokens. The
    vocabulary holds the pieces in use, and one for a title without any. Titles that are the beginning
    of another one stay as they are: ragged identifiers end with an end-of-sequence token. (The paper's own code keeps
    duplicates, which merges items.) A new item is encoded by its title, without such a number; a word
    that is not in the vocabulary is spelled out, and what cannot be spelled is left out and logged.
    """

    Settings: ClassVar[type[Any]] = TitleSettings
    can_encode_new: ClassVar[bool] = True

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Split the titles; every item's identifier, all different. DataError for too many equal titles."""
        rows = self._split(source)
        if self.settings.text_tokenizer is None:
            rows = frequent_or_spelled(rows, self.settings.min_count)
        rows = [row[: self.settings.max_levels] for row in rows]
        self._kept = {"pieces": sorted({SPACE, *(piece for row in rows for piece in row)})}
        raw_NL = self._encode(rows)
        self._kept["n_levels"] = raw_NL.shape[1]
        group_N = row_numbers(raw_NL)
        count_N = np.bincount(group_N)[group_N]
        if count_N.max() > self.settings.suffix_limit:
            first = source.fields().text(self.settings.field)[int(count_N.argmax())]
            raise DataError(
                f"{count_N.max()} items have the title {first[:60]!r} (as far as max_levels and case go)",
                hint="are titles missing? otherwise raise suffix_limit or max_levels",
            )
        pieces, codes_NL = tuple(self._kept["pieces"]), raw_NL
        if count_N.max() > 1:
            number_N = numbers_within(group_N, source.item_keys)
            codes_NL = append_code(raw_NL, np.where(count_N > 1, len(pieces) + number_N, -1))
            pieces += _numbers(int(count_N.max()), pieces)
        return self._done(
            source, _shared(codes_NL, len(pieces), source.catalog, pieces), n_suffixed=int((count_N > 1).sum())
        )

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """The pieces of any items' titles, before duplicates are told apart; NotFitted before ``fit``.

        Titles are cut to the longest one of the fitted catalog.
        """
        self._check_fitted()
        known, most = set(self._kept["pieces"]), self._kept["n_levels"]
        rows, n_lossy = [], 0
        for row in self._split(source):
            parts = [part for piece in row for part in self._known(piece, known)][:most]
            rows.append([part for part in parts if part])
            n_lossy += len(rows[-1]) < len(parts)
        if n_lossy:
            _log.warning("%d of %d titles have pieces outside the vocabulary, which are left out", n_lossy, len(rows))
        pieces = tuple(self._kept["pieces"])
        return _shared(widened(self._encode(rows), most), len(pieces), source.catalog, pieces)

    def _split(self, source: TokenizerSource) -> list[list[str]]:
        texts = source.fields().text(self.settings.field, clean=True)
        name = self.settings.text_tokenizer
        split = split_words if name is None else pretrained_splitter(name)
        return [split(text.lower() if self.settings.lowercase else text) for text in texts]

    def _known(self, piece: str, known: set[str]) -> list[str]:
        """A piece in pieces of the vocabulary: itself, or spelled out; "" for what cannot be said."""
        if piece in known or self.settings.text_tokenizer is not None:
            return [piece if piece in known else ""]
        letters = []
        for part in spell(piece):  # rather a space too many or too few than a letter less
            other = part.removeprefix(SPACE) if part.startswith(SPACE) else SPACE + part
            letters.append(part if part in known else other if other in known else "")
        return letters

    def _encode(self, rows: Sequence[Sequence[str]]) -> Ints:
        code = {piece: at for at, piece in enumerate(self._kept["pieces"])}
        return padded([[code[piece] for piece in row] or [code[SPACE]] for row in rows])


@dataclass(frozen=True)
class CategorySettings:
    """Settings of :class:`Category`; ConfigError for values out of range (stable).

    field: of the catalog; a list of texts is a path from the top, a text is a path of one. qualify: categories are
    told apart by path (equal names below different ones are different) | name. drop_common: leave out the
    leading categories that all items share.
    """

    kind: Literal["category"] = "category"
    field: str = "categories"
    qualify: Qualify = "path"
    drop_common: bool = True

    def __post_init__(self) -> None:
        if self.qualify not in ("path", "name"):
            raise ConfigError(f"qualify: expected path or name, got {self.qualify!r}")


class Category(Indexing):
    """The category path and a number (SemID); recipe: ``tokenizers/category.yaml`` (stable).

    ::

        identifier = one code for each category of the path, then a running number among the items of equal paths

    All codes share one vocabulary: categories, then numbers. With ``qualify: name`` a category has one code wherever
    it stands, with ``path`` one for each place in the tree; the numbers mean nothing. Items without categories get
    a code of their own in place of the path (in the official code their index). Numbers follow the
    hashes of the item ids, where the official code shuffles. A new item is encoded by its path, without a number;
    categories that are not in the vocabulary end it.
    """

    Settings: ClassVar[type[Any]] = CategorySettings
    can_encode_new: ClassVar[bool] = True
    numbers_last: ClassVar[bool] = True

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Collect the categories; every item's identifier, all different. DataError without the field."""
        paths = self._paths(source)
        shared = _common_start(paths) if self.settings.drop_common else []
        nodes = sorted({node for path in paths for node in self._nodes(path[len(shared) :])})
        self._kept = {"common": shared, "nodes": [list(node) for node in nodes], "n_codes": 0}
        raw_NL = self._encode(paths)
        group_N = row_numbers(raw_NL)
        number_N = numbers_within(group_N, source.item_keys)
        n_codes = 1 + len(nodes) + int(number_N.max()) + 1
        self._kept["n_codes"] = n_codes
        self._kept["n_levels"] = raw_NL.shape[1]
        codes_NL = append_code(raw_NL, 1 + len(nodes) + number_N)
        used = [np.unique(column[column >= 0]) for column in raw_NL.T]
        return self._done(
            source,
            _shared(codes_NL, n_codes, source.catalog),
            n_uncategorised=int((raw_NL[:, 0] == 0).sum()),
            categories_by_level=[int((codes > 0).sum()) for codes in used],
            largest_category=int(number_N.max()) + 1,
        )

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """The category codes of any items, without the number; NotFitted before ``fit``."""
        self._check_fitted()
        raw_NL = self._encode(self._paths(source))
        return _shared(widened(raw_NL, self._kept["n_levels"]), self._kept["n_codes"], source.catalog)

    def _paths(self, source: TokenizerSource) -> list[list[str]]:
        catalog, field = source.fields(), self.settings.field
        if field not in catalog.fields:
            raise DataError(
                f"field {field!r} is not in the catalog; fields: {', '.join(catalog.fields)}",
                hint="name the one that holds the categories: field: NAME (--set tokenizer.field=NAME)",
            )
        values = ([v] if isinstance(v, str) else v for v in catalog.fields[field])
        return [[name for part in value or () if (name := clean_text(str(part)))] for value in values]

    def _nodes(self, path: Sequence[str]) -> list[tuple[str, ...]]:
        if self.settings.qualify == "name":
            return [(name,) for name in path]
        return [tuple(path[: depth + 1]) for depth in range(len(path))]

    def _encode(self, paths: Sequence[Sequence[str]]) -> Ints:
        code = {tuple(node): 1 + at for at, node in enumerate(self._kept["nodes"])}
        common = self._kept["common"]
        rows = []
        for path in paths:
            inside = path[len(common) :] if path[: len(common)] == common else []
            known = [code.get(node, 0) for node in self._nodes(inside)]
            rows.append(known[: known.index(0)] if 0 in known else known)
        return padded([row or [0] for row in rows])


def _common_start(paths: Sequence[Sequence[str]]) -> list[str]:
    """The categories with which every path begins, paths without any aside."""
    columns = zip(*(path for path in paths if path), strict=False)
    return [names[0] for names in takewhile(lambda names: len(set(names)) == 1, columns)]


def _shared(codes_NL: Ints, size: int, catalog: str, pieces: tuple[str, ...] = ()) -> ItemCodes:
    sizes = (size,) * codes_NL.shape[1]
    return ItemCodes.from_int(codes_NL, sizes, catalog, shared_vocabulary=True, pieces=pieces)


def _numbers(n: int, taken: Sequence[str]) -> tuple[str, ...]:
    """``<1>`` … ``<n>``, in more brackets if a text uses that already."""
    left, right = "<", ">"
    while any(f"{left}{at}{right}" in taken for at in range(1, n + 1)):
        left, right = left + "<", right + ">"
    return tuple(f"{left}{at}{right}" for at in range(1, n + 1))
