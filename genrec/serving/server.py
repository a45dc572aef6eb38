"""The process that serves: a registry of models, the application, and the loop that answers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn

from genrec.errors import ConfigError, FingerprintMismatch
from genrec.models.engine_scorer import Engine
from genrec.models.engine_weights import HELD, weights_of_run
from genrec.serving.app import create_app
from genrec.serving.changes import Changes
from genrec.serving.connections import impatient, refuse_while
from genrec.serving.digests import at as at_place
from genrec.serving.lifecycle import Load, Registry, Watcher, mark
from genrec.serving.model import ServedModel
from genrec.serving.settings import ServeSettings
from genrec.serving.telemetry import Metrics

log = logging.getLogger(__name__)

KEEP_ALIVE = 15
"""Seconds that a connection without a request is kept after an answer."""


def serve(
    run: Path,
    settings: ServeSettings,
    at: socket.socket,
    *,
    journal: Path | None = None,
    watch_seconds: float | None = None,
    base: str | None = None,
    name: str | None = None,
    engine: Engine | None = None,
    engine_well: Callable[[], bool] = lambda: True,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a run folder until SIGTERM or SIGINT; requests under way are answered first. Stability: experimental.

    journal: where changes of the catalog are kept. watch_seconds: how often to look whether ``run`` leads to another
    model; None = never. engine: where the model runs; None = in this process. engine_well: whether it answers, for
    ``/ready``. ready: called with the address when requests can be answered. Raises what loading raises.
    """
    metrics = Metrics()
    # an engine elsewhere does not say its numbers: a certificate must hold for rounded ones
    dtype = None if engine is None else torch.bfloat16
    load = loading(Path(run), settings, name=name, base=base, engine=engine, dtype=dtype, held=os.environ.get(HELD))
    changes = Changes(journal)
    registry = Registry(
        load, changes=changes, metrics=metrics, here=lambda: at_place(Path(run)), marked=lambda: mark(Path(run))
    )
    watcher = None if watch_seconds is None else Watcher(registry, seconds=watch_seconds)
    app = create_app(registry, settings, metrics, engine_well=engine_well)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http=impatient(settings.header_seconds, KEEP_ALIVE),
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        h11_max_incomplete_event_size=32_768,
    )
    server = _Server(config, app)
    host, port = at.getsockname()[:2]

    def stop(*_: object) -> None:
        server.should_exit = True

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)  # until uvicorn has its own, and when it raises once more what stopped it
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        asyncio.run(server.serve(sockets=[at]))
    finally:
        if watcher is not None:
            watcher.close()
        app.state.batcher.close(timeout=settings.drain_seconds)
        registry.close()
        changes.close()


def loading(
    run: Path,
    settings: ServeSettings,
    *,
    name: str | None = None,
    base: str | None = None,
    engine: Engine | None = None,
    dtype: torch.dtype | None = None,
    held: str | None = None,
) -> Load:
    """What loads the model at a place, whatever is there at the time (internal).

    name: None = that of the folder, or of the link to it: wherever a link leads, clients ask for the same model.
    In an engine the weights stay what they are: a bundle with others raises FingerprintMismatch. held: their name, None
    = that of those at the place now.
    """
    shown = name or Path(os.path.abspath(run)).name  # noqa: PTH100 (resolve() would follow the link)
    held = None if engine is None else held or weights_of_run(run)

    def load(version: int, place: Path | None = None) -> ServedModel:
        found = ServedModel.load(
            place or run.resolve(),
            name=shown,
            version=version,
            base=base,
            max_beams=settings.max_beams,
            engine=engine,
            dtype=dtype,
        )
        if (beams := found.recommender.settings.n_beams) > settings.max_beams:
            found.close()
            raise ConfigError(
                f"{place or run}: the model is searched with {beams} beams, and --max-beams is {settings.max_beams}",
                hint=f"give --max-beams {beams} or more",
            )
        if held is not None and found.weights != held:
            found.close()
            raise FingerprintMismatch(f"{place or run} has other weights than the engine", hint="start it again")
        return found

    return load


class _Server(uvicorn.Server):
    """Says that it takes no more requests as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, app: object) -> None:
        super().__init__(config)
        self._served = app

    def handle_exit(self, sig: int, frame: object) -> None:
        self._served.state.draining = True  # type: ignore[attr-defined]
        super().handle_exit(sig, frame)  # type: ignore[arg-type]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets, "it serves on a socket that it was given"
        await refuse_while(lambda: super(_Server, self).shutdown(sockets), sockets[0])
