"""``genrec pieces``: item identifiers as categorical features of a ranking model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genrec.errors import ConfigError, FingerprintMismatch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from genrec.data.catalog import ItemCatalog
    from genrec.item_tokenizers.codes import ItemCodes
    from genrec.item_tokenizers.pieces import Pieces, Settings

_OPTIONS = {
    "ngram": ("n", "max_rows"),
    "prefix": ("max_rows",),
    "sentencepiece": ("model", "n_longer", "max_length"),
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("pieces")(pieces)


def pieces(
    path: Path = typer.Argument(..., help="A run folder that has got as far as `tokenize`, or a codes artifact."),
    out: Path = typer.Option(..., "--out", metavar="DIR", help="Folder of the export."),
    kind: str | None = typer.Option(None, "--kind", metavar="[ngram|prefix|sentencepiece]", help="Which pieces."),
    like: Path | None = typer.Option(
        None, "--like", metavar="DIR", help="Instead of --kind: an earlier export, whose rows keep their meaning."
    ),
    n: int | None = typer.Option(None, "--n", help="ngram: codes of a group; default: 2."),
    max_rows: int | None = typer.Option(
        None, "--max-rows", help="ngram, prefix: rows of a table at most; beyond, codes are hashed; default: 4194304."
    ),
    model: str | None = typer.Option(
        None, "--model", metavar="[bpe|unigram]", help="sentencepiece: how it learns; default: bpe."
    ),
    n_longer: int | None = typer.Option(
        None, "--n-longer", help="sentencepiece: pieces of two codes or more to learn; default: 4096."
    ),
    max_length: int | None = typer.Option(
        None, "--max-length", help="sentencepiece: codes of a piece at most; default: whole identifiers."
    ),
    catalog: Path | None = typer.Option(
        None, "--catalog", metavar="DIR", help="Catalog artifact with the item ids; default: the one beside the codes."
    ),
    split: Path | None = typer.Option(
        None, "--split", metavar="DIR", help="Split artifact: how often items are used; default: the one beside."
    ),
    equal: bool = typer.Option(False, "--equal", help="sentencepiece: every item counts once; needs no split."),
    seed: int | None = typer.Option(None, "--seed", help="Of the hash of tables that are too large; default: 0."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an earlier export in --out."),
) -> None:
    """Write, for every item, the rows of an embedding table whose sum is the item's vector in a ranking model.

    Items with alike identifiers share rows, so new and rare items start from what is known of their neighbours; the
    more of an identifier a row stands for, the more of the single item it can remember. sentencepiece learns that
    balance from how often items are used in the training part (never in valid or test).

    --out gets pieces.parquet (item_id, pieces), tables.json (size and place of every table) and what was learned.
    For new items: `genrec append`, then this verb on the new version with --like and the first export.

    docs/pieces.md shows how to read it with torch.
    """
    from genrec.item_tokenizers.pieces import learn_pieces, load_pieces, piece_report, save_pieces

    given = {"n": n, "max_rows": max_rows, "model": model, "n_longer": n_longer, "max_length": max_length}
    settings = None if like is not None else _settings(kind, given)
    idle = kind is not None or equal or seed is not None or any(value is not None for value in given.values())
    if like is not None and idle:
        raise ConfigError("--like: the earlier export has the settings", hint="leave --kind and its options out")
    folder, codes = _codes(path)
    items = _catalog(catalog, folder, codes)
    counts = None if equal else _counts(split, folder, codes)
    if settings is not None:
        if equal and settings.kind != "sentencepiece":
            raise ConfigError(f"--equal: no effect with --kind {settings.kind}", hint="leave it out")
        if settings.kind == "sentencepiece" and counts is None and not equal:
            raise ConfigError(
                "sentencepiece learns from how often items are used in training: no split beside the codes",
                hint="give --split DIR, or --equal to count every item once",
            )
        made: Pieces = learn_pieces(codes, settings, counts=counts, seed=seed or 0)
    else:
        assert like is not None
        made = load_pieces(like)
        made.learned_on.check_extends(codes)
    features = made.encode(codes)
    report = piece_report(made, codes, features, counts)
    save_pieces(out, made, items=items, features=features, report=report, overwrite=overwrite)
    print(said(report))
    print(f"wrote {out}")


def said(report: dict[str, Any]) -> str:
    """A report as lines to read."""
    uses = report["pieces_per_use"]
    mean = f"{report['pieces_per_item']:.2f} pieces an item" + ("" if uses is None else f", {uses:.2f} a use")
    lines = [f"{report['n_items']:,} items, {report['kind']}: {report['n_rows']:,} rows, {report['rows_used']:,} of "
             f"them used; {mean}"]  # fmt: skip
    if "n_longer" in report:
        lines.append(f"{report['n_longer']:,} pieces of two codes or more; "
                     f"{report['items_of_one_piece']:,} items are one piece")  # fmt: skip
    for table in report["tables"]:
        if table["hashed"] and table["sharing_a_row"]:
            lines.append(f"! levels {table['first'] + 1} to {table['end']}: hashed into {table['size']:,} rows; "
                         f"{table['sharing_a_row']:,} of {table['groups']:,} groups share a row")  # fmt: skip
    return "\n".join(lines)


def _settings(kind: str | None, given: dict[str, Any]) -> Settings:
    from genrec.item_tokenizers.pieces import KINDS

    if kind not in KINDS:
        raise ConfigError(f"--kind: expected one of {', '.join(KINDS)}, got {kind or 'nothing'}",
                          hint="or --like DIR, an earlier export")  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    idle = [f"--{name.replace('_', '-')}" for name in chosen if name not in _OPTIONS[kind]]
    if idle:
        raise ConfigError(f"{', '.join(idle)}: no effect with --kind {kind}", hint="leave it out")
    return KINDS[kind](**chosen)


def _codes(path: Path) -> tuple[Path, ItemCodes]:
    """The folder in which other artifacts may lie, and the codes."""
    from genrec import artifacts
    from genrec.item_tokenizers.codes import KIND, ItemCodes

    if artifacts.exists(path, KIND):
        return path.absolute().parent, ItemCodes.load(path)
    if not artifacts.exists(path / "codes", KIND):
        raise ConfigError(f"{path}: no codes there", hint="give a run folder that has got as far as `tokenize`, or a "
                          "folder that ItemCodes.save wrote")  # fmt: skip
    return path, ItemCodes.load(path / "codes")


def _catalog(given: Path | None, folder: Path, codes: ItemCodes) -> ItemCatalog:
    from genrec import artifacts
    from genrec.data.catalog import ItemCatalog
    from genrec.item_tokenizers.codes import check_catalog

    if given is None and not artifacts.exists(folder / "catalog"):
        raise ConfigError("the export needs the item ids: no catalog beside the codes", hint="give --catalog DIR")
    items = ItemCatalog.load(given or folder / "catalog")
    check_catalog("codes", codes.catalog, items.fingerprint)
    return items


def _counts(given: Path | None, folder: Path, codes: ItemCodes) -> npt.NDArray[np.int64] | None:
    """How often items are used in the training part; None where there is no split."""
    from genrec import artifacts
    from genrec.data.splits import Split
    from genrec.item_tokenizers.pieces import use_counts

    if given is None and not artifacts.exists(folder / "split"):
        return None
    split = Split.load(given or folder / "split")
    if split.catalog != codes.catalog:
        raise FingerprintMismatch(f"split and codes are of two catalogs: {split.catalog[:8]} and {codes.catalog[:8]}",
                                  hint="give the split that belongs to the codes")  # fmt: skip
    return use_counts(split.train(), len(codes))
