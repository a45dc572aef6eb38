"""``genrec prompts``: the alignment tasks, and real examples of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from genrec.prompts.show import Shown

STYLES = {"template": "dim", "text": "cyan", "item": "bold yellow", "user": "bold magenta", "chat": "green"}
"""How each role is coloured on a terminal."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verbs = typer.Typer(help="The tasks that tie item tokens to text: templates, and real examples.")
    verbs.command("list")(list_tasks)
    verbs.command("show")(show)
    app.add_typer(verbs, name="prompts", no_args_is_help=True)


def list_tasks() -> None:
    """List the built-in tasks: version, number of wordings, what they draw from, inputs.

    Their templates are in the folder prompts/ that `genrec init` copies.
    """
    from genrec.prompts.show import listing

    print(f"{'task':<21}{'version':>8}{'wordings':>10}  {'rows':<7}inputs")
    for each in listing():
        head = f"{each['task']:<21}{each['version']:>8}{each['wordings']:>10}  {each['rows']:<7}"
        print(head + ", ".join(each["inputs"]))
        print(f"    {each['about']}")


def show(
    task: str = typer.Argument(..., help="A built-in task, or 'module:function'."),
    run: Path | None = typer.Option(
        None, "--run", metavar="DIR", help="A run folder that has got as far as `tokenize`; default: a made-up shop."
    ),
    n: int = typer.Option(3, "--n", min=1, help="How many examples."),
    seed: int = typer.Option(0, "--seed", help="Of the rows, wordings and queries that are drawn."),
    template: Path | None = typer.Option(None, "--template", metavar="FILE", help="Instead of the task's own."),
    recipe: Path | None = typer.Option(
        None, "--recipe", metavar="FILE", help="Take fields, lengths, queries and wrapper from this mixture."
    ),
    tokenizer: Path | None = typer.Option(
        None, "--tokenizer", metavar="DIR", help="Text tokenizer of a model (a Hugging Face folder): counts its tokens."
    ),
    users: bool = typer.Option(False, "--users", help="As if the vocabulary had user tokens."),
) -> None:
    """Print examples of a task as a model is trained on them, coloured by what each piece is.

    Without colours, text of the catalog stands between ‹ and ›. Everything behind => carries the loss.
    """
    from rich.console import Console

    from genrec.prompts import show as showing

    sys.path.append(str(Path.cwd()))  # a task of the user's may lie where the command is run
    inputs = showing.demo_inputs() if run is None else showing.run_inputs(run)
    options = showing.Options(n=n, seed=seed, template=template, recipe=recipe, tokenizer=tokenizer, users=users)
    found = showing.examples(task, inputs, options)
    console = Console(highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    for k, example in enumerate(found, 1):
        console.print(f"[{k}] {example.title}", markup=False)
        console.print(_line("   ", example.prompt, coloured))
        console.print(_line("=> ", example.target, coloured))
        console.print(f"    {example.counts}\n", markup=False)
    if coloured:
        roles = dict.fromkeys(piece.role for example in found for piece in (*example.prompt, *example.target))
        console.print(_legend(list(roles)))


def _line(start: str, shown: list[Shown], coloured: bool) -> Text:
    from rich.text import Text

    from genrec.prompts.show import plain

    if not coloured:
        return Text(start + plain(shown).replace("\n", "\n   "))
    line = Text(start)
    for piece in shown:
        line.append(piece.text.replace("\n", "\n   "), STYLES[piece.role])
    return line


def _legend(roles: list[str]) -> Text:
    from rich.text import Text

    from genrec.prompts.show import ROLES

    line = Text()
    for role in roles:
        line.append(f"{ROLES[role]}  ", STYLES[role])  # type: ignore[index]
    return line
