"""MovieLens: 100k (u.data, u.item), 1M and 10M (``::`` between values), latest, 20M, 25M, 32M (CSV).

The old files mix ISO-8859-1 and UTF-8 between copies: without an encoding in the settings every line that is
not UTF-8 is taken as ISO-8859-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from genrec.data.readers import source
from genrec.data.readers.base import Ledger, Loaded, OnError, ReaderSettings, Rejected, RowError
from genrec.data.readers.build import EventRows, ItemRows, finish
from genrec.errors import DataError

URL = "https://grouplens.org/datasets/movielens/"
RATINGS = source.Wanted("ratings file", ("u.data", "ratings.dat", "ratings.csv", "ratings.csv.gz"), URL)
MOVIES = source.Wanted("movies file", ("u.item", "movies.dat", "movies.csv", "movies.csv.gz"), URL)
NO_GENRES = "(no genres listed)"
GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
          "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller",
          "War", "Western"]  # fmt: skip

Rows = Iterator[tuple[int, "list[str] | RowError"]]


def files(settings: ReaderSettings) -> source.Files:
    """What :func:`read` reads (internal)."""
    return source.locate(settings, MOVIES, RATINGS, need_items=True)


def read(settings: ReaderSettings, on_error: OnError = "fail") -> Loaded:
    """Read ratings and movies; raises :class:`DataError` naming file, line and field (internal)."""
    found, rejected, items = files(settings), Rejected(), ItemRows()
    movies, ratings = found.items, found.log
    assert movies is not None  # need_items

    def add_movie(row: list[str]) -> None:
        movie, title, release, genres = row
        items.add(
            movie,
            {"title": title, "release_date": release or None, "categories": _genres(genres)},
            "movie id",
        )

    events = EventRows(items, settings, ("rating",))
    events.names = {"user": "user id", "item": "movie id", "time": "timestamp"}
    Ledger(movies, on_error, rejected).read(_movie_rows(movies, settings), add_movie, items.__len__)
    rows = _rating_rows(ratings, settings)
    Ledger(ratings, on_error, rejected).read(
        rows, lambda row: events.add(row[0], row[1], row[3], row[2:3]), events.__len__
    )
    return finish(items, events, rejected)


def _genres(text: str) -> list[str]:
    return [] if text in ("", NO_GENRES) else text.split("|")


def _movie_rows(path: Path, settings: ReaderSettings) -> Rows:
    """Every movie as [id, title, release date, genres joined by |]."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        rows = _csv(path, settings, ["movieId", "title", "genres"])
        yield from _shaped(rows, 3, lambda r: [r[0], r[1], "", r[2]])
    elif path.name.endswith(".dat"):
        # a title may contain "::", an id and genres do not
        rows = _split(path, settings, lambda text: [*text.split("::", 1)[:1], *text.partition("::")[2].rsplit("::", 1)])
        yield from _shaped(rows, 3, lambda r: [r[0], r[1], "", r[2]])
    else:
        rows = _split(path, settings, lambda text: text.split("|"))
        yield from _shaped(rows, 5 + len(GENRES), lambda r: [r[0], r[1], r[2], _flags(r[5:])])


def _rating_rows(path: Path, settings: ReaderSettings) -> Rows:
    """Every rating as [user, movie, rating, time]."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        rows = _csv(path, settings, ["userId", "movieId", "rating", "timestamp"])
    else:
        mark = "::" if path.name.endswith(".dat") else "\t"
        rows = _split(path, settings, lambda text: text.split(mark))
    return _shaped(rows, 4, lambda r: r)


def _csv(path: Path, settings: ReaderSettings, columns: list[str]) -> Rows:
    header, rows = source.csv_rows(path, settings, ",")
    if header != columns:
        raise DataError(
            f"{path}, line 1, field 'header': expected {','.join(columns)}, got {','.join(header)}",
            hint="read tables with other columns with format: tabular",
        )
    return rows


def _flags(flags: list[str]) -> str:
    wrong = next((f for f in flags if f not in ("0", "1")), None)
    if wrong is not None:
        raise RowError("wrong type", "genre", f"expected flags 0 or 1, got {wrong!r}")
    return "|".join(name for name, flag in zip(GENRES, flags, strict=True) if flag == "1")


def _split(path: Path, settings: ReaderSettings, cut: Callable[[str], list[str]]) -> Rows:
    for line, text in source.texts(path, settings, fallback="latin-1"):
        yield line, text if isinstance(text, RowError) else cut(text)


def _shaped(rows: Rows, width: int, shape: Callable[[list[str]], list[str]]) -> Rows:
    for line, row in rows:
        if isinstance(row, RowError):
            yield line, row
        elif len(row) != width:
            yield line, RowError("ragged row", "line", f"expected {width} values, got {len(row)}")
        else:
            try:
                yield line, shape(row)
            except RowError as error:
                yield line, error
