"""Entry point of the ``genrec`` command: the verbs, and errors as one line plus a hint."""

from __future__ import annotations

import inspect
import os
import sys

import typer

from genrec import __version__
from genrec.cli import (
    cmd_append,
    cmd_audit,
    cmd_batch,
    cmd_compare,
    cmd_demo,
    cmd_doctor,
    cmd_encode,
    cmd_export,
    cmd_init,
    cmd_inspect,
    cmd_pieces,
    cmd_prompts,
    cmd_recommend,
    cmd_retire,
    cmd_run,
    cmd_serve,
)
from genrec.errors import GenrecError, TrainingPaused

app = typer.Typer(
    name="genrec",
    help="LLM-based generative recommendation: tokenize a catalog, train a model that writes item identifiers, "
    "decode only identifiers that exist, evaluate item by item. Start with `genrec demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_ON_RUNS = (
    cmd_recommend,
    cmd_serve,
    cmd_batch,
    cmd_append,
    cmd_retire,
    cmd_inspect,
    cmd_audit,
    cmd_compare,
    cmd_pieces,
    cmd_encode,
    cmd_export,
)
for module in (cmd_demo, cmd_run, *_ON_RUNS, cmd_prompts, cmd_init, cmd_doctor):
    module.register(app)
for verb in app.registered_commands:  # typer keeps the line breaks of a docstring, whatever the terminal's width
    about = verb.help or inspect.getdoc(verb.callback) or ""
    verb.help = "\n\n".join(" ".join(part.split()) for part in about.split("\n\n"))


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        print(f"genrec {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a :class:`GenrecError` becomes one line and a hint, exit code 1 (75: paused)."""
    # torch's threads wait for each other by spinning: on a machine with other work, a step then takes 10 to 1000
    # times as long. Sleeping costs a little on an idle machine. Read by OpenMP when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except GenrecError as error:
        paused = isinstance(error, TrainingPaused)
        print(str(error) if paused else f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(75 if paused else 1)
    except OSError as error:
        if error.filename is None or isinstance(error, FileNotFoundError):
            raise  # rather a bug than a place that the user gave
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        print("hint: a file is in the way of a folder, or permission is missing: give another path", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on where it stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
