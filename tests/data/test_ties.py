import itertools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data import ties
from genrec.data.interactions import Interactions
from genrec.data.parts import predefined_parts
from genrec.data.splits import Split, leave_one_out, predefined_split, time_split
from genrec.data.ties import redraw, tied_with_previous
from genrec.errors import DataError
from genrec.seeding import rng

few = settings(max_examples=60, deadline=None)
events = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.integers(0, 3)), max_size=25)


def make(rows):
    users, items, times = [list(c) for c in zip(*rows, strict=True)] if rows else ([], [], [])
    return Interactions.from_arrays(users, items, times, n_items=6, catalog="f" * 32)


@few
@given(events, st.integers(0, 3))
def test_redraw_permutes_inside_blocks_of_one_user_and_time_only(rows, epoch):
    log = make(rows)
    tied = tied_with_previous(log.user, log.time)
    before = log.item.copy()
    got = redraw(log.item, tied, seed=0, epoch=epoch)
    assert np.array_equal(log.item, before)
    for user, time in set(zip(log.user.tolist(), log.time.tolist(), strict=True)):
        block = np.flatnonzero((log.user == user) & (log.time == time))
        assert sorted(got[block]) == sorted(log.item[block])
        assert tied[block].tolist() == [False] + [True] * (len(block) - 1)
    assert np.array_equal(got, redraw(log.item, tied, seed=0, epoch=epoch))
    assert redraw(log.item, None, seed=0, epoch=epoch) is log.item


def test_every_order_of_a_block_is_as_likely_and_epochs_differ():
    tied = np.array([False, True, True, False])
    orders = [tuple(redraw(np.arange(4, dtype=np.int32), tied, seed=1, epoch=e)) for e in range(1200)]
    counts = Counter(orders)
    assert set(counts) == {(*p, 3) for p in itertools.permutations(range(3))}
    assert min(counts.values()) > 150


def test_only_events_of_blocks_are_drawn_for(monkeypatch):
    """One tie in many events costs no more than one tie."""
    sizes = []

    def watch(*names):
        source = rng(*names)
        return SimpleNamespace(random=lambda n: sizes.append(n) or source.random(n))

    monkeypatch.setattr(ties, "rng", watch)
    items, tied = np.arange(1000, dtype=np.int32), np.zeros(1000, np.bool_)
    tied[[1, 500, 501, 999]] = True
    drawn = {tuple(redraw(items, tied, seed=0, epoch=e)) for e in range(40)}
    assert set(sizes) == {7} and len(drawn) > 10
    for order in drawn:
        assert {n for n in range(1000) if order[n] != n} <= {0, 1, 499, 500, 501, 998, 999}


@few
@given(events)
def test_a_split_tells_the_ties_of_its_train_part(rows):
    log = make(rows)
    for cut in (leave_one_out(log), time_split(log, cuts=(1, 2))):
        assert cut.tied is None and cut.train_ties() is None
        opened = cut.open_ties(log)
        opened.check_leakage(log)
        marks = opened.train_ties()
        at = 0
        for user, row in enumerate(cut.train()):
            times = np.sort(log.time[log.user == user], kind="stable")[: len(row)]
            want = [n > 0 and times[n] == times[n - 1] for n in range(len(row))]
            assert marks[at : at + len(row)].tolist() == want
            at += len(row)
        assert at == len(marks)


def test_marks_are_kept_and_wrong_ones_are_found(tmp_path):
    log = make([("a", 0, 1), ("a", 1, 1), ("a", 2, 1), ("a", 3, 2), ("b", 4, 2), ("b", 5, 2)])
    cut = leave_one_out(log).open_ties(log)
    assert cut.tied.tolist() == [False, True, True, False, False, True]
    cut.save(tmp_path / "split")
    assert Split.load(tmp_path / "split").tied.tolist() == cut.tied.tolist()
    for wrong in (cut.tied[:-1], np.ones(6, np.bool_)):
        with pytest.raises(DataError, match="tie marks"):
            replace(cut, tied=wrong)
    with pytest.raises(DataError, match="different times"):
        replace(cut, tied=np.array([False, True, True, True, False, True])).check_leakage(log)
    with pytest.raises(DataError, match="rows"):
        replace(cut, rows=None).open_ties(log)


def test_the_neutral_order_is_the_one_it_always_was():
    """Literal results of the first release: splits made then and now are the same for the same seed."""
    rows = [("a", n, n // 5) for n in range(10)] + [("b", n, 0) for n in range(6)]
    log = Interactions.from_arrays(*zip(*rows, strict=True), n_items=10, catalog="f" * 32)
    order = [0, 2, 1, 4, 3, 7, 6, 5, 9, 8, 0, 1, 3, 5, 2, 4]
    assert log.order_ties("neutral", 7).item.tolist() == order
    cut = leave_one_out(log.order_ties("neutral", 7))
    assert cut.items.tolist() == order
    assert cut.queries("test").targets.to_lists() == [[8], [4]]
    assert log.order_ties("neutral", 7, within=np.zeros(16, np.int8)).item.tolist() == order


PARTS = np.array(["train", "valid", "test"], object)


@few
@given(events, st.integers(0, 9), st.data())
def test_ties_of_a_predefined_split_stay_inside_their_part(rows, seed, data):
    """One time in several parts, in any order of the file: accepted for every seed, and no event changes its part."""
    rows = sorted(rows, key=lambda row: row[2])
    latest = {}
    names = []
    for user, _, time in rows:  # parts rise with the time; inside one time anything goes
        low, before = latest.get(user, (0, time))
        low = low if before == time else max(part for who, when, part in names if (who, when) == (user, before))
        latest[user] = (low, time)
        names.append((user, time, data.draw(st.integers(low, 2))))
    part = [n for _, _, n in names]
    log = Interactions.from_arrays(
        [u for u, _, _ in rows], [i for _, i, _ in rows], [t for _, _, t in rows],
        n_items=6, catalog="f" * 32, columns={"split": PARTS[part], "place": np.arange(len(rows))},
    )  # fmt: skip
    ordered = log.order_ties("neutral", seed, within=predefined_parts(log, "split"))
    assert ordered.time.tolist() == log.time.tolist() and ordered.user.tolist() == log.user.tolist()
    cut = predefined_split(ordered)
    assert PARTS[cut.parts()].tolist() == ordered.columns["split"].tolist()
    for place, name, item in zip(*(ordered.columns[k] for k in ("place", "split")), ordered.item, strict=True):
        assert (PARTS[part[place]], rows[place][1]) == (name, item)

    cut = replace(cut, rows=np.argsort(log.columns["place"])[ordered.columns["place"]]).open_ties(log)
    part, times = cut.parts(), log.time[cut.rows]
    inside = (log.user[cut.rows][1:] == log.user[cut.rows][:-1]) & (part[1:] == part[:-1])
    assert cut.tied[1:].tolist() == (inside & (times[1:] == times[:-1])).tolist()  # not from one part to the next
    train = cut.train()
    drawn = redraw(train.items, cut.train_ties(), seed=seed, epoch=1)
    for user, row in enumerate(train):
        mine = drawn[train.offsets[user] : train.offsets[user + 1]]
        assert sorted(mine) == sorted(row)  # nothing of valid or test, nothing of another user


def test_every_order_inside_a_part_occurs_and_no_other():
    rows = [(f"u{n}", i, 0) for n in range(300) for i in range(5)]
    users, items, times = zip(*rows, strict=True)
    part = np.tile([1, 0, 0, 2, 0], 300)  # the file has valid before train
    log = Interactions.from_arrays(users, items, times, n_items=6, catalog="f" * 32, columns={"split": PARTS[part]})
    ordered = log.order_ties("neutral", 3, within=predefined_parts(log, "split"))
    counts = Counter(map(tuple, ordered.item.reshape(300, 5).tolist()))
    assert set(counts) == {(*p, 0, 3) for p in itertools.permutations((1, 2, 4))}
    assert min(counts.values()) > 25
    with pytest.raises(DataError, match="after a 'valid' event"):
        predefined_split(log)  # as the file has it
