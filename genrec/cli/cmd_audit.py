"""``genrec audit``: what the figures reported with a published file of identifiers could hide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from genrec.errors import ConfigError

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog
    from genrec.data.splits import Split


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("audit")(audit)


def audit(
    file: Path = typer.Argument(..., help="A file of identifiers of another project, such as Beauty.index.json."),
    catalog: Path | None = typer.Option(None, "--catalog", metavar="DIR", help="Catalog artifact: who the items are."),
    data: Path | None = typer.Option(
        None, "--data", metavar="DIR", help="Data set in the neutral format: the items, and the test targets."
    ),
    run: Path | None = typer.Option(
        None, "--run", metavar="DIR", help="Run folder: its catalog, and the test targets of its split."
    ),
    level_size: int | None = typer.Option(
        None, "--level-size", min=1, help="Codes per level; default: the largest number in the tokens of a level + 1."
    ),
    save: Path | None = typer.Option(
        None, "--save", metavar="DIR", help="Also write the identifiers as a codes artifact, for inspect and compare."
    ),
    json_file: Path | None = typer.Option(None, "--json", metavar="FILE", help="Also write every figure as JSON."),
) -> None:
    """Read a published file of item identifiers and say what the figures reported with it could hide.

    Collisions (and, with --data or --run, how many test targets they touch and by how much recall counted on
    identifiers exceeds recall counted on items), identifiers of unequal length or that begin others, tokens that mean
    several things, dead codes, an order of the items that shows in the codes, items without an identifier.

    Forms that are read: JSON of item -> list of tokens (LC-Rec, LETTER, MiniOneRec), lines "ID |piece|piece" (GRAM),
    lines "ID words" (IDGenRec), lines "<a_1><b_2> TAB title TAB ID" (MiniOneRec). The first lines tell which.

    docs/identifiers.md explains every figure. To see more of such a file: --save DIR, then `genrec inspect DIR`.
    """
    from genrec.artifacts import atomic_write_bytes
    from genrec.data.readers.identifier_files import read_identifiers
    from genrec.evaluation.identifier_audit import audit as audit_file
    from genrec.evaluation.identifier_audit import codes_of_catalog
    from genrec.evaluation.identifier_audit_text import audit_text
    from genrec.evaluation.identifier_tables import json_bytes

    if sum(given is not None for given in (catalog, data, run)) > 1:
        raise ConfigError("expected at most one of --catalog, --data and --run", hint="--run brings the catalog along")
    if save is not None and catalog is None and data is None and run is None:
        raise ConfigError(
            "--save: codes belong to a catalog, got none", hint="give --catalog, --data or --run beside --save"
        )
    given = read_identifiers(file)
    items, split = _items(catalog, data, run)
    figures = audit_file(given, catalog=items, split=split, level_size=level_size)
    titles = None if items is None else dict(zip(items.ids, items.text("title", clean=True), strict=True))
    print(audit_text(figures, titles), end="")
    if json_file is not None:
        atomic_write_bytes(json_file, json_bytes(figures))
        print(f"wrote {json_file}")
    if save is not None and items is not None:
        codes = codes_of_catalog(given, items, level_size=level_size)
        codes.save(save, recipe={"kind": "published", "form": given.form, "file": file.name})
        print(f"wrote {save}")


def _items(catalog: Path | None, data: Path | None, run: Path | None) -> tuple[ItemCatalog | None, Split | None]:
    from genrec.data.catalog import ItemCatalog
    from genrec.data.readers import ReaderSettings, read
    from genrec.data.splits import Split, leave_one_out, predefined_split
    from genrec.pipeline.runner import same_catalog

    if run is not None:
        found = ItemCatalog.load(run / "catalog")
        same_catalog(run, found.fingerprint, "split")
        return found, Split.load(run / "split")
    if data is not None:
        loaded = read(ReaderSettings("neutral", data))
        events = loaded.interactions
        return loaded.catalog, predefined_split(events) if "split" in events.columns else leave_one_out(events)
    return (ItemCatalog.load(catalog) if catalog is not None else None), None
