"""The process that watches over the serving one; it loads no model, and so starts at once and stays small.

It holds the listening socket: when the serving process dies, requests wait in the socket's queue until the next one has
loaded, and none is refused.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from genrec.errors import ConfigError
from genrec.serving.settings import ServeSettings

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
