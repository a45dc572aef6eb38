"""Item vectors from fields and behaviour without a language model: field-aware masked auto-encoding (ReSID).

Axes: N items, J fields (the item itself is field 0), D width, M new items.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.famae_fields import MISSING, OTHER, Field, learn_fields
from genrec.embeddings.linear import unit_rows
from genrec.errors import ConfigError, DataError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FamaeSettings:
    """Settings of :func:`famae`; raises ConfigError for values outside their range (stable).

    The defaults need about four CPU-minutes for twelve thousand items and 150,000 events. The paper: ``dim`` 128,
    ``n_layers`` 2, 4 heads, ``inner`` 512, batches of 2,048, up to 500 epochs, learning rate 1e-3.
    """

    fields: tuple[str, ...] = ("brand", "categories")  # columns of the catalog beside the item itself
    path_levels: int = 4  # levels of a column of paths, each a field of its own
    min_items: int = 2  # values of fewer items share one value "other"
    dim: int = 64  # width of each field; the item vector is (1 + fields) times as wide
    n_layers: int = 1
    n_heads: int = 4
    inner: int = 256  # width of the feed-forward layers
    dropout: float = 0.1
    max_items: int = 32  # longest window: history and target
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    warmup_steps: int = 100
    full_softmax: int = 4096  # fields with more values are trained on a sample of them ...
    n_negatives: int = 128  # ... of this size
    valid_users: int = 2000  # their last training item is held out, for the metrics; at most a fifth of all users
    patience: int = 3  # epochs without better metrics before stopping (0 = never stop early)
    normalize: bool = True  # scale every field's vector to length 1, so that none outweighs the others
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        least = dict.fromkeys(("path_levels", "min_items", "dim", "n_layers", "n_heads", "inner", "epochs"), 1)
        least |= {"max_items": 2, "batch_size": 1, "n_negatives": 1, "full_softmax": 0, "warmup_steps": 0}
        least |= {"weight_decay": 0, "valid_users": 0, "patience": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        if self.dim % self.n_heads:
            raise ConfigError(f"dim: expected a multiple of n_heads={self.n_heads}, got {self.dim}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: expected in [0, 1), got {self.dropout}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, got {self.device!r}")
        if not self.fields:
            raise ConfigError("fields: expected at least one column of the catalog, got none")


@dataclass(frozen=True, eq=False)
class Famae:
    """What :func:`train_famae` learned: a table of vectors for every field (stable).

    fields: J - 1 fields beside the item itself. values_NJ: int32, the value of each item in each field, its own
    number in field 0. tables: J arrays float32 ``[values, D]``. seen: bool ``[N]``, items with training events. log:
    one dict per epoch: ``epoch``, ``loss``, and with held-out windows ``metric_1`` (Recall@10 of the held-out item
    among all, its fields unknown) and ``metric_2`` (with its fields known). best: the dict of the epoch whose tables
    these are.
    """

    fields: tuple[Field, ...]
    values_NJ: npt.NDArray[np.int32]
    tables: tuple[Floats, ...]
    seen: npt.NDArray[np.bool_]
    log: list[dict[str, float]]
    best: dict[str, float]
    normalize: bool

    def vectors(self) -> Floats:
        """Vectors of the catalog's items, float32 ``[N, J * D]``: the vectors of its fields side by side.

        An item without training events has no vector of its own: it gets the mean one of its category.
        """
        own_ND = self._scaled(0).copy()
        lost = np.flatnonzero(~self.seen)
        own_ND[lost] = self._category_means(self.values_NJ[lost, 1:])
        return self._joined(own_ND, self.values_NJ[:, 1:])

    def vectors_of_new(self, items: ItemCatalog) -> Floats:
        """Vectors of items it was not trained with, from their fields alone, float32 ``[M, J * D]``.

        The item's own part is the mean over the known items of its category (see :meth:`vectors`). Values unknown to
        the training catalog count as "other"; where it has none such either, that part is 0.
        """
        values_MJ = np.column_stack([field.encode(items) for field in self.fields])
        return self._joined(self._category_means(values_MJ), values_MJ)

    def _scaled(self, at: int) -> Floats:
        return unit_rows(self.tables[at]) if self.normalize else self.tables[at]

    def _joined(self, own: Floats, values: npt.NDArray[np.int32]) -> Floats:
        parts = [own]
        for at in range(1, len(self.tables)):
            used = np.bincount(self.values_NJ[:, at], minlength=len(self.tables[at])) > 0
            parts.append(np.where(used[:, None], self._scaled(at), np.float32(0))[values[:, at - 1]])
        return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)

    def _category_means(self, values: npt.NDArray[np.int32]) -> Floats:
        """Mean item vector of the seen items with the same last field; where there are none the field before, ….

        Missing and rare values are no category; in the end the mean of all seen items.
        """
        own = self._scaled(0)[self.seen]
        mean = own.mean(axis=0, dtype=np.float64) if len(own) else np.zeros(self.tables[0].shape[1])
        out = np.tile(mean, (len(values), 1))
        for at in range(1, len(self.tables)):  # from the widest to the narrowest, which stays
            member = self.values_NJ[self.seen, at]
            count = np.bincount(member, minlength=len(self.tables[at]))
            count[[MISSING, OTHER]] = 0
            sums = np.zeros((len(count), out.shape[1]))
            np.add.at(sums, member, own)
            found = count[values[:, at - 1]] > 0
            mine = values[found, at - 1]
            out[found] = sums[mine] / count[mine, None]
        return out.astype(np.float32)


def train_famae(train: Histories, items: ItemCatalog, settings: FamaeSettings) -> Famae:
    """Learn a vector for every value of every field from training histories and the fields of the items (stable).

    ::

        window = a history and its last item, the target
        masked = a random number of the target's fields, 1 to J, all subsets of that size alike
        h      = bidirectional Transformer over  position + sum of field vectors  (masked fields: a mask vector each),
                 read at the target
        loss   = sum over masked fields of  -log softmax over the values v of sqrt(D) cos(h, vector of v)  at the true v

    ReSID (2026, 2602.02338), section on FAMAE; all fields weigh the same (open in the paper). A softmax over a
    sample has its negatives drawn evenly, one sample a batch, and counts them for all the values they stand for.
    Held out for the metrics is the last *training* item of ``valid_users`` users; nothing of validation or test is
    looked at. The best epoch has the largest ``metric_1 + metric_2`` (the last one without held-out users).

    ``train`` must hold training events only. Reproducible: on a CPU the same inputs, settings and number of threads
    give the same bits; the global random state is left alone. Raises DataError if no history has two items, an item
    number is outside ``0..N-1``, or the fields are not those of ``items``.
    """
    if len(train.items) and (train.items.min() < 0 or train.items.max() >= len(items)):
        raise DataError(f"train: expected item numbers 0..{len(items) - 1}, got {train.items.max()}")
    if train.lengths.max(initial=0) < 2:
        raise DataError("train: expected a history of two items or more, got none")
    from genrec.embeddings.famae_training import fit_tables

    fields = learn_fields(items, settings.fields, path_levels=settings.path_levels, min_items=settings.min_items)
    own = np.arange(len(items), dtype=np.int32)
    values_NJ = np.column_stack([own, *(field.encode(items) for field in fields)])
    found = fit_tables(train, values_NJ, (len(items), *(field.size for field in fields)), settings)
    seen = np.bincount(train.items, minlength=len(items)) > 0
    return Famae(fields, values_NJ, found.tables, seen, found.log, found.best, settings.normalize)


def famae(train: Histories, items: ItemCatalog, settings: FamaeSettings) -> ItemEmbeddings:
    """The item vectors of :func:`train_famae` with their origin; raises what that raises (stable)."""
    found = train_famae(train, items, settings)
    recipe: dict[str, Any] = {"kind": "famae", **asdict(settings), "best": found.best}
    return ItemEmbeddings(found.vectors(), items.fingerprint, recipe)
