"""What an identifier report is read against: random and shuffled codes, new items, another table of the same items.

Axes: N items, L levels, D vector width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.evaluation.identifier_vectors import Quantised, quantise
from genrec.evaluation.identifiers import Figures, IdentifierReport, InspectSettings, inspect_codes, plain
from genrec.item_tokenizers.codes import ItemCodes, narrowest
from genrec.metrics import codes_structure, codes_vectors
from genrec.seeding import rng

Vectors = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Controls:
    """Two tables that know nothing about the items, of the same sizes (experimental).

    random: every code drawn evenly from its level, lengths kept: what usage can be without meaning. shuffled: the same
    identifiers dealt to other items, so all of usage is kept and all meaning lost. order: int64 ``[N]``, item n of
    ``shuffled`` has the identifier of item ``order[n]``.
    """

    random: ItemCodes
    shuffled: ItemCodes
    order: npt.NDArray[np.int64]


def controls(codes: ItemCodes, seed: int) -> Controls:
    """The random and the shuffled table for ``codes``, drawn by seed (experimental)."""
    generator = rng(seed, "controls", "random")
    drawn = np.stack([generator.integers(size, size=len(codes)) for size in codes.level_sizes], axis=1)
    drawn = np.where(codes.as_int() >= 0, drawn, 0).astype(narrowest(max(codes.level_sizes)))
    order = rng(seed, "controls", "shuffled").permutation(len(codes))
    return Controls(replace(codes, codes=drawn), codes.take(order), order)


def inspect_with_controls(
    codes: ItemCodes,
    *,
    vectors: Vectors | None = None,
    reconstruction: Vectors | None = None,
    settings: InspectSettings | None = None,
    **inputs: Any,
) -> dict[str, IdentifierReport]:
    """Reports of ``codes``, ``random`` and ``shuffled`` (:class:`Controls`) from the same inputs (experimental).

    The arguments are those of :func:`genrec.evaluation.identifiers.inspect_codes`. The quantised vectors of a control
    are made the way those of the codes were: by the same codebooks, or by the ones that the control implies; a given
    reconstruction is dealt with the shuffled identifiers, and the random table then has none.
    """
    chosen = settings or InspectSettings()
    own = inspect_codes(codes, vectors=vectors, reconstruction=reconstruction, settings=chosen, **inputs)
    how = own.context["quantised"]
    alike = replace(chosen, quantised="none" if how == "given" else how or chosen.quantised)
    found = controls(codes, chosen.seed)
    dealt = None if reconstruction is None else reconstruction[found.order]
    return {
        "codes": own,
        "random": inspect_codes(found.random, vectors=vectors, settings=alike, **inputs),
        "shuffled": inspect_codes(found.shuffled, vectors=vectors, reconstruction=dealt, settings=alike, **inputs),
    }


def inspect_cold(
    warm: ItemCodes,
    cold: ItemCodes,
    *,
    vectors: tuple[Vectors, Vectors] | None = None,
    reconstruction: tuple[Vectors, Vectors] | None = None,
) -> Figures:
    """Figures ``cold_*`` of new items that a tokenizer encoded without having been fitted on them (experimental).

    vectors, reconstruction: of the warm and of the cold items, ``[N, D]`` each. Without a reconstruction the codebooks
    of ``warm`` (or those it implies) serve both. Compare raw codes with raw codes: a suffix against collisions says
    nothing about new items. Raises DataError when the two tables have other level sizes.
    """
    if warm.level_sizes != cold.level_sizes:
        raise DataError(f"cold: expected level sizes {warm.level_sizes}, got {cold.level_sizes}")
    found = codes_structure.cold_coverage(warm.as_int(), cold.as_int())
    figures: Figures = {
        "cold_occupied": found.occupied,
        "cold_new_identifier": found.new_identifier,
        "cold_warm_collision": found.warm_collision,
        "cold_collision": found.cold_collision,
    }
    if vectors is not None:
        quantised = quantise(warm, vectors[0], None if reconstruction is None else reconstruction[0], how="auto")
        figures |= _cold_error(vectors, quantised, cold if reconstruction is None else reconstruction[1])
    return {key: plain(value) for key, value in figures.items()}


def compare_code_tables(before: ItemCodes, after: ItemCodes) -> Figures:
    """Figures ``adjusted_rand`` and ``pairs_kept`` by prefix length (experimental).

    Row n of both is the same item: tables of one catalog (another seed, another setting), or of a catalog and its
    appended child, whose additional items are left out.
    """
    n = min(len(before), len(after))
    found = codes_structure.stability(before.as_int()[:n], after.as_int()[:n])
    return {"adjusted_rand": plain(found.adjusted_rand), "pairs_kept": plain(found.kept)}


def _cold_error(vectors: tuple[Vectors, Vectors], warm: Quantised, cold: ItemCodes | Vectors) -> Figures:
    made = warm.apply(cold) if isinstance(cold, ItemCodes) else cold
    assert warm.vectors_ND is not None and made is not None
    mean = vectors[0].mean(axis=0, dtype=np.float64)
    known = codes_vectors.relative_error(vectors[0], warm.vectors_ND)
    new = codes_vectors.relative_error(vectors[1], made, mean)
    return {"cold_error": new, "cold_error_ratio": new / known if known > 0 else np.nan}
