"""Histories as prompts of a template: a model is asked with the words that it was trained with.

On disk, beside the text tokenizer of the model::

    prompt/
      template.jinja   the whole template file of the task
      prompt.json      which of its wordings, the wrapper's pieces, max_tokens

Axes: U users (rows), T tokens.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.data.histories import Histories
from genrec.decoding.scorer import Prompts
from genrec.errors import ArtifactError, ConfigError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.prompting import Layout
from genrec.prompts.encode import ExampleEncoder, Vocabulary
from genrec.prompts.segments import Piece, Segment
from genrec.prompts.template import PromptTemplate
from genrec.prompts.wrapper import Wrapper

TEMPLATE, SETTINGS = "template.jinja", "prompt.json"


class TemplatePrompts:
    """Builds the prompts of a recommender from one wording of a template (experimental).

    For ``GenerativeRecommender(..., prompts=TemplatePrompts(template, encoder))``. The ids are those of training: the
    encoder is the same. The oldest items are dropped until prompt and one item are within ``encoder.max_tokens``.

    template: of a task with the input ``history``, such as ``sequential``; the prompt of this wording must need no
    other. Raises ConfigError for one that does.
    """

    def __init__(self, template: PromptTemplate, encoder: ExampleEncoder, *, wording: int = 0) -> None:
        template.check_asks(wording)
        self.template, self.encoder, self.wording = template, encoder, wording
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
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{Path(folder) / SETTINGS}: not the settings of a prompt ({error})") from error
        encoder = ExampleEncoder(vocabulary, codes, layout=layout, wrapper=wrapper, max_tokens=max_tokens)
        return cls(PromptTemplate.load(Path(folder) / TEMPLATE), encoder, wording=wording)

    def with_codes(self, codes: ItemCodes) -> TemplatePrompts:
        """The same for a later version of the catalog."""
        other = copy.copy(self)
        other.encoder = self.encoder.with_codes(codes)
        return other

    def __call__(self, histories: Histories, user_tokens_U: npt.NDArray[np.int64] | None = None) -> Prompts:
        """Token matrices of histories: padded on the left for decoders, on the right for encoders."""
        known = user_tokens_U is not None
        encoder = self.encoder.with_users(None if user_tokens_U is None else user_tokens_U[:, None])
        rows = [self._fitting(items, row if known else None, encoder) for row, items in enumerate(histories.to_lists())]
        length_U1 = np.array([[len(ids)] for ids in rows], np.int64).reshape(-1, 1)
        width = int(length_U1.max(initial=0))
        column = np.arange(width)
        mask = column >= width - length_U1 if encoder.layout == "decoder" else column < length_U1
        out = np.full(mask.shape, encoder.vocabulary.token_map.pad_id, np.int64)
        out[mask] = [token for ids in rows for token in ids]
        return Prompts(out, mask)

    def _fitting(self, items: list[int], user: int | None, encoder: ExampleEncoder) -> tuple[int, ...]:
        """The longest prompt that fits, with the newest items."""
        ids = self._ids(items, user, encoder)
        while len(ids) > self._room and items:
            items = items[1:]
            ids = self._ids(items, user, encoder)
        return ids

    def _ids(self, items: list[int], user: int | None, encoder: ExampleEncoder) -> tuple[int, ...]:
        given = {"history": items, "user": user}
        inputs = {name: value for name, value in given.items() if name in self.template.header.inputs}
        return encoder.prompt(self.template.prompt(inputs, self.wording))


def _piece(found: list[list[Any]]) -> Piece:
    return tuple(Segment(role, value) for role, value in found)
