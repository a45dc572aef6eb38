"""An identifier report as one HTML page that needs no other file: no scripts, no network, titles escaped.

Axes: N items, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec.evaluation import identifier_plots as plots
from genrec.evaluation.identifier_controls import controls
from genrec.evaluation.identifier_inputs import Subject
from genrec.evaluation.identifier_plots import cut, escape
from genrec.evaluation.identifier_remarks import remarks
from genrec.evaluation.identifier_tables import ARROWS, Row, cell, metric_at, sections_of, shown
from genrec.evaluation.identifiers import IdentifierReport
from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics.codes_usage import prefix_numbers
from genrec.metrics.identifiers import group_sizes
from genrec.seeding import rng

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2937; --soft: #64748b; --rule: #d9dee6; --card: #f6f7f9;
  --codes: #2563a8; --raw: #7c3aed; --random: #9aa5b4; --shuffled: #d0a15a; --bad: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --page: #14181f; --ink: #e5e9f0; --soft: #9aa6b8; --rule: #364152;
  --card: #1c222c; --codes: #6ba6e8; --raw: #b292f2; --random: #7d8899; --shuffled: #c79a55; --bad: #f08a55; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 38px 0 6px; }
p { margin: 4px 0 10px; max-width: 78ch; } .soft { color: var(--soft); } .bad { color: var(--bad); }
svg { display: block; width: 100%; max-width: 860px; height: auto; margin: 8px 0; }
svg text { fill: var(--ink); font-size: 13px; } svg text.small { fill: var(--soft); font-size: 11px; }
svg text.halo { font-weight: 600; paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
svg .own { fill: var(--codes); } svg .dead { fill: var(--bad); } svg .unused { fill: none; }
svg .rule { stroke: var(--rule); }
svg .dashed { stroke: var(--soft); stroke-dasharray: 4 4; } svg circle { fill-opacity: .8; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 12px 3px 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; } td.say, th.say { text-align: left; color: var(--soft);
  min-width: 250px; } tr.group th { padding-top: 18px; font-size: 14.5px; } td.bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 16px 0; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 14px; } .tile b { display: block; font-size: 21px; }
.tile span { font-size: 12.5px; color: var(--soft); }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 12px; }
.examples div { background: var(--card); border-radius: 8px; padding: 10px 14px; overflow-wrap: anywhere; }
.examples ul { margin: 4px 0 0; padding-left: 18px; font-size: 13px; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } section, .tile, .examples div, tr {
  break-inside: avoid; } h2 { break-after: avoid; } table { font-size: 10px; } }
"""
_HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)
_USE = (
    "One cell a code, darker with more items; dead codes in the warning colour. Below: items per code, the most used "
)
_USE += "first, as a multiple of an even load."
_TREE = (
    "The largest first codes. Each bar is divided by the second code (the pale end: codes of one item each), the bar "
)
_TREE += "below it by the third; hover for the size and an example. On the right two titles."
_PLANE = (
    "The twelve largest first codes in colour: items of one code should lie together. Two axes show little of many."
)
_BY_CHANCE = (
    (
        "Neighbours and behaviour kept",
        "Nearest neighbours kept by the quantised vectors, and their hit rate relative to that of the raw ones.",
        ("neighbours_kept", "hit_rate_ratio"),
    ),
    (
        "Prefixes shared",
        "How often two items share their first codes: nearest neighbours in the vector space, and items that follow "
        "each other in training.",
        ("neighbour_prefix_rate", "pair_prefix_rate"),
    ),
)
_SHARED = 5
"""Prefix lengths of the picture of shared prefixes."""
_SIZES = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 9), (10, 19), (20, None))


def identifier_page(
    subject: Subject, reports: Mapping[str, IdentifierReport], *, seed: int = 0, category_field: str = "categories"
) -> str:
    """The page for ``reports`` of :func:`genrec.evaluation.identifier_inputs.inspect_subject` (experimental).

    Items that are shown are drawn by ``seed``; same inputs, same text.
    """
    columns, titles = shown(reports), subject.titles()
    body = [_top(subject, reports), _tiles(columns)]
    told = remarks(reports)
    if told:
        lines = [f'<li class="bad"><b>{escape(key)}</b>: {escape(text)}</li>' for key, text in told.items()]
        body.append(_section("To mind", "", f"<ul>{''.join(lines)}</ul>"))
    body += _pictures(subject, columns, titles, seed)
    if titles is not None:
        body.append(_examples(subject, titles, category_field, seed))
        body.append(_crowded(subject.raw or subject.codes, titles))
    body.append(_table(columns, told))
    notes = "".join(f"<li>{escape(note)}</li>" for note in subject.notes)
    body.append(_section("What this was made from", "", _context(reports["codes"]) + f"<ul>{notes}</ul>"))
    title = f"Identifiers of {subject.name}"
    return f"{_HEAD}<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"


def _top(subject: Subject, reports: Mapping[str, IdentifierReport]) -> str:
    sizes = subject.codes.sizes_text.replace(" x ", " × ")
    kind = subject.recipe.get("kind")
    made = f", made by <b>{escape(str(kind))}</b>" if kind else ""
    policy = f" (collisions: {escape(str(subject.recipe['collisions']))})" if "collisions" in subject.recipe else ""
    controls = "Every figure stands beside two controls: <b>random</b> codes of the same sizes, which are best in all "
    controls += "of usage, and the same identifiers <b>shuffled</b> among the items, which keep usage and lose meaning."
    raw = " <b>raw</b>: before the collision policy." if "raw" in reports else ""
    return (
        f"<h1>Identifiers of {escape(subject.name)}</h1>"
        f"<p>{len(subject.codes):,} items, {sizes} codes{made}{policy}.</p>"
        f'<p class="soft">{controls}{raw} No single figure decides: read usage, fidelity and behaviour together.</p>'
    )


def _tiles(columns: Mapping[str, IdentifierReport]) -> str:
    own = columns["codes"].figures
    raw = columns["raw"].figures if "raw" in columns else own
    before = " before the policy" if "raw" in columns else ""
    tiles = [
        (f"collision rate{before}", raw["collision_rate"], "{:.1%}"),
        (f"training events on shared identifiers{before}", raw.get("traffic_share"), "{:.1%}"),
        ("of the variance lost (reconstruction error)", own.get("reconstruction_error"), "{:.0%}"),
        ("of 50 nearest neighbours kept", own.get("neighbours_kept@50"), "{:.0%}"),
        ("hit rate of the vectors kept at 50", own.get("hit_rate_ratio@50"), "{:.0%}"),
        ("bits per next item", own.get("next_item_bits"), "{:.2f}"),
    ]
    cards = [f'<div class="tile"><b>{form.format(value)}</b><span>{name}</span></div>'
             for name, value, form in tiles if value is not None]  # fmt: skip
    return f'<div class="tiles">{"".join(cards)}</div>'


def _pictures(
    subject: Subject, columns: Mapping[str, IdentifierReport], titles: Sequence[str] | None, seed: int
) -> list[str]:
    codes = subject.codes
    found = [
        _section("Use of the codes", _USE, plots.usage_map(codes) + plots.load_curves(codes)),
        _section("The tree", _TREE, plots.tree(codes, titles)),
    ]
    if subject.vectors is not None:
        picture = plots.projection(codes, subject.vectors.vectors, titles, seed=seed)
        found.append(_section("The item vectors", _PLANE, picture))
    kinds = [name for name in ("raw", "codes", "random") if name in columns]
    shares = {kind: group_shares(columns[kind]) for kind in kinds}
    picture = plots.bars([_span(*span) for span in _SIZES], shares, "share of items by group size", _percent)
    found.append(_section("Collisions", "Share of the items whose identifier has so many items.", picture))
    by_chance = controls(codes, reports_seed(columns)).random
    alone = {"codes": alone_by_depth(codes), "random": alone_by_depth(by_chance)}
    depths = [f"{n + 1}" for n in range(min(codes.n_levels, 2 * plots.LEVELS))]
    picture = plots.bars(depths, alone, "share of items alone, by number of codes", _percent)
    found.append(_section("Prefix depth needed", "Share of the items that are alone under their first codes.", picture))
    for title, text, names in _BY_CHANCE:
        labels, series = _series(columns, names)
        if labels:
            found.append(_section(title, text, plots.bars(labels, series, title, _percent)))
    return found


def reports_seed(columns: Mapping[str, IdentifierReport]) -> int:
    """The seed of the controls in the reports (internal)."""
    return int(columns["codes"].context["settings"]["seed"])


def group_shares(report: IdentifierReport) -> list[float]:
    """Share of the items in identifier groups of the sizes that the picture shows (internal)."""
    sizes = {int(size): count for size, count in report.figures["group_sizes"].items()}
    n = sum(size * count for size, count in sizes.items())
    return [sum(size * count for size, count in sizes.items() if low <= size and (high is None or size <= high)) / n
            for low, high in _SIZES]  # fmt: skip


def alone_by_depth(codes: ItemCodes) -> list[float]:
    """Share of the items whose first 1, 2, ... codes no other item has, by depth (internal)."""
    return [float((group_sizes(number_N) == 1).mean()) for number_N in prefix_numbers(codes.as_int()).T]


def _series(
    columns: Mapping[str, IdentifierReport], names: Sequence[str]
) -> tuple[list[str], dict[str, list[float | None]]]:
    labels: list[str] = []
    series: dict[str, list[float | None]] = {name: [] for name in columns if name != "raw"}
    own = columns["codes"].figures
    for key, value in own.items():
        if key.partition("@")[0] not in names or value is None:
            continue
        levels = range(min(len(value), _SHARED)) if isinstance(value, list) else [None]
        for level in levels:
            told = key.replace("_", " ").replace(" rate", "").replace(" prefix", "")
            labels.append(told if level is None else f"{told}, {level + 1}")
            for name in series:
                found = columns[name].figures.get(key)
                series[name].append(found[level] if level is not None and found is not None else found)
    return labels, series


def _examples(subject: Subject, titles: Sequence[str], category_field: str, seed: int) -> str:
    first_N = subject.codes.as_int()[:, 0]
    sizes = np.bincount(first_N)
    generator = rng(seed, "page", "examples")
    paths = subject.categories(category_field)
    cards = []
    for code in np.argsort(-sizes, kind="stable")[:18].tolist():
        items = np.flatnonzero(first_N == code)
        if not len(items):
            continue
        drawn = generator.permutation(items)[:6].tolist()
        chief = _chief_category([paths[n] for n in items.tolist()]) if paths is not None else ""
        lines = "".join(f"<li>{escape(cut(titles[n] or '(no title)', 90))}</li>" for n in drawn)
        name = escape(plots.name_of(subject.codes, code))
        cards.append(f'<div><b>{name}</b> <span class="soft">{len(items):,} items{chief}</span>'
                     f"<ul>{lines}</ul></div>")  # fmt: skip
    text = (
        "Six items each of the largest first codes, drawn at random. Items of one code should have something in common."
    )
    return _section("Examples", text, f'<div class="examples">{"".join(cards)}</div>')


def _chief_category(paths: Sequence[Any]) -> str:
    names = [path if isinstance(path, str) else path[-1] for path in paths if path]
    if not names:
        return ""
    found, counts = np.unique(names, return_counts=True)
    return f", {counts.max() / len(paths):.0%} {escape(cut(str(found[counts.argmax()]), 40))}"


def _crowded(codes: ItemCodes, titles: Sequence[str]) -> str:
    groups = sorted(codes.collisions(), key=lambda group: (-len(group), int(group[0])))[:6]
    if not groups:
        return ""
    rows = codes.as_int()
    cards = []
    for group in groups:
        name = " ".join(str(code) for code in rows[group[0]].tolist() if code >= 0)
        lines = "".join(f"<li>{escape(cut(titles[int(n)] or '(no title)', 90))}</li>" for n in group[:6])
        more = f'<li class="soft">and {len(group) - 6:,} more</li>' if len(group) > 6 else ""
        cards.append(f'<div><b>{name}</b> <span class="soft">{len(group):,} items</span><ul>{lines}{more}</ul></div>')
    text = "The largest groups of items with one identifier, before any collision policy: duplicates, or a collapse?"
    return _section("Most crowded identifiers", text, f'<div class="examples">{"".join(cards)}</div>')


def _table(columns: Mapping[str, IdentifierReport], told: Mapping[str, str]) -> str:
    names = list(columns)
    lines = []
    for title, rows in sections_of(list(columns.values()), told):
        heads = "".join(f"<th>{name}</th>" for name in names)
        lines.append(f'<tr class="group"><th>{escape(title)}</th>{heads}<th class="say"></th></tr>')
        lines += [_line(row) for row in rows]
    text = (
        "The arrow points in the better direction; figures with several numbers go level by level. docs/identifiers.md "
    )
    text += "of genrec has every formula."
    return _section("All figures", text, f'<div class="wide"><table>{"".join(lines)}</table></div>')


def _line(row: Row) -> str:
    metric = metric_at(row.key)
    cells = "".join(f"<td{' class=bad' if row.remark and n == 0 else ''}>{'<br>'.join(cell(value))}</td>"
                    for n, value in enumerate(row.values))  # fmt: skip
    name = f"<td>{escape(row.key)} {ARROWS[metric.better]}</td>"
    return f'<tr>{name}{cells}<td class="say">{escape(metric.meaning)}</td></tr>'


def _context(report: IdentifierReport) -> str:
    data = {**report.context, **report.context["data"]}
    names = ("codes", "catalog", "quantised", "vectors", "train", "held_out")
    items = "".join(f"<li>{name}: {escape(str(data[name] or 'none'))}</li>" for name in names)
    settings = ", ".join(f"{name} {value}" for name, value in report.context["settings"].items())
    return f'<ul class="soft">{items}<li>{escape(settings)}</li></ul>'


def _section(title: str, text: str, body: str) -> str:
    told = f'<p class="soft">{text}</p>' if text else ""
    return f"<section><h2>{title}</h2>{told}{body}</section>"


def _span(low: int, high: int | None) -> str:
    return (
        "1 item" if high == 1 else f"{low} or more" if high is None else f"{low}" if low == high else f"{low} to {high}"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%" if value >= 0.1 or value == 0 else f"{100 * value:.1f}%" if value >= 0.001 else "<.1%"
