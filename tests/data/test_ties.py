import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.interactions import Interactions
from genrec.data.splits import Split, leave_one_out, time_split
from genrec.data.ties import redraw, tied_with_previous
from genrec.errors import DataError

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
