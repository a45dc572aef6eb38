"""Users as short rows of codes: vectors of their training histories, quantised as those of items are.

User indexing of ULMRec (2024, arXiv:2412.05543). A model reads a user's tokens before the history; users without an
index, which came later or did nothing in training, have the token ``<unk_user>``. Axes: U users, L levels.
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

    vectors: of the items in a user's training history: ``embeddings``, those that identifiers are made of, or
    ``collaborative``, those learned from training interactions. decay: an event counts ``decay`` times the one after
    it; 1 = all alike. tokenizer: settings of an item tokenizer that needs vectors only, chosen by its ``kind``; its
    policy for collisions decides whether users may share an index.

    Raises ConfigError for values out of range.
    """

    vectors: Literal["embeddings", "collaborative"] = "embeddings"
    decay: float = 1.0
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"kind": "rqkmeans", "collisions": "reassign"})

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay: expected above 0, at most 1, got {self.decay}")
        if not isinstance(self.tokenizer.get("kind"), str):
            raise ConfigError("tokenizer: expected a 'kind', such as rqkmeans or rqvae")


@dataclass(frozen=True, eq=False)
class UserIndex:
    """The codes of every user who has some (experimental).

    ids: user ids, unique. codes: row ``u`` is the index of user ``ids[u]``: to an item tokenizer, users are items, and
    ``codes.catalog`` is the fingerprint of ``ids``. Raises DataError for codes of other users, or made of text.
    """

    ids: tuple[str, ...]
    codes: ItemCodes

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
        codes_UL = self.codes.as_int()[row_U]
        codes_UL[row_U < 0] = -1
        return token_map.user_token_ids(codes_UL)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.ids)}

    def save(self, path: str | Path, *, recipe: dict[str, Any] | None = None, overwrite: bool = False) -> None:
        """Write a ``users`` artifact: ``ids.json`` and the artifact ``codes``."""
        meta = {"n_users": len(self)}
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
            return cls(tuple(ids), ItemCodes.load(manifest.path / "codes"))

        return artifacts.load(path, read, kind=KIND)


def index_users(
    train: Histories, user_ids: Sequence[str], items: ItemEmbeddings, settings: UserSettings, *, seed: int = 0
) -> UserIndex:
    """Codes for the users of a training part: nothing that they did later is looked at (experimental).

    train: one row per user, training events only. user_ids: their ids. items: vectors of the items (see
    :class:`UserSettings`). A user without an event of an item with a known vector gets no index. Raises DataError where
    nobody has one, ConfigError for a tokenizer that gives no codes.
    """
    if len(user_ids) != len(train):
        raise DataError(f"user_ids: expected one for each of {len(train)} histories, got {len(user_ids)}")
    vectors_UD, known_U = user_vectors(train, items, decay=settings.decay)
    if not known_U.any():
        raise DataError("users: no training history has an item with a known vector, so nobody can have an index")
    ids = tuple(user_ids[u] for u in np.flatnonzero(known_U).tolist())
    users = ItemCatalog(ids, {"title": [""] * len(ids)})
    source = TokenizerSource.of(
        users, embeddings=ItemEmbeddings(vectors_UD[known_U], users.fingerprint, {"kind": "users"}), seed=seed
    )
    kind = settings.tokenizer["kind"]
    chosen = recipes.validate(settings.tokenizer, registry.settings_class(kind), where="users.tokenizer")
    return UserIndex(ids, registry.build(chosen).fit(source, seed=seed))


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
