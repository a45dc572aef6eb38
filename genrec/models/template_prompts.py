"""Histories as prompts of a template: a model is asked with the words that it was trained with.

On disk, beside the text tokenizer of the model::

    prompt/
      template.jinja   the whole template file of the task
      prompt.json      which of its wordings, the wrapper's pieces, max_tokens, max_text
      search.jinja, search_with_history.jinja
                       of a model that was trained on such tasks: how it is asked for items that fit a query

Axes: U users (rows), T tokens.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.data.histories import Histories
from genrec.decoding.scorer import Prompts
from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.prompting import Layout
from genrec.prompts.encode import ExampleEncoder, Vocabulary
from genrec.prompts.segments import Piece, Segment, one_line
from genrec.prompts.template import PromptTemplate
from genrec.prompts.wrapper import Wrapper

logger = logging.getLogger(__name__)

TEMPLATE, SETTINGS = "template.jinja", "prompt.json"
SEARCHES: dict[str, dict[str, Any]] = {
    "search": {"query": "a"},
    "search_with_history": {"query": "a", "history": []},
}
"""Tasks of queries, and values of the inputs that their prompts have to do with."""


class TemplatePrompts:
    """Builds the prompts of a recommender from one wording of a template (experimental).

    For ``GenerativeRecommender(..., prompts=TemplatePrompts(template, encoder))``. The ids are those of training: the
    encoder is the same. The oldest items are dropped until prompt and one item are within ``encoder.max_tokens``.

    template: of a task with the input ``history``, such as ``sequential``; the prompt of this wording must need no
    other. searches: templates of the tasks ``search`` and ``search_with_history``, by these names, for queries; the
    first wording that asks for one item with nothing but a query (and a history) is used. max_text: characters of a
    query. Raises ConfigError for a wording that needs more.
    """

    def __init__(
        self,
        template: PromptTemplate,
        encoder: ExampleEncoder,
        *,
        wording: int = 0,
        searches: Mapping[str, PromptTemplate] | None = None,
        max_text: int = 400,
    ) -> None:
        template.check_asks(wording)
        self.template, self.encoder, self.wording = template, encoder, wording
        self.searches = _searches(searches or {})
        self.max_text = max_text
        # a training example ends with an item and the end token
        target = encoder.vocabulary.token_map.n_levels + 1 if encoder.layout == "decoder" else 0
        self._room = encoder.max_tokens - target
        n_words = len(self._ids([], None, encoder))  # and what the wording lacks is said now
        if n_words > self._room:
            raise ConfigError(
                f"max_tokens: the words of the prompt alone take {n_words} of {encoder.max_tokens} tokens",
                hint="raise max_tokens, or choose a shorter wording or wrapper",
            )

    def save(self, folder: str | Path) -> None:
        """Write template and settings; vocabulary and identifiers are kept elsewhere (internal)."""
        target, encoder = Path(folder), self.encoder
        target.mkdir(parents=True, exist_ok=True)
        (target / TEMPLATE).write_text(self.template.source, encoding="utf-8")
        around = {"before": encoder.wrapper.before, "after": encoder.wrapper.after}
        pieces = {name: [list(segment) for segment in piece] for name, piece in around.items()}
        settings = {"wording": self.wording, "max_tokens": encoder.max_tokens, "wrapper": pieces}
        if self.searches:
            settings |= {"searches": sorted(self.searches), "max_text": self.max_text}
        for name, (template, _) in self.searches.items():
            (target / f"{name}.jinja").write_text(template.source, encoding="utf-8")
        artifacts.save_json(target / SETTINGS, settings)

    @classmethod
    def load(cls, folder: str | Path, vocabulary: Vocabulary, codes: ItemCodes, *, layout: Layout) -> TemplatePrompts:
        """What :meth:`save` wrote; the prompts are those of training, id by id (internal).

        Raises ArtifactError for settings of another form.
        """
        found: dict[str, Any] = artifacts.load_json(Path(folder) / SETTINGS)
        try:
            wrapper = Wrapper(*(_piece(found["wrapper"][name]) for name in ("before", "after")))
            wording, max_tokens = int(found["wording"]), int(found["max_tokens"])
            names, max_text = (
                [name for name in SEARCHES if name in found.get("searches", ())],
                found.get("max_text", 400),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{Path(folder) / SETTINGS}: not the settings of a prompt ({error})") from error
        encoder = ExampleEncoder(vocabulary, codes, layout=layout, wrapper=wrapper, max_tokens=max_tokens)
        searches = {name: PromptTemplate.load(Path(folder) / f"{name}.jinja") for name in names}
        template = PromptTemplate.load(Path(folder) / TEMPLATE)
        return cls(template, encoder, wording=wording, searches=searches, max_text=int(max_text))

    def with_codes(self, codes: ItemCodes) -> TemplatePrompts:
        """The same for a later version of the catalog."""
        other = copy.copy(self)
        other.encoder = self.encoder.with_codes(codes)
        return other

    def check_query(self, query: str, items: Sequence[int] = ()) -> None:
        """Raise where a query cannot be answered beside this history, item numbers (internal).

        ConfigError: the model was not trained on such searches. DataError: the query is blank, or too long.
        """
        self._search(items)
        if not one_line(query, self.max_text):
            raise DataError("query: it is blank")
        n = len(self._fitting(list(items)[-1:], None, self.encoder, query))
        if n + self.encoder.vocabulary.token_map.n_tokens_per_user > self._room:
            raise DataError(f"query: with it the prompt takes {n} tokens, and the model reads {self._room}")

    def _search(self, items: Sequence[int]) -> tuple[PromptTemplate, int]:
        """Template and wording of a query."""
        name = "search_with_history" if len(items) else "search"
        if name not in self.searches:
            known = ", ".join(self.searches) or "none"
            raise ConfigError(
                f"query: the model was not trained on the task {name}", hint=f"its tasks of queries: {known}"
            )
        return self.searches[name]

    def __call__(
        self,
        histories: Histories,
        users_UM: npt.NDArray[np.int64] | None = None,
        queries: Sequence[str | None] | None = None,
    ) -> Prompts:
        """Token matrices of histories: padded on the left for decoders, on the right for encoders.

        users_UM: tokens of the user of each row (:func:`genrec.models.prompting.users_asked`); None = nobody is named.
        queries: one for each history, None = none; raises as :meth:`check_query`.
        """
        known = users_UM is not None
        encoder = self.encoder.with_users(users_UM)
        asked = list(zip(histories.to_lists(), queries or [None] * len(histories), strict=True))
        for items, query in asked:
            if query is not None:
                self.check_query(query, items)
        rows = [self._fitting(items, row if known else None, encoder, q) for row, (items, q) in enumerate(asked)]
        length_U1 = np.array([[len(ids)] for ids in rows], np.int64).reshape(-1, 1)
        width = int(length_U1.max(initial=0))
        column = np.arange(width)
        mask = column >= width - length_U1 if encoder.layout == "decoder" else column < length_U1
        out = np.full(mask.shape, encoder.vocabulary.token_map.pad_id, np.int64)
        out[mask] = [token for ids in rows for token in ids]
        return Prompts(out, mask)

    def _fitting(
        self, items: list[int], user: int | None, encoder: ExampleEncoder, query: str | None
    ) -> tuple[int, ...]:
        """The longest prompt that fits, with the newest items; beside a query the last of them stays."""
        least = min(len(items), 0 if query is None else 1)
        ids = self._ids(items, user, encoder, query)
        while len(ids) > self._room and len(items) > least:
            items = items[1:]
            ids = self._ids(items, user, encoder, query)
        return ids

    def _ids(
        self, items: list[int], user: int | None, encoder: ExampleEncoder, query: str | None = None
    ) -> tuple[int, ...]:
        template, wording = (self.template, self.wording) if query is None else self._search(items)
        given = {"history": items, "user": user, "query": query}
        inputs = {name: value for name, value in given.items() if name in template.header.inputs}
        encoder = encoder if query is None else encoder.forgetting()
        return encoder.prompt(template.prompt(inputs, wording, max_text=self.max_text))


def _searches(templates: Mapping[str, PromptTemplate]) -> dict[str, tuple[PromptTemplate, int]]:
    """Each with the first of its wordings that asks for one item; those without one are left out with a warning."""
    found = {}
    for name, template in templates.items():
        for wording in range(len(template.wordings)):
            try:
                template.check_asks(wording, SEARCHES[name])
            except ConfigError:
                continue
            found[name] = (template, wording)
            break
        else:
            logger.warning("no wording of the task %s asks for one item with a query alone: it answers none", name)
    return found


def _piece(found: list[list[Any]]) -> Piece:
    return tuple(Segment(role, value) for role, value in found)
