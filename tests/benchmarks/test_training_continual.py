"""benchmarks/training_continual.py in small: the shop before knows nothing of what is held out."""

import csv
import gzip
import importlib
import json
import sys
from pathlib import Path

import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.readers import ReaderSettings, read
from genrec.data.splits import predefined_split
from genrec.data.synthetic import make, tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    for name in ("real_data", "training_continual"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("training_continual")
    for name in ("real_data", "training_continual"):
        sys.modules.pop(name, None)


def test_the_shop_before_and_what_is_asked(figures, tmp_path):
    shop = make(tiny())
    shop.catalog.save(tmp_path / "all" / "catalog")
    shop.interactions.save(tmp_path / "all" / "interactions")
    figures.write_shop(tmp_path / "all", tmp_path / "before")
    new = [json.loads(line)["item_id"] for line in (tmp_path / "before" / "new.jsonl").read_text().splitlines()]
    loaded = read(ReaderSettings("neutral", tmp_path / "before"))
    assert len(new) == 6 and not set(new) & set(loaded.catalog.ids) and len(loaded.catalog) == 54
    cut = predefined_split(loaded.interactions)
    valid, test = cut.queries("valid"), cut.queries("test")
    assert 15 < len(valid) < 60 and 15 < len(test) < 60 and not set(valid.users) & set(test.users)
    # after a user's event on a held-out item that is asked for, training sees nothing
    asked = {}
    with figures.asked_file(tmp_path / "all", tmp_path).open() as file:
        for row in csv.DictReader(file):
            asked.setdefault(row["user_id"], []).append(row["item_id"])
    assert len(asked) > 20
    log = {}
    with gzip.open(tmp_path / "before" / "interactions.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            log.setdefault(row["user_id"], []).append(row["item_id"])
    users, ids = shop.interactions.user_ids, ItemCatalog.load(tmp_path / "all" / "catalog").ids
    whole = {user: [] for user in users}
    for user, item in zip(shop.interactions.user.tolist(), shop.interactions.item.tolist(), strict=True):
        whole[users[user]].append(ids[item])
    for name, (*history, target) in asked.items():
        user = users[int(name.removeprefix("user "))]
        before = whole[user][: whole[user].index(target)]
        assert target in new and history == [item for item in before if item not in new] == log[user]
