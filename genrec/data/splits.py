"""Train, valid and test parts of the interactions, each a contiguous piece of a user's history.

Axis letters: E events, U users, Q queries, N items.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec import artifacts, seeding
from genrec.data import leakage
from genrec.data.histories import Histories, Int32, Int64, as_int32, as_int64
from genrec.data.interactions import Interactions
from genrec.data.parts import DROP, TEST, TRAIN, VALID, Int8, held_out_parts, predefined_parts
from genrec.data.ties import Bools, tied_with_previous
from genrec.errors import ArtifactError, ConfigError, DataError

KIND = "split"
Part = Literal["valid", "test"]
_ARRAYS = ("items", "offsets", "train_end", "valid_end", "rows")


@dataclass(frozen=True, eq=False)
class EvalSet:
    """What is asked: query ``q`` shows ``histories[q]`` of user ``users[q]`` and expects ``targets[q]``.

    users: int32 ``[Q]``, rows of the split. histories and targets: Q rows, none of them empty.
    Stability: stable.
    """

    users: Int32
    histories: Histories
    targets: Histories

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: npt.ArrayLike) -> EvalSet:
        """These queries only (positions or a bool mask)."""
        at = np.asarray(rows)
        return EvalSet(self.users[at], self.histories.take(at), self.targets.take(at))

    def sample(self, size: int, seed: int) -> EvalSet:
        """At most ``size`` queries drawn by the seed, in their order: what models are validated on in training."""
        drawn = seeding.rng(seed, "valid").permutation(len(self))[:size]
        return self.take(np.sort(drawn))


@dataclass(frozen=True, eq=False)
class Split:
    """Each user's events in time order, cut into train, valid targets and test targets.

    items: int32 ``[E]``, users below each other. offsets: int64 ``[U + 1]``; for user u
    ``items[offsets[u]:train_end[u]]`` is train, ``items[train_end[u]:valid_end[u]]`` the valid targets and
    ``items[valid_end[u]:offsets[u + 1]]`` the test targets; any of them may be empty.
    rows: int64 ``[E]``, the row of each event in the interactions (context columns stay reachable), or None.
    tied: bool ``[E]``, true where an event's place after the one before it is arbitrary (both at the same moment,
    in a drawn order), or None if the order means something. Training draws the order of ties anew every epoch.
    The first event of a predefined part is never marked: the data set says that it comes after the part before.
    rule: how it was made, with ``dropped_queries`` (users who have targets but no history) by part.
    The layout makes it true that no target is older than its history; :meth:`check_leakage` states the rest.
    Stability: stable.
    """

    items: Int32
    offsets: Int64
    train_end: Int64
    valid_end: Int64
    n_items: int
    catalog: str
    rule: dict[str, Any] = field(default_factory=dict)
    rows: Int64 | None = None
    tied: Bools | None = None

    def __post_init__(self) -> None:
        for name in ("offsets", "train_end", "valid_end"):
            object.__setattr__(self, name, as_int64(getattr(self, name), name))
        object.__setattr__(self, "items", as_int32(self.items, "items"))
        self.check_leakage()

    @property
    def n_users(self) -> int:
        """Number of users, those without events included."""
        return len(self.offsets) - 1

    def train(self) -> Histories:
        """What training may see: one row per user, may be empty."""
        return Histories.from_slices(self.items, self.offsets[:-1], self.train_end)

    def train_ties(self) -> Bools | None:
        """``tied`` for the events of :meth:`train`, bool ``[E_train]``, or None."""
        return None if self.tied is None else self.tied[self.parts() == TRAIN]

    def open_ties(self, interactions: Interactions) -> Split:
        """The same split, saying that the order of a user's events at the same time is arbitrary.

        ``interactions``: those that ``rows`` refers to. Raises DataError if the split has no rows.
        """
        if self.rows is None:
            raise DataError("split: ties can be told only if the split knows the rows of its events")
        tied = tied_with_previous(interactions.user[self.rows], interactions.time[self.rows])
        if self.rule.get("kind") == "predefined":
            part = self.parts()
            tied[1:] &= part[1:] == part[:-1]
        return replace(self, tied=tied)

    def queries(self, part: Part) -> EvalSet:
        """The queries of a part: all a user did before the part is the history, the part is the targets.

        A test history is train and valid. Users without targets or without history are not asked.
        """
        starts, cuts, ends = self._bounds(part)
        asked = np.flatnonzero((ends > cuts) & (cuts > starts))
        return EvalSet(
            users=asked.astype(np.int32),
            histories=Histories.from_slices(self.items, starts[asked], cuts[asked]),
            targets=Histories.from_slices(self.items, cuts[asked], ends[asked]),
        )

    def check_leakage(self, interactions: Interactions | None = None) -> None:
        """Raise :class:`DataError` unless the parts are disjoint and in time order.

        Always checked: the cuts lie inside each user's events and in the order train, valid, test, so every
        history ends before its targets; no event is used twice; item
        numbers are in the catalog; under a held-out-items rule no test target occurs in train or valid.
        With ``interactions``: every event is the one at its row, of the right user; no target is older than
        its history; under a time rule every train event is at or before the cut of valid, and every valid
        event at or before the cut of test.
        """
        leakage.check_layout(self)
        if self.rule.get("kind") == "held_out_items":
            leakage.check_held_out(self)
        if interactions is not None:
            leakage.check_against(self, interactions)

    def parts(self) -> Int8:
        """The part of each event: 0 train, 1 valid, 2 test, int8 ``[E]``."""
        at = np.arange(len(self.items))
        lengths = np.diff(self.offsets)
        in_valid = at >= np.repeat(self.train_end, lengths)
        in_test = at >= np.repeat(self.valid_end, lengths)
        return in_valid.astype(np.int8) + in_test.astype(np.int8)

    def _bounds(self, part: str) -> tuple[Int64, Int64, Int64]:
        if part == "valid":
            return self.offsets[:-1], self.train_end, self.valid_end
        if part == "test":
            return self.offsets[:-1], self.valid_end, self.offsets[1:]
        raise ConfigError(f"part: expected 'valid' or 'test', got {part!r}")

    def save(
        self,
        path: Path | str,
        *,
        overwrite: bool = False,
        recipe: dict[str, Any] | None = None,
        parents: dict[str, str] | None = None,
    ) -> None:
        """Write an artifact of kind "split" (safetensors only: it loads without pyarrow)."""
        arrays = {name: found for name in _ARRAYS if (found := getattr(self, name)) is not None}
        if self.tied is not None:
            arrays["tied"] = self.tied.view(np.uint8)
        meta = {"n_items": self.n_items, "rule": self.rule}
        with artifacts.write(
            path, kind=KIND, catalog=self.catalog, meta=meta, recipe=recipe, parents=parents, overwrite=overwrite
        ) as draft:
            artifacts.save_arrays(draft.dir / "split.safetensors", arrays)

    @classmethod
    def load(cls, path: Path | str) -> Split:
        """Read an artifact of kind "split"; raises ArtifactError if it is damaged or another kind."""
        return artifacts.load(path, cls._read, kind=KIND)

    @classmethod
    def _read(cls, manifest: artifacts.Manifest) -> Split:
        if manifest.catalog is None:
            raise ArtifactError(f"{manifest.path}: a split without a catalog fingerprint")
        arrays, meta = artifacts.load_arrays(manifest.path / "split.safetensors"), manifest.meta
        found: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
        found["tied"] = arrays["tied"].view(np.bool_) if "tied" in arrays else None
        return cls(**found, n_items=int(meta["n_items"]), catalog=manifest.catalog, rule=meta["rule"])


def leave_one_out(interactions: Interactions, min_length: int = 3) -> Split:
    """The last event of each user is the test target, the one before it the valid target (stable).

    Users with fewer than ``min_length`` (at least 3) events keep everything in train and have no target.
    """
    if min_length < 3:
        raise ConfigError(f"min_length: expected at least 3 (one event for each part), got {min_length}")
    offsets = interactions.offsets()
    part = np.zeros(len(interactions), np.int8)
    ends = offsets[1:][np.diff(offsets) >= min_length]
    part[ends - 2] = VALID
    part[ends - 1] = TEST
    return _assemble(interactions, part, {"kind": "leave_one_out", "min_length": min_length})


def time_split(
    interactions: Interactions,
    *,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    cuts: tuple[int, int] | None = None,
) -> Split:
    """Cut all users at the same two moments: train is ``time <= cuts[0]``, test is ``time > cuts[1]`` (stable).

    The cuts are timestamps, or follow from the fractions: the time of the last event among the oldest
    ``1 - valid_fraction - test_fraction`` (then ``1 - test_fraction``) of all events. Events at exactly the
    time of a cut go to the earlier part, so a tie is never divided; with many ties the later parts get less
    than their fraction. A user may have several targets, or none.
    """
    rule: dict[str, Any] = {"kind": "time_split"}
    if cuts is None:
        if valid_fraction < 0 or test_fraction < 0 or valid_fraction + test_fraction >= 1:
            raise ConfigError(
                "fractions: expected non-negative values that leave something for train, "
                f"got valid {valid_fraction} and test {test_fraction}"
            )
        rule |= {"valid_fraction": valid_fraction, "test_fraction": test_fraction}
        cuts = _quantiles(interactions.time, 1 - valid_fraction - test_fraction, 1 - test_fraction)
    if cuts[0] > cuts[1]:
        raise ConfigError(f"cuts: expected the cut of valid at or before that of test, got {cuts}")
    time = interactions.time
    part = (time > cuts[0]).astype(np.int8) + (time > cuts[1]).astype(np.int8)
    return _assemble(interactions, part, rule | {"cuts": [int(c) for c in cuts]})


def predefined_split(interactions: Interactions, column: str = "split") -> Split:
    """Use the parts that the data set brings: a column with "train", "valid" or "test" for each event (stable).

    Raises :class:`DataError` for another value, and naming the first user whose parts are not in the order train,
    valid, test. Where parts share a time, ``order_ties(..., within=predefined_parts(...))`` brings about that order.
    """
    part = predefined_parts(interactions, column)
    values = interactions.columns[column]
    same_user = interactions.user[1:] == interactions.user[:-1]
    if len(wrong := np.flatnonzero(same_user & (part[1:] < part[:-1]))):
        row = int(wrong[0]) + 1
        user = interactions.user_ids[interactions.user[row]]
        raise DataError(
            f"column {column!r}: user {user!r} has a {values[row]!r} event (time {interactions.time[row]}) "
            f"after a {values[row - 1]!r} event (time {interactions.time[row - 1]})",
            hint="every user's events must go train, valid, test in time order (split.ties: neutral puts events of "
            "one time in this order, file keeps the file's); otherwise use time_split",
        )
    return _assemble(interactions, part, {"kind": "predefined", "column": column})


def held_out_items(interactions: Interactions, fraction: float, seed: int) -> Split:
    """Cold start: a seeded share of the items that occur is never seen before test, which asks for it (stable).

    For each user: the last event on a held-out item that has a warm event before it is the test target. All
    other held-out events are dropped, and so is everything after the test target. Of what is left, the last
    warm event is the valid target when train keeps at least one event and the user has three or more.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction: expected a share of items between 0 and 1, got {fraction}")
    occurring = np.unique(interactions.item)
    n_cold = min(len(occurring), max(1, round(fraction * len(occurring))))
    chosen = seeding.rng(seed, "held-out items").choice(occurring, size=n_cold, replace=False)
    is_cold = np.zeros(interactions.n_items, np.bool_)
    is_cold[chosen] = True
    rule = {"kind": "held_out_items", "fraction": fraction, "seed": seed}
    rule["held_out_items"] = np.sort(chosen).tolist()
    return _assemble(interactions, held_out_parts(interactions, is_cold), rule)


def _quantiles(time: Int64, first: float, second: float) -> tuple[int, int]:
    if len(time) == 0:
        return 0, 0
    ordered = np.sort(time)
    low, high = (max(0, round(share * len(ordered)) - 1) for share in (first, second))
    return int(ordered[low]), int(ordered[high])


def _assemble(interactions: Interactions, part: Int8, rule: dict[str, Any]) -> Split:
    """A split from the part of each event; events of part -1 are left out."""
    rows = np.flatnonzero(part != DROP).astype(np.int64)
    part, user = part[rows], interactions.user[rows]
    lengths = [np.bincount(user[part == p], minlength=interactions.n_users) for p in (TRAIN, VALID, TEST)]
    offsets = np.zeros(interactions.n_users + 1, np.int64)
    np.cumsum(sum(lengths), out=offsets[1:])
    train_end = offsets[:-1] + lengths[TRAIN]
    valid_end = train_end + lengths[VALID]
    dropped = {
        "valid": int(((lengths[VALID] > 0) & (lengths[TRAIN] == 0)).sum()),
        "test": int(((lengths[TEST] > 0) & (lengths[TRAIN] + lengths[VALID] == 0)).sum()),
    }
    split = Split(
        items=interactions.item[rows],
        offsets=offsets,
        train_end=train_end,
        valid_end=valid_end,
        n_items=interactions.n_items,
        catalog=interactions.catalog,
        rule=json.loads(json.dumps(rule | {"dropped_queries": dropped})),
        rows=rows,
    )
    split.check_leakage(interactions)
    return split
