"""``genrec export``: the trained model as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import typer

from genrec.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    run: Path = typer.Argument(..., help="A run folder with a trained model, or its bundle."),
    out: Path = typer.Argument(..., metavar="OUT", help="The new folder."),
    merge: bool = typer.Option(False, "--merge", help="Adapters become part of the weights."),
    base: str | None = typer.Option(
        None, "--base", metavar="PATH", help="The pretrained model of an adapter, where it has moved."
    ),
) -> None:
    """Write the model and its text tokenizer as AutoModel and AutoTokenizer read them, without genrec.

    The folder is read back and its logits are compared with those of the trained model before it gets its name.
    """
    if not merge:
        raise ConfigError("expected --merge: other forms are not written yet")
    from genrec.models.export import export_merged

    made = export_merged(run, out, base=base)
    print(f"{made.folder}: {made.bytes / 1e6:.1f} MB, logits as trained (largest difference {made.difference:.1e})")
