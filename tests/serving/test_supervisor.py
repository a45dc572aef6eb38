"""The process that watches, over one that serves nothing: what it starts, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from genrec.serving import supervisor
from genrec.serving.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
WATCHING = """
import sys
from genrec.serving.settings import ServeSettings
from genrec.serving.supervisor import listen, supervise
sys.exit(supervise([sys.executable, sys.argv[1], sys.argv[2]], listen(ServeSettings(port=0)), spare=True))
"""
SERVING = """
import os, sys, time
from genrec.serving.supervisor import hold_the_line
with open(sys.argv[1], "a") as told:
    told.write(f"begun {os.getpid()}\\n")
serves = hold_the_line()
with open(sys.argv[1], "a") as told:
    told.write(f"serves {os.getpid()}\\n")
serves()
time.sleep(600)
"""


def said(file, word, n):
    """The first ``n`` processes that have said this."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        lines = file.read_text().splitlines() if file.exists() else []
        found = [int(line.split()[1]) for line in lines if line.startswith(word)]
        if len(found) >= n:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{n} x {word}: {lines}")


@pytest.fixture
def handlers():
    """The signal handlers of the tests, as they were."""
    kept = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for each, handler in kept.items():
        signal.signal(each, handler)


@pytest.fixture
def at():
    with supervisor.listen(ServeSettings(port=0)) as found:
        yield found


def test_a_hangup_that_was_ignored_stays_so(handlers, at):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    assert supervisor.supervise(["true"], at) == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert supervisor.supervise(["true"], at) == 0
    assert signal.getsignal(signal.SIGHUP) is signal.getsignal(signal.SIGTERM)


def test_a_service_goes_on_where_no_process_can_wait(handlers, at, monkeypatch, capfd):
    real = supervisor._Child

    def started(command, at, *, waits):
        if waits:
            raise OSError(11, "Resource temporarily unavailable")
        return real(command, at, waits=waits)

    monkeypatch.setattr(supervisor, "_Child", started)
    serves = "import os, time; os.write(int(os.environ['GENREC_SUPERVISOR_FD']), b'r'); time.sleep(1.2)"
    assert supervisor.supervise([sys.executable, "-Ic", serves], at, spare=True) == 0  # as the process ended
    assert "cannot be started (Resource temporarily unavailable)" in capfd.readouterr().err


def test_a_process_that_cannot_wait_is_started_more_and_more_slowly(at, monkeypatch, capfd):
    clock, starts, says = [0.0], [], set()

    class Ends:
        """A process that ends at once."""

        def __init__(self, command, at, *, waits):
            assert waits
            starts.append(clock[0])
            self.process = subprocess.Popen(["false"])
            self.process.wait()

        def has_said(self, word):
            return word in says

        def close(self):
            pass

    class Serving:
        def has_said(self, word):
            return word == supervisor.SERVING

    monkeypatch.setattr(supervisor, "_Child", Ends)
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    spare = supervisor._Spare([], at)

    def hour():
        starts.clear()
        for _ in range(7200):
            clock[0] += 0.5
            spare.look(Serving())
        return len(starts)

    assert 10 <= hour() < 20 and hour() == 6
    spare._failures = 5000  # weeks
    assert hour() == 6
    assert spare.take() is None  # never one that has ended
    assert "ended with 1" in capfd.readouterr().err
    says.add(supervisor.WAITING)  # it came to wait before it ended
    clock[0] += 600
    starts.clear()
    for _ in range(5):
        spare.look(Serving())
    assert len(starts) == 5


def test_the_process_that_waited_takes_over_and_none_is_left(tmp_path):
    (tmp_path / "watching.py").write_text(WATCHING)
    (tmp_path / "serving.py").write_text(SERVING)
    told = tmp_path / "told"
    command = [sys.executable, str(tmp_path / "watching.py"), str(tmp_path / "serving.py"), str(told)]
    watching = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    try:
        for n in range(1, 4):  # the first one serves, the next one waits
            begun, serve = said(told, "begun", n + 1), said(told, "serves", n)
            assert len(begun) == n + 1 and serve == begun[:n]
            if n == 2:
                os.kill(begun[2], signal.SIGKILL)  # the one that waits dies too: another one begins
                begun = said(told, "begun", 4)
                assert said(told, "serves", 2) == [begun[0], begun[1]]
                break
            os.kill(serve[-1], signal.SIGKILL)
        alive = [psutil.Process(pid) for pid in (begun[1], begun[3])]
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(60) == 0
        assert not psutil.wait_procs(alive, timeout=10)[1]
    finally:
        if watching.poll() is None:
            for each in psutil.Process(watching.pid).children():
                each.kill()
            watching.kill()
        watching.wait()
