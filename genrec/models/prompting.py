"""Histories as model inputs (numpy only): the one place that knows how a prompt looks.

Encoder-decoder:  ``[<u_7>] <a_3> <b_1> … </s>``, padded on the right; the decoder starts with ``<pad>``.
Decoder-only:     ``<s> [<u_7>] <a_3> <b_1> …``, padded on the left; the next tokens are the next item's.
Items stand oldest first, each as its codes; ragged identifiers keep their ``</s>``, which separates them. A text
vocabulary without ``<s>`` begins with the first token there is; a prompt of nothing is ``</s>`` alone. Users with
codes have a token of each instead of ``<u_7>``.

Axes: N items, U users (rows), T tokens, M tokens of an item, or of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.scorer import Prompts
from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex, user_tokens

Layout = Literal["encoder", "decoder"]


def item_tokens(codes: ItemCodes, token_map: TokenMap) -> npt.NDArray[np.int32]:
    """Tokens of every item, int32 ``[N, M]``, ``<pad>`` behind short identifiers.

    Raises FingerprintMismatch if the vocabulary was made for other level sizes.
    """
    expected = token_map.with_codes(codes)
    if expected.fingerprint != token_map.fingerprint:
        raise FingerprintMismatch(
            f"the token map has levels {token_map.level_sizes} (ragged: {token_map.ragged}), the codes have "
            f"{codes.level_sizes} (ragged: {codes.ragged})",
            hint="a model only understands the codes it was trained on",
        )
    return token_map.token_ids(codes.as_int()).astype(np.int32)


def users_asked(
    token_map: TokenMap,
    users: npt.ArrayLike | Sequence[str] | None,
    n_rows: int,
    *,
    user_ids: Sequence[str] | None = None,
    index: UserIndex | None = None,
) -> npt.NDArray[np.int64] | None:
    """Tokens of the user of each row, int64 ``[U, M]``, -1 = none; None if none are told or the vocabulary has none.

    users: user ids (strings), or user numbers, which are looked up in ``user_ids``. Tokens follow from the *id*, by a
    hash or by ``index``, so they are the same in every data set version and process. Whom the index does not know, and
    everybody where users are not told, is ``<unk_user>``. Raises DataError for numbers without ``user_ids``.
    """
    if users is None and index is None:
        return None
    values = np.asarray([""] * n_rows if users is None else users)
    if values.dtype.kind in "iu" and token_map.n_user_tokens:
        if user_ids is None:
            raise DataError("users are numbers, and the model needs their ids", hint="pass user_ids")
        return user_tokens(token_map, [user_ids[int(u)] for u in values], index)
    return user_tokens(token_map, [str(u) for u in values], index)


def build_prompts(
    layout: Layout,
    histories: Histories,
    tokens_NM: npt.NDArray[np.integer],
    token_map: TokenMap,
    users_UM: npt.NDArray[np.int64] | None = None,
) -> Prompts:
    """Token matrices of histories, as the module describes.

    tokens_NM: see :func:`item_tokens`. users_UM: see :func:`users_asked`; required exactly where the vocabulary has
    user tokens. Histories may be empty; they are not cut here (``histories.last(n)`` does that). Raises DataError for
    an item number that does not exist.
    """
    items = histories.items
    if len(items) and (items.min() < 0 or items.max() >= len(tokens_NM)):
        raise DataError(f"item numbers: expected 0..{len(tokens_NM) - 1}, got {items.min()} .. {items.max()}")
    if (users_UM is None) == (token_map.n_user_tokens > 0):
        raise DataError(f"users: the vocabulary has {token_map.n_user_tokens} user tokens; pass users to match")
    body = tokens_NM[items]
    used = token_map.real(body)
    row = np.repeat(histories.rows(), used.sum(axis=1))
    n_rows = len(histories)
    body_length = np.bincount(row, minlength=n_rows)
    decoder = layout == "decoder"
    if users_UM is None:
        users_UM = np.zeros((n_rows, 0), dtype=np.int64)
    told = users_UM >= 0
    n_user = told.sum(axis=1)
    start = token_map.bos_id if decoder else None
    n_start = int(start is not None)
    length = body_length + n_start + n_user + int(not decoder)
    empty = length == 0  # a model needs a token to go on from
    length[empty] = 1
    width = int(length.max(initial=0))
    shift = width - length if decoder else np.zeros_like(length)
    out = np.full((n_rows, width), token_map.pad_id, dtype=np.int64)
    everyone = np.arange(n_rows)
    out[empty, -1] = token_map.eos_id
    if start is not None:
        out[everyone, shift] = start
    of_user, nth = np.nonzero(told)  # codes stand first, -1 behind them
    out[of_user, shift[of_user] + n_start + nth] = users_UM[told]
    place = np.arange(len(row)) - (np.cumsum(body_length) - body_length)[row]
    out[row, shift[row] + n_start + n_user[row] + place] = body[used]
    if not decoder:
        out[everyone, length - 1] = token_map.eos_id
    column = np.arange(width)
    return Prompts(out, (column >= shift[:, None]) & (column < (shift + length)[:, None]))
