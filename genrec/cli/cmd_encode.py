"""``genrec encode``: identifiers for an item table of any size, shard by shard."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import typer

from genrec.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("encode")(encode)


def encode(
    items: Path = typer.Argument(
        ..., help="A parquet file, or a folder of them: item_id, and a column of vectors or columns of text."
    ),
    tokenizer: str = typer.Option(
        ...,
        "--tokenizer",
        metavar="FOLDER|RECIPE|KIND",
        help="A fitted item tokenizer (an artifact, or a run folder); with --fit a recipe or a kind, such as rqkmeans.",
    ),
    out: Path = typer.Option(..., "--out", metavar="DIR", help="Folder of the shards and of the finished codes."),
    fit: bool = typer.Option(False, "--fit", help="Fit the item tokenizer on these items first."),
    overrides: list[str] = typer.Option(
        [], "--set", metavar="FIELD=VALUE", help="With --fit: change a setting of the recipe, as in rows_per_code=64."
    ),
    sample: int | None = typer.Option(
        None, "--sample", help="With --fit: on so many items, drawn evenly; default: as the recipe says."
    ),
    text: list[str] = typer.Option(
        [],
        "--text",
        metavar="PART",
        help="Embed text instead: a part of an item's text, as '{title}'. Repeatable.",
    ),
    model: str | None = typer.Option(
        None,
        "--model",
        help="What embeds the text: a sentence-transformers model, a folder, package:NAME, or MODULE:CLASS.",
    ),
    batch_size: int = typer.Option(64, "--batch-size", help="Texts embedded together."),
    collisions: str | None = typer.Option(
        None,
        "--collisions",
        metavar="[suffix|reassign|shared]",
        help="What happens to items with equal codes; default: as the item tokenizer says.",
    ),
    suffix_limit: int | None = typer.Option(
        None, "--suffix-limit", help="Largest group that a suffix may number; default: as the item tokenizer says."
    ),
    engine: str = typer.Option("local", "--engine", metavar="[local|ray]", help="ray: several processes (extra ray)."),
    workers: int = typer.Option(2, "--workers", help="Processes of --engine ray."),
    id_column: str = typer.Option("item_id", "--id-column", help="Column of the ids."),
    vector_column: str | None = typer.Option(
        None, "--vector-column", help="Column of the vectors; default: the only column of lists of numbers."
    ),
    seed: int = typer.Option(0, "--seed", help="Of --fit, and of the neutral order of items that collide."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start over where the folder holds another job."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Give every item of a table its identifier, in little memory.

    Items are read, encoded and written row group by row group; a finished shard is never done again, so an interrupted
    command goes on where it stopped. Fitting reads a sample of the rows (recipe key rows_per_code). At the end all
    shards are read, every item must occur once, and the collision policy makes the identifiers: DIR/codes.

    docs/scale.md has sizes, figures and the use of several machines.
    """
    from genrec.pipeline.encode import EncodeSettings, encode_items
    from genrec.progress import ProgressBar

    sys.path.append(str(Path.cwd()))  # an item tokenizer or an embedder of the user's, named module:Class
    settings = EncodeSettings(
        tokenizer=None if fit else _fitted_folder(tokenizer),
        fit=_settings_of(tokenizer, overrides) if fit else None,
        sample=sample,
        id_column=id_column,
        vector_column=vector_column,
        text=tuple(text),
        model=model,
        batch_size=batch_size,
        collisions=collisions,  # type: ignore[arg-type]
        suffix_limit=suffix_limit,
        engine=engine,  # type: ignore[arg-type]
        workers=workers,
        seed=seed,
    )
    if not fit and (overrides or sample is not None):
        raise ConfigError("--set and --sample change how an item tokenizer is fitted", hint="add --fit")
    bars: dict[str, Any] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = ProgressBar(total=total, desc=name, unit="item", unit_scale=True)
        bars[name].update(done)

    log = logging.getLogger("genrec")
    level = log.level
    log.setLevel(logging.ERROR)  # a warning of a catalog would come once for every piece
    try:
        made = encode_items(items, out, settings, overwrite=overwrite, progress=progress)
    finally:
        log.setLevel(level)
        for bar in bars.values():
            bar.close()
    found = {"items": len(made.codes), "shards_reused": made.reused, **made.report, "codes": made.codes.report()}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from genrec.pipeline.codes_text import describe_codes

    print(f"{len(made.codes):,} items" + (f", {made.reused} shards were done before" if made.reused else ""))
    print(describe_codes(made.codes, made.report["raw"]))
    print(f"collision policy: {made.report['collisions']['policy']}")
    print(f"codes: {out / 'codes'}")


def _fitted_folder(given: str) -> Path:
    path = Path(given)
    if not path.is_dir():
        raise ConfigError(
            f"--tokenizer: expected the folder of a fitted item tokenizer, got {given!r}",
            hint="add --fit to fit one on these items",
        )
    return path


def _settings_of(given: str, overrides: list[str]) -> Any:
    """The settings that a recipe, or the defaults of a kind with some changed, say."""
    from genrec import recipes
    from genrec.item_tokenizers import registry

    path = Path(given)
    if path.is_dir():
        raise ConfigError(
            f"--tokenizer: {given} is a folder, expected a recipe or a kind to fit", hint="leave out --fit to use it"
        )
    recipe: str | Path = path if path.is_file() else f"kind: {given}\n"
    if path.suffix in (".yaml", ".yml") and not path.is_file():
        raise ConfigError(f"--tokenizer: no file {given}")
    kind = recipes.kind_of(recipe)
    registry.check_gives_codes(kind)
    return recipes.load(recipe, registry.settings_class(kind), overrides).value
