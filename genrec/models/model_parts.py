"""Before a model answers: whether its parts belong together, and what of it plays no part."""

from __future__ import annotations

import logging

from transformers import PreTrainedModel

from genrec.decoding.index import CatalogIndex
from genrec.errors import FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex, check_users

logger = logging.getLogger(__name__)

NEUTRAL = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""Values of a ``generation_config`` that change nothing."""


def check_parts(
    model: PreTrainedModel,
    token_map: TokenMap,
    codes: ItemCodes,
    index: CatalogIndex,
    user_index: UserIndex | None,
) -> None:
    """Raise FingerprintMismatch if model, vocabulary, codes, index and users do not belong together (internal).

    Codes may extend those that the model was trained on.
    """
    if index.codes != codes.fingerprint:
        raise FingerprintMismatch(
            f"index was built from codes {index.codes[:8]}, got codes {codes.fingerprint[:8]}",
            hint="build the index again with CatalogIndex.build",
        )
    trained_on = getattr(model.config, "genrec_codes", codes.fingerprint)
    n_items, of_catalog = getattr(model.config, "genrec_n_items", 0), getattr(model.config, "genrec_catalog", "")
    if trained_on != codes.fingerprint and not codes.extends(trained_on, n_items, of_catalog):
        raise FingerprintMismatch(
            f"the model was trained on codes {trained_on[:8]}, got codes {codes.fingerprint[:8]}",
            hint="a model only understands the identifiers it was trained on: use those of its bundle",
        )
    check_users(token_map, user_index)
    of_users = getattr(model.config, "genrec_users", None)
    if user_index is not None and of_users not in (None, user_index.fingerprint):
        raise FingerprintMismatch(
            f"the model was trained on users {of_users[:8]}, got users {user_index.fingerprint[:8]}",
            hint="a model only understands the user index it was trained with: use that of its bundle",
        )


def say_what_is_ignored(model: PreTrainedModel) -> None:
    """Log the settings of the model's own ``generation_config`` that our search does not use (internal)."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    found = {name: getattr(config, name, None) for name in NEUTRAL}
    changed = {name: value for name, value in found.items() if value not in (None, NEUTRAL[name])}
    if changed:
        logger.info("the model's generation_config is not used; ignored: %s", changed)
