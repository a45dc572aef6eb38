"""``genrec export``: the trained model as plain Hugging Face folders."""

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
    beside: bool = typer.Option(
        False,
        "--base-plus-adapter",
        help="OUT/base with the trained item rows, and plain LoRA in OUT/adapter, as vLLM loads them.",
    ),
    base: str | None = typer.Option(
        None, "--base", metavar="PATH", help="The pretrained model of an adapter, where it has moved."
    ),
) -> None:
    """Write the model and its text tokenizer as AutoModel and AutoTokenizer read them, without genrec.

    The folder is read back and its logits are compared with those of the trained model before it gets its name.
    """
    if merge == beside:
        given = "both" if merge else "neither"
        raise ConfigError(f"expected either --merge or --base-plus-adapter, got {given}")
    from genrec.models.export import export_base_plus_adapter, export_merged

    made = (export_merged if merge else export_base_plus_adapter)(run, out, base=base)
    print(f"{made.folder}: {made.bytes / 1e6:.1f} MB, logits as trained (largest difference {made.difference:.1e})")
