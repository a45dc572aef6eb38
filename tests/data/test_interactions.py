import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.interactions import Interactions
from genrec.errors import ArtifactError, DataError

few = settings(max_examples=60, deadline=None)
N = 6
events = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, N - 1), st.integers(0, 3)), max_size=25)


def make(rows, *, timed=True, **columns):
    users, items, times = [list(c) for c in zip(*rows, strict=True)] if rows else ([], [], [])
    columns.setdefault("place", np.arange(len(rows)))
    return Interactions.from_arrays(
        users, items, times if timed else None, n_items=N, catalog="f" * 32, columns=columns
    )


def as_tuples(inter):
    ids = [inter.user_ids[u] for u in inter.user.tolist()]
    return list(zip(ids, inter.item.tolist(), inter.time.tolist(), inter.columns["place"].tolist(), strict=True))


@few
@given(events)
def test_sorted_by_user_then_time_then_input_order(rows):
    order = list(dict.fromkeys(u for u, _, _ in rows))
    expected = sorted(
        ((u, i, t, place) for place, (u, i, t) in enumerate(rows)),
        key=lambda e: (order.index(e[0]), e[2], e[3]),
    )
    inter = make(rows)
    assert list(inter.user_ids) == order
    assert as_tuples(inter) == expected
    assert inter.histories().to_lists() == [[e[1] for e in expected if e[0] == u] for u in order]


@few
@given(events)
def test_without_time_the_position_in_the_user_takes_its_place(rows):
    inter = make(rows, timed=False)
    for u in range(inter.n_users):
        of_user = inter.user == u
        assert inter.time[of_user].tolist() == list(range(int(of_user.sum())))
        assert inter.columns["place"][of_user].tolist() == sorted(inter.columns["place"][of_user].tolist())


@few
@given(events, st.integers(0, 5))
def test_neutral_ties_stay_inside_their_block(rows, seed):
    inter = make(rows)
    neutral = inter.order_ties("neutral", seed)
    # same events, same (user, time) at every place: only members of one block can have changed places
    assert sorted(as_tuples(neutral)) == sorted(as_tuples(inter))
    assert neutral.user.tolist() == inter.user.tolist() and neutral.time.tolist() == inter.time.tolist()
    assert as_tuples(inter.order_ties("neutral", seed)) == as_tuples(neutral)


@few
@given(events)
def test_the_file_rule_changes_nothing(rows):
    inter = make(rows)
    assert as_tuples(inter.order_ties("file", 3)) == as_tuples(inter)


def test_neutral_ties_are_uniform_over_orders_and_blind_to_items():
    # 300 users with the same three tied events: each of the 6 orders occurs about 50 times
    rows = [(f"u{n}", i, 0) for n in range(300) for i in (0, 1, 2)]
    neutral = make(rows).order_ties("neutral", 11)
    orders, counts = np.unique(neutral.item.reshape(300, 3), axis=0, return_counts=True)
    assert len(orders) == 6 and counts.min() > 15 and counts.max() < 95
    # other items at the same places: the same permutation
    renamed = make([(u, 5 - i, t) for u, i, t in rows]).order_ties("neutral", 11)
    assert (5 - renamed.item).tolist() == neutral.item.tolist()
    assert make(rows).order_ties("neutral", 12).item.tolist() != neutral.item.tolist()


def test_bad_tie_rule_is_refused():
    with pytest.raises(DataError, match="'file' or 'neutral'"):
        make([]).order_ties("random")


@few
@given(events, st.data())
def test_keep_drops_events_and_optionally_users(rows, data):
    inter = make(rows)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    expected = [e for e, yes in zip(as_tuples(inter), mask, strict=True) if yes]
    assert as_tuples(inter.keep(mask)) == expected
    assert set(inter.keep(mask).user_ids) == {e[0] for e in expected}
    stay = inter.keep(mask, drop_users=False)
    assert as_tuples(stay) == expected and stay.user_ids == inter.user_ids


def test_save_and_load_give_equal_events(tmp_path):
    inter = make(
        [("b", 1, 5), ("a", 2, 1), ("b", 0, -(2**63))],
        rating=[1.5, np.nan, 2.0],
        split=np.array(["train", None, "é"], object),
        locale=["de", "", "fr"],
        clicked=np.array([True, False, True]),
    )
    inter.save(tmp_path / "log")
    again = Interactions.load(tmp_path / "log")
    assert as_tuples(again) == as_tuples(inter)
    assert (again.n_items, again.catalog, again.user_ids) == (N, "f" * 32, ("b", "a"))
    for name, values in inter.columns.items():
        assert again.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(again.columns[name], values)


def test_same_events_same_bytes(tmp_path):
    def digest(folder):
        files = sorted(p for p in folder.iterdir() if p.suffix == ".parquet")
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]

    rows = [("b", 1, 5), ("a", 2, 1), ("a", 3, 1), ("a", 4, 1)]
    for name in ("one", "two"):
        make(rows).order_ties("neutral", 1).save(tmp_path / name)
    assert len(digest(tmp_path / "one")) == 3 and digest(tmp_path / "one") == digest(tmp_path / "two")


def test_save_refuses_objects_and_an_existing_folder(tmp_path):
    bad = make([("a", 1, 1)], thing=np.array([{"x": 1}], object))
    with pytest.raises(DataError, match="column 'thing'"):
        bad.save(tmp_path / "bad")
    make([("a", 1, 1)]).save(tmp_path / "log")
    with pytest.raises(ArtifactError):
        make([("a", 1, 1)]).save(tmp_path / "log")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"item": [0, N]}, "item: expected numbers in 0..5"),
        ({"item": [0, -1]}, "item: expected numbers"),
        ({"item": [0]}, "item: expected 2 values"),
        ({"item": [0.5, 1]}, "item: expected integers"),
        ({"time": np.array([0, 2**63], np.uint64)}, "time: values outside int64"),
        ({"time": [0.0, np.nan]}, "time: expected integers"),
        ({"time": [1]}, "time: expected 2 values"),
        ({"columns": {"rating": [1.0]}}, "rating: expected 2 values"),
        ({"columns": {"rating": [[1.0], [2.0]]}}, "one dimension"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    given_ = {"item": [0, 1], "time": [0, 1], "columns": {}} | change
    with pytest.raises(DataError, match=message):
        Interactions.from_arrays(["a", "b"], **given_, n_items=N, catalog="f")


def test_unsorted_events_are_refused_by_the_constructor():
    for user, time in (([1, 0], [0, 0]), ([0, 0], [1, 0])):
        with pytest.raises(DataError, match="not sorted"):
            Interactions(("a", "b"), np.array(user), np.array([0, 0]), np.array(time), N, "f")


def test_masks_of_another_shape_are_refused():
    with pytest.raises(DataError, match="mask"):
        make([("a", 1, 1)]).keep(np.array([1]))
