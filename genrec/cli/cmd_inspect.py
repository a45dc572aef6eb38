"""``genrec inspect``: how good are identifiers, before any recommender is trained?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from genrec.evaluation.identifier_inputs import Subject
    from genrec.evaluation.identifiers import IdentifierReport


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("inspect")(inspect)


def inspect(
    path: Path = typer.Argument(..., help="A run folder, or a codes artifact (RUN/codes, or one that you saved)."),
    json_file: Path | None = typer.Option(None, "--json", metavar="FILE", help="Also write every figure as JSON."),
    html_file: Path | None = typer.Option(
        None, "--html", metavar="FILE", help="Also write a page with pictures that needs no other file."
    ),
    held_out: bool = typer.Option(
        False, "--held-out", help="Report on the test targets too. Never choose a tokenizer by them."
    ),
    every: bool = typer.Option(False, "--all", help="Print every figure, not only the chief ones."),
    refit: bool = typer.Option(
        False,
        "--refit",
        help="Fit the run's item tokenizer again: another seed; on 9 of 10 items; on 19 of 20, appending the rest.",
    ),
    catalog: Path | None = typer.Option(
        None, "--catalog", metavar="DIR", help="Catalog artifact; default: the one beside the codes."
    ),
    vectors: Path | None = typer.Option(
        None, "--vectors", metavar="PATH", help="Item vectors: an artifact, .npy or .parquet; default: the run's."
    ),
    split: Path | None = typer.Option(
        None, "--split", metavar="DIR", help="Split artifact; default: the one beside the codes."
    ),
    categories: str = typer.Option("categories", "--categories", help="Field of the catalog with the categories."),
    seed: int = typer.Option(0, "--seed", help="Of the controls, and of the items and pairs drawn."),
) -> None:
    """Judge item identifiers without training a recommender.

    Every figure stands beside two controls: random codes of the same sizes (best in all of usage, so usage alone
    says nothing), and the same identifiers dealt to other items (equal usage, no meaning). An arrow shows the better
    direction, a line with ! a figure in the danger zone. Where a collision policy changed the codes, column raw has
    them as they were before: a suffix hides collisions.

    The figures look at the training part only, unless --held-out asks for the test targets.

    docs/identifiers.md has every formula and how to read a report.
    """
    from genrec.artifacts import atomic_write_bytes
    from genrec.errors import ConfigError
    from genrec.evaluation.identifier_inputs import inspect_subject, load_subject
    from genrec.evaluation.identifier_page import identifier_page
    from genrec.evaluation.identifier_refit import refitted
    from genrec.evaluation.identifier_tables import inspect_table, json_bytes, reports_of_codes
    from genrec.evaluation.identifiers import InspectSettings
    from genrec.progress import ProgressBar

    # an item tokenizer of the user's, named module:Class, may lie where the command is run
    sys.path.append(str(Path.cwd()))
    settings = InspectSettings(seed=seed)
    for option, file in (("--json", json_file), ("--html", html_file)):
        if file is not None and file.is_dir():  # said before minutes are spent
            raise ConfigError(
                f"{option}: {file} is a folder, expected a file", hint=f"such as {file / f'identifiers.{option[2:]}'}"
            )
    with ProgressBar(total=3 + refit + (html_file is not None), unit="step") as bar:
        subject = load_subject(path, catalog=catalog, vectors=vectors, split=split)
        if subject.catalog is not None and subject.categories(categories) is None:
            fields = ", ".join(subject.catalog.fields)
            note = (
                f"no texts in the field {categories!r} of the catalog: categories are left out (give --categories FIELD"
            )
            subject = replace(subject, notes=(*subject.notes, f"{note}; fields: {fields})"))
        bar.update()
        reports = inspect_subject(subject, settings, held_out=held_out, category_field=categories, step=bar.update)
        if refit:
            found = refitted(subject, seed)
            reports["codes"] = replace(reports["codes"], figures=reports["codes"].figures | found.figures)
            subject = replace(subject, notes=(*subject.notes, *found.notes))
            bar.update()
        page = b""
        if html_file is not None:
            page = identifier_page(subject, reports, seed=seed, category_field=categories).encode()
            bar.update()
    print(heading(subject, reports))
    print()
    print(inspect_table(reports, every=every), end="")
    for note in subject.notes:
        print(f"note: {note}")
    about = {"name": subject.name, "tokenizer": subject.recipe, "notes": list(subject.notes)}
    for file, data in ((json_file, json_bytes(reports_of_codes(reports, **about))), (html_file, page)):
        if file is not None:
            atomic_write_bytes(file, data)
            print(f"wrote {file}")


def heading(subject: Subject, reports: Mapping[str, IdentifierReport]) -> str:
    """What is looked at, in two or three lines."""
    codes, context = subject.codes, reports["codes"].context
    kind = subject.recipe.get("kind")
    made = f", made by {kind}" if kind else ""
    if "collisions" in subject.recipe:
        made += f" (collisions: {subject.recipe['collisions']})"
    lines = [f"{subject.name}: {len(codes):,} items, identifiers of {codes.sizes_text} codes{made}"]
    how = {
        "codebooks": "the vectors behind the codes are the item tokenizer's codebooks",
        "implied": "the vectors behind the codes are means of what is left at each level (implied codebooks)",
    }.get(str(context["quantised"]))
    if how and subject.vectors is not None:
        lines.append(f"vectors of width {subject.vectors.dim}; {how}")
    return "\n".join(lines)
