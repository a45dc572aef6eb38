"""Writers: a catalog and interactions in the neutral format or as RecBole atomic files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.errors import DataError, FingerprintMismatch

_BREAKS = re.compile(r"[\t\r\n]")


def export_neutral(folder: Path | str, catalog: ItemCatalog, interactions: Interactions) -> None:
    """Write ``items.jsonl`` and ``interactions.csv.gz``; the neutral reader gives back equal ids and events (stable).

    Missing values are left out of the JSON and are empty in the CSV. A title that is missing becomes "".
    Raises :class:`DataError` if the folder already holds one of the files.
    """
    target = _check(folder, catalog, interactions, ("items.jsonl", "interactions.csv.gz"))
    with (target / "items.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for n, item_id in enumerate(catalog.ids):
            row = {"item_id": item_id, "title": ""}
            row |= {name: v[n] for name, v in catalog.fields.items() if v[n] is not None}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    names = list(interactions.columns)
    rows = list(_event_rows(catalog, interactions, [interactions.columns[name].tolist() for name in names]))
    header = ["user_id", "item_id", "timestamp", *names]
    text = _csv(header, rows, csv.QUOTE_MINIMAL)
    if "\r" in text:  # minimal quoting leaves a carriage return bare, which no reader takes back
        text = _csv(header, rows, csv.QUOTE_NONNUMERIC)
    # no name and no time in the gzip header: equal data, equal bytes
    (target / "interactions.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def export_recbole(folder: Path | str, name: str, catalog: ItemCatalog, interactions: Interactions) -> None:
    """Write ``NAME.inter`` and ``NAME.item``; tabs and line breaks inside text become spaces (stable).

    Raises :class:`DataError` for an id with a tab or line break, and if the folder already holds a file.
    """
    target = _check(folder, catalog, interactions, (f"{name}.inter", f"{name}.item"))
    for identifier in (*catalog.ids, *interactions.user_ids):
        if _BREAKS.search(identifier):
            raise DataError(f"id {identifier!r} contains a tab or line break, which atomic files cannot hold")
    types = {n: "float" if np.issubdtype(c.dtype, np.number) else "token" for n, c in interactions.columns.items()}
    columns = [interactions.columns[n].tolist() for n in types]
    header = ["user_id:token", "item_id:token", "timestamp:float", *(f"{n}:{t}" for n, t in types.items())]
    _write_tabs(target / f"{name}.inter", header, _event_rows(catalog, interactions, columns))

    header, values = ["item_id:token"], [list[Any](catalog.ids)]
    for field, column in catalog.fields.items():
        kinds = {type(v) for v in column if v is not None}
        seq = kinds == {list} or field == "title"
        header.append(f"{field}:{'token_seq' if seq else 'float' if kinds and kinds <= {int, float} else 'token'}")
        values.append([" ".join(v) if isinstance(v, list) else v for v in column])
    _write_tabs(target / f"{name}.item", header, zip(*values, strict=True))


def _check(folder: Path | str, catalog: ItemCatalog, inter: Interactions, names: Sequence[str]) -> Path:
    if inter.catalog != catalog.fingerprint:
        raise FingerprintMismatch(
            f"interactions belong to catalog {inter.catalog[:8]}, got catalog {catalog.fingerprint[:8]}"
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    present = [name for name in names if (target / name).exists()]
    if present:
        raise DataError(f"{target}: {present[0]} is already there", hint="export into a new folder")
    return target


def _event_rows(catalog: ItemCatalog, inter: Interactions, columns: Sequence[list[Any]]) -> Iterable[list[Any]]:
    ids, users = catalog.ids, inter.user_ids
    events = zip(inter.user.tolist(), inter.item.tolist(), inter.time.tolist(), *columns, strict=True)
    for user, item, time, *extra in events:
        yield [users[user], ids[item], time, *("" if v is None or v != v else v for v in extra)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]], quoting: Literal[0, 2]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write_tabs(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in (header, *rows):
            file.write("\t".join("" if v is None else _BREAKS.sub(" ", str(v)) for v in row) + "\n")
