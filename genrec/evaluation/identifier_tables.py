"""Identifier reports as tables and JSON; the metrics by the question they answer.

Axes: L levels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genrec.evaluation.identifier_remarks import remarks
from genrec.evaluation.identifiers import IdentifierReport
from genrec.metrics.codes_names import METRICS, Metric

GROUPS: dict[str, tuple[str, ...]] = {
    "collisions": (
        "collision_rate", "collision_share", "largest_group", "traffic_share", "collision_pair_rate", "identifier_gini",
        "size_popularity_correlation",
    ),
    "load of the levels": (
        "usage", "perplexity", "perplexity_share", "gini", "dead_codes", "entropy", "load_cv", "popularity_gini",
    ),
    "tree": (
        "conditional_entropy", "trie_nodes", "identifier_entropy", "conditional_entropy_miller_madow",
        "conditional_entropy_weighted", "branching", "mean_branching", "first_bits", "mean_length", "max_length",
    ),
    "fidelity to the vectors": (
        "reconstruction_error", "neighbours_kept", "neighbour_prefix_rate", "reconstruction_cosine",
        "neighbour_prefix_lift", "random_prefix_rate", "direction_coherence", "direction_coherence_all",
    ),
    "behaviour in training": (
        "hit_rate_ratio", "pair_prefix_lift", "history_overlap", "next_item_bits", "raw_hit_rate", "quantised_hit_rate",
        "pair_prefix_rate", "next_code_perplexity", "next_code_information", "next_identifier_bits",
    ),
    "categories": ("category_ami", "category_purity_lift", "category_purity"),
    "new items": (
        "cold_occupied", "cold_warm_collision", "cold_collision", "cold_error_ratio", "cold_error",
        "cold_new_identifier",
    ),
    "fitted again with another seed": ("adjusted_rand", "pairs_kept"),
    "one item in twenty appended, against a new fit": (
        "append_moved", "append_adjusted_rand", "append_occupied", "append_pairs_kept",
    ),
}  # fmt: skip
"""Metrics by the question they answer, those of the short table first."""
SHORT = frozenset(
    (
        "collision_rate", "collision_share", "largest_group", "traffic_share", "usage", "perplexity",
        "conditional_entropy", "trie_nodes", "reconstruction_error", "neighbours_kept", "neighbour_prefix_rate",
        "hit_rate_ratio", "pair_prefix_lift", "history_overlap", "next_item_bits", "category_ami", "cold_occupied",
        "cold_warm_collision", "cold_error_ratio", "adjusted_rand", "append_moved", "append_adjusted_rand",
        "append_occupied",
    )
)  # fmt: skip
RAW = "collisions before the policy"
HELD_OUT = "held-out targets (never choose by these)"
ARROWS = {"higher": "↑", "lower": "↓", "neither": " "}
_AT_ONCE, _MOST = 4, 12
_PREFIXES = ("raw.", "held_out.")


@dataclass(frozen=True)
class Row:
    """One metric: its key, its value in each report (a number, one per level, or None), and what to mind (internal)."""

    key: str
    values: tuple[Any, ...]
    remark: str = ""


def inspect_table(reports: Mapping[str, IdentifierReport], *, every: bool = False) -> str:
    """Reports of one catalog's identifiers beside their controls, grouped, as text (experimental).

    reports: by column; the first is looked at, ``raw``, ``random`` and ``shuffled`` are what it is read against (see
    :func:`genrec.evaluation.identifier_controls.inspect_with_controls`). every: all metrics, not only the chief ones.
    """
    lines: list[str] = []
    said = remarks(reports)
    reports = shown(reports)
    names = tuple(reports)
    sections = list(sections_of(list(reports.values()), said, every=every))
    wide = max((len(row.key) for _, rows in sections for row in rows), default=0)
    widths = [max(9, len(name), *(_width(row.values[n]) for _, rows in sections for row in rows))
              for n, name in enumerate(names)]  # fmt: skip
    head = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    for title, rows in sections:
        lines += ["", f"{title:<{wide + 6}}{head}"]
        for row in rows:
            lines += _text_of(row, wide, widths)
            lines += [f"      ! {row.remark}"] if row.remark else []
    return "\n".join(lines[1:]) + "\n"


def comparison_of_codes(reports: Mapping[str, IdentifierReport], *, every: bool = False, control: str = "") -> str:
    """Identifiers side by side, metrics as rows, the best of each row marked with ``*``, as text (experimental).

    Only metrics with a better direction have a best; levels are compared one by one. control: a report that takes
    part in no comparison (random codes would win all of usage).
    """
    names = tuple(reports)
    sections = list(sections_of(list(reports.values()), {}, every=every))
    lines, wide = [], max((len(row.key) for _, rows in sections for row in rows), default=0)
    taking_part = [name != control for name in names]
    for title, rows in sections:
        marked = [Row(row.key, best(row, taking_part)) for row in rows]
        widths = [max(9, len(name), *(_width(row.values[n]) for row in marked)) for n, name in enumerate(names)]
        head = "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
        lines += ["", f"{title:<{wide + 6}}{head}"]
        for row in marked:
            lines += _text_of(row, wide, widths)
    return "\n".join(lines[1:]) + "\n"


def shown(reports: Mapping[str, IdentifierReport]) -> dict[str, IdentifierReport]:
    """The reports that get a column: ``raw_random`` only serves the remarks (internal)."""
    return {name: report for name, report in reports.items() if name != "raw_random"}


def sections_of(
    reports: Sequence[IdentifierReport], said: Mapping[str, str], *, every: bool = True
) -> Iterator[tuple[str, list[Row]]]:
    """The rows of every group that has any; keys are those of any of the reports (internal)."""
    keys = list(dict.fromkeys(key for report in reports for key in report.figures))
    parts = [(title, wanted, "") for title, wanted in GROUPS.items()]
    parts.insert(1, (RAW, GROUPS["collisions"], "raw."))
    parts += [(HELD_OUT, tuple(name for wanted in GROUPS.values() for name in wanted), "held_out.")]
    for title, wanted, prefix in parts:
        rows = [
            Row(key, tuple(report.figures.get(key) for report in reports), said.get(key, ""))
            for name in wanted
            if every or name in SHORT
            for key in keys
            if key.startswith(prefix) and base(key) == name and bool(prefix) == key.startswith(_PREFIXES)
        ]
        if rows:
            yield title, rows


def base(key: str) -> str:
    """The metric's name in a report's key (internal).

    >>> base("held_out.hit_rate_ratio@50"), base("raw.collision_rate"), base("category_ami.2")
    ('hit_rate_ratio', 'collision_rate', 'category_ami')
    """
    return key.removeprefix("raw.").removeprefix("held_out.").partition("@")[0].partition(".")[0]


def metric_at(key: str) -> Metric:
    """The metric that a key names, with ``raw.`` in front or not (internal)."""
    return METRICS[base(key)]


def best(row: Row, taking_part: Sequence[bool]) -> tuple[Any, ...]:
    """The row's values as text, the best ones with ``*``; nothing is best where all are equal (internal)."""
    better = metric_at(row.key).better
    lists = any(isinstance(value, list) for value in row.values)
    depth = max((len(value) for value in row.values if isinstance(value, list)), default=1)
    columns = [value if isinstance(value, list) else [value] for value in row.values]
    marks: list[set[int]] = []
    for level in range(depth):
        found = {
            n: column[level]
            for n, (column, asked) in enumerate(zip(columns, taking_part, strict=True))
            if asked and level < len(column) and column[level] is not None
        }
        top = (max if better == "higher" else min)(found.values(), default=None)
        winners = {n for n, value in found.items() if value == top}
        marks.append(winners if better != "neither" and len(winners) < len(found) else set())
    texts = [
        [number(value) + ("*" if n in marks[level] else "") for level, value in enumerate(column)]
        for n, column in enumerate(columns)
    ]
    return tuple(text if lists else text[0] for text in texts)


def number(value: Any) -> str:
    """Three digits, more where they are whole; ``-`` for None (internal).

    >>> [number(x) for x in (None, 12101, 0.04512, 212.3, 8.9, 64.0, 0.00004, 0)]
    ['-', '12,101', '0.0451', '212', '8.90', '64', '4.0e-05', '0']
    """
    if value is None or isinstance(value, str):
        return value or "-"
    size = abs(value)
    if size < 1e-9:
        return "0"
    if size >= 1000 or isinstance(value, int):
        return f"{value:,.0f}"
    if size < 0.0005:
        return f"{value:.1e}"
    whole = size >= 1 and value == round(value)
    return f"{value:.{0 if whole else max(0, 2 - math.floor(math.log10(size)))}f}"


def cell(value: Any) -> list[str]:
    """A value as lines of at most four levels; of more than twelve levels the first eight (internal)."""
    if not isinstance(value, list):
        return [number(value)]
    texts = [number(one) for one in value] or ["-"]
    kept = texts if len(texts) <= _MOST else texts[: 2 * _AT_ONCE]
    lines = [" / ".join(kept[n : n + _AT_ONCE]) for n in range(0, len(kept), _AT_ONCE)]
    return lines if kept is texts else [*lines, f"and {len(texts) - len(kept)} more"]


def reports_of_codes(reports: Mapping[str, IdentifierReport], **further: Any) -> dict[str, Any]:
    """All reports as JSON, by name, with the meaning and the better direction of every metric (experimental)."""
    keys = dict.fromkeys(key for report in reports.values() for key in report.figures)
    metrics = {key: {"meaning": metric_at(key).meaning, "better": metric_at(key).better} for key in keys}
    return {**further, "reports": {name: report.to_json() for name, report in reports.items()}, "metrics": metrics}


def json_bytes(value: Any) -> bytes:
    """``value`` as a JSON file (internal)."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _text_of(row: Row, wide: int, widths: Sequence[int]) -> list[str]:
    arrow = ARROWS[metric_at(row.key).better]
    cells = [cell(value) for value in row.values]
    height = max(map(len, cells))
    lines = []
    for line in range(height):
        texts = [found[line] if line < len(found) else "" for found in cells]
        shown = "  ".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        lines.append(f"  {row.key if line == 0 else '':<{wide}} {arrow if line == 0 else ' '}  {shown}".rstrip())
    return lines


def _width(value: Any) -> int:
    return max(map(len, cell(value)))
