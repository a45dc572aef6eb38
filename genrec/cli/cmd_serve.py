"""``genrec serve``: an endpoint that answers with items of the catalog only."""

from __future__ import annotations

import logging
import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from genrec.errors import ConfigError, require

if TYPE_CHECKING:
    from genrec.serving.settings import ServeSettings

ADVANCED, ENGINES = "Limits", "Engines"


class EngineName(StrEnum):
    """Where a model runs."""

    torch = "torch"
    vllm = "vllm"
    http = "http"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("serve", context_settings={"allow_extra_args": True})(serve)


def serve(
    context: typer.Context,
    run: Path = typer.Argument(..., help="A run folder, a bundle, or a link to one."),
    host: str = typer.Option("127.0.0.1", "--host", help="Where to listen; others than this machine need a key."),
    port: int = typer.Option(8000, "--port", min=0, max=65535, help="0 = a free one, which is printed."),
    name: str | None = typer.Option(
        None, "--name", help="What requests call the model.", show_default="the folder's or link's"
    ),
    journal: Path | None = typer.Option(
        None, "--journal", help="File that keeps changes of the catalog.", show_default="RUN.changes.jsonl"
    ),
    watch: float | None = typer.Option(
        None, "--watch", metavar="SECONDS", min=0.1, help="Look so often whether RUN leads to another model."
    ),
    threads: int | None = typer.Option(None, "--threads", min=1, help="Threads of a search.", show_default="torch's"),
    base: str | None = typer.Option(None, "--base", help="The pretrained model of an adapter, where it has moved."),
    engine: EngineName = typer.Option(
        EngineName.torch,
        "--engine",
        help="Where the model runs: here, in vLLM started here, in a vLLM server.",
        rich_help_panel=ENGINES,
    ),
    url: str | None = typer.Option(None, "--url", help="Of the server of --engine http.", rich_help_panel=ENGINES),
    engine_model: str | None = typer.Option(
        None,
        "--engine-model",
        help="What that server calls the model or its adapter.",
        rich_help_panel=ENGINES,
        show_default="its first",
    ),
    timeout: float = typer.Option(10.0, "--timeout", help="Seconds a request may take.", rich_help_panel=ADVANCED),
    max_batch: int = typer.Option(32, "--max-batch", help="Users searched at once.", rich_help_panel=ADVANCED),
    max_waiting: int = typer.Option(256, "--max-waiting", help="Users that may wait.", rich_help_panel=ADVANCED),
    max_beams: int = typer.Option(500, "--max-beams", help="Beams of a request.", rich_help_panel=ADVANCED),
    one_process: bool = typer.Option(False, "--one-process", help="Don't start the model again after a crash."),
    spare: bool = typer.Option(
        False,
        "--spare",
        help="Keep a process ready that takes over after a crash in the time it takes to load the model.",
    ),
    fd: int | None = typer.Option(None, "--fd", hidden=True, help="A socket to serve on."),
) -> None:
    """Serve a trained run over HTTP: histories of item ids in, ranked item ids out.

    Ask it: curl -s localhost:8000/v1/recommendations -H 'Content-Type: application/json' -d '{"history": ["B001"]}'

    Keys come from the environment: GENREC_API_KEY for all routes but /health, GENREC_ADMIN_KEY for those that change
    the catalog (off without it). Without an API key it listens on this machine only. docs/serving.md has the rest.

    Options of vLLM itself stand behind --, as in: genrec serve RUN --engine vllm -- --dtype float32
    """
    _check_engine(engine, url, engine_model, watch, threads, context.args)
    if spare and (one_process or engine is EngineName.vllm):
        raise ConfigError("--spare: only where a process watches the model, not with --one-process or --engine vllm")
    require("fastapi", "serve")
    require("uvicorn", "serve")
    require("prometheus_client", "serve")
    from genrec.serving.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        api_key=os.environ.get("GENREC_API_KEY") or None,
        admin_key=os.environ.get("GENREC_ADMIN_KEY") or None,
        timeout_seconds=timeout,
        # an engine gathers what all users ask for by itself
        max_batch=max_batch if engine is EngineName.torch else 1,
        searches=1 if engine is EngineName.torch else max_batch,
        max_waiting=max_waiting,
        max_beams=max_beams,
    )
    if not run.exists():
        raise ConfigError(f"{run}: no such folder", hint="give the folder of a trained run (genrec demo makes one)")
    if engine is EngineName.vllm:
        from genrec.serving.vllm_start import start

        start(run, settings, name=name, journal=journal, base=base, more=context.args)
    if fd is None and not one_process:
        from genrec.serving.supervisor import listen, supervise

        at = listen(settings)
        if url is not None:  # the engine goes on with its weights, wherever a link leads when a process starts again
            from genrec.models.engine_weights import HELD, weights_of_run

            os.environ[HELD] = weights_of_run(run)
        raise typer.Exit(supervise([sys.executable, "-m", "genrec.cli.main", *sys.argv[1:]], at, spare=spare))
    remote = None if url is None else (url, engine_model)
    _serve_here(run, settings, fd, journal, watch, threads, base, name, remote)


def _check_engine(
    engine: EngineName,
    url: str | None,
    model: str | None,
    watch: float | None,
    threads: int | None,
    more: list[str],
) -> None:
    """Raise ConfigError for options that the engine does not have."""
    if more and engine is not EngineName.vllm:
        raise ConfigError(f"what is {more[0]!r}? Only --engine vllm takes further arguments, behind --")
    if (engine is EngineName.http) != (url is not None):
        raise ConfigError("--url: give it with --engine http, and only there")
    if model is not None and engine is not EngineName.http:
        raise ConfigError("--engine-model: only with --engine http")
    if engine is EngineName.vllm and watch is not None:
        raise ConfigError("--watch: vLLM keeps its weights; POST /v1/genrec/admin/reload reads the catalog again")
    if engine is not EngineName.torch and threads is not None:
        raise ConfigError("--threads: only with --engine torch")


def _serve_here(
    run: Path,
    settings: ServeSettings,
    fd: int | None,
    journal: Path | None,
    watch: float | None,
    threads: int | None,
    base: str | None,
    name: str | None,
    remote: tuple[str, str | None] | None,
) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from genrec.serving.server import serve
    from genrec.serving.settings import journal_of
    from genrec.serving.supervisor import hold_the_line, listen

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    serves, engine = hold_the_line(), None
    if remote is not None:
        from genrec.serving.http_engine import HttpEngine

        engine = HttpEngine(remote[0], model=remote[1], key=os.environ.get("GENREC_ENGINE_KEY") or None)
        engine.check(run)
        engine.watch(run)

    def ready(url: str) -> None:
        print(f"serving {run} on {url}", flush=True)
        serves()

    at = listen(settings) if fd is None else socket.socket(fileno=fd)
    try:
        serve(
            run,
            settings,
            at,
            journal=journal or journal_of(run),
            watch_seconds=watch,
            base=base,
            name=name,
            engine=engine,
            engine_well=lambda: engine is None or engine.well,
            ready=ready,
        )
    finally:
        if engine is not None:
            engine.close()
