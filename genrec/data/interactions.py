"""The interaction log: who touched which item when, in one order that nothing later changes.

Axis letters: E events, U users, N items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from genrec import artifacts, seeding
from genrec.data.histories import Histories, Int32, Int64, as_int32, as_int64
from genrec.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "interactions"


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events sorted by user (order of first appearance), then time, then input order.

    user_ids: the U user ids, row ``u`` is user number ``u``. user, item: int32 ``[E]``. time: int64 ``[E]``,
    in the unit of the source (a position if the source has no time). columns: other values of each event,
    ``[E]`` each (rating, event type, session, locale, price, split...). n_items: N of the catalog.
    catalog: its fingerprint. Build it with :meth:`from_arrays`, which sorts.
    Raises :class:`DataError` if sizes differ, the order is not the stated one or a number is out of range.
    Stability: stable.
    """

    user_ids: tuple[str, ...]
    user: Int32
    item: Int32
    time: Int64
    n_items: int
    catalog: str
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("user", "item"):
            object.__setattr__(self, name, as_int32(getattr(self, name), name))
        object.__setattr__(self, "time", as_int64(self.time, "time"))
        object.__setattr__(self, "columns", {k: _as_column(k, v) for k, v in self.columns.items()})
        arrays: dict[str, npt.NDArray[Any]] = {"item": self.item, "time": self.time, **self.columns}
        for name, array in arrays.items():
            if len(array) != len(self.user):
                raise DataError(f"{name}: expected {len(self.user)} values, one per event, got {len(array)}")
        _check_range("user", self.user, len(self.user_ids))
        _check_range("item", self.item, self.n_items)
        step = np.diff(self.user)
        if bool((step < 0).any()) or bool(((step == 0) & (self.time[1:] < self.time[:-1])).any()):
            raise DataError("events are not sorted by user, then time", hint="use Interactions.from_arrays")

    @classmethod
    def from_arrays(
        cls,
        user_ids: Iterable[str],
        item: npt.ArrayLike,
        time: npt.ArrayLike | None,
        *,
        n_items: int,
        catalog: str,
        columns: Mapping[str, npt.ArrayLike] | None = None,
    ) -> Interactions:
        """Sort events that arrive in any order; equal (user, time) keep the input order.

        user_ids: the user id of each event. item: item numbers. time: integers, or None where the source has
        only an order: the position within the user (0, 1, 2...) takes its place.
        """
        numbering: dict[str, int] = {}
        user = np.fromiter((numbering.setdefault(u, len(numbering)) for u in user_ids), np.int32)
        n = len(user)
        if time is None:
            at = np.argsort(user, kind="stable")
            starts = np.searchsorted(user[at], np.arange(len(numbering)))
            clock = np.zeros(n, np.int64)
            clock[at] = np.arange(n) - starts[user[at]]
        else:
            clock = as_int64(time, "time")
        number = as_int32(item, "item")
        extra = {name: _as_column(name, values) for name, values in (columns or {}).items()}
        arrays: dict[str, npt.NDArray[Any]] = {"item": number, "time": clock, **extra}
        for name, array in arrays.items():
            if len(array) != n:
                raise DataError(f"{name}: expected {n} values, one per event, got {len(array)}")
        order = np.lexsort((clock, user))
        return cls(
            user_ids=tuple(str(u) for u in numbering),
            user=user[order],
            item=number[order],
            time=clock[order],
            n_items=n_items,
            catalog=catalog,
            columns={name: values[order] for name, values in extra.items()},
        )

    def __len__(self) -> int:
        """Number of events."""
        return len(self.user)

    @property
    def n_users(self) -> int:
        """Number of users, those without events included."""
        return len(self.user_ids)

    def offsets(self) -> Int64:
        """Where each user's events start, int64 ``[U + 1]``."""
        out = np.zeros(self.n_users + 1, np.int64)
        np.cumsum(np.bincount(self.user, minlength=self.n_users), out=out[1:])
        return out

    def histories(self) -> Histories:
        """All events of each user as one row, oldest first."""
        return Histories(self.offsets(), self.item)

    def keep(self, mask: npt.NDArray[np.bool_], *, drop_users: bool = True) -> Interactions:
        """Only the events where ``mask`` (bool ``[E]``) is true; users left without events go, or stay.

        Item numbers never change: they are rows of the catalog.
        """
        if mask.dtype != np.bool_ or mask.shape != self.user.shape:
            raise DataError(f"mask: expected bool [{len(self)}], got {mask.dtype} {list(mask.shape)}")
        user, ids = self.user[mask], self.user_ids
        if drop_users:
            left, renumbered = np.unique(user, return_inverse=True)
            user, ids = renumbered.astype(np.int32), tuple(self.user_ids[u] for u in left.tolist())
        return replace(
            self,
            user_ids=ids,
            user=user,
            item=self.item[mask],
            time=self.time[mask],
            columns={name: values[mask] for name, values in self.columns.items()},
        )

    def order_ties(
        self, rule: Literal["file", "neutral"], seed: int = 0, within: npt.NDArray[np.integer] | None = None
    ) -> Interactions:
        """Choose the order of a user's events that have the same time.

        "file" keeps the order of the source. "neutral" draws a uniform order inside each block of ties, the
        same for the same seed: the order of a file often follows the item id, which follows time.
        ``within`` (integers ``[E]``, "neutral" only): events of one time go in its rising order, and only those
        that are equal in it too are ties; with the parts of a predefined split, no tie crosses them.
        Neither looks at items.
        """
        if rule == "file":
            return self
        if rule != "neutral":
            raise DataError(f"ties: expected 'file' or 'neutral', got {rule!r}")
        key = seeding.rng(seed, "ties").integers(0, 2**63, len(self), dtype=np.int64)
        order = np.lexsort((key, *([] if within is None else [within]), self.time, self.user))
        return replace(
            self,
            item=self.item[order],
            columns={name: values[order] for name, values in self.columns.items()},
        )

    def save(
        self,
        path: Path | str,
        *,
        overwrite: bool = False,
        recipe: dict[str, Any] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        """Write an artifact of kind "interactions" (parquet tables for events, columns and users).

        ``meta``: further entries of the manifest's meta, such as what a reader left out.
        """
        import pyarrow as pa

        meta = {**(meta or {}), "n_items": self.n_items, "n_users": self.n_users, "n_events": len(self)}
        with artifacts.write(
            path, kind=KIND, catalog=self.catalog, meta=meta, recipe=recipe, overwrite=overwrite
        ) as draft:
            events = pa.table({"user": self.user, "item": self.item, "time": self.time})
            artifacts.save_table(draft.dir / "events.parquet", events)
            users = pa.table({"user_id": pa.array(self.user_ids, pa.string())})
            artifacts.save_table(draft.dir / "users.parquet", users)
            if self.columns:
                columns = {name: _to_arrow(name, values) for name, values in self.columns.items()}
                artifacts.save_table(draft.dir / "columns.parquet", pa.table(columns))

    @classmethod
    def load(cls, path: Path | str) -> Interactions:
        """Read an artifact of kind "interactions"; raises ArtifactError if it is damaged or another kind."""
        return artifacts.load(path, cls._read, kind=KIND)

    @classmethod
    def _read(cls, manifest: artifacts.Manifest) -> Interactions:
        if manifest.catalog is None:
            raise ArtifactError(f"{manifest.path}: interactions without a catalog fingerprint")
        events = artifacts.load_table(manifest.path / "events.parquet")
        users = artifacts.load_table(manifest.path / "users.parquet")
        columns: dict[str, npt.NDArray[Any]] = {}
        if "columns.parquet" in manifest.files:
            table = artifacts.load_table(manifest.path / "columns.parquet")
            columns = {name: table.column(name).to_numpy() for name in table.column_names}
        return cls(
            user_ids=tuple(users.column("user_id").to_pylist()),
            user=events.column("user").to_numpy(),
            item=events.column("item").to_numpy(),
            time=events.column("time").to_numpy(),
            n_items=int(manifest.meta["n_items"]),
            catalog=manifest.catalog,
            columns=columns,
        )


def _check_range(name: str, numbers: Int32, size: int) -> None:
    if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= size):
        raise DataError(f"{name}: expected numbers in 0..{size - 1}, got {numbers.min()} .. {numbers.max()}")


def _as_column(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """One value per event; text becomes an object array of str, so that None can mean missing."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"column {name!r}: expected one dimension, got shape {array.shape}")
    return array.astype(object) if array.dtype.kind == "U" else array


def _to_arrow(name: str, values: npt.NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    if values.dtype != object:
        return pa.array(values)
    wrong = next((v for v in values.tolist() if v is not None and not isinstance(v, str)), None)
    if wrong is not None:
        raise DataError(f"column {name!r}: expected text or None, got {type(wrong).__name__} {wrong!r}")
    return pa.array(values.tolist(), pa.string())
