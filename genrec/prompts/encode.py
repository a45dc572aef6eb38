"""Rendered examples to token ids, with the place of every token that carries a loss.

Prompt and target are encoded apart and joined as ids, so the ids of a prompt are the beginning of the ids of prompt
and target, whatever a text tokenizer does at the border. Texts go through ``TextVocabulary.encode_text``, which
cannot name an item. Axes: N items, M tokens of an item, U users, E tokens of all rows, B rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.prompts.segments import Segment
from genrec.prompts.template import Rendered
from genrec.prompts.wrapper import Wrapper
from genrec.vocab.token_map import TokenMap

Layout = Literal["encoder", "decoder"]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


class Vocabulary(Protocol):
    """What encoding needs of :class:`genrec.vocab.text_vocabulary.TextVocabulary` (internal)."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face text tokenizer; asked for the marks of a chat format only."""

    @property
    def token_map(self) -> TokenMap:
        """Ids of the item and user tokens."""

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text, none of an item, a user or a special token."""


@dataclass(frozen=True)
class Encoded:
    """An example as token ids (experimental).

    prompt: ids. target: ids, the end token included. items, levels: for each target token the item it is of and its
    place in the item's tokens; -1 and -1 for words and the end.
    """

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    items: tuple[int, ...]
    levels: tuple[int, ...]


REMEMBERED = 1 << 16
"""Texts whose ids are kept."""


class ExampleEncoder:
    """Encodes examples for one vocabulary and one kind of model (experimental).

    Decoder-only: ``[<s>] wrapper(prompt) target </s>``. Encoder-decoder: ``wrapper(prompt) </s>`` and ``target </s>``.
    A ragged identifier has its own ``</s>`` only at the end of a target, which then needs no other.

    codes: identifiers of all items. users_UM: tokens of each user, int64 ``[U, M]``, -1 = none; needed where examples
    name users (:data:`genrec.prompts.data.UNKNOWN_USER` names its last row). max_tokens: of an example
    (encoder-decoder: of each side).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        codes: ItemCodes,
        *,
        layout: Layout,
        wrapper: Wrapper | None = None,
        max_tokens: int = 512,
        users_UM: Int64 | None = None,
    ) -> None:
        token_map = vocabulary.token_map
        if token_map.level_sizes != codes.level_sizes or token_map.ragged != codes.ragged:
            raise ConfigError(
                f"vocabulary: it has levels {token_map.level_sizes} (ragged: {token_map.ragged}), the codes have "
                f"{codes.level_sizes} (ragged: {codes.ragged})"
            )
        self.vocabulary, self.layout, self.max_tokens = vocabulary, layout, max_tokens
        self.wrapper = wrapper or Wrapper()
        self._tokens_NM, self._lengths_N = _item_tokens(token_map, codes)
        self._users_UM = users_UM
        self._eos, self._bos = token_map.eos_id, token_map.bos_id
        self._ragged, self._remembers = token_map.ragged, True
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, example: Rendered) -> Encoded:
        """The ids, however long."""
        target, items, levels = self._target(example.target)
        return Encoded(self.prompt(example.prompt), target, items, levels)

    def with_codes(self, codes: ItemCodes) -> ExampleEncoder:
        """The same for a later version of the catalog."""
        other = copy.copy(self)
        other._tokens_NM, other._lengths_N = _item_tokens(self.vocabulary.token_map, codes)
        return other

    def with_users(self, users_UM: Int64 | None) -> ExampleEncoder:
        """The same for other users."""
        other = copy.copy(self)
        other._users_UM = users_UM
        return other

    def forgetting(self) -> ExampleEncoder:
        """The same for texts that strangers write: it keeps none of them."""
        other = copy.copy(self)
        other._remembers = False
        return other

    def prompt(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Ids of a prompt, as a model is asked: wrapped, with start (decoder) or end (encoder)."""
        decoder = self.layout == "decoder"
        whole = (*self.wrapper.before, *segments, *self.wrapper.after)
        ids = tuple(token for part in self.parts(whole) for token in part[1])
        if not decoder:
            return (*ids, self._eos)
        # many chat formats write the start token themselves
        begun = bool(whole) and whole[0].role == "chat" and ids[:1] == (self._bos,)
        return ids if self._bos is None or begun else (self._bos, *ids)

    def fits(self, encoded: Encoded) -> bool:
        """Whether an example is within ``max_tokens``."""
        prompt, target = len(encoded.prompt), len(encoded.target)
        return (prompt + target if self.layout == "decoder" else max(prompt, target)) <= self.max_tokens

    def parts(self, segments: Sequence[Segment]) -> list[tuple[tuple[Segment, ...], tuple[int, ...]]]:
        """Segments with their ids; neighbouring words are encoded as one text."""
        found = []
        for is_text, group in groupby(segments, lambda s: s.role in ("template", "text")):
            run = tuple(group)
            if is_text:
                found.append((run, self._text_ids("".join(str(s.value) for s in run))))
            else:
                found += [((one,), self._ids(one)) for one in run]
        return found

    def _text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text, remembered."""
        known = self._known.get(text) if self._remembers else None
        if known is None:
            known = tuple(self.vocabulary.encode_text(text))
            if self._remembers:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[text] = known
        return known

    def _ids(self, segment: Segment) -> tuple[int, ...]:
        """Ids of an item, a user or marks of a chat format."""
        if segment.role == "chat":
            return tuple(self.vocabulary.tokenizer(segment.value, add_special_tokens=False)["input_ids"])
        number = int(segment.value)
        if segment.role == "item":
            if not 0 <= number < len(self._tokens_NM):
                raise DataError(f"item numbers: expected 0..{len(self._tokens_NM) - 1}, got {number}")
            return tuple(self._tokens_NM[number, : self._lengths_N[number]].tolist())
        if self._users_UM is None:
            raise DataError("an example names a user, and there are no user tokens", hint="give users_UM")
        return tuple(token for token in self._users_UM[number].tolist() if token >= 0)

    def _target(self, segments: Sequence[Segment]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        ids: list[int] = []
        items: list[int] = []
        levels: list[int] = []
        for run, tokens in self.parts(segments):
            is_item = run[0].role == "item"
            ids += tokens
            items += [int(run[0].value) if is_item else -1] * len(tokens)
            levels += range(len(tokens)) if is_item else [-1] * len(tokens)
        ends_item = self._ragged and items and items[-1] >= 0
        ids.append(self._eos)
        items.append(items[-1] if ends_item else -1)
        levels.append(levels[-1] + 1 if ends_item else -1)
        return tuple(ids), tuple(items), tuple(levels)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Examples below each other, one row each (experimental).

    ids, items, levels: int32 ``[E]``; the latter two are -1 in prompts too. offsets: int64 ``[B + 1]``, borders of the
    rows. starts: int64 ``[B]``, where the target of each row begins in ``ids``: from there to the row's end, tokens
    carry a loss.
    """

    ids: Int32
    items: Int32
    levels: Int32
    offsets: Int64
    starts: Int64

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> TokenRows:
        """The rows as arrays."""
        offsets, starts = np.zeros(len(rows) + 1, np.int64), np.zeros(len(rows), np.int64)
        np.cumsum([len(row.prompt) + len(row.target) for row in rows], out=offsets[1:])
        starts[:] = offsets[:-1] + [len(row.prompt) for row in rows]
        none = [(-1,) * len(row.prompt) for row in rows]
        return cls(
            _flat([part for row in rows for part in (row.prompt, row.target)]),
            _flat([part for row, blank in zip(rows, none, strict=True) for part in (blank, row.items)]),
            _flat([part for row, blank in zip(rows, none, strict=True) for part in (blank, row.levels)]),
            offsets,
            starts,
        )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Int64:
        """Tokens of each row, int64 ``[B]``."""
        return np.diff(self.offsets)

    @property
    def prompt_lengths(self) -> Int64:
        """Tokens before the target of each row, int64 ``[B]``."""
        return self.starts - self.offsets[:-1]

    @property
    def n_targets(self) -> int:
        """Tokens that carry a loss."""
        return int((self.offsets[1:] - self.starts).sum())

    def take(self, at: npt.ArrayLike) -> TokenRows:
        """These rows only."""
        rows = np.asarray(at, dtype=np.int64)
        length = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(length, out=offsets[1:])
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], length)
        starts = offsets[:-1] + self.prompt_lengths[rows]
        return TokenRows(self.ids[source], self.items[source], self.levels[source], offsets, starts)


def _item_tokens(token_map: TokenMap, codes: ItemCodes) -> tuple[Int64, Int64]:
    """Tokens of every item ``[N, M]``, and how many of them are codes ``[N]``."""
    codes_NL = codes.as_int()
    return token_map.token_ids(codes_NL), (codes_NL >= 0).sum(axis=1)


def _flat(parts: Sequence[Sequence[int]]) -> Int32:
    return np.array([value for part in parts for value in part], dtype=np.int32)
