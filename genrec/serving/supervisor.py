"""The process that watches over the serving one; it loads no model, and so starts at once and stays small.

It holds the listening socket: when the serving process dies, requests wait in the socket's queue until the next one has
loaded, and none is refused.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from genrec.errors import ConfigError
from genrec.serving.settings import ServeSettings

GAVE_UP = 70
"""Exit code of the watching process where the serving one keeps dying."""

LINE = "GENREC_SUPERVISOR_FD"
"""Environment variable with the number of the socket between the two processes."""


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


def supervise(command: Sequence[str], at: socket.socket, *, limit: int = 10) -> int:
    """Keep one serving process alive on a socket; its exit code when it ends on purpose (internal).

    command: starts it; it finds the socket, and a line to this process, in ``--fd N`` and :data:`LINE`. It is started
    again after a crash: at once if it had served before, otherwise more and more slowly, and after ``limit`` starts in
    a row that never came to serve, :data:`GAVE_UP`. A first start that fails is final: its error says why.
    """
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def pass_on(sig: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(signal.SIGTERM)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, pass_on)
    served, failures = False, 0
    while True:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                fds = [at.fileno(), theirs.fileno()]
                line = {**os.environ, LINE: str(theirs.fileno())}
                # a session of its own: Ctrl-C reaches it through this process only
                child = subprocess.Popen(
                    [*command, "--fd", str(fds[0])], pass_fds=fds, env=line, start_new_session=True
                )
            if stopping:
                child.terminate()
            code = child.wait()
            ours.setblocking(False)
            ready = _said(ours)
        if stopping:
            return 0 if code in (0, -signal.SIGTERM) else code
        served, failures = served or ready, 0 if ready else failures + 1
        if code == 0 or not served:
            return code
        print(f"the serving process ended with {code}; starting it again", file=sys.stderr, flush=True)
        if failures >= limit:
            return GAVE_UP
        deadline = time.monotonic() + (min(0.1 * 2**failures, 5.0) if failures else 0)
        while time.monotonic() < deadline and not stopping:
            time.sleep(0.05)
        if stopping:
            return 0


def _said(line: socket.socket) -> bool:
    """Whether the process at the other end ever served."""
    try:
        return bool(line.recv(1))
    except OSError:
        return False


def hold_the_line() -> Callable[[], None]:
    """In the serving process: what to call when it serves (internal).

    Where the watching process dies, this one ends too. Without a watching process nothing happens.
    """
    number = os.environ.pop(LINE, None)
    if number is None:
        return lambda: None
    line = socket.socket(fileno=int(number))

    def wait() -> None:
        with contextlib.suppress(OSError):
            line.recv(1)  # nothing is ever sent: this returns when the other end is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="genrec-line", daemon=True).start()

    def serves() -> None:
        line.send(b"r")

    return serves
