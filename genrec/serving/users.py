"""What the users of a request ask, in item numbers: histories as sent or of the log, queries that the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrec.decoding.filters import ItemFilter
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import GenrecError
from genrec.serving.listable import catalog_of
from genrec.serving.problems import Problem
from genrec.serving.rules import Rules
from genrec.serving.schemas import Input, RecommendationRequest

if TYPE_CHECKING:
    from genrec.data.interactions import Interactions
    from genrec.models.template_prompts import TemplatePrompts


@dataclass(frozen=True, eq=False)
class Query:
    """One user of a request."""

    request: RecommendationRequest
    user: Input

    @property
    def key(self) -> tuple[Any, ...]:
        """What must be equal for two users to be searched in one batch."""
        r = self.request
        return r.top_k, r.n_beams, r.exclude_seen, r.exact, r.scores, r.explain


@dataclass(frozen=True, eq=False)
class Asked:
    """A query, read: its place in the batch, known items of its history, how many others, what it allows (internal).

    unknown: the user is not in the log.
    """

    place: int
    history: npt.NDArray[np.int32]
    user: str | None
    skipped: int
    allowed: ItemFilter | None
    query: str | None
    unknown: bool = False


class LogHistories:
    """The histories of a run's log, by user id (internal)."""

    def __init__(self, log: Interactions) -> None:
        self._rows = {user: row for row, user in enumerate(log.user_ids)}
        self._histories = log.histories()

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, user: str) -> npt.NDArray[np.int32] | None:
        """Item numbers, oldest first; None for nobody of the log."""
        row = self._rows.get(user)
        return None if row is None else self._histories[row]


def asked_of(
    place: int,
    query: Query,
    snapshot: CatalogSnapshot,
    rules: Rules,
    *,
    log: LogHistories | None,
    prompts: TemplatePrompts | None,
) -> Asked:
    """A query in item numbers; unknown items are counted and passed over (internal).

    prompts: how the model reads words; None = not at all. A user that is not in the log is one without a history: new
    users come before the next log does. Raises Problem for a user where there is no log, for a query that the model
    cannot answer, and for filters that the catalog does not know.
    """
    user, skipped, unknown = query.user, 0, False
    numbers = np.zeros(0, np.int32)
    if user.history is not None:
        found = catalog_of(snapshot).numbers(user.history, missing="negative")
        numbers, skipped = found[found >= 0], int((found < 0).sum())
    elif user.user is not None:
        if log is None:
            raise Problem(404, "user: this server has no log", param="user", code="unknown_user")
        known = log.of(user.user)
        numbers, unknown = (numbers, True) if known is None else (known, False)
    if user.query is not None:
        _check_query(user.query, numbers, prompts)
    return Asked(place, numbers, user.user, skipped, rules.of(query.request, snapshot), user.query, unknown)


def _check_query(query: str, history: npt.NDArray[np.int32], prompts: TemplatePrompts | None) -> None:
    """Raise Problem for a query that the model cannot answer beside this history."""
    kind = "search_with_history" if len(history) else "search"
    if prompts is None or kind not in prompts.searches:
        beside = "beside a history of known items" if len(history) else "without a known item in a history"
        message = f"query: the model was not trained on searches {beside} (task {kind})"
        raise Problem(400, message, param="query", code="no_search")
    try:
        prompts.check_query(query, history.tolist())
    except GenrecError:
        raise Problem(400, "query: blank, or too long for the model", param="query", code="invalid_query") from None
