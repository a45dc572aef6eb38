"""Pictures of identifiers as inline SVG: no other file, no script, colours that follow a light or dark page.

Every function returns one ``<svg>`` element whose text is escaped. Colours are CSS variables that
:mod:`genrec.evaluation.identifier_page` defines. Axes: N items, L levels, K codes of a level.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics.codes_usage import prefix_numbers
from genrec.seeding import rng

WIDTH = 760
LEVELS = 8
"""Levels that are drawn; identifiers of words have dozens."""
_CELLS = 256
_LEFT, _RIGHT = 64, 12
Texts = Sequence[str]
COLOURS = ("#3b82c4", "#d97706", "#0f9d76", "#a855c7", "#dc4a5b", "#0ea5b7", "#8a8f1f", "#7c6cf0", "#b4622d", "#3f9e3f",
           "#d04f9d", "#64748b")  # fmt: skip
"""Of levels and of first codes; readable on white and on dark."""


def svg(height: float, body: str, label: str) -> str:
    """An element of the common width; ``label`` is what a screen reader says (internal)."""
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'


def escape(text: str) -> str:
    """Untrusted text for HTML: escaped, control characters gone (internal)."""
    return html.escape("".join(c if c.isprintable() else " " for c in text))


def cut(text: str, size: int) -> str:
    """At most ``size`` characters, ended by three dots where something is missing (internal)."""
    return text if len(text) <= size else text[: size - 1].rstrip() + "…"


def usage_map(codes: ItemCodes) -> str:
    """Levels x codes: the darker, the more items a code has; dead codes stand out (experimental).

    A level of more than 256 codes is drawn in 256 pieces of neighbouring codes; a piece is dead if all are. Codes that
    are words or nodes of a tree are not dead where they do not occur: each has its own levels.
    """
    strip, gap, inner = 30, 24, WIDTH - _LEFT - _RIGHT
    unused = ("dead", "dead") if not (codes.shared_vocabulary and codes.ragged) else ("unused", "not used")
    body = []
    for level, count_K in enumerate(codes.level_counts()[:LEVELS]):
        top = 4 + level * (strip + gap)
        pieces = np.array_split(count_K, min(len(count_K), _CELLS))
        mean = np.array([piece.mean() for piece in pieces])
        shade = np.sqrt(mean / max(mean.max(), 1e-9))
        width = inner / len(pieces)
        first = 0
        body.append(_text(_LEFT - 8, top + strip / 2 + 4, f"level {level + 1}", "end"))
        for n, piece in enumerate(pieces):
            name = f"code {first}" if len(piece) == 1 else f"codes {first} to {first + len(piece) - 1}"
            items = int(piece.sum())
            fill = f'class="{unused[0]}"' if items == 0 else f'class="own" fill-opacity="{0.08 + 0.92 * shade[n]:.2f}"'
            body.append(
                f'<rect x="{_LEFT + n * width:.2f}" y="{top}" width="{width + 0.05:.2f}" height="{strip}" {fill}>'
                f"<title>level {level + 1}, {name}: {items:,} items</title></rect>"
            )
            first += len(piece)
        dead = int((count_K == 0).sum())
        body.append(_text(_LEFT, top + strip + 13, "0", small=True))
        told = f"{len(count_K):,} codes, {dead:,} {unused[1]}, most used {int(count_K.max()):,} items"
        body.append(_text(WIDTH - _RIGHT, top + strip + 13, told, "end", small=True))
    drawn = min(codes.n_levels, LEVELS)
    if drawn < codes.n_levels:
        told = f"levels {drawn + 1} to {codes.n_levels} are not drawn"
        body.append(_text(_LEFT, drawn * (strip + gap) + 18, told, small=True))
    height = 4 + drawn * (strip + gap) + 20 * (drawn < codes.n_levels)
    return svg(height, "".join(body), "items per code, level by level")


def name_of(codes: ItemCodes, code: int) -> str:
    """A first code as pictures name it: its text, where it has one (internal)."""
    text = codes.pieces[code].strip(" \u2581") if codes.pieces else ""  # the sign that stands for a space
    return cut(text, 14) if text else f"<{code}>"


def load_curves(codes: ItemCodes) -> str:
    """Items per code, the most used first, one line a level; relative to an even load (experimental)."""
    counts = codes.level_counts()[:LEVELS]
    curves = [np.sort(count_K)[::-1] / max(count_K.mean(), 1e-9) for count_K in counts]
    top = float(np.ceil(max(min(curve[0], 20.0) for curve in curves)))
    height, low = 230, 190
    inner = WIDTH - _LEFT - _RIGHT
    body = [_axis(low, 10, [(x, f"{x:g}") for x in _ticks(top)], top)]
    even = low - (low - 10) / top
    body.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{even:.1f}" y2="{even:.1f}" class="rule dashed"/>')
    body.append(_text(WIDTH - _RIGHT, even - 4, "even load", "end", small=True))
    for level, curve in enumerate(curves):
        at = np.unique(np.linspace(0, len(curve) - 1, 200).astype(int))
        x = _LEFT + inner * (at + 0.5) / len(curve)
        y = low - (low - 10) * np.minimum(curve[at], top) / top
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        body.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[level % len(COLOURS)]}" stroke-width="2"/>'
        )
    body.append(_text(_LEFT, low + 16, "codes, most used first", small=True))
    names = [f"level {level + 1}" for level in range(len(curves))]
    body.append(_legend(names, [COLOURS[level % len(COLOURS)] for level in range(len(curves))], low + 32))
    return svg(height, "".join(body), "items per code, most used first")


def tree(codes: ItemCodes, titles: Texts | None, *, rows: int = 24) -> str:
    """The largest first codes: their items, and how the next two levels divide them (experimental)."""
    number_NL = prefix_numbers(codes.as_int())
    first_N = codes.as_int()[:, 0]
    size_K = np.bincount(first_N, minlength=codes.level_sizes[0])
    shown = np.argsort(-size_K, kind="stable")[:rows]
    shown = shown[size_K[shown] > 0]
    line, bar_left, bar = 34, 118, 330
    body = []
    for row, code in enumerate(shown.tolist()):
        top, items = 4 + row * line, np.flatnonzero(first_N == code)
        body.append(_text(bar_left - 8, top + 13, name_of(codes, code), "end"))
        body.append(_text(bar_left - 8, top + 26, f"{len(items):,} items", "end", small=True))
        scale = bar * len(items) / size_K[shown[0]]
        for depth in range(1, min(3, codes.n_levels)):
            body.append(_segments(number_NL[items, : depth + 1], codes.as_int()[items, depth], items, titles,
                                  (bar_left, top + 13 * (depth - 1), scale)))  # fmt: skip
        if titles is not None:
            body.append(_text(bar_left + bar + 10, top + 13, cut(titles[int(items[0])], 42), small=True))
            body.append(_text(bar_left + bar + 10, top + 26, cut(titles[int(items[-1])], 42), small=True))
    return svg(8 + len(shown) * line, "".join(body), "the largest first codes and their children")


def _segments(
    number_ML: npt.NDArray[np.int64],
    code_M: npt.NDArray[np.int32],
    items: npt.NDArray[np.int64],
    titles: Texts | None,
    place: tuple[float, float, float],
) -> str:
    left, top, scale = place
    _, first, count = np.unique(number_ML[:, -1], return_index=True, return_counts=True)
    parent = number_ML[first, -2] if number_ML.shape[1] > 2 else np.zeros(len(first))
    shades = (0.9, 0.65) if number_ML.shape[1] == 2 else (0.5, 0.35)
    body, x = [], left
    for above in np.unique(parent).tolist():
        below = np.flatnonzero(parent == above)
        below = below[np.argsort(-count[below], kind="stable")]
        several = below[count[below] > 1].tolist()
        pieces = [(int(count[node]), f"{_code(code_M[first[node]])}, {int(count[node]):,} items", node)
                  for node in several]  # fmt: skip
        lone = len(below) - len(several)
        if lone:
            pieces.append((lone, f"{lone:,} codes of one item each", int(below[-1])))
        for n, (size, told, node) in enumerate(pieces):
            example = "" if titles is None else f": {cut(titles[int(items[first[node]])], 70)}"
            width = scale * size / len(items)
            opacity = shades[n % 2] if n < len(several) else 0.18
            if width >= 0.5:
                body.append(
                    f'<rect x="{x:.2f}" y="{top:.0f}" width="{width - min(0.8, width / 3):.2f}" height="12" '
                    f'class="own" fill-opacity="{opacity}"><title>{escape(told + example)}</title></rect>'
                )
            x += width
    return "".join(body)


def projection(
    codes: ItemCodes,
    vectors: npt.NDArray[np.floating],
    titles: Texts | None,
    *,
    seed: int,
    points: int = 1_500,
    each: int = 60,
) -> str:
    """The item vectors on their two principal axes, the twelve largest first codes in colour (experimental).

    points: items drawn by ``seed``, which also define the axes. each: items shown of every coloured code.
    """
    order = rng(seed, "page", "projection").permutation(len(codes))
    drawn, first_N = np.sort(order[:points]), codes.as_int()[:, 0]
    largest = np.argsort(-np.bincount(first_N), kind="stable")[: len(COLOURS)].tolist()
    groups = [np.sort(order[first_N[order] == code][:each]) for code in largest]
    rows = np.concatenate([drawn[~np.isin(first_N[drawn], largest)], *groups])
    xy, share = principal_plane(vectors, drawn, rows)
    size, margin = 460, 16
    low, high = np.quantile(xy, [0.002, 0.998], axis=0)
    unit = np.clip((xy - low) / np.maximum(high - low, 1e-9), 0, 1)
    x, y = margin + unit[:, 0] * (WIDTH - 2 * margin), size - margin - unit[:, 1] * (size - 2 * margin)
    ends = np.cumsum([len(rows) - sum(map(len, groups)), *map(len, groups)])
    body, labels = [_dots("var(--random)", 1.8, range(ends[0]), (x, y), rows, first_N, titles)], []
    for code, colour, start, end in zip(largest, COLOURS, ends[:-1], ends[1:], strict=False):
        if end > start:
            body.append(_dots(colour, 3.0, range(start, end), (x, y), rows, first_N, titles))
            place = float(np.median(x[start:end])), float(np.median(y[start:end]))
            labels.append(_text(*place, name_of(codes, code), "middle", halo=True))
    told = f"first two principal components ({100 * share:.0f} % of the variance), {len(rows):,} items"
    return svg(size + 18, "".join([*body, *labels]) + _text(WIDTH - margin, size + 12, told, "end", small=True), told)


def principal_plane(
    vectors: npt.NDArray[np.floating], fitted: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], float]:
    """Coordinates of ``rows`` on the first two principal axes of ``fitted``, float64 ``[M, 2]``, and their variance.

    The variance is a share of the whole. Each axis points where its largest weight is positive. Vectors of one column
    get a second of zeros. (internal)
    """
    z = np.asarray(vectors[fitted], dtype=np.float64)
    mean = z.mean(axis=0)
    z = z - mean
    _, singular, right = np.linalg.svd(z, full_matrices=False)
    values, axes = singular**2, right[:2].T
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    xy = (np.asarray(vectors[rows], dtype=np.float64) - mean) @ axes
    share = float(values[:2].sum() / max(values.sum(), 1e-30))
    return (xy if xy.shape[1] == 2 else np.column_stack([xy, np.zeros(len(xy))])), share


def bars(
    labels: Texts,
    series: Mapping[str, Sequence[float | None]],
    label: str,
    text: Callable[[float], str] = lambda value: f"{value:.3g}",
) -> str:
    """Groups of bars, one series a colour (codes, raw, random, shuffled), with their numbers (internal)."""
    top = max((value for values in series.values() for value in values if value is not None), default=1.0) or 1.0
    low, high = 170, 22
    group = (WIDTH - _LEFT - _RIGHT) / max(len(labels), 1)
    width = min(0.88 * group / max(len(series), 1), 54)
    body = [f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{low}" y2="{low}" class="rule"/>']
    for n, name in enumerate(labels):
        middle, before = _LEFT + (n + 0.5) * group, ""
        body.append(_text(middle, low + 16, name, "middle", small=True))
        for m, (kind, values) in enumerate(series.items()):
            value = values[n]
            if value is None:
                continue
            x = middle + (m - len(series) / 2) * width
            tall = (low - high) * max(value, 0) / top
            body.append(
                f'<rect x="{x + 1:.1f}" y="{low - tall:.1f}" width="{width - 2:.1f}" height="{max(tall, 0.5):.1f}" '
                f'style="fill:var(--{kind})"><title>{escape(f"{kind}, {name}: {text(value)}")}</title></rect>'
            )
            same, before = text(value) == before, text(value)
            if width > 20 and value > 0 and (m == 0 or width > 36 or (value > 0.04 * top and not same)):
                body.append(_text(x + width / 2, low - tall - 4, text(value), "middle", small=True))
    body.append(_legend(list(series), [f"var(--{kind})" for kind in series], low + 36))
    return svg(low + 46, "".join(body), label)


def _code(code: int) -> str:
    return f"code {code}" if code >= 0 else "the end"


def _dots(
    colour: str,
    radius: float,
    places: range,
    at: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    rows: npt.NDArray[np.int64],
    first_N: npt.NDArray[np.int32],
    titles: Texts | None,
) -> str:
    x, y = at
    dots = []
    for n in places:
        told = f"<{first_N[rows[n]]}>" + ("" if titles is None else f" {cut(titles[int(rows[n])], 70)}")
        dots.append(f'<circle cx="{x[n]:.1f}" cy="{y[n]:.1f}" r="{radius}"><title>{escape(told)}</title></circle>')
    return f'<g style="fill:{colour}">{"".join(dots)}</g>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, small: bool = False, halo: bool = False) -> str:
    kind = " ".join(name for name, on in (("small", small), ("halo", halo)) if on)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _legend(names: Texts, colours: Texts, y: float) -> str:
    x, body = float(_LEFT), []
    for name, colour in zip(names, colours, strict=True):
        body.append(f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="10" height="10" style="fill:{colour}"/>')
        body.append(_text(x + 15, y, name, small=True))
        x += 36 + 7 * len(name)
    return "".join(body)


def _axis(low: float, high: float, ticks: Sequence[tuple[float, str]], top: float) -> str:
    body = []
    for value, name in ticks:
        y = low - (low - high) * value / top
        body.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
        body.append(_text(_LEFT - 8, y + 4, name, "end", small=True))
    return "".join(body)


def _ticks(top: float) -> list[float]:
    step = next((s for s in (1, 2, 5, 10) if top / s <= 5), 20)
    return [float(x) for x in np.arange(0, top + 1e-9, step)]
