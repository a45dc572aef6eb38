"""Mixtures: how much of each task, in which order, and that a sample is a function of seed, epoch and number."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from genrec import recipes, workbench
from genrec.errors import ConfigError, DataError
from genrec.prompts.data import UNKNOWN_USER
from genrec.prompts.mixture import MixedTask, MixtureSettings, TaskMixture
from genrec.seeding import rng


def mixture(shop, *tasks: MixedTask, seed: int = 0, **settings) -> TaskMixture:
    return TaskMixture(MixtureSettings(tasks, **settings), shop.data(), seed=seed)


def items_of(made: TaskMixture, epoch: int, places) -> list[int]:
    return [made.example(epoch, i).target[0].value for i in places]


def test_a_sample_is_a_function_of_seed_epoch_and_number(shop):
    tasks = (MixedTask("sequential"), MixedTask("search", share=0.5), MixedTask("fused", samples=7))
    one, other = mixture(shop, *tasks), mixture(shop, *tasks)
    there = [(epoch, i) for epoch in (0, 1, 5) for i in range(0, len(one), 3)]
    forwards = {place: one.example(*place) for place in there}
    assert all(other.example(*place) == forwards[place] for place in reversed(there))
    seeded = mixture(shop, *tasks, seed=1)
    assert forwards != {place: seeded.example(*place) for place in there}


def test_counts(shop):
    n_items, n_steps = shop.data().n_rows("items"), shop.data().n_rows("steps")
    made = mixture(shop, MixedTask("sequential"), MixedTask("search", share=0.5), MixedTask("fused", samples=7))
    assert made.counts.tolist() == [n_steps, round(n_items / 2), 7]
    assert Counter(made.task_of(i) for i in range(len(made))) == {0: n_steps, 1: round(n_items / 2), 2: 7}
    weights = (MixedTask("sequential", weight=2.0), MixedTask("search", weight=1.0), MixedTask("fused", weight=0.5))
    assert mixture(shop, *weights, samples_per_epoch=10).counts.tolist() == [6, 3, 1]
    assert mixture(shop, *weights, samples_per_epoch=10).describe()["search"]["rows"] == n_items


def test_every_row_comes_once_before_any_comes_again(shop):
    n_items = len(shop.catalog)
    made = mixture(shop, MixedTask("search", samples=25))
    drawn = [item for epoch in range(12) for item in items_of(made, epoch, range(25))]
    for turn in range(12 * 25 // n_items):
        assert sorted(drawn[turn * n_items : (turn + 1) * n_items]) == list(range(n_items))
    assert drawn[:n_items] != drawn[n_items : 2 * n_items]
    twice = mixture(shop, MixedTask("search", share=2.0))
    assert set(Counter(items_of(twice, 0, range(len(twice)))).values()) == {2}


def test_an_epoch_over_the_end_of_a_turn_orders_the_rows_twice(shop, monkeypatch):
    """Its samples come in a random order, from both sides of the end."""
    made = mixture(shop, MixedTask("search", share=0.75))
    wanted = [items_of(made, 1, [i])[0] for i in range(len(made))]
    drawn = []
    monkeypatch.setattr("genrec.prompts.mixture.rng", lambda *key: drawn.append(key) or rng(*key))
    again = mixture(shop, MixedTask("search", share=0.75))
    for i in np.random.default_rng(0).permutation(len(again)).tolist():
        assert items_of(again, 1, [i])[0] == wanted[i]
    assert len([key for key in drawn if "order of rows" in key]) == 2


def test_words_are_drawn_anew_every_epoch(shop):
    made = mixture(shop, MixedTask("sequential"))
    wordings = [[made.example(epoch, i).wording for i in range(60)] for epoch in (0, 1)]
    assert wordings[0] != wordings[1]
    assert set(wordings[0]) == set(range(6))


def test_rows_without_words_are_not_drawn(shop):
    descriptions = {f"A fine thing, number {n}." for n in range(0, len(shop.catalog), 3)}
    made = mixture(shop, MixedTask("text_from_item"))
    found = [made.example(0, i) for i in range(len(made))]
    assert None not in found
    assert {s.value for e in found for s in e.target if str(s.value).startswith("A fine")} <= descriptions
    with pytest.raises(DataError, match="no row of 'users'"):
        mixture(shop, MixedTask("user_history"))


def test_users_are_dropped_where_a_history_is_told(shop):
    chosen = MixtureSettings((MixedTask("personal"), MixedTask("user_history")))
    always, some = (TaskMixture(chosen, shop.data(with_users=True), seed=3, user_drop=p) for p in (0.0, 0.3))
    counts = Counter()
    for i in range(len(some)):
        whole, found = always.example(1, i), some.example(1, i)
        users = [s.value for s in found.prompt if s.role == "user"]
        counts[found.task, users == [UNKNOWN_USER]] += 1
        assert (found.wording, found.target) == (whole.wording, whole.target)  # nothing else is drawn otherwise
    dropped, told = counts["personal", True], counts["personal", False]
    assert 0.15 < dropped / (dropped + told) < 0.45 and not counts["user_history", True]
    assert [some.example(1, i) for i in range(9)] == [some.example(1, i) for i in range(9)]


def test_an_attempt_is_another_row_and_a_shorter_history_the_same(shop):
    made = mixture(shop, MixedTask("sequential"))
    i = next(i for i in range(len(made)) if len([s for s in made.example(0, i).prompt if s.role == "item"]) > 4)
    whole, short = made.example(0, i), made.example(0, i, max_items=2)
    assert (short.wording, short.target) == (whole.wording, whole.target)
    assert [s for s in short.prompt if s.role == "item"] == [s for s in whole.prompt if s.role == "item"][-2:]
    assert len({made.example(0, i, attempt=n).target for n in range(8)}) > 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("tasks: []", "at least one"),
        ("tasks: [{task: search}, {task: search, template: other.jinja}]", "every task once, got search"),
        ("tasks: [{task: search, share: 0.5, samples: 3}]", "one of share, samples, weight"),
        ("tasks: [{task: search, share: 0}]", "positive"),
        ("tasks: [{task: search, weight: 1.0}]", "samples_per_epoch"),
        ("tasks: [{task: search}]\nsamples_per_epoch: 9", "a weight for every task"),
        ("tasks: [{task: search}]\nmax_items: 0", "max_items"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(recipe, message):
    with pytest.raises(ConfigError, match=message):
        recipes.load(recipe + "\n", MixtureSettings)


def test_the_recipe_of_the_workbench(shop):
    made = TaskMixture(
        recipes.load(workbench.find("prompts/alignment.yaml"), MixtureSettings).value, shop.data(), seed=0
    )
    assert {"sequential", "item_from_text", "text_from_item", "fused", "search"} <= set(made.describe())
    assert all(
        made.example(0, int(i)) is not None for i in np.linspace(0, len(made) - 1, 20) if made.task_of(int(i)) < 5
    )
