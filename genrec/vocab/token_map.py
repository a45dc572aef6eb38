"""Codes of items ↔ tokens of a language model.

Axes: N items, L levels, K codes of a level, V vocabulary, U users. Importing this module needs numpy only;
:meth:`TokenMap.text_tokenizer` imports transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS = "<pad>", "</s>", "<s>"
SPECIALS = (PAD, EOS, BOS)
UNKNOWN_USER = "<unk_user>"
# "u" is left out: <u_17> and <ua_17> are user tokens
_LETTERS = "abcdefghijklmnopqrstvwxyz"


def level_name(level: int) -> str:
    """The letters of a level inside its tokens: a, b, c, … (never u), then a1, b1, …

    Stability: internal.
    """
    turn, letter = divmod(level, len(_LETTERS))
    return _LETTERS[letter] + (str(turn) if turn else "")


@dataclass(frozen=True)
class TextBase:
    """The text vocabulary that item tokens were added to.

    first_item_id: id of the first item token; all smaller ids belong to the text tokenizer, or to nobody.
    pad_id, eos_id, bos_id: of the text tokenizer; the first two may be equal, bos_id is None where it has none (Qwen,
    T5). tokenizer: fingerprint of its vocabulary. Stability: experimental.
    """

    first_item_id: int
    pad_id: int
    eos_id: int
    bos_id: int | None
    tokenizer: str


@dataclass(frozen=True)
class TokenMap:
    """The vocabulary of a model over item codes: (level, code) ↔ token string ↔ token id.

    Ids: ``<pad>`` 0, ``</s>`` 1, ``<s>`` 2, then the codes of level 0 (``<a_0>``, ``<a_1>``, …), of level 1
    (``<b_0>``, …), then user tokens (``<u_0>``, …). Levels that share a vocabulary use the tokens of level 0.
    With ``base``, item and user tokens stand behind a text vocabulary, whose special tokens are used.

    level_sizes: number of codes of each level.
    ragged: identifiers have unequal lengths, so each ends with ``</s>``; fixed-length ones have no ``</s>``.
    n_user_tokens: users are hashed to this many tokens (0 = the model knows no users).
    user_levels: instead, users have codes (:class:`genrec.vocab.user_index.UserIndex`), this many at each level:
    ``<unk_user>``, then ``<ua_0>``, ``<ua_1>``, …, ``<ub_0>``, …; ``n_user_tokens`` then counts all of these.
    base: None = the vocabulary is item and user tokens alone (:func:`genrec.vocab.text_vocabulary.extend_vocabulary`
    makes the other kind).

    >>> tokens = TokenMap(level_sizes=(4, 4))
    >>> tokens.token_ids(np.array([[3, 1]])).tolist(), tokens.text(np.array([3, 1]))
    ([[6, 8]], '<a_3> <b_1>')

    Raises ConfigError for impossible sizes. Stability: stable.
    """

    level_sizes: tuple[int, ...]
    ragged: bool = False
    n_user_tokens: int = 0
    shared_vocabulary: bool = False
    base: TextBase | None = None
    user_levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "level_sizes", tuple(int(k) for k in self.level_sizes))
        object.__setattr__(self, "user_levels", tuple(int(k) for k in self.user_levels))
        if not self.level_sizes or min(self.level_sizes) < 1:
            raise ConfigError(f"level_sizes: expected one positive size per level, got {self.level_sizes}")
        if self.n_user_tokens < 0:
            raise ConfigError(f"n_user_tokens: expected 0 or more, got {self.n_user_tokens}")
        if self.user_levels:
            self._count_users()
        if self.shared_vocabulary and len(set(self.level_sizes)) > 1:
            raise ConfigError(f"level_sizes: a shared vocabulary needs equal sizes, got {self.level_sizes}")

    def _count_users(self) -> None:
        n_tokens = 1 + sum(self.user_levels)
        if min(self.user_levels) < 1 or self.n_user_tokens not in (0, n_tokens):
            raise ConfigError(
                f"user_levels: expected one positive size per level, and no n_user_tokens beside them, got "
                f"{self.user_levels} and {self.n_user_tokens}",
                hint="users are either hashed (n_user_tokens) or have codes (user_levels)",
            )
        object.__setattr__(self, "n_user_tokens", n_tokens)

    @classmethod
    def of(
        cls,
        codes: ItemCodes,
        *,
        n_user_tokens: int = 0,
        base: TextBase | None = None,
        user_levels: tuple[int, ...] = (),
    ) -> TokenMap:
        """The token map that fits ``codes``."""
        return cls(codes.level_sizes, codes.ragged, n_user_tokens, codes.shared_vocabulary, base, user_levels)

    def with_codes(self, codes: ItemCodes) -> TokenMap:
        """The map over the same text and the same users that fits ``codes`` (internal)."""
        n_hashed = 0 if self.user_levels else self.n_user_tokens
        return TokenMap.of(codes, n_user_tokens=n_hashed, base=self.base, user_levels=self.user_levels)

    @property
    def pad_id(self) -> int:
        """Token id of padding. It may be :attr:`eos_id` too, so ask masks and :meth:`real` what padding is."""
        return 0 if self.base is None else self.base.pad_id

    @property
    def eos_id(self) -> int:
        """Token id of ``</s>``: the end of a ragged identifier, or of a sequence."""
        return 1 if self.base is None else self.base.eos_id

    @property
    def bos_id(self) -> int | None:
        """Token id of ``<s>``; None where the text vocabulary has none."""
        return 2 if self.base is None else self.base.bos_id

    @property
    def first_item_id(self) -> int:
        """Id of the first item token."""
        return len(SPECIALS) if self.base is None else self.base.first_item_id

    @property
    def n_levels(self) -> int:
        """Number of levels L."""
        return len(self.level_sizes)

    @property
    def n_tokens_per_item(self) -> int:
        """Width of :meth:`token_ids`: L, and one more for ``</s>`` when ragged."""
        return self.n_levels + int(self.ragged)

    @property
    def n_tokens_per_user(self) -> int:
        """Most tokens that stand for one user: one of hashed users, one of each level of their codes; 0 without."""
        return len(self.user_levels) or int(self.n_user_tokens > 0)

    @cached_property
    def level_offset(self) -> tuple[int, ...]:
        """First token id of each level: the token of (level, code) is ``level_offset[level] + code``."""
        if self.shared_vocabulary:
            return (self.first_item_id,) * self.n_levels
        ends = np.cumsum((self.first_item_id, *self.level_sizes[:-1]))
        return tuple(int(x) for x in ends)

    @property
    def user_offset(self) -> int:
        """First token id of the user tokens."""
        return self.level_offset[-1] + self.level_sizes[-1]

    @property
    def vocab_size(self) -> int:
        """Number of token ids V, those of the text vocabulary included."""
        return self.user_offset + self.n_user_tokens

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that identify the vocabulary; a model is bound to it."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` restores the same map."""
        values = {**asdict(self), "level_sizes": list(self.level_sizes), "user_levels": list(self.user_levels)}
        for name in ("base", "user_levels"):
            if not values[name]:  # as it was before there was such a thing: fingerprints stay
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenMap:
        """Inverse of :meth:`to_dict`; raises ConfigError for unknown or missing keys."""
        try:
            base = None if values.get("base") is None else TextBase(**values["base"])
            return cls(**{**values, "level_sizes": tuple(values["level_sizes"]), "base": base})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"token map: expected the keys of TokenMap.to_dict, got {sorted(values)}") from error

    def token(self, level: int, code: int) -> str:
        """Token string of one code, e.g. ``<b_17>``; raises DataError outside the level's range."""
        if not 0 <= level < self.n_levels or not 0 <= code < self.level_sizes[level]:
            raise DataError(f"no code {code} at level {level}: level sizes are {self.level_sizes}")
        return f"<{level_name(0 if self.shared_vocabulary else level)}_{code}>"

    def tokens(self) -> list[str]:
        """All V token strings in id order; raises ConfigError where most of them are a text tokenizer's."""
        self._alone("tokens")
        return [*SPECIALS, *self.new_tokens()]

    def new_tokens(self) -> list[str]:
        """Strings of the item and user tokens in id order, from :attr:`first_item_id` on."""
        levels = range(1 if self.shared_vocabulary else self.n_levels)
        items = [f"<{level_name(level)}_{k}>" for level in levels for k in range(self.level_sizes[level])]
        if self.user_levels:
            coded = [f"<u{level_name(level)}_{k}>" for level, size in enumerate(self.user_levels) for k in range(size)]
            return [*items, UNKNOWN_USER, *coded]
        return [*items, *(f"<u_{k}>" for k in range(self.n_user_tokens))]

    def text(self, codes_L: npt.ArrayLike, sep: str = " ") -> str:
        """Token strings of one identifier (``-1`` padding skipped, no ``</s>``), joined by ``sep``."""
        row = np.asarray(codes_L)
        return sep.join(self.token(level, int(code)) for level, code in enumerate(row) if code >= 0)

    def token_ids(self, codes_NL: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Token ids of identifiers, int64 ``[..., L]``, or ``[..., L + 1]`` when ragged.

        codes_NL: integers ``[..., L]``, ``-1`` = padding. A row of -1 only (no item) becomes ``<pad>`` only;
        a ragged identifier is its codes, ``</s>``, then ``<pad>``. Raises DataError for a code out of range,
        a gap, or a short identifier in a fixed-length map.
        """
        codes = np.asarray(codes_NL)
        if codes.ndim == 0 or codes.shape[-1] != self.n_levels or codes.dtype.kind not in "iu":
            raise DataError(f"codes: expected integers [..., {self.n_levels}], got {codes.dtype} {codes.shape}")
        codes = codes.astype(np.int64)
        lengths = self._lengths(codes)
        out = np.where(codes >= 0, codes + np.array(self.level_offset), self.pad_id)
        if self.ragged:
            out = np.concatenate([out, np.full((*codes.shape[:-1], 1), self.pad_id)], axis=-1)
            at_end = np.arange(self.n_levels + 1) == lengths[..., None]
            out[at_end & (lengths[..., None] > 0)] = self.eos_id
        return out

    def codes(self, token_ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Inverse of :meth:`token_ids`: int32 ``[..., L]`` with ``-1`` padding.

        Raises DataError, naming row and token, where the tokens are not an identifier.
        """
        ids = np.asarray(token_ids)
        if ids.ndim == 0 or ids.shape[-1] != self.n_tokens_per_item:
            raise DataError(f"token ids: expected shape [..., {self.n_tokens_per_item}], got {ids.shape}")
        head = ids[..., : self.n_levels].astype(np.int64)
        codes = head - np.array(self.level_offset)
        codes = np.where((codes >= 0) & (codes < np.array(self.level_sizes)), codes, -1)
        # encoding again is the check: whatever is not reproduced was no identifier
        try:
            wrong = (self.token_ids(codes) != ids).any(axis=-1)
        except DataError:
            wrong = np.ones(1, dtype=bool) if ids.ndim == 1 else self._not_identifiers(codes)
        if wrong.any():
            row = tuple(int(x) for x in np.argwhere(wrong)[0])
            found = ids[row] if ids.ndim > 1 else ids
            raise DataError(f"token ids: row {row}: expected the tokens of one identifier, got {found.tolist()}")
        return codes.astype(np.int32)

    def user_tokens(self, user_ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Token ids of users, int64 ``[U]``: blake2b of the user id modulo ``n_user_tokens``.

        The same in every process and on every machine. Raises ConfigError if the map has no user tokens, or users with
        codes.
        """
        if self.user_levels:
            raise ConfigError("user_levels: the tokens of users follow from their codes", hint="ask the UserIndex")
        if not self.n_user_tokens:
            raise ConfigError("n_user_tokens: expected 1 or more to use user tokens, got 0")
        digests = [hashlib.blake2b(u.encode(), digest_size=8).digest() for u in user_ids]
        return np.array(
            [self.user_offset + int.from_bytes(d, "little") % self.n_user_tokens for d in digests],
            dtype=np.int64,
        )

    @property
    def unknown_user_id(self) -> int:
        """Token id of ``<unk_user>``; only where users have codes."""
        return self.user_offset

    def user_token_ids(self, codes_UL: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Token ids of users by their codes, int64 ``[U, L]``, -1 behind short ones; a row of -1 is ``<unk_user>``.

        Raises DataError for codes out of range.
        """
        codes = np.asarray(codes_UL, dtype=np.int64)
        sizes = np.array(self.user_levels, dtype=np.int64)
        if codes.ndim != 2 or codes.shape[1] != len(sizes) or bool(((codes < -1) | (codes >= sizes)).any()):
            raise DataError(f"user codes: expected [U, {len(sizes)}] below {self.user_levels}, got {codes.shape}")
        first_L = self.unknown_user_id + 1 + np.cumsum(sizes) - sizes
        out = np.where(codes >= 0, codes + first_L, -1)
        out[(codes < 0).all(axis=1), 0] = self.unknown_user_id
        return out

    def text_tokenizer(self) -> PreTrainedTokenizerFast:
        """A Hugging Face text tokenizer of exactly these tokens, split at white space.

        Its saved folder loads through ``AutoTokenizer`` without genrec. A word that is no token raises: there
        is no unknown token, because an unknown item must not become a silent one. Raises ConfigError where the map
        extends a text vocabulary.
        """
        self._alone("text_tokenizer")
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(self.tokens())}))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=words,
            pad_token=PAD,
            eos_token=EOS,
            bos_token=BOS,
            clean_up_tokenization_spaces=False,
        )

    def real(self, token_ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which tokens of :meth:`token_ids` are an identifier's, bool of the same shape; the others are padding.

        A ragged identifier's ``</s>`` counts, also where ``</s>`` and ``<pad>`` are one token: it follows a code.
        """
        ids = np.asarray(token_ids)
        real = (ids >= self.first_item_id) & (ids < self.user_offset)
        if self.ragged:
            real[..., 1:] |= real[..., :-1].copy()
        return np.asarray(real)

    def _alone(self, what: str) -> None:
        if self.base is not None:
            raise ConfigError(
                f"{what}: the token map extends a text vocabulary, whose tokens its text tokenizer knows",
                hint="use TextVocabulary.tokenizer",
            )

    def _not_identifiers(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        used = codes >= 0
        lengths = used.sum(axis=-1)
        gap = (used != (np.arange(self.n_levels) < lengths[..., None])).any(axis=-1)
        short = (lengths > 0) & (lengths < self.n_levels) & (not self.ragged)
        return np.asarray(gap | short)

    def _lengths(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        outside = (codes < -1) | (codes >= np.array(self.level_sizes))
        if outside.any():
            place = tuple(int(x) for x in np.argwhere(outside)[0])
            size = self.level_sizes[place[-1]]
            raise DataError(f"codes: at {place}: expected -1..{size - 1}, got {int(codes[place])}")
        bad = self._not_identifiers(codes)
        if bad.any():
            row = tuple(int(x) for x in np.argwhere(bad)[0])
            kind = "codes then -1" if self.ragged else f"{self.n_levels} codes"
            raise DataError(f"codes: row {row}: expected {kind}, got {codes[row].tolist()}")
        return np.asarray((codes >= 0).sum(axis=-1))
