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

WAITING, SERVING = b"w", b"r"
"""What a serving process says on the line."""


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
            started = [*command, "--fd", str(fds[0])]
            try:  # a session of its own: Ctrl-C reaches it through this process only
                self.process = subprocess.Popen(started, pass_fds=fds, env=told, start_new_session=True)
            except OSError:
                self.line.close()
                raise
        self.line.setblocking(False)
        self.waits, self._said = waits, b""

    def has_said(self, word: bytes) -> bool:
        """Whether it has ever said that it serves, or that it waits."""
        with contextlib.suppress(OSError):
            self._said += self.line.recv(16)
        return word in self._said

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


class _Spare:
    """Keeps a process waiting beside the serving one. Where that cannot be, the service goes on without.

    One that ends before its turn is started again: at once if it had come to wait, otherwise more and more slowly, ten
    minutes apart in the end, since to read all code takes some seconds of a core.
    """

    def __init__(self, command: Sequence[str], at: socket.socket) -> None:
        self._command, self._at = command, at
        self._child: _Child | None = None
        self._failures, self._next = 0, 0.0

    def look(self, serving: _Child) -> None:
        """Called now and then: have a process wait as long as there is one that serves."""
        if self._child is not None and self._child.process.poll() is not None:
            code, waited = self._child.process.returncode, self._child.has_said(WAITING)
            self.close()
            self._failed(f"ended with {code}", 0 if waited else self._failures + 1)
        if self._child is None and time.monotonic() >= self._next and serving.has_said(SERVING):
            try:
                self._child = _Child(self._command, self._at, waits=True)
            except OSError as error:  # no memory, no place for a process
                self._failed(f"cannot be started ({error.strerror})", self._failures + 1)

    def _failed(self, what: str, failures: int) -> None:
        self._failures = failures
        wait = min(0.1 * 2 ** min(failures, 20), 600.0) if failures else 0.0
        self._next = time.monotonic() + wait
        print(f"the waiting process {what}; the next one in {wait:.1f} s", file=sys.stderr, flush=True)

    def take(self) -> _Child | None:
        """The process that waits, if there is one, to be the serving one."""
        child = self._child
        if child is None or child.process.poll() is not None:
            return None
        self._child = None
        return child

    def close(self) -> None:
        """End the process that waits."""
        if self._child is not None:
            self._child.close()
            self._child = None


def supervise(command: Sequence[str], at: socket.socket, *, limit: int = 10, spare: bool = False) -> int:
    """Keep one serving process alive on a socket; its exit code when it ends on purpose (internal).

    command: starts it; it finds the socket, and a line to this process, in ``--fd N`` and :data:`LINE`. It is started
    again after a crash: at once if it had served before, otherwise more and more slowly, and after ``limit`` starts in
    a row that never came to serve, :data:`GAVE_UP`. A first start that fails is final: its error says why. spare:
    while it serves, another process that has read all code, and no model, waits to take its place. SIGTERM, SIGINT and
    SIGHUP end it; SIGHUP does not where it was ignored before, as under ``nohup``.
    """
    child: _Child | None = None
    beside = _Spare(command, at) if spare else None
    stopping = False

    def pass_on(sig: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.process.send_signal(signal.SIGTERM)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if each != signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, pass_on)
    served, failures = False, 0
    try:
        while True:
            child = (beside and beside.take()) or _Child(command, at, waits=False)
            child.go()
            if stopping:
                child.process.terminate()
            code = _ended(child, beside)
            ready = child.has_said(SERVING)
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


def _ended(child: _Child, beside: _Spare | None) -> int:
    """The exit code of a process; meanwhile another one waits beside it."""
    while beside is not None:
        beside.look(child)
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
    if waits:
        with contextlib.suppress(OSError):  # the watching process is gone: so is the turn
            line.send(WAITING)
        if line.recv(1) != b"g":
            raise SystemExit(0)

    def wait() -> None:
        with contextlib.suppress(OSError):
            line.recv(1)  # nothing is ever sent: this returns when the other end is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="genrec-line", daemon=True).start()

    def serves() -> None:
        line.send(SERVING)

    return serves
