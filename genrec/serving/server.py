"""The process that serves, and the one that watches over it.

The watching process holds the listening socket and never loads a model: when the serving one dies, requests wait in the
socket's queue until the next one has loaded, and none is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from genrec.errors import ConfigError
from genrec.serving.app import create_app
from genrec.serving.changes import Changes
from genrec.serving.lifecycle import Registry, Watcher
from genrec.serving.model import ServedModel
from genrec.serving.settings import ServeSettings
from genrec.serving.telemetry import Metrics

log = logging.getLogger(__name__)

GAVE_UP = 70
"""Exit code of the watching process where the serving one keeps dying."""


def listen(settings: ServeSettings) -> socket.socket:
    """The listening socket (internal). Raises ConfigError where the address is in use or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
    except OSError as error:
        found.close()
        hint = "choose another --port; 0 takes a free one"
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port} ({error.strerror})", hint=hint) from error
    found.listen(2048)
    return found


def serve(
    run: Path,
    settings: ServeSettings,
    at: socket.socket,
    *,
    journal: Path | None = None,
    watch_seconds: float | None = None,
    base: str | None = None,
    name: str | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a run folder until SIGTERM or SIGINT; requests under way are answered first. Stability: experimental.

    journal: where changes of the catalog are kept. watch_seconds: how often to look whether ``run`` leads to another
    model; None = never. ready: called with the address when requests can be answered. Raises what loading raises.
    """
    metrics = Metrics()
    shown = name or Path(run).resolve().name

    def load(version: int) -> ServedModel:
        return ServedModel.load(Path(run).resolve(), name=shown, version=version, base=base)

    registry = Registry(load, changes=Changes(journal), metrics=metrics)
    watcher = None if watch_seconds is None else Watcher(registry, Path(run), seconds=watch_seconds)
    app = create_app(registry, settings, metrics)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        h11_max_incomplete_event_size=32_768,
    )
    server = _Server(config, app)
    host, port = at.getsockname()[:2]
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        asyncio.run(server.serve(sockets=[at]))
    finally:
        if watcher is not None:
            watcher.close()
        app.state.batcher.close(timeout=settings.drain_seconds)
        registry.close()


class _Server(uvicorn.Server):
    """Says that it takes no more requests as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, app: object) -> None:
        super().__init__(config)
        self._served = app

    def handle_exit(self, sig: int, frame: object) -> None:
        self._served.state.draining = True  # type: ignore[attr-defined]
        super().handle_exit(sig, frame)  # type: ignore[arg-type]


def supervise(command: Sequence[str], at: socket.socket, *, limit: int = 10, calm_seconds: float = 60.0) -> int:
    """Keep one serving process alive on a socket; its exit code when it ends on purpose (internal).

    command: starts it, with ``--fd N`` behind. It is started again after a crash, at once the first time and more
    slowly if that repeats; after ``limit`` crashes less than ``calm_seconds`` apart, :data:`GAVE_UP`. One that ended
    with a clear error (exit code 1 or 2) is not started again.
    """
    os.set_inheritable(at.fileno(), True)
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def pass_on(sig: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(sig)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, pass_on)
    crashes = 0
    while True:
        started = time.monotonic()
        child = subprocess.Popen([*command, "--fd", str(at.fileno())], pass_fds=[at.fileno()], start_new_session=True)
        if stopping:
            child.terminate()
        code = child.wait()
        if stopping or code in (0, 1, 2):
            return 0 if stopping and code in (0, -signal.SIGTERM, -signal.SIGINT) else code
        crashes = 1 if time.monotonic() - started > calm_seconds else crashes + 1
        print(f"the serving process ended with {code}; starting it again", file=sys.stderr, flush=True)
        if crashes >= limit:
            return GAVE_UP
        time.sleep(min(0.1 * 2 ** (crashes - 1), 5.0) if crashes > 1 else 0)
