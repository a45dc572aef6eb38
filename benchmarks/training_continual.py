"""New items of Amazon Beauty after a model was trained without them: appended, listed, then taught.

A tenth of the items is held out (:func:`genrec.data.splits.held_out_items`, ties neutral). The model before has never
seen them: they are not in its catalog, events on them and all later events of a user who is asked for one are gone. The
last event of each user that is left is a validation target, of every second one a test target: the old items' users.
The new items' users are asked for a held-out item after the old items that they had before it. Vectors of the new items
come from their texts alone. Shown: Recall@10 of both kinds of users with the items appended, before and after.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from real_data import ROOT, bring_up_to_date, cost_text, read_json

from genrec import recipes
from genrec.cli.cmd_append import read_new_items
from genrec.data.catalog import ItemCatalog
from genrec.data.export import export_neutral
from genrec.data.interactions import Interactions
from genrec.data.splits import Split, held_out_items
from genrec.item_tokenizers.codes import ItemCodes
from genrec.pipeline.catalog_life import append_items
from genrec.pipeline.continual_inputs import ContinualPaths
from genrec.pipeline.continual_stage import ContinualRecipe, continual_stage
from genrec.seeding import rng

BEAUTY, SHARE, SEED = "amazon-beauty-2014", 0.1, 0
MODEL = "model={kind: decoder, hidden_size: 128, n_layers: 3, n_heads: 4, d_ff: 344, dropout: 0.2}"
EPOCHS = 10
RULE = ["users=3000", "evaluate.n_beams=20", "evaluate.ks=[10]", "evaluate.n_bootstrap=0"]


def held_out(everything: Path) -> Split:
    """The split of the whole log in which a tenth of the items is asked for in the test part alone."""
    return held_out_items(Interactions.load(everything / "interactions").order_ties("neutral", SEED), SHARE, SEED)


def write_shop(everything: Path, folder: Path) -> None:
    """The shop before: ``items.jsonl`` and ``interactions.csv.gz`` without the new items, which ``new.jsonl`` has.

    The column ``split`` of the log has the parts that the module names.
    """
    catalog, log = ItemCatalog.load(everything / "catalog"), Interactions.load(everything / "interactions")
    cut = held_out(everything)
    is_new = np.zeros(len(catalog), np.bool_)
    is_new[cut.rule["held_out_items"]] = True
    ordered = log.order_ties("neutral", SEED)
    assert cut.rows is not None
    part = cut.parts()
    user = np.repeat(np.arange(cut.n_users), np.diff(cut.offsets))
    asked = rng(SEED, "old items' users").permutation(cut.n_users) % 2 == 0
    part[(part == 1) & asked[user]] = 3  # a test target of the shop before
    kept = part != 2
    names = np.array(["train", "valid", "", "test"])[part[kept]]
    number = np.cumsum(~is_new) - 1
    rows = cut.rows[kept]
    old = ItemCatalog(
        tuple(np.array(catalog.ids)[~is_new].tolist()),
        {
            name: [v for v, new in zip(values, is_new, strict=True) if not new]
            for name, values in catalog.fields.items()
        },
    )
    events = Interactions(
        log.user_ids,
        user=ordered.user[rows],
        item=number[ordered.item[rows]].astype(np.int32),
        time=ordered.time[rows],
        n_items=len(old),
        catalog=old.fingerprint,
        columns={"split": names},
    )
    export_neutral(folder, old, events)
    with (folder / "new.jsonl").open("w", encoding="utf-8") as file:
        for n in np.flatnonzero(is_new).tolist():
            row = {"item_id": catalog.ids[n], **{name: v[n] for name, v in catalog.fields.items() if v[n] is not None}}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def before(data: Path | None) -> tuple[Path, Path]:
    """The finished run of the shop without the new items, and the run folder that has all items."""
    everything = bring_up_to_date(data, "beauty.yaml", BEAUTY, "continual/beauty-all", until="embed")
    shop = everything.parent / "shop" / BEAUTY
    if not (shop / "new.jsonl").exists():
        write_shop(everything, shop)
    run = bring_up_to_date(
        shop.parent,
        "beauty.yaml",
        BEAUTY,
        "continual/beauty-before",
        "split={kind: predefined, column: split, ties: neutral}",
        MODEL,
        f"train.epochs={EPOCHS}",
        "train.eval_every=0",
        "baselines=[]",
        until="train",
    )
    return run, everything


def asked_file(everything: Path, folder: Path) -> Path:
    """What the new items' users had and are asked for, as a log: the old items before the held-out one, then that."""
    catalog, asked = ItemCatalog.load(everything / "catalog"), held_out(everything).queries("test")
    file = folder / "ask.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["user_id", "item_id", "timestamp"])
        for user, history, target in zip(asked.users, asked.histories, asked.targets, strict=True):
            items = catalog.ids_of(np.concatenate([history, target]))
            rows.writerows([f"user {user}", item, time] for time, item in enumerate(items))
    return file


def measured(data: Path | None, *changes: str) -> dict[str, Any]:
    """Everything that the figures need; changes: to the recipe. What is finished is only read."""
    run, everything = before(data)
    version = run.parent / "beauty-appended"
    if not (version / "version.json").exists():
        append_items(run, read_new_items(run.parent / "shop" / BEAUTY / "new.jsonl"), version)
    paths = ContinualPaths.of(version, run=run, ask=asked_file(everything, run.parent))
    recipe = recipes.load(ROOT / "train" / "continual" / "replay.yaml", ContinualRecipe, [*RULE, *changes]).value
    found = continual_stage(paths, recipe)
    assert found is not None
    before_NL, after_NL = (ItemCodes.load(folder / "codes").as_int() for folder in (run, version))
    moved = int((before_NL != after_NL[: len(before_NL)]).any(axis=1).sum())
    spent = read_json(paths.out, "training", "genrec.json")["meta"]["cpu_seconds"]
    return {
        **found.figures,
        "kept": found.kept,
        "moved": moved,
        "n_new": len(after_NL) - len(before_NL),
        "budget": f"before: {cost_text(run, 'train')}; then {recipe.continual.steps} steps of "
        f"{recipe.train.batch_size}, {spent / 60:.1f} CPU-minutes",
    }
