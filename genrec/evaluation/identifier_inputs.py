"""What a report about identifiers is made from: codes, and whatever lies beside them in a run folder.

Axes: N items, L levels, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.embeddings.base import ItemEmbeddings, load_vectors
from genrec.errors import ConfigError, FingerprintMismatch, GenrecError
from genrec.evaluation.identifier_controls import controls, inspect_with_controls
from genrec.evaluation.identifiers import Categories, IdentifierReport, InspectSettings, inspect_codes
from genrec.item_tokenizers.base import ItemTokenizer, TokenizerSource
from genrec.item_tokenizers.codes import KIND, ItemCodes
from genrec.item_tokenizers.registry import load_tokenizer, tokenizer_class

_SOME = 1000  # items that tell whether the identifiers are the item tokenizer's


@dataclass(frozen=True, eq=False)
class Subject:
    """Identifiers and what is known about their items (experimental).

    codes: the identifiers that a model writes. raw: the same before the collision policy, None where they are the
    same (``raw_is_same``) or unknown. recipe: settings of the item tokenizer. notes: one sentence for everything that
    was looked for and not found. folder: of the item tokenizer, None without one. All parts are of one catalog.
    """

    name: str
    codes: ItemCodes
    raw: ItemCodes | None = None
    catalog: ItemCatalog | None = None
    vectors: ItemEmbeddings | None = None
    split: Split | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    raw_is_same: bool = False

    def inputs(self, *, held_out: bool = False, category_field: str = "categories") -> dict[str, Any]:
        """The keyword arguments of :func:`genrec.evaluation.identifiers.inspect_codes` (but the settings).

        held_out: report on the test targets too.
        """
        train = None if self.split is None else self.split.train()
        return {
            "vectors": None if self.vectors is None else self.vectors.vectors,
            "train": train,
            "categories": self.categories(category_field),
            "held_out": self.split.queries("test") if held_out and self.split is not None else None,
        }

    def categories(self, name: str = "categories") -> Categories | None:
        """A field of the catalog as category paths; None where there is no such field of texts or lists of texts."""
        values = None if self.catalog is None else self.catalog.fields.get(name)
        known = [value for value in values or () if value is not None]
        return values if known and isinstance(known[0], str | list) else None

    def titles(self) -> list[str] | None:
        """Readable titles of the items, None without a catalog."""
        return None if self.catalog is None else self.catalog.text("title", clean=True)


def load_subject(
    path: str | Path,
    *,
    catalog: str | Path | None = None,
    vectors: str | Path | None = None,
    split: str | Path | None = None,
    need_raw: bool = True,
) -> Subject:
    """The identifiers at ``path``: a ``codes`` artifact, or a run folder (experimental).

    Of a run folder, and of codes inside one, the item tokenizer, the catalog, the vectors and the split beside the
    codes are taken along. catalog, vectors (an artifact, or a file as :func:`genrec.embeddings.base.load_vectors`
    takes), split: to be used instead. need_raw: also find the codes before the collision policy; where it added no
    level, that takes as long as the item tokenizer needs to encode.
    Raises ConfigError where no codes are, FingerprintMismatch for parts of another catalog.
    """
    where = Path(path)
    folder, codes_at = _codes_at(where)
    codes = ItemCodes.load(codes_at)
    at = {name: None if folder is None else folder / name for name in ("catalog", "embeddings", "split")}
    items = _load(ItemCatalog, catalog, at["catalog"])
    if items is not None:
        _check("catalog", items.fingerprint, codes)
    known = _vectors(Path(vectors), items) if vectors is not None else _load(ItemEmbeddings, None, at["embeddings"])
    if known is not None:
        _check("vectors", known.catalog, codes)
    cut = _load(Split, split, at["split"])
    if cut is not None:
        _check("split", cut.catalog, codes)
    notes = [
        f"no {name}: {lost} left out (give {option})"
        for name, found, lost, option in (
            ("catalog", items, "titles and categories are", "--catalog"),
            ("vectors", known, "fidelity and hit rates are", "--vectors"),
            ("split", cut, "behaviour and traffic are", "--split"),
        )
        if found is None
    ]
    name = where.name if where.name != "codes" else where.absolute().parent.name
    subject = Subject(name, codes, None, items, known, cut, {}, tuple(notes))
    if folder is None or not artifacts.exists(folder / "item_tokenizer"):
        return replace(subject, notes=(*notes, "no item tokenizer beside the codes: collisions before its policy "
                                       "are not known"))  # fmt: skip
    return _with_raw(subject, folder, need_raw, artifacts.read(codes_at, verify=False).recipe)


def check_one_catalog(subjects: Sequence[Subject]) -> None:
    """Raise FingerprintMismatch unless all identifiers are of the first one's catalog (experimental)."""
    for other in subjects[1:]:
        if other.codes.catalog != subjects[0].codes.catalog:
            told = ", ".join(f"{s.name}: {s.codes.catalog[:8] or '(none)'}" for s in (subjects[0], other))
            raise FingerprintMismatch(
                f"the codes belong to different catalogs ({told})",
                hint="figures depend on the items: compare item tokenizers on one catalog",
            )


def inspect_subject(
    subject: Subject,
    settings: InspectSettings,
    *,
    held_out: bool = False,
    category_field: str = "categories",
    step: Callable[[], object] = lambda: None,
) -> dict[str, IdentifierReport]:
    """Reports ``codes``, ``raw`` (where they differ), ``random``, ``shuffled``, ``raw_random`` (experimental).

    raw: the codes before the collision policy. random, shuffled: controls of ``codes``. raw_random: usage of random
    codes of the raw sizes. step: called after each of two parts.
    """
    inputs = subject.inputs(held_out=held_out, category_field=category_field)
    found = inspect_with_controls(subject.codes, settings=settings, **inputs)
    step()
    if subject.raw is not None:
        raw = inspect_codes(subject.raw, settings=settings, **inputs)
        by_chance = inspect_codes(controls(subject.raw, settings.seed).random, settings=settings)
        found = {"codes": found["codes"], "raw": raw, **found, "raw_random": by_chance}
    step()
    return found


def _codes_at(where: Path) -> tuple[Path | None, Path]:
    """Folder with the other artifacts (None = there is none), and the codes."""
    if (where / "genrec.json").exists():
        kind = artifacts.read(where, verify=False).kind
        if kind not in (KIND, "item_tokenizer"):
            raise ConfigError(f"{where}: expected codes or a run folder, got {kind!r}", hint=_inside(where))
        where = where if kind == KIND else where.parent / "codes"
        if artifacts.exists(where, KIND):
            above = where.absolute().parent
            return above if (above / "recipe.json").exists() or artifacts.exists(above / "catalog") else None, where
    if artifacts.exists(where / "codes", KIND):
        return where, where / "codes"
    if where.is_file():
        raise ConfigError(f"{where}: a file, expected codes or a run folder",
                          hint=f"identifiers that another project published: genrec audit {where}")  # fmt: skip
    raise ConfigError(f"{where}: no codes there", hint=_inside(where))


def _inside(where: Path) -> str:
    above = next((folder for folder in where.absolute().parents if artifacts.exists(folder / "codes", KIND)), None)
    if above is not None:
        return f"give the run folder: {above}"
    return "give a run folder that has got as far as `tokenize`, or a folder that ItemCodes.save wrote"


def _load(what: Any, given: str | Path | None, beside: Path | None) -> Any:
    if given is not None:
        return what.load(given)
    return what.load(beside) if beside is not None and artifacts.exists(beside) else None


def _vectors(path: Path, catalog: ItemCatalog | None) -> ItemEmbeddings:
    if path.is_dir():
        return ItemEmbeddings.load(path)
    if catalog is None:
        raise ConfigError(f"{path}: vectors of a file belong to the items of a catalog, got none",
                          hint="give --catalog too")  # fmt: skip
    return load_vectors(path, catalog)


def _check(what: str, found: str, codes: ItemCodes) -> None:
    if found != codes.catalog:
        raise FingerprintMismatch(
            f"{what} and codes are of two catalogs: {found[:8] or '(none)'} and {codes.catalog[:8] or '(none)'}",
            hint="two catalogs cannot be mixed: give what belongs to the codes",
        )


def _with_raw(subject: Subject, folder: Path, need_raw: bool, made: dict[str, Any]) -> Subject:
    """Add the item tokenizer's recipe and, where they differ, the codes before the collision policy.

    made: how the codes were made; they may have another policy than the item tokenizer's (``genrec encode``).
    """
    manifest = artifacts.read(folder / "item_tokenizer", verify=False)
    recipe = dict(manifest.recipe)
    if "collisions" in recipe and "collisions" in made:
        recipe["collisions"] = made["collisions"]
    subject = replace(subject, recipe=recipe, folder=folder)
    policy = recipe.get("collisions")
    if policy == "shared" or (policy == "refuse" and not subject.codes.collisions()):
        return replace(subject, raw_is_same=True)
    if not need_raw:
        return subject
    if subject.catalog is None:
        return _noted(subject, "codes before the collision policy need the catalog")
    # of a version of a catalog that has grown, the item tokenizer is the one of the first version
    older = subject.catalog.begins_with(manifest.catalog or "")
    try:
        kind: Any = tokenizer_class(str(subject.recipe.get("kind")))
        if not kind.can_encode_new and policy is None:  # identifiers that are unique as they are made
            if getattr(kind, "numbers_last", False):
                return _noted(subject, "the last code only numbers items: how many the others tell apart is not shown")
            return replace(subject, raw_is_same=True)
        tokenizer = load_tokenizer(
            folder / "item_tokenizer", catalog=manifest.catalog if older else subject.codes.catalog
        )
        raw = raw_codes(tokenizer, subject.codes, source_of(subject, folder))
    except GenrecError as error:
        return _noted(subject, f"codes before the collision policy are not known: {error}")
    if raw is None:
        note = "the item tokenizer gives other codes (a control run with dealt identifiers?): raw codes are left out"
        return _noted(subject, note)
    if policy == "reassign" and subject.recipe.get("balance", "none") != "none":
        subject = _noted(subject, "raw codes are those of the nearest clusters; the balanced ones were not kept")
    same = raw.level_sizes == subject.codes.level_sizes and np.array_equal(raw.as_int(), subject.codes.as_int())
    same |= policy == "suffix" and raw.n_levels == subject.codes.n_levels  # it adds a level or changes nothing
    return replace(subject, raw_is_same=True) if same else replace(subject, raw=raw)


def raw_codes(tokenizer: ItemTokenizer, codes: ItemCodes, source: TokenizerSource) -> ItemCodes | None:
    """The codes before the collision policy (internal); None where those of the item tokenizer are others altogether.

    Where the policy added a level, they are what stands before it: exact for clusters that were balanced over the
    whole catalog, too, which encoding item by item cannot find again. Otherwise the items are encoded.
    """
    width = None if source.embeddings is not None else _width(tokenizer)
    if width is None:
        some = np.unique(np.linspace(0, len(codes) - 1, min(len(codes), _SOME)).astype(np.int64))
        few = tokenizer.encode(source.take(some))
        only_level = few.n_levels == codes.n_levels == 1  # which reassigning changes
        if not only_level and _first_codes_kept(few, codes.take(some)) < 0.5:
            return None
    else:  # without the item vectors only the sizes can be asked for
        few = tokenizer.encode(TokenizerSource.of_vectors(np.zeros((1, width), dtype=np.float32)))
    if codes.ragged or few.level_sizes != codes.level_sizes[:-1]:
        return tokenizer.encode(source)
    return ItemCodes(codes.codes[:, :-1], codes.level_sizes[:-1], codes.catalog, codebooks=codes.codebooks)


def _width(tokenizer: Any) -> int | None:
    """Of the vectors that an item tokenizer encodes; None where it does not tell."""
    scaling = getattr(tokenizer, "scaling", None)
    return None if scaling is None else len(scaling.mean)


def source_of(subject: Subject, folder: Path) -> TokenizerSource:
    """What the item tokenizer of a run folder was given (internal). Raises ConfigError without a catalog."""
    if subject.catalog is None:
        raise ConfigError("an item tokenizer's source needs the catalog, got none")
    beside, recipe = folder / "collaborative", folder / "recipe.json"
    return TokenizerSource.of(
        subject.catalog,
        embeddings=subject.vectors if not artifacts.exists(folder / "embeddings")
        else ItemEmbeddings.load(folder / "embeddings"),
        train=None if subject.split is None else subject.split.train(),
        collaborative=ItemEmbeddings.load(beside) if artifacts.exists(beside) else None,
        seed=int(artifacts.load_json(recipe).get("seed", 0)) if recipe.exists() else 0,
    )  # fmt: skip


def _noted(subject: Subject, note: str) -> Subject:
    return replace(subject, notes=(*subject.notes, note))


def _first_codes_kept(raw: ItemCodes, codes: ItemCodes) -> float:
    a: npt.NDArray[Any] = raw.codes[:, 0]
    return float((a == codes.codes[:, 0]).mean()) if len(codes) else 1.0
