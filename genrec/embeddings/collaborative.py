"""Item vectors from who bought what: TRAINING histories only.

Legend: N items, U users, E events, D width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.linear import truncated_svd
from genrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class SvdSettings:
    """Settings of :func:`svd`; raises ConfigError for values outside their range (stable)."""

    dim: int = 128  # width of the vectors
    user_power: float = 0.5  # an event counts 1 / (events of its user) ** user_power
    item_power: float = 0.5  # ... and 1 / (events of its item) ** item_power
    value_power: float = 0.5  # directions are scaled by singular value ** value_power
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("dim", self.dim, 1)
        for name in ("user_power", "item_power", "value_power"):
            _at_least(name, getattr(self, name), 0)


@dataclass(frozen=True)
class PpmiSettings:
    """Settings of :func:`ppmi`; raises ConfigError for values outside their range (stable)."""

    dim: int = 128  # width of the vectors
    window: int = 5  # items at most this far apart in a history co-occur
    decay: float = 0.7  # weight decay ** (distance - 1)
    shift: float = 0.0  # subtracted from the information (nats) before negative values are cut
    value_power: float = 0.5  # directions are scaled by singular value ** value_power
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("dim", self.dim, 1)
        _at_least("window", self.window, 1)
        _at_least("shift", self.shift, 0)
        _at_least("value_power", self.value_power, 0)
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay: expected above 0, at most 1, got {self.decay}")


def svd(train: Histories, n_items: int, settings: SvdSettings, catalog: str) -> ItemEmbeddings:
    """Leading right singular vectors of the normalised user-item matrix (stable).

        X[u, i] = (events of i in history u) / (n_u ** user_power * n_i ** item_power)
        X ~ P diag(s) Q.T;  vectors = Q * s ** value_power

    ``train`` must hold training events only; ``catalog`` is the catalog's fingerprint. Items without events
    get zero vectors. The width is below ``dim`` if the data has fewer directions (logged). Raises DataError
    if there are no events or an item number is outside ``0..n_items-1``.
    """
    import scipy.sparse as sp

    _check_items(train, n_items)
    n_u = train.lengths
    n_i = np.bincount(train.items, minlength=n_items)
    weight = n_u[train.rows()] ** -settings.user_power * n_i[train.items].astype(float) ** -settings.item_power
    matrix = sp.csr_matrix((weight, (train.rows(), train.items)), shape=(len(train), n_items))
    factors = truncated_svd(matrix, settings.dim, settings.seed)
    return _embeddings("svd", factors.right * factors.values**settings.value_power, n_i > 0, settings, catalog)


def ppmi(train: Histories, n_items: int, settings: PpmiSettings, catalog: str) -> ItemEmbeddings:
    """Factors of the positive pointwise mutual information of items near each other in histories (stable).

        C[i, j] = sum of decay ** (distance - 1) over the pairs of i and j != i at most `window` apart
        M[i, j] = max(0, log(C[i, j] * C.sum() / (C[i].sum() * C[:, j].sum())) - shift)
        M ~ P diag(s) Q.T;  vectors = P * s ** value_power

    Levy and Goldberg (2014, NeurIPS 27), with weights by distance. ``train`` must hold training events only.
    Items without a neighbour get zero vectors. Raises like :func:`svd`.
    """
    _check_items(train, n_items)
    matrix = _positive_information(_cooccurrence(train, n_items, settings), settings.shift)
    known = np.diff(matrix.indptr) > 0
    factors = truncated_svd(matrix, settings.dim, settings.seed)
    return _embeddings("ppmi", factors.left * factors.values**settings.value_power, known, settings, catalog)


def _cooccurrence(train: Histories, n_items: int, settings: PpmiSettings) -> csr_matrix:
    import scipy.sparse as sp

    rows, items = train.rows(), train.items.astype(np.int64)
    one_way = sp.csr_matrix((n_items, n_items))
    for distance in range(1, min(settings.window, len(items) - 1) + 1):
        a, b = items[:-distance], items[distance:]
        near = (rows[:-distance] == rows[distance:]) & (a != b)
        weight = np.full(int(near.sum()), settings.decay ** (distance - 1))
        one_way = one_way + sp.csr_matrix((weight, (a[near], b[near])), shape=(n_items, n_items))
    return (one_way + one_way.T).tocsr()


def _positive_information(counts: csr_matrix, shift: float) -> csr_matrix:
    import scipy.sparse as sp

    total = np.ravel(counts.sum(axis=1))
    pairs = counts.tocoo()
    if pairs.nnz == 0:
        raise DataError("train: no two different items are near each other in any history")
    value = np.log(pairs.data * total.sum() / (total[pairs.row] * total[pairs.col])) - shift
    kept = value > 0
    if not kept.any():
        raise DataError("train: no pair of items has positive information", hint="lower shift")
    return sp.csr_matrix((value[kept], (pairs.row[kept], pairs.col[kept])), shape=counts.shape)


def _check_items(train: Histories, n_items: int) -> None:
    if len(train.items) == 0:
        raise DataError("train: expected at least one event, got none")
    if train.items.min() < 0 or train.items.max() >= n_items:
        found = f"{train.items.min()} to {train.items.max()}"
        raise DataError(f"train: expected item numbers 0 to {n_items - 1}, got {found}")


def _embeddings(
    kind: str, vectors: npt.NDArray[np.float64], known: npt.NDArray[np.bool_], settings: Any, catalog: str
) -> ItemEmbeddings:
    # the SVD leaves dust of 1e-17 in rows without data; "unknown" must be exact
    exact = np.where(known[:, None], vectors, 0.0).astype(np.float32)
    return ItemEmbeddings(exact, catalog, {"kind": kind, **asdict(settings)})


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(f"{name}: expected at least {low}, got {value}")
