"""The generator against its own distribution: enumeration, frequencies, symmetry, planted structure."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.data.synthetic import Oracle, SyntheticSettings, make, oracle_scores, tiny
from genrec.data.synthetic_truth import SyntheticTruth, walk
from genrec.data.synthetic_words import BRANDS, DEPARTMENTS
from genrec.errors import ConfigError, DataError
from genrec.seeding import rng


def small_truth(seed: int, n_items: int = 6, n_clusters: int = 3, n_tastes: int = 2) -> SyntheticTruth:
    draw = rng(seed, "small")
    cluster = draw.permutation(np.arange(n_items) % n_clusters).astype(np.int32)
    appeal = draw.random((n_tastes, n_items)) + 0.01
    for c in range(n_clusters):
        appeal[:, cluster == c] /= appeal[:, cluster == c].sum(axis=1, keepdims=True)
    moves = draw.random((n_clusters, n_clusters)) * (draw.random((n_clusters, n_clusters)) < 0.7)
    moves += 0.2 * np.eye(n_clusters)
    noise = draw.random(n_items)
    return SyntheticTruth(
        transitions=moves / moves.sum(axis=1, keepdims=True),
        appeal=appeal,
        noise_items=noise / noise.sum(),
        noise=0.3,
        taste_prior=np.array([0.25, 0.75]) if n_tastes == 2 else np.full(n_tastes, 1 / n_tastes),
        cluster=cluster,
        brand=np.zeros(n_items, np.int32),
        cluster_names=tuple(("top", str(c)) for c in range(n_clusters)),
    )


def joint(truth: SyntheticTruth, items: list[int]) -> float:
    """P(items) by summing over every taste and every path of (noise or not, cluster): no filtering."""

    def draw_chance(taste: int, at: int, item: int) -> dict[int, float]:
        to = int(truth.cluster[item])
        chance = {at: truth.noise * truth.noise_items[item]}
        moved = (1 - truth.noise) * truth.transitions[at, to] * truth.appeal[taste, item]
        chance[to] = chance.get(to, 0.0) + moved
        return chance

    def rest(taste: int, at: int, done: int) -> float:
        if done == len(items):
            return 1.0
        new = [i for i in range(truth.n_items) if i not in items[:done]]
        mass = sum(sum(draw_chance(taste, at, i).values()) for i in new)
        options = draw_chance(taste, at, items[done])
        return sum(p / mass * rest(taste, to, done + 1) for to, p in options.items())

    n_clusters = len(truth.transitions)
    return sum(
        truth.taste_prior[p] / n_clusters * rest(p, c, 0) for p in range(len(truth.appeal)) for c in range(n_clusters)
    )


@given(st.integers(0, 10_000), st.integers(0, 4))
@settings(max_examples=12, deadline=None)
def test_oracle_equals_enumeration(seed, length):
    truth = small_truth(seed)
    history = rng(seed, "history").permutation(truth.n_items)[:length].tolist()
    scores = oracle_scores(truth, Histories.from_lists([history]))[0]
    past = joint(truth, history)
    expected = [0.0 if i in history else joint(truth, [*history, i]) / past for i in range(truth.n_items)]
    np.testing.assert_allclose(scores, expected, rtol=1e-10, atol=1e-14)


def test_oracle_rows_are_distributions_over_new_items():
    data = make(tiny(seed=3))
    histories = data.interactions.histories()
    scores = oracle_scores(data.truth, histories)
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, rtol=1e-10)
    received = np.zeros(scores.shape, bool)
    received[histories.rows(), histories.items] = True
    assert np.array_equal(scores == 0, received)  # noise makes every other item possible


def test_oracle_chances_come_true():
    data = make(tiny(n_items=300, n_users=3000))
    whole = data.interactions.histories()
    known = Histories.from_slices(whole.items, whole.offsets[:-1], whole.offsets[1:] - 1)
    target = whole.items[whole.offsets[1:] - 1]
    scores = oracle_scores(data.truth, known)
    chance = np.sort(scores, axis=1)[:, -10:].sum(axis=1)  # that the target is among the ten best
    hits = (scores > scores[np.arange(len(target)), target][:, None]).sum(axis=1) < 10
    assert abs(hits.sum() - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())
    by_chance = np.argsort(chance)
    for third in np.array_split(by_chance, 3):  # right for the certain and for the uncertain alike
        spread = np.sqrt((chance[third] * (1 - chance[third])).sum())
        assert abs(hits[third].sum() - chance[third].sum()) < 4 * spread


def test_no_two_items_tie():
    data = make(tiny())
    scores = oracle_scores(data.truth, Histories.from_lists([[], [3]]))
    assert all(len(set(row[row > 0].tolist())) >= 59 for row in scores)


def test_oracle_does_not_depend_on_the_other_rows():
    data = make(tiny())
    histories = data.interactions.histories()
    one_by_one = [oracle_scores(data.truth, histories.take([u]))[0] for u in range(10)]
    np.testing.assert_allclose(oracle_scores(data.truth, histories)[:10], one_by_one, rtol=1e-12)


def test_generated_events_are_as_frequent_as_the_oracle_says():
    truth = replace(small_truth(5, n_items=8, n_clusters=4), transitions=np.roll(np.eye(4), 1, axis=1))
    n = 100_000
    taste = rng(1, "taste").choice(2, size=n, p=truth.taste_prior).astype(np.int32)
    items = walk(replace(truth, taste=taste), 3, rng(1, "walk"))
    for start in ([], [0], *([0, i] for i in range(1, 8))):
        rows = (items[:, : len(start)] == start).all(axis=1)
        found = np.bincount(items[rows, len(start)], minlength=truth.n_items)
        expected = oracle_scores(truth, Histories.from_lists([start]))[0]
        deviation = np.sqrt(rows.sum() * expected * (1 - expected))
        assert rows.sum() > 200
        assert np.all(np.abs(found - rows.sum() * expected) <= 4.5 * deviation + 1e-9)


def test_renumbering_the_items_renumbers_the_scores():
    data = make(tiny(seed=1))
    truth, histories = data.truth, data.interactions.histories()
    new_of_old = rng(0, "shuffle").permutation(truth.n_items)
    old_of_new = np.argsort(new_of_old)
    moved = replace(
        truth,
        appeal=truth.appeal[:, old_of_new],
        noise_items=truth.noise_items[old_of_new],
        cluster=truth.cluster[old_of_new],
        brand=truth.brand[old_of_new],
    )
    renumbered = Histories(histories.offsets, new_of_old[histories.items].astype(np.int32))
    scores = oracle_scores(moved, renumbered)
    np.testing.assert_allclose(scores[:, new_of_old], oracle_scores(truth, histories), rtol=1e-10)


def test_item_numbers_carry_no_information():
    data = make(SyntheticSettings(n_users=50))
    numbers = np.arange(data.truth.n_items)
    for label in (data.truth.cluster, data.truth.brand, data.truth.noise_items):
        assert abs(np.corrcoef(numbers, label)[0, 1]) < 4 / np.sqrt(len(numbers))


def test_structure_is_readable_in_the_text():
    data = make(tiny())
    nouns = {leaf: words for leaves in DEPARTMENTS.values() for leaf, words in leaves.items()}
    brands = data.catalog.text("brand")
    for n, title in enumerate(data.catalog.text("title")):
        top, leaf = data.truth.cluster_names[data.truth.cluster[n]]
        assert any(noun in title for noun in nouns[leaf])
        assert data.catalog.fields["categories"][n] == [top, leaf]
        assert title.startswith(brands[n]) and brands[n] == BRANDS[data.truth.brand[n]]


def test_word_lists_name_one_cluster_each():
    nouns = [noun for leaves in DEPARTMENTS.values() for words in leaves.values() for noun in words]
    assert len(set(nouns)) == len(nouns)
    assert len(set(BRANDS)) == len(BRANDS)


def test_same_settings_same_data_and_other_seed_other_data():
    one, two, other = make(tiny(seed=2)), make(tiny(seed=2)), make(tiny(seed=4))
    assert one.catalog.fields == two.catalog.fields and one.catalog.ids == two.catalog.ids
    assert np.array_equal(one.interactions.item, two.interactions.item)
    assert np.array_equal(one.interactions.time, two.interactions.time)
    assert one.catalog.ids != other.catalog.ids


def test_users_never_repeat_an_item_and_time_rises():
    s = tiny()
    data = make(s)
    events = data.interactions
    assert events.catalog == data.catalog.fingerprint and events.n_items == s.n_items
    histories = events.histories()
    assert len(histories) == s.n_users
    assert s.min_length <= histories.lengths.min() and histories.lengths.max() <= s.max_length
    for row in histories:
        assert len(set(row.tolist())) == len(row)
    same_user = events.user[1:] == events.user[:-1]
    assert np.all(np.diff(events.time)[same_user] > 0)


def test_fewer_users_are_the_same_shop():
    many, few = make(tiny(n_users=80)), make(tiny(n_users=20))
    assert many.catalog.ids == few.catalog.ids
    assert np.array_equal(many.truth.appeal, few.truth.appeal)
    assert np.array_equal(many.truth.taste[:20], few.truth.taste)


def test_planted_walk_is_found_and_a_wrong_truth_is_not():
    data = make(tiny(successors=(1.0,), stay=0.0, noise=0.01, loyalty=0.0, n_items=240, max_length=12))
    histories = data.interactions.histories()
    known = Histories.from_slices(histories.items, histories.offsets[:-1], histories.offsets[1:] - 1)
    target = histories.items[histories.offsets[1:] - 1]

    def top_cluster(truth):
        best = oracle_scores(truth, known).argmax(axis=1)
        return float(np.mean(data.truth.cluster[best] == data.truth.cluster[target]))

    assert top_cluster(data.truth) > 0.9
    backwards = replace(data.truth, transitions=data.truth.transitions.T)
    assert top_cluster(backwards) < 0.5


def test_transitions_enter_every_cluster_equally_often():
    transitions = make(tiny(stay=0.2)).truth.transitions
    np.testing.assert_allclose(transitions.sum(axis=0), 1.0)
    np.testing.assert_allclose(transitions.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.diag(transitions), 0.2)
    assert np.all((transitions > 0).sum(axis=1) == 3)


def test_loyal_users_take_preferred_brands():
    data = make(tiny(loyalty=1.0, noise=1e-6, n_users=200, n_brands=2, n_tastes=2, n_items=120))
    n_brands = [len(set(data.truth.brand[row].tolist())) for row in data.interactions.histories()]
    assert np.mean(np.array(n_brands) == 1) > 0.9  # a second brand only where the first has run out


def test_oracle_is_a_recommender_that_scores_every_item():
    data = make(tiny())
    histories = data.interactions.histories()
    oracle = Oracle(data.truth)
    scores = oracle.score_all(histories)
    assert oracle.n_items == 60 and scores.dtype == np.float32
    np.testing.assert_allclose(scores, oracle_scores(data.truth, histories), rtol=1e-6)


@pytest.mark.parametrize("history", [[1, 2, 1], [60], [-1]])
def test_oracle_refuses_impossible_histories(history):
    with pytest.raises(DataError):
        oracle_scores(make(tiny()).truth, Histories.from_lists([[0], history]))


@pytest.mark.parametrize(
    "change",
    [
        {"n_items": 3},
        {"noise": 0.0},
        {"noise": 1.5},
        {"loyalty": -0.1},
        {"stay": 1.0},
        {"successors": (0.5, 0.4)},
        {"successors": ()},
        {"successors": (0.1,) * 10},
        {"n_departments": 9},
        {"brands_per_taste": 6},
        {"max_length": 31},
        {"mean_length": 2.0},
        {"nonsense": 1},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        tiny(**change)
