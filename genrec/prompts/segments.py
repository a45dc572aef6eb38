"""What a rendered example is made of: pieces with a role, and the opaque values that a template may print.

A template never gets a title or an item number as text. It gets objects that can be printed, counted and looped
over, and that print a mark; after rendering, marks are replaced by the segments they stand for. So no data is ever
part of the text that is searched for marks, and a title cannot become an item, a role or template code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from genrec.errors import ConfigError

Role = Literal["template", "text", "item", "user", "chat"]
OPEN, CLOSE = "\ue000", "\ue001"  # of the private use area: no text of a template may hold them
_MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")
# control characters that str.split does not count as white space
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")


class Segment(NamedTuple):
    """One piece of an example (experimental).

    role: ``template`` (the template's own words), ``text`` (data), ``item`` (``value`` is an item number), ``user``
    (a user number), ``chat`` (marks of a chat format, the only text that may become special tokens).
    """

    role: Role
    value: str | int


Piece = tuple[Segment, ...]


def one_line(text: str, limit: int) -> str:
    """Text as a segment may hold it: one line, single spaces, at most ``limit`` characters (internal).

    Cut at the last space, if there is one in the last third, else inside a word.

    >>> one_line("Salt  &\\nPepper Mill", 15)
    'Salt & Pepper'
    """
    flat = " ".join(text.translate(_CONTROLS).split())
    if len(flat) <= limit:
        return flat
    cut = flat.rfind(" ", limit * 2 // 3, limit + 1)
    return flat[: cut if cut > 0 else limit].rstrip()


class Slots:
    """The segments that the marks of one rendering stand for (internal)."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def one(self, *segments: Segment) -> One:
        """A value that prints as a mark of these segments."""
        self._pieces.append(segments)
        return One(f"{OPEN}{len(self._pieces) - 1}{CLOSE}")

    def many(self, segments: Iterable[Segment]) -> Many:
        """A list of values."""
        return Many([self.one(segment) for segment in segments])

    def parse(self, rendered: str) -> list[Segment]:
        """The segments of a rendered text; neighbouring words of the template are one segment.

        Raises ConfigError for half a mark: a template took one apart.
        """
        found: list[Segment] = []
        for n, part in enumerate(_MARK.split(rendered)):
            if n % 2:
                if int(part) >= len(self._pieces):
                    raise ConfigError(f"a template printed the mark of a value that does not exist: {part}")
                found += self._pieces[int(part)]
            elif OPEN in part or CLOSE in part:
                raise ConfigError("a template took a value apart", hint="print values as they are: {{ name }}")
            elif part:
                found.append(Segment("template", part))
        return found


class One:
    """A value in a template that can only be printed (internal)."""

    __slots__ = ("_mark",)

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def __str__(self) -> str:
        return self._mark


class Many:
    """Values in a template: printed with ``", "`` between them, counted, looped over (internal)."""

    __slots__ = ("_values",)

    def __init__(self, values: Sequence[One]) -> None:
        self._values = values

    def __str__(self) -> str:
        return ", ".join(map(str, self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[One]:
        return iter(self._values)

    def __getitem__(self, place: int) -> One:
        return self._values[place]
