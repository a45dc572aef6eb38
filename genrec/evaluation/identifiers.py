"""How good are identifiers, before any recommender is trained?  All metrics of one table of codes in one report.

No single number decides: random codes are best in every metric of usage. Read usage, fidelity, behaviour and
predictability together, each beside its controls (:mod:`genrec.evaluation.identifier_controls`); the sentence for
each key is in :mod:`genrec.metrics.codes_names`. Axes: N items, L levels, K codes of a level, D vector width.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.errors import DataError
from genrec.evaluation import identifier_figures as sections
from genrec.evaluation.identifier_figures import Categories, Figures, InspectSettings
from genrec.evaluation.identifier_vectors import quantise
from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics import codes_behaviour
from genrec.metrics.identifiers import exposed_share

__all__ = ["Categories", "Figures", "IdentifierReport", "InspectSettings", "inspect_codes", "plain"]


_NONE = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class IdentifierReport:
    """What :func:`inspect_codes` found (experimental).

    figures: a number, a list by level, or None where there is nothing to measure, for each key (``usage``,
    ``hit_rate_ratio@50``, ``category_ami.2``, ``held_out.traffic_share``); keys whose inputs were not given are
    missing. context: what the figures depend on (sizes, settings, digests of the inputs, how vectors were quantised).
    Both hold nothing but what JSON has.
    """

    figures: Figures
    context: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Both parts as one dict."""
        return {"context": self.context, "figures": self.figures}


def inspect_codes(
    codes: ItemCodes,
    *,
    vectors: npt.NDArray[np.floating] | None = None,
    reconstruction: npt.NDArray[np.floating] | None = None,
    train: Histories | None = None,
    categories: Categories | None = None,
    held_out: EvalSet | None = None,
    settings: InspectSettings | None = None,
) -> IdentifierReport:
    """Every metric of ``codes`` that the given inputs allow (experimental).

    vectors: item vectors ``[N, D]``, whose neighbourhoods should survive. reconstruction: what the codes stand for in
    that space, ``[N, D]``, for tokenizers whose codebooks live in another one. train: what users did in the *training*
    part. categories: of each item the path from the root, one name, or None. held_out: queries that are only
    reported on (keys ``held_out.``); a tokenizer chosen by those has seen the answers. Sampling and the split of users
    follow ``settings.seed``; same inputs, same figures. Raises DataError for inputs of another number of items.
    """
    chosen = settings or InspectSettings()
    _check(
        len(codes),
        {"vectors": vectors, "reconstruction": reconstruction, "categories": categories},
        {
            "train": train.items if train else _NONE,
            "held_out": np.concatenate([held_out.histories.items, held_out.targets.items]) if held_out else _NONE,
        },
    )
    codes_NL = codes.as_int()
    popularity = None if train is None else np.bincount(train.items, minlength=len(codes))
    figures = sections.usage(codes, codes_NL, popularity)
    quantised = None
    if vectors is not None:
        quantised = quantise(codes, vectors, reconstruction, how=chosen.quantised)
        figures |= sections.fidelity(codes_NL, vectors, quantised, chosen)
    if train is not None:
        figures["traffic_share"] = exposed_share(codes.collision_ids(), train.items)
        figures |= sections.behaviour(codes_NL, train, vectors, quantised, chosen)
    if categories is not None:
        figures |= sections.hierarchy(codes_NL, categories, chosen)
    if held_out is not None:
        figures["held_out.traffic_share"] = exposed_share(codes.collision_ids(), held_out.targets.items)
        pairs = _target_pairs(held_out)
        figures |= _prefixed(sections.alignment(codes_NL, pairs))
        figures |= _prefixed(sections.hits(pairs, vectors, quantised, chosen))
        if train is not None:
            counted = codes_behaviour.adjacent_pairs(train.offsets, train.items).pairs_P2
            figures |= _prefixed(sections.predicted(codes_NL, counted, pairs, chosen))
    context = {
        "codes": codes.fingerprint,
        "catalog": codes.catalog,
        "n_items": len(codes),
        "n_levels": codes.n_levels,
        "level_sizes": list(codes.level_sizes),
        "one_tree_vocabulary": codes.shared_vocabulary and codes.ragged,
        "settings": asdict(chosen),
        "quantised": None if quantised is None else quantised.how,
        "data": {
            "vectors": _digest(vectors),
            "train": _digest(train.offsets, train.items) if train else None,
            "held_out": _digest(_target_pairs(held_out)) if held_out else None,
        },
    }
    return IdentifierReport({key: plain(value) for key, value in figures.items()}, plain(context))


def plain(value: Any) -> Any:
    """``value`` in the types of JSON; nan and infinities become None (internal)."""
    if isinstance(value, dict):
        return {str(key): plain(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [plain(found) for found in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _prefixed(figures: Figures) -> Figures:
    return {f"held_out.{key}": value for key, value in figures.items()}


def _target_pairs(queries: EvalSet) -> npt.NDArray[np.int64]:
    """(last event of the history, target) of every target, int64 ``[P, 2]``; queries without a history have none."""
    row = queries.targets.rows()
    known = queries.histories.lengths[row] > 0
    last = queries.histories.items[queries.histories.offsets[1:][row[known]] - 1]
    pairs = np.stack([last, queries.targets.items[known]], axis=1).astype(np.int64)
    distinct: npt.NDArray[np.int64] = pairs[pairs[:, 0] != pairs[:, 1]]
    return distinct


def _check(n_items: int, rows: dict[str, Any], items: dict[str, npt.NDArray[np.int32]]) -> None:
    for name, table in rows.items():
        if table is not None and len(table) != n_items:
            raise DataError(f"{name}: expected {n_items} rows (one per item), got {len(table)}")
        if isinstance(table, np.ndarray) and not (finite := np.isfinite(table).all(axis=1)).all():
            raise DataError(f"{name}: row {int(np.argmin(finite))} has a number that is not finite")
    for name, numbers in items.items():
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < n_items:
            raise DataError(
                f"{name}: expected item numbers 0 to {n_items - 1}, got {numbers.min()} to {numbers.max()}",
                hint="are the codes of the same catalog?",
            )


def _digest(*arrays: npt.NDArray[Any] | None) -> str | None:
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            return None
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
