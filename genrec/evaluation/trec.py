"""Lists and targets as TREC files, for evaluation tools outside genrec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genrec.errors import DataError
from genrec.evaluation.report import EvalReport


def write_trec(
    report: EvalReport,
    folder: str | Path,
    *,
    item_ids: Sequence[str] | None = None,
    user_ids: Sequence[str] | None = None,
) -> tuple[Path, Path]:
    """Write ``<folder>/run.trec`` and ``<folder>/qrels.trec``; returns both paths (stable).

    Run lines are ``query Q0 item rank score tag``, with scores that fall strictly so that tools that sort by
    score keep our order; qrels lines are ``query 0 item 1``. The tag is the model's name. Without ids,
    numbers are written. The lists break ties (in a fixed random order), so tools agree with our numbers where
    there are none. Raises DataError for an id that is empty or contains white space, which the format cannot
    hold.
    """
    items = _names(item_ids, report.n_items, "item")
    users = _names(user_ids, 1 + int(report.users.max(initial=-1)), "user")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run, qrels = folder / "run.trec", folder / "qrels.trec"
    tag = "_".join(report.name.split()) or "genrec"
    with run.open("w", encoding="utf-8") as file:
        for user, row in zip(report.users.tolist(), report.lists.tolist(), strict=True):
            found = [item for item in row if 0 <= item < report.n_items]
            for place, item in enumerate(found):
                file.write(f"{users[user]} Q0 {items[item]} {place + 1} {len(row) - place} {tag}\n")
    with qrels.open("w", encoding="utf-8") as file:
        for row, item in zip(report.target_rows.tolist(), report.targets.tolist(), strict=True):
            file.write(f"{users[int(report.users[row])]} 0 {items[item]} 1\n")
    return run, qrels


def _names(ids: Sequence[str] | None, n: int, what: str) -> Sequence[str]:
    if ids is None:
        return [str(number) for number in range(n)]
    if len(ids) < n:
        raise DataError(f"{what}_ids: expected at least {n} ids, got {len(ids)}")
    for name in ids:
        if not name or name.split() != [name]:
            raise DataError(f"{what} id {name!r}: a TREC file cannot hold empty ids or white space")
    return ids
