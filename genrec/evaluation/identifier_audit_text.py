"""An audit of published identifiers in words: what was read, and what it could hide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genrec.data.readers.identifier_files import FORMS

LEAK_Z, LEAK_CORRELATION, LEAK_WHOLE = 4.0, 0.2, 0.9
"""An order of the items counts as visible in the codes from these on (see ``order_leaks``)."""
_DEAD_SHARE = 0.05
_TITLE = 60
_ORDERS = {"file": "the place in the file", "id": "the item id", "catalog": "the place in the catalog"}


def audit_text(figures: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> str:
    """The figures of :func:`genrec.evaluation.identifier_audit.audit` as a table and a list of findings (experimental).

    titles: of the items, to show what shares an identifier.
    """
    f = figures
    lines = [f"{f['file']}", f"read as: {f['form']}: {FORMS[f['form']]}", ""]
    rows = [
        ("items with an identifier", _n(f["n_items"])),
        ("distinct identifiers", f"{_n(f['distinct'])} ({_percent(f['distinct'] / f['n_items'])})"),
        ("items in a collision", f"{_n(f['in_collision'])} ({_percent(f['collision_share'])})"),
        ("largest group", _n(f["largest_group"])),
        ("tokens per identifier", _lengths(f["lengths"])),
        ("used codes by level", _levels(f["used"], _n)),
        ("of", _levels(f["level_sizes"], _n) if f["numbered"] else "as many (the tokens have no numbers)"),
        ("perplexity by level", _levels(f["perplexity"], lambda x: f"{x:.1f}" if x < 10 else f"{x:.0f}")),
        ("distinct prefixes by length", _levels(f["distinct_prefixes"], _n)),
    ]
    if f.get("targets"):
        known = f["targets"] - f["targets_without_identifier"]
        rows += [
            ("training events in a collision", _percent(f["traffic_share"])),
            ("test targets in a collision", f"{_percent(f['target_share'])} of {_n(known)}"),
        ]
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:<{width}}  {value}" for name, value in rows]
    found = findings(figures, titles)
    lines += ["", "what reported figures could hide:" if found else "nothing found that reported figures could hide"]
    return "\n".join([*lines, *(f"  - {text}" for text in found)]) + "\n"


def findings(figures: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> list[str]:
    """One sentence or two for everything of a file that a reported figure could hide (experimental)."""
    sections = (_collisions(figures, titles or {}), _coverage(figures), _tokens(figures), _load(figures))
    return [text for section in (*sections, _order(figures)) for text in section]


def _collisions(f: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    if not f["in_collision"]:
        return []
    shown = [f"{_id(item)} {titles.get(item, '')[:_TITLE]!r}" if titles else _id(item) for item in f["crowded"][:3]]
    out = [
        f"items that share their identifier: {_n(f['in_collision'])}; the largest group has "
        f"{_n(f['largest_group'])}: {', '.join(shown)}{', ...' if f['largest_group'] > len(shown) else ''}"
    ]
    if f.get("target_share"):
        out.append(
            f"recall counted on identifiers would be {_factor(f['inflation'])} times recall counted on items if hits "
            f"fall evenly on the test targets (at most {f['inflation_at_most']} times): ask which is reported"
        )
    elif "targets" not in f:
        out.append("how much that flatters reported recall depends on the targets: give --data or --run")
    return out


def _coverage(f: Mapping[str, Any]) -> list[str]:
    out = []
    for key, text in (
        ("empty", "items of the file with nothing behind their id (no model can name them)"),
        ("without_identifier", "items of the catalog without an identifier (as targets they can only be missed)"),
        ("without_item", "items of the file that the catalog does not have"),
    ):
        some = f.get(key, {"n": 0})
        if some["n"]:
            shown = ", ".join(map(_id, some["first"]))
            out.append(f"{text}: {_n(some['n'])} ({shown}{', ...' if some['n'] > len(some['first']) else ''})")
    if f.get("targets_without_identifier"):
        out.append(f"test targets without an identifier: {_n(f['targets_without_identifier'])}; were they left out?")
    return out


def _tokens(f: Mapping[str, Any]) -> list[str]:
    out = []
    low, _, high = f["lengths"]
    if low != high:
        out.append(
            f"identifiers have {low} to {high} tokens: a sum of log-probabilities favours short ones, a mean long ones"
        )
    if f["prefixes_of_others"]:
        out.append(
            f"items with an identifier with which another one begins: {_n(f['prefixes_of_others'])}; without a scored "
            "end token the longer one can win instead, or the shorter one can never end"
        )
    if f["tokens_at_several_levels"]:
        out.append(
            f"tokens at several levels: {_n(f['tokens_at_several_levels'])} of {_n(f['tokens'])}; only the whole "
            "prefix says what they mean, and decoding without a tree writes identifiers that do not exist"
        )
    return out


def _load(f: Mapping[str, Any]) -> list[str]:
    out = []
    for level, (used, size) in enumerate(zip(f["used"], f["level_sizes"], strict=True), 1):
        if f["numbered"] and size - used > _DEAD_SHARE * size:
            perplexity = f["perplexity"][level - 1]
            out.append(f"level {level}, dead codes: {_n(size - used)} of {_n(size)} (perplexity {perplexity:.3g})")
    idle = [
        str(level)
        for level, (before, after) in enumerate(
            zip([1, *f["distinct_prefixes"]], f["distinct_prefixes"], strict=False), 1
        )
        if after == before and f["lengths"][0] == f["lengths"][2]
    ]
    if idle:
        said = f"level {idle[0]} tells" if len(idle) == 1 else f"levels {', '.join(idle)} tell"
        out.append(f"{said} no two items apart that the levels before do not tell apart")
    return out


def _order(f: Mapping[str, Any]) -> list[str]:
    out = []
    for name, found in f["order"].items():
        if found is None or (name == "catalog" and found == f["order"].get("file")):
            continue
        last, z, whole = found["last"], found["z"], found["whole"]
        if last is not None and abs(last) >= LEAK_CORRELATION and abs(z) >= LEAK_Z:
            out.append(
                f"among items that are equal before it the last code goes with {_ORDERS[name]} (correlation "
                f"{last:.2f}, {_n(found['n_last'])} items): an order that came from the data leaks"
            )
        if whole is not None and abs(whole) >= LEAK_WHOLE:
            out.append(
                f"identifiers are numbered along {_ORDERS[name]} (rank correlation {whole:.2f}): if that order came "
                "from whole histories, neighbouring identifiers give the test items away"
            )
    return out


def _id(item: str) -> str:
    return item if item.isprintable() else repr(item)


def _n(count: float) -> str:
    return f"{int(count):,}"


def _factor(above_one: float) -> str:
    """Never 1 for something above it."""
    return f"{above_one:.3g}" if above_one >= 1.005 else f"{1 + float(f'{above_one - 1:.1g}'):.9g}"


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    if 0 < share < 0.0005 or 0.9995 <= share < 1:
        return f"{100 * share:.3f} %"
    return f"{100 * share:.1f} %"


def _lengths(lengths: Sequence[float]) -> str:
    low, mean, high = lengths
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}, mean {mean:.1f}"


def _levels(values: Sequence[Any], text: Any) -> str:
    return " / ".join(text(value) for value in values)
