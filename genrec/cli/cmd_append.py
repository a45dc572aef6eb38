"""``genrec append``: identifiers for new items, with every published identifier left as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genrec.errors import ConfigError

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("append")(append)


def append(
    run: Path = typer.Argument(..., help="A run folder that has got as far as `tokenize`, or a version of one."),
    items: Path = typer.Option(
        ...,
        "--items",
        metavar="FILE",
        help="New items: .jsonl, .csv, .tsv (also .gz) or .parquet, with item_id and title.",
    ),
    out: Path = typer.Option(..., "--out", metavar="DIR", help="Folder of the new version."),
    vectors: Path | None = typer.Option(
        None,
        "--vectors",
        metavar="FILE",
        help="Vectors of the new items in the space of the run's embeddings: .npy or .safetensors in the order of "
        "--items, or .parquet with item_id; default: made as the run made its own.",
    ),
    by: str = typer.Option(
        "auto",
        "--by",
        metavar="[auto|encode|neighbour]",
        help="The item tokenizer encodes the new items, or they join the published item most like them; auto: encode "
        "where the item tokenizer can.",
    ),
    bundle: Path | None = typer.Option(
        None,
        "--bundle",
        metavar="DIR",
        help="Its model goes along in place of the run's own: VERSION/continual, after a training on new items.",
    ),
    item_column: str = typer.Option("item_id", "--item-column", help="Column of the ids in a table."),
    title_column: str = typer.Option("title", "--title-column", help="Column of the titles in a table."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Add items to a run's catalog: a new version with their identifiers, in which nothing published has moved.

    The model of a bundle goes along unchanged: it can write the new identifiers, since no level grows. Refused where
    no free identifier is left; then fit a new item tokenizer and train again.
    """
    from genrec.pipeline.catalog_life import append_items

    sys.path.append(str(Path.cwd()))  # an item tokenizer of the user's, named module:Class
    new = read_new_items(items, item_column, title_column)
    made = append_items(run, new, out, vectors=vectors, by=by, bundle=bundle)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps({**made.report, "drift": made.drift.to_json(made.catalog)}, indent=1))
        return
    print(made.drift.table(made.catalog))
    print(_said(made.report))
    print(f"new version: {made.folder}")


def read_new_items(path: Path, item_column: str = "item_id", title_column: str = "title") -> ItemCatalog:
    """The items of a file as a catalog of their own; DataError naming line and field for what is wrong with one."""
    from genrec.data.readers import neutral, tabular
    from genrec.data.readers.base import Ledger, ReaderSettings, Rejected
    from genrec.data.readers.build import ItemRows

    if not path.is_file():
        raise ConfigError(f"--items: no file {path}")
    rows, ledger = ItemRows(), Ledger(path, "fail", Rejected())
    if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        neutral.read_items(path, ReaderSettings("neutral", path.parent, items=path.name), ledger, rows)
    else:
        settings = ReaderSettings(
            "tabular", path.parent, items=path.name, item_column=item_column, title_column=title_column
        )
        tabular.read_items(path, settings, ledger, rows)
    return rows.catalog()


def _said(report: dict[str, Any]) -> str:
    how = "encoded" if report["how"] == "encode" else "placed beside the published item most like them"
    parts = [f"{report['n_new']} new items, {how}"]
    for name, text in (
        ("raw_collisions", "whose first choice another item has too"),
        ("other_last", "with another last code"),
        ("other_prefix", "under another prefix, because theirs was full"),
        ("collisions", "that share their identifier"),
        ("without_content", "of which nothing is known"),
    ):
        if report.get(name):
            parts.append(f"{report[name]} {text}")
    return "; ".join(parts)
