"""What a request says on the command line about items: which ones, which not, how many of a kind."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from genrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from genrec.data.catalog import ItemCatalog
    from genrec.decoding.diversity import MaxPer
    from genrec.decoding.filters import ItemFilter


def allowed_items(where: list[str], deny: str | None, catalog: ItemCatalog) -> ItemFilter | None:
    """The items that meet every condition of ``--where`` and are not among the ids of ``--deny``; None = all."""
    import numpy as np

    from genrec.decoding.filters import ItemFilter

    if not where and deny is None:
        return None
    mask = _meeting(where, catalog) if where else np.ones(len(catalog), dtype=np.bool_)
    if deny is not None:
        mask[numbers_of("--deny", deny, catalog)] = False
        if not mask.any():
            raise ConfigError("--deny: no item is left")
    return ItemFilter.of_mask(mask, catalog.fingerprint)


def _meeting(where: list[str], catalog: ItemCatalog) -> npt.NDArray[np.bool_]:
    """The items that meet every condition, bool ``[N]``."""
    import numpy as np

    from genrec.data.attributes import Attributes

    fields, masks = Attributes(catalog), []
    for condition in where:
        try:
            masks.append(fields.where(condition))
        except ConfigError as error:
            _check_single(condition, catalog)
            raise ConfigError(f"--where: {error}", hint=error.hint) from error
        if not masks[-1].any():
            _check_single(condition, catalog)
            near = fields.like(condition)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "loosen the condition"
            raise ConfigError(f"--where: no item meets {condition}", hint=hint)
    mask = np.asarray(np.logical_and.reduce(masks), dtype=np.bool_)
    if not mask.any():
        raise ConfigError(f"--where: no item meets {' and '.join(where)}", hint="loosen the conditions")
    return mask


def _check_single(condition: str, catalog: ItemCatalog) -> None:
    """Raise where a condition that no item meets reads like several."""
    names = "|".join(re.escape(name) for name in sorted(catalog.fields, key=len, reverse=True))
    if re.search(rf"(\band\b|\bor\b|&|\||,|;)\s*({names})\s*(<|>|!=|=|in\b|has\b)", condition):
        raise ConfigError(
            f"--where: expected one condition, got {condition!r}",
            hint="give each condition a --where of its own: they must all hold",
        )


def caps(max_per: list[str], catalog: ItemCatalog) -> list[MaxPer]:
    """The caps of ``--max-per``."""
    from genrec.data.attributes import Attributes
    from genrec.decoding.diversity import MaxPer

    fields, found = Attributes(catalog), []
    for each in max_per:
        field, _, most = each.rpartition(":")
        if not field or not most.isdecimal() or int(most) < 1:
            raise ConfigError(f"--max-per: expected FIELD:M, got {each!r}", hint="for example --max-per brand:2")
        found.append(MaxPer(int(most), fields.groups(field)))
    return found


def numbers_of(option: str, text: str, catalog: ItemCatalog) -> list[int]:
    """The item numbers of ids separated by commas."""
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not ids:
        hint = f"for example {option} {','.join(catalog.ids[:2])}"
        raise ConfigError(f"{option}: expected item ids separated by commas, got {text!r}", hint=hint)
    try:
        return [int(i) for i in catalog.numbers(ids)]
    except DataError as error:
        near = get_close_matches(next(i for i in ids if i not in catalog.ids), catalog.ids, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"{option}: {error}", hint=f"{hint}ids look like {catalog.ids[0]!r}") from error
