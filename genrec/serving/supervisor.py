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

WAITS = "GENREC_SUPERVISOR_WAITS"
"""Environment variable, not empty for a process that is to wait for its turn."""


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


class _Child:
    """A serving process, and this end of the line to it."""

    def __init__(self, command: Sequence[str], at: socket.socket, *, waits: bool) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            fds = [at.fileno(), theirs.fileno()]
            told = {**os.environ, LINE: str(theirs.fileno()), WAITS: "1" if waits else ""}
            # a session of its own: Ctrl-C reaches it through this process only
            self.process = subprocess.Popen(
                [*command, "--fd", str(fds[0])], pass_fds=fds, env=told, start_new_session=True
            )
        self.line.setblocking(False)
        self.waits, self.served = waits, False

    def serves(self) -> bool:
        """Whether it has ever said that it serves."""
        with contextlib.suppress(OSError):
            self.served |= bool(self.line.recv(1))
        return self.served

    def go(self) -> None:
        """Let a process that waits serve."""
        if self.waits:
            with contextlib.suppress(OSError):  # it died meanwhile
                self.line.send(b"g")

    def close(self) -> None:
        """End a process that waits: it does when the line is gone."""
        self.line.close()
        if self.waits:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def supervise(command: Sequence[str], at: socket.socket, *, limit: int = 10, spare: bool = False) -> int:
    """Keep one serving process alive on a socket; its exit code when it ends on purpose (internal).

    command: starts it; it finds the socket, and a line to this process, in ``--fd N`` and :data:`LINE`. It is started
    again after a crash: at once if it had served before, otherwise more and more slowly, and after ``limit`` starts in
    a row that never came to serve, :data:`GAVE_UP`. A first start that fails is final: its error says why. spare:
    while it serves, another process that has read all code, and no model, waits to take its place.
    """
    child: _Child | None = None
    beside: _Child | None = None
    stopping = False

    def pass_on(sig: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.process.send_signal(signal.SIGTERM)

    def look() -> None:
        """Have a process wait as long as there is one that serves."""
        nonlocal beside
        assert child is not None
        if beside is not None and beside.process.poll() is not None:
            beside.close()
            beside = None
        if beside is None and not stopping and child.serves():
            beside = _Child(command, at, waits=True)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, pass_on)
    served, failures = False, 0
    try:
        while True:
            child, beside = beside or _Child(command, at, waits=False), None
            child.go()
            if stopping:
                child.process.terminate()
            code = _ended(child, look if spare else None)
            ready = child.serves()
            child.line.close()
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
    finally:
        if beside is not None:
            beside.close()


def _ended(child: _Child, look: Callable[[], None] | None) -> int:
    """The exit code of a process; meanwhile ``look`` is called now and then."""
    while look is not None:
        look()
        try:
            return child.process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
    return child.process.wait()


def hold_the_line() -> Callable[[], None]:
    """In the serving process, once it has imported what it needs: what to call when it serves (internal).

    A process that is to wait does so here, and ends where its turn does not come. Where the watching process dies, this
    one ends too. Without a watching process nothing happens.
    """
    number, waits = os.environ.pop(LINE, None), os.environ.pop(WAITS, None)
    if number is None:
        return lambda: None
    line = socket.socket(fileno=int(number))
    if waits and line.recv(1) != b"g":
        raise SystemExit(0)

    def wait() -> None:
        with contextlib.suppress(OSError):
            line.recv(1)  # nothing is ever sent: this returns when the other end is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="genrec-line", daemon=True).start()

    def serves() -> None:
        line.send(b"r")

    return serves
