"""Progress of what takes long: a bar on a terminal, a line a minute elsewhere (a log file, a batch job)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

_BAR_AFTER = 2.0  # seconds
_LINE_EVERY = 60.0  # seconds


def epoch_line(name: str, row: Mapping[str, Any], epochs: int) -> str:
    """A row of a training history as a line of the log (internal).

    >>> epoch_line("rqvae", {"epoch": 20, "loss": 163.666, "usage": [1.0, 0.96875]}, 200)
    'rqvae epoch 20 of 200: loss 163.7, usage 1 / 0.9688'
    """
    values = {key: value if isinstance(value, list) else [value] for key, value in row.items() if key != "epoch"}
    told = (f"{key} {' / '.join(f'{x:.4g}' for x in value)}" for key, value in values.items() if value)
    return f"{name} epoch {row['epoch']} of {epochs}: {', '.join(told)}"


class ProgressBar(tqdm):  # type: ignore[misc]
    """tqdm that appears after two seconds and, where stderr is no terminal, prints whole lines once a minute.

    ``show=False`` prints nothing at all. Every other argument is tqdm's.
    """

    def __init__(self, *args: Any, show: bool = True, **kwargs: Any) -> None:
        self.lines, self.disable = not sys.stderr.isatty(), not show
        when: dict[str, Any] = {"delay": _BAR_AFTER}
        if self.lines:  # maxinterval: tqdm's watcher would print in between
            when = {"delay": _LINE_EVERY, "mininterval": _LINE_EVERY, "maxinterval": 2 * _LINE_EVERY, "ncols": 0}
        super().__init__(*args, file=sys.stderr, disable=not show, **when, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or print a line."""
        if not self.lines:
            return bool(super().display(msg, pos))
        print(f"    {self}", file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """End the bar; as lines, nothing more is printed."""
        if self.lines and not self.disable:
            self.disable = True
            self._decr_instances(self)
            return
        super().close()
