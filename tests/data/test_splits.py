import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.interactions import Interactions
from genrec.data.splits import Split, held_out_items, leave_one_out, predefined_split, time_split
from genrec.errors import ArtifactError, ConfigError, DataError

few = settings(max_examples=60, deadline=None)
N = 6
events = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, N - 1), st.integers(0, 9)), max_size=25)


def make(rows, **columns):
    users, items, times = [list(c) for c in zip(*rows, strict=True)] if rows else ([], [], [])
    return Interactions.from_arrays(users, items, times, n_items=N, catalog="f" * 32, columns=columns)


def per_user(inter):
    """Each user's events as (item, time), oldest first: what the slow versions work on."""
    pairs = list(zip(inter.item.tolist(), inter.time.tolist(), strict=True))
    return [[p for p, u in zip(pairs, inter.user.tolist(), strict=True) if u == user] for user in range(inter.n_users)]


def check(split, parts):
    """``parts``: for every user the lists of train, valid and test items of a slow version."""
    assert split.train().to_lists() == [train for train, _, _ in parts]
    dropped = {"valid": 0, "test": 0}
    for part in ("valid", "test"):
        asked = []
        for user, (train, valid, test) in enumerate(parts):
            history, targets = (train, valid) if part == "valid" else (train + valid, test)
            if targets and history:
                asked.append((user, history, targets))
            elif targets:
                dropped[part] += 1
        queries = split.queries(part)
        got = zip(queries.users.tolist(), queries.histories.to_lists(), queries.targets.to_lists(), strict=True)
        assert list(got) == asked and len(queries) == len(asked)
    assert split.rule["dropped_queries"] == dropped


@few
@given(events, st.integers(3, 5))
def test_leave_one_out_agrees_with_a_loop(rows, min_length):
    inter = make(rows)
    parts = []
    for history in per_user(inter):
        items = [i for i, _ in history]
        whole = len(items) < min_length
        parts.append((items, [], []) if whole else (items[:-2], items[-2:-1], items[-1:]))
    check(leave_one_out(inter, min_length), parts)


@few
@given(events, st.integers(-1, 10), st.integers(0, 4))
def test_time_split_agrees_with_a_loop(rows, first, more):
    inter = make(rows)
    cuts = (first, first + more)
    parts = [
        (
            [i for i, t in history if t <= cuts[0]],
            [i for i, t in history if cuts[0] < t <= cuts[1]],
            [i for i, t in history if t > cuts[1]],
        )
        for history in per_user(inter)
    ]
    check(time_split(inter, cuts=cuts), parts)


def test_time_split_by_fractions_gives_ties_to_the_earlier_part():
    times = [0, 1, 2, 3, 4, 5, 5, 5, 8, 9]
    inter = make([("a", n % N, t) for n, t in enumerate(times)])
    split = time_split(inter, valid_fraction=0.2, test_fraction=0.2)
    # the 6th of 10 events has time 5, and so have the two after it; the 8th has time 5, too
    assert split.rule["cuts"] == [5, 5]
    assert [int((split.parts() == p).sum()) for p in range(3)] == [8, 0, 2]
    even = time_split(make([("a", n % N, n) for n in range(10)]), valid_fraction=0.2, test_fraction=0.3)
    assert [int((even.parts() == p).sum()) for p in range(3)] == [5, 2, 3]


@few
@given(events, st.data())
def test_predefined_parts_are_kept_or_refused_in_the_wrong_order(rows, data):
    names = data.draw(st.lists(st.sampled_from(["train", "valid", "test"]), min_size=len(rows), max_size=len(rows)))
    inter = make(rows, split=np.array(names, object))
    columns = inter.columns["split"].tolist()
    order = ["train", "valid", "test"]
    parts, sorted_ = [], True
    for user, history in enumerate(per_user(inter)):
        mine = [c for c, u in zip(columns, inter.user.tolist(), strict=True) if u == user]
        sorted_ &= mine == sorted(mine, key=order.index)
        parts.append(tuple([i for (i, _), c in zip(history, mine, strict=True) if c == p] for p in order))
    if sorted_:
        check(predefined_split(inter), parts)
    else:
        with pytest.raises(DataError, match="after a"):
            predefined_split(inter)


def test_predefined_errors_name_user_column_and_value():
    rows = [("a", 0, 0), ("bob", 1, 0), ("bob", 2, 1)]
    with pytest.raises(DataError, match=r"user 'bob' has a 'train' event \(time 1\) after a 'test'"):
        predefined_split(make(rows, split=["train", "test", "train"]))
    with pytest.raises(DataError, match=r"got 'dev' .user 'bob'"):
        predefined_split(make(rows, split=["train", "dev", "test"]))
    with pytest.raises(DataError, match=r"'fold' .* is missing; columns found: split"):
        predefined_split(make(rows, split=["train"] * 3), column="fold")


def slow_held_out(history, cold):
    """Train, valid, test of one user, by the words of the docstring."""
    target = None
    for place, (item, _) in enumerate(history):
        if item in cold and any(i not in cold for i, _ in history[:place]):
            target = place
    warm = [i for i, _ in (history if target is None else history[:target]) if i not in cold]
    test = [] if target is None else [history[target][0]]
    if len(warm) + len(test) >= 3:
        return warm[:-1], warm[-1:], test
    return warm, [], test


@few
@given(events, st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(0, 3))
def test_held_out_items_agree_with_a_loop(rows, fraction, seed):
    inter = make(rows)
    if not rows:
        return
    split = held_out_items(inter, fraction, seed)
    cold = set(split.rule["held_out_items"])
    assert len(cold) == max(1, round(fraction * len(set(inter.item.tolist()))))
    check(split, [slow_held_out(history, cold) for history in per_user(inter)])
    assert not cold & set(split.items[split.parts() < 2].tolist())
    assert held_out_items(inter, fraction, seed).items.tolist() == split.items.tolist()


@few
@given(events)
def test_every_split_passes_its_leakage_check_and_reaches_its_events(rows):
    inter = make(rows)
    splits = [leave_one_out(inter), time_split(inter, cuts=(3, 6)), time_split(inter)]
    if rows:
        splits.append(held_out_items(inter, 0.4, 1))
    for split in splits:
        split.check_leakage(inter)
        assert inter.item[split.rows].tolist() == split.items.tolist()
        for part in ("valid", "test"):
            queries = split.queries(part)
            assert (queries.histories.lengths > 0).all() and (queries.targets.lengths > 0).all()


ROWS = [("a", i, 10 + i) for i in range(4)] + [("b", i, 20 + i) for i in (3, 2, 5)]


@pytest.mark.parametrize(
    "name, change",
    [
        ("test begins before valid", lambda s: {"valid_end": s.train_end - 1}),
        ("train reaches into the next user", lambda s: {"train_end": s.train_end + 3}),
        ("an event is used twice", lambda s: {"rows": np.array([0, 1, 2, 2, 4, 5, 6])}),
        ("too few rows", lambda s: {"rows": s.rows[:-1]}),
        ("an unknown item", lambda s: {"items": s.items + N}),
        ("a negative item", lambda s: {"items": s.items - 1}),
        ("an offset short", lambda s: {"offsets": s.offsets[:-1]}),
        ("cold item in train", lambda s: {"rule": {"kind": "held_out_items"}}),
    ],
)
def test_leaks_are_found_at_construction(name, change):
    split = leave_one_out(make(ROWS))
    with pytest.raises(DataError, match="split"):
        replace(split, **change(split))


def test_leaks_against_the_interactions_are_found():
    inter = make(ROWS)
    split = leave_one_out(inter)
    swapped = split.items.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    for broken in (
        replace(split, items=swapped),
        replace(split, catalog="other"),
        replace(split, rows=None),
        replace(split, rows=split.rows[::-1]),
        replace(split, rows=split.rows + 1),
        replace(split, rule={"cuts": [11, 12]}),
        replace(split, rule={"cuts": [10, 21]}),
        replace(split, rule={"cuts": [30, 30]}),
    ):
        with pytest.raises(DataError, match="split"):
            broken.check_leakage(inter)


def test_a_target_older_than_its_history_is_found():
    split, inter = leave_one_out(make(ROWS)), make(ROWS)
    object.__setattr__(inter, "time", inter.time[::-1].copy())
    with pytest.raises(DataError, match="older than its history"):
        split.check_leakage(inter)


@pytest.mark.parametrize(
    "call",
    [
        lambda i: leave_one_out(i, min_length=2),
        lambda i: time_split(i, valid_fraction=0.5, test_fraction=0.5),
        lambda i: time_split(i, valid_fraction=-0.1),
        lambda i: time_split(i, cuts=(5, 4)),
        lambda i: held_out_items(i, 0.0, 0),
        lambda i: held_out_items(i, 1.0, 0),
        lambda i: leave_one_out(i).queries("train"),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ConfigError):
        call(make(ROWS))


def test_queries_can_be_taken():
    queries = leave_one_out(make(ROWS)).queries("test")
    one = queries.take([1])
    assert (one.users.tolist(), one.histories.to_lists(), one.targets.to_lists()) == ([1], [[2, 3]], [[5]])


def test_a_sample_of_queries_is_seeded_in_order_and_never_larger_than_asked():
    rows = [(f"u{u}", item, item) for u in range(40) for item in range(3)]
    queries = leave_one_out(make(rows)).queries("valid")
    drawn = queries.sample(10, seed=1).users
    assert len(drawn) == 10 and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, queries.sample(10, seed=1).users)
    assert not np.array_equal(drawn, queries.sample(10, seed=2).users)
    np.testing.assert_array_equal(queries.sample(99, seed=1).users, queries.users)


@pytest.mark.parametrize("make_split", [leave_one_out, lambda i: held_out_items(i, 0.3, 0), time_split])
def test_save_and_load(tmp_path, make_split):
    split = make_split(make(ROWS))
    split.save(tmp_path / "split")
    again = Split.load(tmp_path / "split")
    for name in ("items", "offsets", "train_end", "valid_end", "rows"):
        np.testing.assert_array_equal(getattr(again, name), getattr(split, name))
    assert (again.n_items, again.catalog, again.rule) == (split.n_items, split.catalog, split.rule)
    with pytest.raises(ArtifactError):
        split.save(tmp_path / "split")


def test_a_split_loads_without_pyarrow_pydantic_and_torch(tmp_path):
    leave_one_out(make(ROWS)).save(tmp_path / "split")
    program = (
        "import sys\n"
        "for name in ('pyarrow', 'pydantic', 'torch', 'datasets'): sys.modules[name] = None\n"
        "from genrec.data.splits import Split\n"
        "print(len(Split.load(sys.argv[1]).queries('test')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "split")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2"


def test_the_official_games_split_has_the_published_sizes(loaded_set):
    loaded = loaded_set("amazon-games-2014-timesplit")
    split = predefined_split(loaded.interactions)
    part = split.parts()
    assert [int((part == p).sum()) for p in range(3)] == [299987, 22609, 19733]
    assert (len(split.queries("valid")), len(split.queries("test"))) == (9609, 8696)
    assert split.rule["dropped_queries"] == {"valid": 0, "test": 0}
    in_train = np.bincount(split.train().items, minlength=split.n_items) > 0
    assert int((~in_train).sum()) == 746
    assert round(100 * float((~in_train)[split.queries("test").targets.items].mean()), 2) == 28.63
