"""The bar of what takes long."""

import io
import sys

import pytest

import genrec.progress
from genrec.progress import ProgressBar


class Screen(io.StringIO):
    """A stderr that says whether it is a terminal."""

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.fixture
def impatient(monkeypatch):
    """Shows at once, at every step."""
    monkeypatch.setattr(genrec.progress, "_BAR_AFTER", 0.0)
    monkeypatch.setattr(genrec.progress, "_LINE_EVERY", 0.0)


def shown(monkeypatch, tty, **options):
    screen = Screen(tty)
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(ProgressBar(range(3), desc="count", unit="step", miniters=1, **options)) == [0, 1, 2]
    return screen.getvalue()


def test_a_log_file_gets_whole_lines(monkeypatch, impatient):
    text = shown(monkeypatch, tty=False)
    assert "\r" not in text
    assert [line.split()[:3] for line in text.splitlines()][-1] == ["count:", "100%", "3/3"]


def test_a_terminal_gets_one_line_that_changes(monkeypatch, impatient):
    text = shown(monkeypatch, tty=True)
    assert text.count("\r") >= 2
    assert text.count("\n") == 1
    assert "3/3" in text


@pytest.mark.parametrize("tty", [False, True])
def test_nothing_is_shown_of_what_is_short_or_not_wanted(monkeypatch, tty, request):
    assert shown(monkeypatch, tty) == ""
    request.getfixturevalue("impatient")
    assert shown(monkeypatch, tty, show=False) == ""
