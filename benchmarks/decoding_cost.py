"""What a step of the search costs, against the number of items and against beams, ours beside other methods.

As in decoding_select.py: whole searches of four levels of 256 codes over random logits, without a model; process CPU
time of one thread, methods in turn, medians; a step is a quarter of a search.

    STATIC_DECODING=checkout python benchmarks/run.py --name decoding --figure step_cost_by_items --commit
    STATIC_DECODING=checkout python benchmarks/run.py --name decoding --figure step_cost_by_beams --commit
    python benchmarks/decoding_cost.py --plot docs    # cost-by-items.svg and cost-by-beams.svg from benchmarks/results/
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from decoding_index import write_sorted_rows
from decoding_select import (
    CPU,
    LEVELS,
    Catalog,
    Given,
    dict_trie,
    floor,
    hf_search,
    identifiers,
    index_of,
    random_logits,
    search,
    seconds,
    static_search,
)
from run import Figure, Measured, Options, committed

from genrec.decoding.index import CatalogIndex
from genrec.decoding.select import DeviceIndex

N_CODES = 256
USERS = (1, 32)
ITEMS = (10**4, 10**5, 10**6, 10**7, 10**8)
BEAMS = (5, 10, 20, 50, 100, 200)
MOST_STATIC, MOST_TRIE = 10**7, 10**6
"""Items up to which the other methods fit: their tables take 17 and 300 bytes an item, and more while they are made."""
COLOURS = {
    "ours": "#3b82f6",
    "no constraint": "#808080",
    "STATIC (PyTorch)": "#d97706",
    "transformers, dictionary trie": "#b45bd6",
}
"""Of middle lightness, so that they are seen on white and on black."""


Search = Callable[[list[torch.Tensor], int], object]
"""Of logits and a number of beams."""


class Case(NamedTuple):
    """One point of a plot."""

    items: int
    users: int
    beams: int
    method: str


def index_of_many(n_items: int) -> DeviceIndex:
    """Of rows that are written to a file in pieces and read from it: so many cannot be drawn at once."""
    with tempfile.TemporaryDirectory() as folder:
        write_sorted_rows(Path(folder) / "rows", n_items, N_CODES)
        rows = np.memmap(Path(folder) / "rows", dtype=np.uint8, mode="r").reshape(-1, LEVELS)
        return DeviceIndex(CatalogIndex.from_sorted(rows, (N_CODES,) * LEVELS), CPU)


def methods(n_items: int) -> dict[str, Search]:
    """All methods that this catalog fits."""
    catalog = Catalog(n_items, N_CODES)
    index = index_of(catalog) if n_items <= MOST_STATIC else index_of_many(n_items)
    found: dict[str, Search] = {
        "ours": lambda logits, beams: search(index, Given(logits), beams),
        "no constraint": floor,
    }
    if (folder := os.environ.get("STATIC_DECODING")) and n_items <= MOST_STATIC:
        found["STATIC (PyTorch)"] = static_search(folder, catalog)
    if n_items <= MOST_TRIE:
        trie = dict_trie(identifiers(catalog))
        found["transformers, dictionary trie"] = lambda logits, beams: hf_search(trie, logits, beams)
    return found


def costs(all_items: tuple[int, ...], all_beams: tuple[int, ...]) -> list[dict[str, Any]]:
    """Microseconds of a step of every method, number of items, users and beams; all of one number of users in turn."""
    by_size = {n_items: methods(n_items) for n_items in all_items}
    rows = []
    for users in USERS:
        candidates: dict[str, Callable[[], object]] = {}
        cases: dict[str, Case] = {}
        for beams in all_beams:
            logits = random_logits(Catalog(all_items[0], N_CODES), users, beams)
            for n_items, of_size in by_size.items():
                for method, run in of_size.items():
                    case = Case(n_items, users, beams, method)
                    cases[str(case)] = case
                    candidates[str(case)] = functools.partial(run, logits, beams)
        for name, spent in seconds(candidates).items():
            rows.append({**cases[name]._asdict(), "us_per_step": round(1e6 * spent / LEVELS, 1)})
    return rows


def by_items(options: Options) -> Measured:
    """A step of ours with 32 users at the most items over one at the fewest; 20 beams."""
    rows = costs(ITEMS, (20,))
    ours = [row["us_per_step"] for row in rows if row["method"] == "ours" and row["users"] == 32]
    return Measured(ours[-1] / ours[0], rows, f"{N_CODES} codes a level, 20 beams", _load())


def by_beams(options: Options) -> Measured:
    """A step of ours over one without a constraint, the worst for 32 users; a million items."""
    rows = costs((10**6,), BEAMS)
    of = {(row["method"], row["users"], row["beams"]): row["us_per_step"] for row in rows}
    worst = max(of["ours", 32, beams] / of["no constraint", 32, beams] for beams in BEAMS)
    return Measured(worst, rows, f"1e6 items, {N_CODES} codes a level", _load())


def _load() -> str:
    static = "" if os.environ.get("STATIC_DECODING") else "; STATIC not measured: STATIC_DECODING names no checkout"
    return f"load {os.getloadavg()[0]:.1f}{static}"


def plot(rows: list[dict[str, Any]], along: str, label: str, file: Path) -> None:
    """A panel for every number of users, a line for every method (needs the extra ``plots``)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    gray = COLOURS["no constraint"]
    style = {f"{part}.color": gray for part in ("text", "xtick", "ytick")}
    style |= {"axes.labelcolor": gray, "axes.edgecolor": gray, "svg.fonttype": "none", "svg.hashsalt": "genrec"}
    with pyplot.rc_context(style):
        figure, panels = pyplot.subplots(1, len(USERS), figsize=(8, 3.4), sharey=True)
        for users, axes in zip(USERS, panels, strict=True):
            for method, colour in COLOURS.items():
                own = [row for row in rows if (row["users"], row["method"]) == (users, method)]
                dash = "--" if method == "no constraint" else "-"
                axes.plot(
                    [r[along] for r in own],
                    [r["us_per_step"] for r in own],
                    f"o{dash}",
                    ms=3,
                    color=colour,
                    label=method,
                )
            axes.set(xscale="log", yscale="log", xlabel=label, title=f"{users} user{'s' * (users > 1)} at a time")
            axes.title.set_fontsize(10)
            axes.grid(alpha=0.25)
            axes.minorticks_off()
        ticks = sorted({row[along] for row in rows})
        if ticks[-1] < 10**4:  # powers of ten alone would say too little
            for axes in panels:
                axes.set_xticks(ticks, [str(tick) for tick in ticks])
        panels[0].set_ylabel("CPU-microseconds a step")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="upper center", ncols=4, fontsize=8, frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 0.93))
        figure.savefig(file, metadata={"Date": None, "Creator": None}, transparent=True)
        pyplot.close(figure)


FIGURES = [
    Figure("step_cost_by_items", "x", by_items, baseline="1e4 items"),
    Figure("step_cost_by_beams", "x", by_beams, baseline="unconstrained top-k"),
]


def main() -> None:
    """Plot the committed rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, required=True, metavar="DIR", help="the folder to write both plots to")
    folder = parser.parse_args().plot
    found = committed("decoding")
    plot(found["step_cost_by_items"]["spread"], "items", "items", folder / "cost-by-items.svg")
    plot(found["step_cost_by_beams"]["spread"], "beams", "beams", folder / "cost-by-beams.svg")


if __name__ == "__main__":
    main()
