import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding.catalog_store import CatalogStore
from genrec.decoding.filters import ItemFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.namespaces import join_codes
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes

SIZES = (3, 4)


def codes_of(n, catalog="c0", seed=0, ragged=False):
    rows = np.random.default_rng(seed).integers(0, SIZES, (n, 2))
    if ragged:
        rows[::3, 1] = -1
    return ItemCodes.from_int(rows, SIZES, catalog)


@pytest.fixture
def store():
    first = CatalogSnapshot.of(
        codes_of(10),
        filters={"even": ItemFilter.of_items(range(0, 10, 2), 10, "c0"), "cheap": "price < 5"},
        fields={"price": np.arange(10), "age": np.full(10, np.nan)},
    )
    with_store = CatalogStore(first)
    yield with_store
    with_store.close()


def test_retired_items_are_filtered_away_at_once_and_left_out_of_the_next_index(store):
    first = store.snapshot
    assert first.version == 0 and first.live is None
    store.retire([3])
    now = store.retire([3, 5])
    assert now is store.snapshot and now.version == 2 and now.index is first.index and first.live is None
    assert np.flatnonzero(~now.live.mask).tolist() == [3, 5]
    merged = store.merge().result()
    assert merged.version == 3 and merged.live is None and sorted(merged.index.items) == [0, 1, 2, 4, 6, 7, 8, 9]
    with pytest.raises(DataError, match="no item would be left"):
        store.retire(range(10))
    with pytest.raises(DataError, match=r"expected item numbers 0\.\.9"):
        store.retire([10])
    assert store.snapshot is merged


@pytest.mark.parametrize("ragged", [False, True])
def test_added_items_are_found_in_the_index_of_all(ragged):
    store = CatalogStore(CatalogSnapshot.of(codes_of(9, ragged=ragged), fields={"price": np.zeros(9)}))
    store.retire([2])
    rows = codes_of(4, seed=1, ragged=ragged).as_int()
    found = store.add(rows, catalog="c1", fields={"price": [1, 2, 3, np.nan]}).result()
    store.close()
    everything = ItemCodes.from_int(np.concatenate([codes_of(9, ragged=ragged).as_int(), rows]), SIZES, "c1")
    keep = np.arange(13) != 2
    assert found.codes.fingerprint == everything.fingerprint and found.codes.extends(
        codes_of(9, ragged=ragged).fingerprint, 9, "c0"
    )
    for name, array in CatalogIndex.build(everything, keep=keep).arrays().items():
        np.testing.assert_array_equal(found.index.arrays()[name], array)
    assert found.live is None and found.retired.tolist() == (~keep).tolist()
    np.testing.assert_array_equal(found.fields["price"], [*np.zeros(9), 1, 2, 3, np.nan])


def test_fields_filters_and_conditions_follow(store):
    first = store.snapshot
    assert np.flatnonzero(first.filters["cheap & even"].mask).tolist() == [0, 2, 4]
    store.update("price", [0, 9], [50, 1])
    assert np.flatnonzero(store.snapshot.filters["cheap"].mask).tolist() == [1, 2, 3, 4, 9]
    assert np.flatnonzero(first.filters["cheap"].mask).tolist() == [0, 1, 2, 3, 4]
    store.set_filters({"old": "age >= 2"})
    grown = store.add([[0, 0]], catalog="c1", fields={"price": [2.5], "age": [3]}, new={"even": True}).result()
    assert np.flatnonzero(grown.filters["cheap"].mask).tolist() == [1, 2, 3, 4, 9, 10]
    assert np.flatnonzero(grown.filters["old"].mask).tolist() == [10]
    assert np.flatnonzero(grown.filters["even"].mask).tolist() == [0, 2, 4, 6, 8, 10]
    fixed = store.set_filters({"old": ItemFilter.of_items([1], 11, "c1")})
    assert not {"old"} & set(fixed.conditions) and len(store.update("age", [0], [9]).filters["old"]) == 1


@pytest.mark.parametrize(
    ("text", "items"),
    [("price = 3", [3]), ("price != 3", [0, 1, 2, 4]), ("price >= 3", [3, 4]), ("price <= 0", [0]), ("price > 3", [4])],
)
def test_conditions(text, items):
    snapshot = CatalogSnapshot.of(codes_of(6), fields={"price": [0, 1, 2, 3, 4, np.nan]})
    assert np.flatnonzero(snapshot.where(text).mask).tolist() == items


def test_a_retired_item_is_filtered_away_whatever_the_index_leaves_out():
    codes, keep = codes_of(10), np.arange(10) != 9
    first = CatalogSnapshot.of(codes)
    partial = first.with_index(CatalogIndex.build(codes, keep=keep))
    assert partial.live is None
    assert np.flatnonzero(~partial.retiring([0]).live.mask).tolist() == [0]


def test_flags_and_fractions_are_no_item_numbers(store):
    for wrong in (np.arange(10) == 3, [0.5]):
        with pytest.raises(DataError, match="expected item numbers, got"):
            store.retire(wrong)
    assert store.retire([]).retired.sum() == 0


def test_what_a_snapshot_refuses():
    codes = codes_of(6)
    snapshot = CatalogSnapshot.of(codes, fields={"price": np.zeros(6)})
    for wrong, message in (("cost < 3", "'cost' is not in"), ("price = red", "a number"), ("price has 3", "has")):
        with pytest.raises(ConfigError, match=message):
            snapshot.where(wrong)
    with pytest.raises(ConfigError, match="is not in the snapshot"):
        snapshot.updating("cost", [0], [1])
    with pytest.raises(DataError, match="one value for each of 6 items"):
        CatalogSnapshot.of(codes, fields={"price": np.zeros(5)})
    with pytest.raises(FingerprintMismatch, match="built from codes"):
        CatalogSnapshot(0, codes_of(6, seed=3), snapshot.index, snapshot.retired, snapshot.filters)
    with pytest.raises(FingerprintMismatch):
        snapshot.with_filters({"x": ItemFilter.of_items([0], 6, "another")})


def test_namespaces_are_filters_and_grow():
    joined = join_codes({"books": codes_of(5), "films": codes_of(4, seed=2)})
    snapshot = CatalogSnapshot.of(joined.codes, namespaces=joined.namespaces)
    store = CatalogStore(snapshot)
    assert np.flatnonzero(snapshot.filters["films"].mask).tolist() == [5, 6, 7, 8]
    grown = store.add([[4, 1], [2, 2]], catalog="more").result()
    assert np.flatnonzero(grown.filters["films"].mask).tolist() == [5, 6, 7, 8, 9]
    assert np.flatnonzero(grown.filters["books"].mask).tolist() == [0, 1, 2, 3, 4, 10]
    with pytest.raises(ConfigError, match="that of a namespace"):
        store.set_filters({"books": ItemFilter.of_items([0], 11, "more")})
    store.close()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[0, 4]], {}, "new item 0: level 1 has the codes 0..3, got 4"),
        ([[0, -1]], {}, "new item 0: expected 2 codes"),
        ([[0, 1, 1]], {}, r"integers \[M, 2\]"),
        ([[0, 1]], {"new": {}}, "filter 'even': are the 1 new items allowed"),
        ([[0, 1]], {"new": True, "fields": {"cost": 1}}, "'cost' is not in"),
        ([[0, 1]], {"new": True, "fields": {"price": [1, 2]}}, "shape"),
    ],
)
def test_a_failed_addition_leaves_everything_as_it_was(store, rows, options, message):
    before = store.snapshot
    with pytest.raises(ValueError, match=message):
        store.add(rows, catalog="c1", **options).result()
    assert store.snapshot is before
    assert store.add([[0, 1]], catalog="c1", new=True).result().n_items == 11


def test_a_version_that_cannot_be_published_is_dropped(store):
    published = []

    def publish(snapshot):
        if snapshot.version == 2:
            raise RuntimeError("the model is gone")
        published.append(snapshot.version)

    other = CatalogStore(store.snapshot, publish=publish)
    first = other.retire([0])
    with pytest.raises(RuntimeError, match="gone"):
        other.retire([1])
    with pytest.raises(RuntimeError, match="gone"):
        other.add([[0, 0]], catalog="c1", new=True).result()
    assert other.snapshot is first and published == [0, 1]
    other.close()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_order_of_changes_ends_in_the_catalog_that_a_list_of_items_says(data):
    """Every change is made to a list of dictionaries too."""
    ragged = data.draw(st.booleans())
    items = [{"price": float(n), "some": n % 3 == 0, "retired": False, "indexed": True} for n in range(6)]
    rows = codes_of(6, ragged=ragged).as_int()
    store = CatalogStore(
        CatalogSnapshot.of(
            codes_of(6, ragged=ragged),
            fields={"price": np.arange(6)},
            filters={"some": ItemFilter.of_items([0, 3], 6, "c0"), "cheap": "price < 3"},
        )
    )
    versions = [store.snapshot]
    for turn in range(data.draw(st.integers(1, 6))):
        item = data.draw(st.integers(0, len(items) - 1))
        match data.draw(st.sampled_from(["retire", "update", "add", "merge"])):
            case "retire" if sum(not each["retired"] for each in items) > 1:
                store.retire([item])
                items[item]["retired"] = True
            case "update":
                items[item]["price"] = data.draw(st.sampled_from([1.0, 9.0]))
                store.update("price", [item], [items[item]["price"]])
            case "add":
                n_new, new = data.draw(st.integers(1, 3)), data.draw(st.booleans())
                more = codes_of(n_new, seed=turn, ragged=ragged).as_int()
                store.add(more, catalog=f"c{turn + 1}", fields={"price": 2.0}, new={"some": new}).result()
                rows = np.concatenate([rows, more])
                items += [{"price": 2.0, "some": new, "retired": False} for _ in range(n_new)]
                items = [{**each, "indexed": not each["retired"]} for each in items]
            case "merge":
                store.merge().result()
                items = [{**each, "indexed": not each["retired"]} for each in items]
        versions.append(store.snapshot)
    store.close()
    now, n = store.snapshot, len(items)

    def flags(wanted):
        return np.array([wanted(each) for each in items])

    listed = now.live.mask if now.live is not None else now.index.rank_of >= 0
    assert (now.retired == flags(lambda each: each["retired"])).all() and (listed == ~now.retired).all()
    assert (now.filters["some"].mask == flags(lambda each: each["some"])).all()
    assert (now.filters["cheap"].mask == flags(lambda each: each["price"] < 3)).all()
    expected = CatalogIndex.build(now.codes, keep=flags(lambda each: each["indexed"]))
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(now.index.arrays()[name], array)
    assert now.codes.as_int().tolist() == rows.tolist() and now.n_items == n
    assert [each.version for each in versions] == sorted(each.version for each in versions)


def test_changes_during_a_merge_are_kept(store):
    started, go_on = threading.Event(), threading.Event()
    grown = CatalogIndex.grown

    def slowly_grown(*args, **options):
        started.set()
        assert go_on.wait(10)
        return grown(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CatalogIndex, "grown", slowly_grown)
        waiting = store.add([[0, 0]], catalog="c1", new=True)
        assert started.wait(10)
        store.retire([4])
        store.update("price", [1], [99])
        assert store.snapshot.n_items == 10 and store.snapshot.version == 2
        go_on.set()
        found = waiting.result()
    assert found.version == 3 and found.n_items == 11 and found.fields["price"][1] == 99
    assert 4 in found.index.items and not found.live.mask[4] and found.live.mask[10]
    assert not found.filters["cheap"].mask[1]


def test_writers_take_turns_and_no_change_is_lost(store):
    n_threads, turns = 4, 25

    def write(number):
        for turn in range(turns):
            store.update("price", [number], [turn])

    waiting = [store.add([[0, number]], catalog=f"c{number + 1}", new=False) for number in range(3)]
    threads = [threading.Thread(target=write, args=(number,)) for number in range(n_threads)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    versions = [each.result().version for each in waiting]
    assert store.snapshot.version == n_threads * turns + 3 and versions == sorted(versions)
    assert store.snapshot.fields["price"][:4].tolist() == [turns - 1] * 4 and store.snapshot.n_items == 13
