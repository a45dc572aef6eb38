"""Files in which other projects publish the identifiers of their items, read as they are.

Axes: N items, L levels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from genrec.data.readers import source
from genrec.data.readers.base import ReaderSettings, RowError, short
from genrec.errors import DataError

Form = Literal["index json", "token table", "pieces", "words"]
FORMS: dict[Form, str] = {
    "index json": 'a JSON object, item -> list of tokens, such as "B00X": ["<a_12>", "<b_7>"] (LC-Rec, LETTER, '
    "MiniOneRec)",
    "token table": "lines of tokens, title, item between tabs, such as <a_12><b_7> TAB title TAB 5 (MiniOneRec)",
    "pieces": "lines of an item and text pieces, such as B00X |▁nail|▁foot (GRAM)",
    "words": "lines of an item and words, such as B00X nail foot scrubber (IDGenRec)",
}
"""The forms that are known, with an example of each."""
_TOKEN = re.compile(r"<[^<>\s]+>")
_TOKENS = re.compile(r"(?:<[^<>\s]+>)+\Z")
_SNIFFED = 200
Row = tuple[str, tuple[str, ...] | None]
_ADVICE = "known forms: " + "; ".join(FORMS.values())


@dataclass(frozen=True, eq=False)
class IdentifierFile:
    """Items and their identifiers in the order of a file (experimental).

    items: the N keys of the file that have an identifier, unique. tokens: of each item the tokens as text, at least
    one. empty: the keys with nothing behind them (they occur in published files). form: what the file was taken for,
    explained in :data:`FORMS`.
    """

    path: Path
    form: Form
    items: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    empty: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


def read_identifiers(path: str | Path) -> IdentifierFile:
    """Read a file of identifiers in one of the :data:`FORMS`; which, its first lines tell (experimental).

    Raises DataError naming the file, the line (in JSON: the item) and what was expected, for text that is not UTF-8,
    lines or JSON of another shape, an item with two entries, and a file without identifiers.
    """
    file = Path(path)
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        hint = "a folder made by genrec goes to `genrec inspect`" if file.is_dir() else "check the path"
        raise DataError(f"{file}: {what}, expected a file of identifiers", hint=hint)
    lines = _lines(file)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{file}: no identifiers in the file", hint=_ADVICE)
    if first[1].lstrip()[:1] in ("{", "["):
        return _index_json(file, "\n".join([first[1], *(text for _, text in lines)]))
    rows = [first, *lines]
    try:
        form = _sniff(text for _, text in rows[:_SNIFFED])
    except DataError as error:
        raise DataError(f"{file}: {error}", hint=error.hint) from error
    split = {"token table": _of_table, "pieces": _of_pieces, "words": _of_words}[form]
    found: dict[str, tuple[str, ...]] = {}
    for number, text in rows:
        item, tokens = split(text)
        if not item or tokens is None:
            example = FORMS[form].partition("such as ")[2]
            raise _bad(file, f"line {number}", f"expected {example}, got {short(text)}")
        if item in found:
            raise _bad(file, f"line {number}", f"item {item!r} has a line already: {short(' '.join(found[item]))}")
        found[item] = tokens
    return _made(file, form, found)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    for number, text in source.texts(file, ReaderSettings("neutral", file.parent)):
        if isinstance(text, RowError):
            raise DataError(f"{file}, line {number}: {text}", hint="convert the file to UTF-8 text")
        yield number, text


def _sniff(texts: Iterator[str]) -> Form:
    sample = list(texts)
    if all(_TOKENS.match(text.partition("\t")[0]) and "\t" in text for text in sample):
        return "token table"
    if sum("|" in text for text in sample) * 2 > len(sample):
        return "pieces"
    if sum("," in text.split()[0] for text in sample) * 2 > len(sample):
        raise DataError("lines of values between commas, expected identifiers", hint=_ADVICE)
    return "words"


def _of_table(text: str) -> Row:
    tokens, _, rest = text.partition("\t")
    return rest.rpartition("\t")[2].strip(), tuple(_TOKEN.findall(tokens)) if _TOKENS.match(tokens) else None


def _of_pieces(text: str) -> Row:
    item, bar, rest = text.partition("|")
    return item.strip(), tuple(piece for piece in rest.split("|") if piece.strip()) if bar else None


def _of_words(text: str) -> Row:
    item, *words = text.split()
    return item, tuple(words)


def _made(file: Path, form: Form, found: dict[str, tuple[str, ...]]) -> IdentifierFile:
    full = {item: tokens for item, tokens in found.items() if tokens}
    if not full:
        raise DataError(f"{file}: no identifiers in the file", hint=_ADVICE)
    return IdentifierFile(file, form, tuple(full), tuple(full.values()), tuple(i for i in found if i not in full))


def _index_json(file: Path, text: str) -> IdentifierFile:
    repeated: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in found:
            if key in made:
                repeated.append(key)
            made[key] = value
        return made

    try:
        given = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise _bad(file, "", f"not JSON: {error}") from error
    if not isinstance(given, dict):
        raise _bad(file, "", f"expected an object, item -> list of tokens, got {type(given).__name__} {short(given)}")
    if repeated:
        raise _bad(file, f"item {repeated[0]!r}", "it has two entries")
    return _made(file, "index json", {item: _json_tokens(file, item, value) for item, value in given.items()})


def _json_tokens(file: Path, item: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and _TOKENS.match(value):
        return tuple(_TOKEN.findall(value))
    if isinstance(value, list):
        if all(isinstance(token, str) and token for token in value):
            return tuple(value)
        if all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value):
            return tuple(map(str, value))
    raise _bad(file, f"item {item!r}", f"expected a list of tokens, got {short(value)}")


def _bad(file: Path, place: str, message: str) -> DataError:
    where = f"{file}, {place}" if place else f"{file}"
    return DataError(f"{where}: {message}", hint=f"correct the file; {_ADVICE}")
