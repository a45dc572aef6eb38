"""Start values of item tokens in a table of text embeddings that somebody else trained.

Axes: O old rows, R new rows, K codes of a level, C width of a codebook, D width of the table, N items, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec import seeding
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.token_map import TokenMap

CHUNK = 8192


def drawn_rows(old_OD: Tensor, n_rows: int, *, seed: int, name: str = "") -> Tensor:
    """Rows of a normal distribution with the mean and the covariance of the old rows, float32 ``[R, D]`` (internal).

        row = mean + sum over old rows o of g_o (o - mean) / sqrt(O - 1),   g_o standard normal

    which has exactly that covariance, also where the rows are fewer than the width, and needs no D x D matrix.
    """
    mean_D = old_OD.double().mean(0)
    out_RD = mean_D.expand(n_rows, -1).clone()
    random = seeding.rng(seed, "new rows", name)
    for part_OD in _parts(old_OD):
        weight_RO = torch.from_numpy(random.standard_normal((n_rows, len(part_OD)), dtype=np.float32)).to(
            part_OD.device
        )
        out_RD += weight_RO @ (part_OD.double() - mean_D).float() / max(len(old_OD) - 1, 1) ** 0.5
    return out_RD.float()


def codebook_rows(old_OD: Tensor, book_KC: npt.NDArray[np.float32]) -> Tensor:
    """A codebook through the linear map that gives it the mean and covariance of the old rows, ``[K, D]`` (internal).

        Z = left singular vectors of (book - its mean), times sqrt(K - 1): r columns, mean 0, covariance 1
        P, V = the r main directions of the old rows and their variances
        row k = mean of the old rows + sum over i of Z[k, i] sqrt(V[i]) P[i]

    Codes of like meaning start alike. r is the rank of the codebook, at most D: the rows have the covariance of the old
    ones in the r main directions and none in the others.
    """
    mean_D = old_OD.double().mean(0)
    centred = np.asarray(book_KC, dtype=np.float64)
    left_KC, size_C, _ = np.linalg.svd(centred - centred.mean(axis=0), full_matrices=False)
    # the sign of a singular vector is arbitrary: the largest entry is positive
    left_KC *= np.where(np.take_along_axis(left_KC, np.abs(left_KC).argmax(axis=0)[None], 0) < 0, -1, 1)
    square_DD = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64, device=old_OD.device)
    for part_OD in _parts(old_OD):
        centred_OD = part_OD.double() - mean_D
        square_DD += centred_OD.T @ centred_OD
    value_D, vector_DD = torch.linalg.eigh(square_DD / max(len(old_OD) - 1, 1))
    rank = min(int((size_C > 1e-9 * max(size_C.max(initial=0.0), 1e-30)).sum()), len(mean_D))
    main_rD = vector_DD.T.flip(0)[:rank]
    main_rD = main_rD * main_rD.gather(1, main_rD.abs().argmax(1, keepdim=True)).sign()
    scaled_rD = value_D.flip(0)[:rank].clamp(min=0).sqrt()[:, None] * main_rD
    known_Kr = torch.from_numpy(left_KC[:, :rank] * (len(left_KC) - 1) ** 0.5).to(old_OD.device)
    rows_KD: Tensor = (mean_D + known_Kr @ scaled_rD).float()
    return rows_KD


def _parts(old_OD: Tensor) -> Iterator[Tensor]:
    """In double precision, all rows of a large table at once are too many."""
    return (old_OD[start : start + CHUNK] for start in range(0, len(old_OD), CHUNK))


def text_rows(
    old_OD: Tensor, codes_N: npt.NDArray[np.integer], size: int, tokens: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """For each code, the mean of the old rows of all text tokens of its items, ``[K, D]`` (internal).

    codes_N: the items' codes at one level, -1 = none. tokens: of the items' texts. Also returns which codes have any
    text, bool ``[K]``; the rows of the others are zero.
    """
    length_N = np.array([len(each) for each in tokens])
    code_T = np.repeat(np.asarray(codes_N, dtype=np.int64), length_N)
    token_T = np.fromiter((t for each in tokens for t in each), dtype=np.int64, count=int(length_N.sum()))
    kept = code_T >= 0
    place_T = torch.from_numpy(np.stack([code_T[kept], token_T[kept]])).to(old_OD.device)
    ones_T = torch.ones(place_T.shape[1], dtype=torch.float32, device=old_OD.device)
    shape = (size, len(old_OD))
    count_KO = torch.sparse_coo_tensor(place_T, ones_T, shape, check_invariants=True).coalesce()
    total_K = torch.from_numpy(np.bincount(code_T[kept], minlength=size)).to(old_OD.device)
    mean_KD = torch.sparse.mm(count_KO, old_OD.float()) / total_K.clamp(min=1)[:, None]
    return mean_KD, total_K > 0


@torch.no_grad()
def start_new_rows(
    table_VD: Tensor,
    token_map: TokenMap,
    *,
    init: str,
    seed: int,
    codes: ItemCodes | None = None,
    texts: Sequence[Sequence[int]] | None = None,
) -> None:
    """Give the item and user tokens of a table their start values, in place (internal).

    init: ``mean`` (:func:`drawn_rows`), ``codebooks`` (:func:`codebook_rows`; levels without a codebook and user tokens
    as ``mean``) or ``text`` (:func:`text_rows`; codes without items and user tokens as ``mean``). codes: for the last
    two. texts: token ids of the text of every item; for identifiers that are text (``codes.pieces``), of every piece,
    whose own mean its row is then. Raises DataError for codebooks of several levels that share their tokens, and for
    another number of texts.
    """
    first, last = token_map.first_item_id, token_map.vocab_size
    old_OD = table_VD[:first].detach()
    table_VD[first:last] = drawn_rows(old_OD, last - first, seed=seed).to(table_VD)
    if init == "mean":
        return
    assert codes is not None
    books = codes.codebooks if init == "codebooks" else ()
    if token_map.shared_vocabulary and len(books) > 1:
        raise DataError("codebooks: levels that share their tokens can start from one codebook only, got several")
    rows_NL = codes.as_int()
    n_texts, what = (len(codes.pieces), "pieces") if codes.pieces else (len(rows_NL), "items")
    if texts is not None and len(texts) != n_texts:
        raise DataError(f"texts: expected one for each of {n_texts} {what}, got {len(texts)}")
    shared = token_map.shared_vocabulary
    for level, size in enumerate(token_map.level_sizes[:1] if shared else token_map.level_sizes):
        start = token_map.level_offset[level]
        if init == "codebooks" and level < len(books):
            table_VD[start : start + size] = codebook_rows(old_OD, books[level]).to(table_VD)
        if init == "text":
            assert texts is not None
            column_N = np.arange(size) if codes.pieces else rows_NL.T.ravel() if shared else rows_NL[:, level]
            found_KD, any_K = text_rows(old_OD, column_N, size, list(texts) * (len(column_N) // n_texts))
            part_KD = table_VD[start : start + size]
            part_KD[any_K] = found_KD[any_K].to(table_VD)


@torch.no_grad()
def warm_start(
    rows_RD: Tensor,
    token_map: TokenMap,
    codes: ItemCodes,
    seen_N: npt.NDArray[np.bool_],
    n_old: int,
    *,
    seed: int,
) -> npt.NDArray[np.int64]:
    """Give the tokens of new items whose rows nothing has trained the values of trained ones, in place (internal).

        for each level, its codes that a new item has and no old one:
            a level with a codebook:  the row of the trained code whose vector is nearest
            without:                  drawn with mean and covariance of the trained codes' rows (:func:`drawn_rows`)

    rows_RD: rows of the item tokens, from ``token_map.first_item_id`` on. seen_N: the items in histories; the codes of
    the old ones among them are the trained ones. n_old: old items come first; retired ones, and those that only their
    texts taught, keep the rows of their codes. Levels with one vocabulary are one level. A level of which nothing is
    trained stays as it is. Returns the places in ``rows_RD`` that were changed.
    """
    changed = []
    codes_NL = codes.as_int()
    shared = token_map.shared_vocabulary
    for level, size in enumerate(token_map.level_sizes[:1] if shared else token_map.level_sizes):
        column_NC = codes_NL if shared else codes_NL[:, level : level + 1]
        cold = np.flatnonzero(_used(column_NC[n_old:], size) & ~_used(column_NC[:n_old], size))
        known = np.flatnonzero(_used(column_NC[:n_old][seen_N[:n_old]], size))
        if not len(cold) or not len(known):
            continue
        first = token_map.level_offset[level] - token_map.first_item_id
        if level < len(codes.codebooks):
            book_KC = codes.codebooks[level].astype(np.float64)
            far = (book_KC[known] ** 2).sum(1) - 2 * book_KC[cold] @ book_KC[known].T  # but for a constant of the row
            rows_RD[first + cold] = rows_RD[first + known[far.argmin(axis=1)]]
        else:
            old_OD = rows_RD[first + known].detach()
            rows_RD[first + cold] = drawn_rows(old_OD, len(cold), seed=seed, name=f"level {level}").to(rows_RD)
        changed.append(first + cold)
    return np.concatenate(changed) if changed else np.zeros(0, np.int64)


def _used(codes: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.bool_]:
    return np.bincount(codes[codes >= 0], minlength=size) > 0
