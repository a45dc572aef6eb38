"""Users as short rows of codes: vectors of the older part of their training histories, quantised as items' are.

User indexing of ULMRec (2024, arXiv:2412.05543). A model reads a user's tokens before the history; users without an
index, which came later or did nothing in training, have the token ``<unk_user>``. Axes: U users, E events, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec import artifacts, recipes
from genrec.data.catalog import ItemCatalog, fingerprint
from genrec.data.histories import Histories
from genrec.data.ties import Bools
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.users import user_vectors
from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.item_tokenizers import registry
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.token_map import TokenMap

KIND = "users"
IDS = "ids.json"
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UserSettings:
    """How users get their codes (experimental).

    share: codes are made of this share of a user's training history, its oldest events (see :func:`first_part`). An
    event in it is learned with ``<unk_user>`` before it, since the codes tell of it; all later ones with the codes. At
    1 (as published) they tell of every training target, which they do not at a test. vectors: of the items there:
    ``embeddings``, those that identifiers are made of, or ``collaborative``, those learned from training interactions.
    decay: an event counts ``decay`` times the one after
    it; 1 = all alike. tokenizer: settings of an item tokenizer that needs vectors only, chosen by its ``kind``; its
    policy for collisions decides whether users may share an index.

    Raises ConfigError for values out of range.
    """

    share: float = 0.5
    vectors: Literal["embeddings", "collaborative"] = "embeddings"
    decay: float = 1.0
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"kind": "rqkmeans", "collisions": "reassign"})

    def __post_init__(self) -> None:
        for name in ("share", "decay"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name}: expected above 0, at most 1, got {value}")
        if not isinstance(self.tokenizer.get("kind"), str):
            raise ConfigError("tokenizer: expected a 'kind', such as rqkmeans or rqvae")


@dataclass(frozen=True, eq=False)
class UserIndex:
    """The codes of every user who has some (experimental).

    ids: user ids, unique. codes: row ``u`` is the index of user ``ids[u]``: to an item tokenizer, users are items, and
    ``codes.catalog`` is the fingerprint of ``ids``. share: see :class:`UserSettings`. Raises DataError for codes of
    other users, or made of text.
    """

    ids: tuple[str, ...]
    codes: ItemCodes
    share: float = 1.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.codes) or fingerprint(self.ids) != self.codes.catalog:
            raise DataError(
                f"users: expected the codes of these {len(self.ids)} users, got {len(self.codes)} of others"
            )
        if self.codes.pieces:
            raise DataError("users: expected codes of vectors, got codes made of text", hint="take rqkmeans or rqvae")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, user: object) -> bool:
        return user in self._row_of

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self.codes.level_sizes

    @property
    def fingerprint(self) -> str:
        """32 hex digits that depend on every user's id and codes; a model is bound to them."""
        return self.codes.fingerprint

    def tokens(self, token_map: TokenMap, ids: Sequence[str]) -> Int64:
        """Token ids of users, int64 ``[U, L]``, -1 behind short ones; of a user without an index ``<unk_user>``."""
        row_U = np.array([self._row_of.get(user, -1) for user in ids], dtype=np.int64)
        codes_UL = self._codes_UL[row_U]
        codes_UL[row_U < 0] = -1
        return token_map.user_token_ids(codes_UL)

    def told(self, train: Histories, tied: Bools | None = None) -> Bools | None:
        """Which events may be learned with their user's codes before them, bool ``[E]``: those not in the codes.

        train: as in :func:`index_users`. tied: events in an arbitrary order, which may stand in each other's place.
        None = all: of codes of whole histories, which hold every event.
        """
        if self.share == 1:
            return None
        begin_U = train.offsets[:-1] + first_part(train.lengths, self.share)
        event_E = np.arange(len(train.items))
        if tied is not None:  # the first of those that it is tied with
            event_E = np.maximum.accumulate(np.where(tied, 0, event_E))
        told: Bools = event_E >= begin_U[train.rows()]
        return told

    @cached_property
    def _codes_UL(self) -> npt.NDArray[np.int32]:
        return self.codes.as_int()  # a copy of all: not at every request

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.ids)}

    def save(self, path: str | Path, *, recipe: dict[str, Any] | None = None, overwrite: bool = False) -> None:
        """Write a ``users`` artifact: ``ids.json`` and the artifact ``codes``."""
        meta = {"n_users": len(self), "share": self.share}
        with artifacts.write(Path(path), kind=KIND, recipe=recipe, meta=meta, overwrite=overwrite) as draft:
            artifacts.save_json(draft.dir / IDS, list(self.ids))
            self.codes.save(draft.dir / "codes")

    @classmethod
    def load(cls, path: str | Path) -> UserIndex:
        """Read what :meth:`save` wrote. Raises ArtifactError where it is damaged."""

        def read(manifest: artifacts.Manifest) -> UserIndex:
            ids = artifacts.load_json(manifest.path / IDS)
            if not (isinstance(ids, list) and all(isinstance(user, str) for user in ids)):
                raise ArtifactError(f"{manifest.path / IDS}: expected a list of user ids")
            share = float(manifest.meta.get("share", 1.0))  # there was none when codes were of whole histories
            return cls(tuple(ids), ItemCodes.load(manifest.path / "codes"), share)

        return artifacts.load(path, read, kind=KIND)


def first_part(lengths_U: Int64, share: float) -> Int64:
    """How many of a history's events, the oldest, its user's codes are made of, int64 ``[U]`` (internal).

    ``ceil(share * length)``: at least one of a history that is not empty.
    """
    part_U = np.ceil(share * lengths_U - 1e-9).astype(np.int64)  # .07 * 100 is above 7 in floating point
    clipped: Int64 = np.clip(part_U, np.minimum(lengths_U, 1), lengths_U)
    return clipped


def index_users(
    train: Histories, user_ids: Sequence[str], items: ItemEmbeddings, settings: UserSettings, *, seed: int = 0
) -> UserIndex:
    """Codes for the users of a training part: nothing that they did later is looked at (experimental).

    train: one row per user, training events only, of which the oldest ``settings.share`` counts. user_ids: their ids.
    items: vectors of the items (see :class:`UserSettings`). A user without such an event of an item with a known vector
    gets no index. Raises DataError where nobody has one, ConfigError for a tokenizer that gives no codes.
    """
    if len(user_ids) != len(train):
        raise DataError(f"user_ids: expected one for each of {len(train)} histories, got {len(user_ids)}")
    begin_U = train.offsets[:-1]
    older = Histories.from_slices(train.items, begin_U, begin_U + first_part(train.lengths, settings.share))
    vectors_UD, known_U = user_vectors(older, items, decay=settings.decay)
    if not known_U.any():
        raise DataError("users: no training history has an old item with a known vector, so nobody can have an index")
    ids = tuple(user_ids[u] for u in np.flatnonzero(known_U).tolist())
    vectors_UD = vectors_UD if known_U.all() else vectors_UD[known_U]
    users = ItemCatalog(ids, {"title": [""] * len(ids)})
    source = TokenizerSource.of(
        users, embeddings=ItemEmbeddings(vectors_UD, users.fingerprint, {"kind": "users"}), seed=seed
    )
    kind = settings.tokenizer["kind"]
    chosen = recipes.validate(settings.tokenizer, registry.settings_class(kind), where="users.tokenizer")
    return UserIndex(ids, registry.build(chosen).fit(source, seed=seed), settings.share)


def user_tokens(token_map: TokenMap, ids: Sequence[str], index: UserIndex | None = None) -> Int64 | None:
    """Tokens that stand for users in a prompt, int64 ``[U, M]``, -1 = none; None where the vocabulary has none.

    Of an index, or one from a hash of the id. Raises ConfigError for an index of other levels than the vocabulary, or
    where it is missing. Stability: experimental.
    """
    if not token_map.n_user_tokens:
        return None
    check_users(token_map, index)
    return token_map.user_tokens(ids)[:, None] if index is None else index.tokens(token_map, ids)


def check_users(token_map: TokenMap, index: UserIndex | None) -> None:
    """Raise ConfigError unless the vocabulary has tokens for exactly this index, or for none (internal)."""
    wanted, found = token_map.user_levels, () if index is None else index.level_sizes
    if found != wanted:
        raise ConfigError(
            f"users: the vocabulary has user levels {wanted or '(none)'}, the user index {found or '(none is given)'}",
            hint="a model knows users by the index that it was trained with: use that of its bundle",
        )
