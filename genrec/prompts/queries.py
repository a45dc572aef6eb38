"""Queries that lead to an item: from its fields by patterns, or written once by a model that the user names.

A file of queries holds one JSON object per line: ``{"item_id": "B01", "queries": ["…", "…"]}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genrec.artifacts import atomic_write_bytes
from genrec.data.catalog import ItemCatalog
from genrec.errors import ConfigError, DataError, imported

if TYPE_CHECKING:
    from genrec.prompts.data import TaskData

Writer = Callable[[str], list[str]]
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def query_of(data: TaskData, item: int | None, random: np.random.Generator) -> str:
    """One of the queries of an item; "" if there is none (internal).

    Without given queries: two to five words of the title in their order, alone or behind the brand, or brand and
    category. A category alone fits too many items to teach one.
    """
    assert item is not None
    if data.queries is not None:
        given = data.queries[item]
        return given[int(random.integers(len(given)))] if given else ""
    brand, category = data.brand(item), data.category(item)
    words = _WORD.findall(data.title(item))
    size = min(len(words), 2 + int(random.integers(4)))
    kept = np.sort(random.permutation(len(words))[:size])
    some = " ".join(words[at] for at in kept)
    named = " ".join(part for part in (brand, category) if part)
    some_named = some if brand.lower() in some.lower() else f"{brand} {some}"
    choices = [text for text in dict.fromkeys((some, some_named, named)) if text.strip()]
    return choices[int(random.integers(len(choices)))].lower() if choices else ""


def write_queries(catalog: ItemCatalog, writer: Writer | str, path: str | Path, *, fields: Iterable[str]) -> Path:
    """Ask a model for the queries of every item, once, and keep them in a file (experimental).

    writer: gets an item's text and returns queries; or ``"module:function"``. It is given the item's own fields,
    one per line, and nothing of any user. Raises ConfigError for a writer that cannot be imported, DataError for an
    answer that is no list of texts.
    """
    ask = _imported(writer) if isinstance(writer, str) else writer
    columns = {name: catalog.text(name, clean=True) for name in fields}
    lines = []
    for number, item_id in enumerate(catalog.ids):
        text = "\n".join(f"{name}: {column[number]}" for name, column in columns.items() if column[number])
        found = ask(text)
        if not isinstance(found, list) or not all(isinstance(query, str) for query in found):
            raise DataError(f"queries of item {item_id!r}: expected a list of texts, got {str(found)[:60]!r}")
        lines.append(json.dumps({"item_id": item_id, "queries": found}, ensure_ascii=False))
    atomic_write_bytes(Path(path), ("\n".join(lines) + "\n").encode())
    return Path(path)


def load_queries(path: str | Path, catalog: ItemCatalog) -> list[list[str]]:
    """Queries of every item of the catalog, ``[]`` where the file has none (experimental).

    Items that the catalog does not know are left out. Raises DataError naming the line of a malformed entry.
    """
    found: list[list[str]] = [[] for _ in catalog.ids]
    numbers = {item_id: number for number, item_id in enumerate(catalog.ids)}
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for n, line in enumerate(text.rstrip("\n").split("\n"), 1):
        try:
            entry = json.loads(line)
            item_id, queries = entry["item_id"], entry["queries"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {n}: expected item_id and queries, got {line[:60]!r}") from error
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise DataError(f"{path}, line {n}: queries: expected a list of texts, got {str(queries)[:60]!r}")
        if item_id in numbers:
            found[numbers[item_id]] += [query for query in queries if query.strip()]
    return found


def _imported(name: str) -> Writer:
    found = imported(name, "writer") if ":" in name else None
    if not callable(found):
        raise ConfigError(f"writer: expected 'module:function', got {name!r}")
    return found  # type: ignore[no-any-return]
