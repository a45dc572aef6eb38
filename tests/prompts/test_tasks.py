"""The built-in tasks: one example of each to read, every wording rendered, and nothing from after the training part."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError
from genrec.prompts import queries
from genrec.prompts.data import Fields, Row, TaskData
from genrec.prompts.mixture import MixedTask, MixtureSettings, TaskMixture
from genrec.prompts.show import pieces, plain
from genrec.prompts.tasks import TASKS, load_task
from genrec.seeding import rng

GOLDEN = {
    "sequential": ("User <user 3> had, in this order, <a_2><b_2>.\nName the item that follows.", "<a_5><b_4>"),
    "item_from_text": ("Title: ‹Norvane Raven 400 Travel Bivvy, Ivory›\nIdentifier:", "<a_0><b_0>"),
    "text_from_item": ("Write the title of the item <a_0><b_0>.", "‹Norvane Raven 400 Travel Bivvy, Ivory›"),
    "fused": (
        "1. ‹Quillon Kestrel 920 Vintage Coffee Grinder, Red›\nGive the identifier of the item that follows this list.",
        "<a_5><b_4>",
    ),
    "asymmetric": (
        "History: <a_2><b_3>, <a_0><b_1>\nDescription of the next item:",
        "‹A fine thing, number 12.›",
    ),
    "search": ('A user searches for "‹norvane raven 400 travel›". Which item fits?', "<a_0><b_0>"),
    "search_with_history": (
        "User: <user 3>\nHistory: <a_2><b_2>\nQuery: ‹quillon eco tea kettle navy blue›\nItem:",
        "<a_5><b_4>",
    ),
    "preference": (
        "Sum up the taste behind <a_2><b_2>, <a_5><b_4>, <a_2><b_7>, <a_4><b_2>, <a_3><b_4>.",
        "Mostly ‹Sleeping Gear›, by ‹Quillon› above all.",
    ),
    "explanation": (
        "Explain the recommendation <a_5><b_4> to a person who had <a_2><b_2>.",
        "You had items of ‹Coffee & Tea› before: <a_2><b_2>.",
    ),
    "personal": (
        "User <user 3> had, in this order, <a_2><b_2>. Which item would this user take next?",
        "<a_5><b_4>",
    ),
    "user_history": ("User: <user 3>\nLatest items:", "<a_2><b_7> <a_4><b_2> <a_3><b_4>"),
}


def examples(data: TaskData, name: str, rounds: int = 1):
    """Every row of a task in every wording that fits it."""
    task = load_task(name)
    kind = task.template.header.rows
    for place in range(data.n_rows(kind)):
        row = data.row(kind, place)
        for n in range(rounds):
            inputs = task.draw(data, row, rng(n, name, place))
            for wording in task.template.fitting(inputs) if inputs else ():
                yield row, task.template.render(inputs, wording)


def read(shop, example) -> tuple[str, str]:
    return tuple(plain(pieces(part, shop.codes)) for part in (example.prompt, example.target))


@pytest.mark.parametrize("name", TASKS)
def test_every_wording_renders(shop, name):
    data = shop.data(with_users=True)
    seen = {example.wording for _, example in examples(data, name)}
    assert seen == set(range(len(load_task(name).template.wordings)))


@pytest.mark.parametrize("name", TASKS)
def test_one_example_of_each_task(shop, name):
    data = shop.data(with_users=True)
    found = next(e for row, e in examples(data, name) if e.wording == 1 and (row.user is None or row.user >= 3))
    assert read(shop, found) == GOLDEN[name]


@pytest.mark.parametrize("name", TASKS)
def test_without_user_tokens_no_user_is_named(shop, name):
    for row, example in examples(shop.data(), name):
        assert all(segment.role != "user" for segment in example.prompt + example.target), row


def planted(shop) -> tuple[TaskData, TaskData, set[int], set[str]]:
    """Data in which the held-out events are of items that occur nowhere else, and data in which these leaked."""
    n = len(shop.catalog)
    split, secret = shop.split, list(range(n, 2 * n))
    titles = [*shop.catalog.fields["title"], *(f"Secret{number}" for number in secret)]
    fields = {"title": titles, "brand": [f"Brand{k % 3}" for k in range(2 * n)]}
    fields["categories"] = [[f"Kind{k % 4}"] for k in range(n)] + [[f"Covert{k}"] for k in secret]
    fields["description"] = [f"About {title}" for title in titles]
    catalog = ItemCatalog(tuple(f"i{k}" for k in range(2 * n)), fields)
    held_out = split.parts() > 0
    items = np.where(held_out, split.items + n, split.items)
    whole = Histories(split.offsets, items)
    train = Histories.from_slices(items, split.offsets[:-1], split.train_end)
    made = [TaskData(catalog, histories, with_users=True) for histories in (train, whole)]
    return made[0], made[1], set(secret), {"secret", "covert"}


def tells(example, secret: set[int], words: set[str]) -> bool:
    for segment in example.prompt + example.target:
        if segment.role == "item" and segment.value in secret:
            return True
        if segment.role == "text" and any(word in str(segment.value).lower() for word in words):
            return True
    return False


def test_a_step_that_user_codes_are_made_of_names_nobody(shop):
    train = shop.split.train()
    told = np.arange(len(train.items)) % 3 > 0
    data = TaskData(shop.catalog, train, with_users=True, told=told)
    found = [data.row("steps", place).user for place in range(data.n_rows("steps"))]
    events = np.flatnonzero(np.arange(len(told)) > train.offsets[:-1][train.rows()])
    assert found == np.where(told[events], train.rows()[events], -1).tolist()


@pytest.mark.parametrize("name", [name for name in TASKS if load_task(name).template.header.rows != "items"])
def test_what_users_did_later_is_in_no_example(shop, name):
    data, leaked, secret, words = planted(shop)
    assert not any(tells(example, secret, words) for _, example in examples(data, name))
    assert any(tells(example, secret, words) for _, example in examples(leaked, name)), "the test could not fail"


@pytest.mark.parametrize("name", [name for name in TASKS if load_task(name).template.header.rows == "items"])
def test_tasks_about_items_know_no_user(shop, name):
    data, *_ = planted(shop)
    for row, example in examples(data, name):
        assert row.history == () and row.user is None
        assert {s.value for s in example.prompt + example.target if s.role == "item"} == {row.item}


def test_steps_are_all_training_events_with_something_before_them():
    data = TaskData(
        ItemCatalog(tuple("abcde"), {"title": ["t"] * 5}),
        Histories.from_lists([[0, 1, 2], [], [3], [4, 0]]),
        max_items=1,
    )
    rows = [data.row("steps", n) for n in range(data.n_rows("steps"))]
    assert rows == [Row((0,), 1, 0), Row((1,), 2, 0), Row((4,), 0, 3)]
    assert [data.row("users", n) for n in range(data.n_rows("users"))] == [
        Row((2,), user=0),
        Row((3,), user=2),
        Row((0,), user=3),
    ]
    retired = TaskData(data.catalog.retire(["b"]), data.histories)
    assert [retired.row("items", n).item for n in range(retired.n_rows("items"))] == [0, 2, 3, 4]


def test_ties_are_drawn_anew_every_epoch(shop):
    histories = shop.split.train()
    tied = np.arange(len(histories.items)) != histories.offsets[:-1][histories.rows()]
    data = shop.data(tied=tied)
    epochs = [data.at_epoch(0, epoch).histories for epoch in (0, 1, 0)]
    assert (epochs[0].items == epochs[2].items).all() and (epochs[0].items != epochs[1].items).any()
    assert [sorted(row) for row in epochs[0].to_lists()] == [sorted(row) for row in histories.to_lists()]


def test_data_that_do_not_fit_are_refused(shop):
    with pytest.raises(DataError, match="item numbers"):
        TaskData(shop.catalog, Histories.from_lists([[0, 999]]))
    with pytest.raises(DataError, match="queries"):
        shop.data(queries=[["a"]])
    with pytest.raises(DataError, match="tied"):
        shop.data(tied=np.zeros(3, bool))


def test_fields_have_the_names_that_the_recipe_says():
    catalog = ItemCatalog(
        ("a",), {"title": ["T &amp; <b>x</b>"], "maker": ["M"], "path": [["top", "leaf"]], "price": [3.5]}
    )
    data = TaskData(
        catalog, Histories.from_lists([[0]]), fields=Fields(brand="maker", categories="path", description="price")
    )
    assert (data.title(0), data.brand(0), data.category(0), data.description(0)) == ("T & x", "M", "leaf", "3.5")
    assert TaskData(catalog, data.histories).brand(0) == ""


def test_preferences_are_counts():
    catalog = ItemCatalog(
        tuple("abcd"), {"title": list("abcd"), "categories": [["x"], ["y"], ["x"], ["y"]], "brand": ["m", "n", "m", ""]}
    )
    draw = TASKS["preference"]
    data = TaskData(catalog, Histories.from_lists([]))
    assert draw(data, Row((0, 2, 1)), rng(0)) == {
        "history": (0, 2, 1),
        "category": "x",
        "brand": "m",
        "recent": "y",
        "user": None,
    }
    assert draw(data, Row((0, 1, 2, 3)), rng(0))["category"] == "y"  # of equally many the latest
    assert draw(data, Row((0, 1)), rng(0))["brand"] == ""  # one is no favourite
    assert draw(data, Row((0,)), rng(0)) is None


def test_explanations_name_what_is_shared():
    catalog = ItemCatalog(
        tuple("abcd"),
        {"title": list("abcd"), "categories": [["x"], ["y"], ["x"], ["z"]], "brand": ["m", "m", "n", "o"]},
    )
    data = TaskData(catalog, Histories.from_lists([]))
    found = TASKS["explanation"](data, Row((1, 2, 3), 0), rng(0))
    assert (found["same_brand"], found["same_category"]) == ([1], [2])
    assert TASKS["explanation"](data, Row((0, 1, 2), 3), rng(0)) is None


def test_queries_are_made_of_the_items_own_fields(shop):
    data = shop.data()
    for item in range(len(shop.catalog)):
        known = f"{data.title(item)} {data.brand(item)} {data.category(item)}".lower()
        found = {queries.query_of(data, item, rng(seed)) for seed in range(20)}
        assert len(found) > 3
        assert all(word in known for query in found for word in query.split())
    blank = TaskData(ItemCatalog(("a",), {"title": ["!?"]}), Histories.from_lists([]))
    assert queries.query_of(blank, 0, rng(0)) == ""


def test_queries_of_a_model_are_written_once_and_read(shop, tmp_path):
    seen = []

    def writer(text: str) -> list[str]:
        seen.append(text)
        return [f"q{len(seen)} \u2028 ü", " "]

    file = queries.write_queries(shop.catalog, writer, tmp_path / "q.jsonl", fields=["title", "brand"])
    assert seen[0].splitlines() == [
        f"title: {shop.catalog.text('title')[0]}",
        f"brand: {shop.catalog.text('brand')[0]}",
    ]
    found = queries.load_queries(file, shop.catalog)
    assert found[4] == ["q5 \u2028 ü"]
    assert queries.query_of(shop.data(queries=found), 4, rng(0)) == "q5 \u2028 ü"
    file.write_text(json.dumps({"item_id": "unknown", "queries": ["a"]}) + "\n")
    assert queries.load_queries(file, shop.catalog) == [[] for _ in shop.catalog.ids]
    mixture = MixtureSettings((MixedTask("search"),), queries=file)
    with pytest.raises(DataError, match="no row of 'items'"):
        TaskMixture(mixture, shop.data(), seed=0)
    file.write_text("{}\n")
    with pytest.raises(DataError, match="line 1"):
        queries.load_queries(file, shop.catalog)
    with pytest.raises(DataError, match="expected a list of texts"):
        queries.write_queries(shop.catalog, lambda text: "one", file, fields=["title"])
    with pytest.raises(ConfigError, match="writer"):
        queries.write_queries(shop.catalog, "no_such_module:f", file, fields=["title"])


def test_a_task_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="expected one of") as caught:
        load_task("sequental")
    assert "'sequential'" in caught.value.hint
    for name in ("no_such_module:f", "genrec.prompts.tasks:nothing", "genrec.prompts.tasks:Task"):
        with pytest.raises(ConfigError, match="task"):
            load_task(name)
