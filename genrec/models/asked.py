"""What a recommender is asked, as rows: histories read and checked, rows gathered for a batch (numpy only).

Axes: N items, U users (rows), B users of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog


def histories_asked(
    given: Histories | Sequence[Sequence[int]] | Sequence[Sequence[str]],
    n_items: int,
    catalog_of: Callable[[], ItemCatalog | None],
) -> Histories:
    """Histories of item numbers, or of item ids that the catalog knows, one row for each user (internal).

    catalog_of: called only where there are ids, since a bundle reads its catalog then. Raises DataError for one flat
    list, for ids without a catalog, and for items that do not exist.
    """
    if isinstance(given, Histories):
        found = given
    elif any(isinstance(row, str | int | np.integer) for row in given):
        raise DataError("histories: expected one list of items for each user", hint="of one user: [[3, 14]]")
    elif not any(isinstance(item, str) for row in given for item in row[:1]):
        found = Histories.from_lists(given)  # type: ignore[arg-type]
    else:
        catalog = catalog_of()
        if catalog is None:
            raise DataError("histories are item ids, and the model has no catalog", hint="pass item numbers")
        found = Histories.from_lists([catalog.numbers(row) for row in given])  # type: ignore[arg-type]
    return check_items(found, n_items)


def check_items(histories: Histories, n_items: int) -> Histories:
    """The same histories. Raises DataError for a number that no item has (internal).

    All items count: one that is too old for the prompt is still excluded, and -1 would exclude the last item.
    """
    items = histories.items
    if len(items) and not 0 <= int(items.min()) <= int(items.max()) < n_items:
        raise DataError(f"item numbers: expected 0..{n_items - 1}, got {items.min()} .. {items.max()}")
    return histories


def check_asked(
    n_rows: int,
    users: npt.ArrayLike | Sequence[str] | None,
    queries: Sequence[str | None] | None,
    *,
    prompts: object | None,
) -> None:
    """Raise DataError where not every row has its user or query, ConfigError where nothing reads queries (internal).

    prompts: what makes prompts with words in them; None = the model was trained without.
    """
    if users is not None and len(np.asarray(users)) != n_rows:
        raise DataError(f"users: expected {n_rows}, one per history, got {len(np.asarray(users))}")
    if queries is not None and len(queries) != n_rows:
        raise DataError(f"queries: expected {n_rows}, one per history, got {len(queries)}")
    if queries is not None and prompts is None:
        raise ConfigError("query: the model knows no text", hint="train one on the task search (docs/prompts.md)")


def rows_of_like_length(histories: Histories, size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers int64 ``[B]``, shortest histories first, ``size`` at a time, every row once (internal)."""
    order = np.argsort(histories.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
