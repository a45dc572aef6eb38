"""The process that watches, over one that serves nothing: what it starts, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

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
