"""A catalog that changes under a recommender that is asked all the time."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.decoding.catalog_store import CatalogStore
from genrec.decoding.filters import ItemFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import SearchOptions
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.whole_catalog import WholeCatalog

OPTIONS = SearchOptions(top_k=60, n_beams=60)


def assert_same_lists(found, expected):
    """The same items with the same scores; all that exist are listed, so rounding may only change their order."""
    for row in range(len(found)):
        mine, theirs = (np.argsort(each.items[row]) for each in (found, expected))
        np.testing.assert_array_equal(found.items[row][mine], expected.items[row][theirs])
        np.testing.assert_allclose(found.scores[row][mine], expected.scores[row][theirs], atol=1e-5)


def rows_of(codes, items):
    return codes.as_int()[items]


def fresh(case, snapshot, **settings):
    """A recommender made for one version alone: all of its items in the index, the retired ones denied by a filter."""
    made = GenerativeRecommender(
        case.model, case.token_map, snapshot.codes, snapshot.index, DecodingSettings(**settings)
    )
    return made, ItemFilter.of_mask(~snapshot.retired, snapshot.codes.catalog)


@pytest.mark.parametrize("normalize", ["level", "children"])
def test_each_version_answers_as_a_recommender_of_its_own(case, normalize):
    recommender = case.recommender(loss=normalize)
    named = {"some": ItemFilter.of_items(range(0, 40, 3), 40, case.codes.catalog)}
    store = CatalogStore(CatalogSnapshot.of(case.codes, filters=named), publish=recommender.swap)
    assert recommender.recommend(case.histories, OPTIONS).version == 0
    store.retire([1, 2, 3])
    versions = [store.snapshot]
    versions.append(store.add(rows_of(case.codes, [5, 6]), catalog="more", new=True).result())
    versions.append(store.retire([41]))
    versions.append(store.merge().result())
    store.close()
    for snapshot in versions:
        recommender.swap(snapshot)
        alone, live = fresh(case, snapshot, loss=normalize)
        assert recommender.n_items == alone.n_items == snapshot.n_items
        for asked, allowed in (
            (OPTIONS, live),
            (replace(OPTIONS, filter="some"), snapshot.filters["some"] & live),
            (replace(OPTIONS, filter=[None, "~some", None, "some", None]), None),
        ):
            found = recommender.recommend(case.histories, asked)
            assert found.version == snapshot.version
            if allowed is None:
                continue
            expected = alone.recommend(case.histories, replace(OPTIONS, filter=allowed))
            assert expected.version is None
            assert_same_lists(found, expected)
    items = np.flatnonzero(~versions[-1].retired)[-3:]
    np.testing.assert_allclose(recommender.score(case.histories, items), alone.score(case.histories, items), atol=1e-5)
    assert {41, 1, 2, 3}.isdisjoint(found.items.ravel().tolist())


def test_retired_items_score_minus_infinity_from_the_moment_on(fixed_case):
    """Whether they have left the index yet or not."""
    recommender = fixed_case.recommender()
    before = recommender.score([[3]], [7, 8, -1])
    store = CatalogStore(CatalogSnapshot.of(fixed_case.codes), publish=recommender.swap)
    for change in (lambda: store.retire([7]), lambda: store.merge().result()):
        change()
        found, every = recommender.score([[3]], [7, 8, -1]), recommender.score([[3]])
        assert found[0, 0] == every[0, 7] == found[0, 2] == -np.inf and np.isfinite(found[0, 1])
        np.testing.assert_allclose(found[0, 1], before[0, 1], atol=1e-5)
        np.testing.assert_allclose(every[0, 8], before[0, 1], atol=1e-5)
        assert np.isneginf(WholeCatalog(recommender).score_all(Histories.from_lists([[3]]))).sum() == 1
    store.close()


def test_what_the_index_needs_of_a_filter_outlives_the_versions_that_keep_the_index(fixed_case):
    recommender = fixed_case.recommender()
    some = ItemFilter.of_items(range(0, 40, 3), 40, fixed_case.codes.catalog)
    store = CatalogStore(CatalogSnapshot.of(fixed_case.codes), publish=recommender.swap)
    recommender.recommend([[3]], replace(OPTIONS, filter=some))
    kept = recommender.now._rank_filters[some]
    for retired in ([9], [12]):
        store.retire(retired)
        found = recommender.recommend([[3]], replace(OPTIONS, filter=some))
        assert recommender.now._rank_filters[some] is kept and not np.isin(retired, found.items).any()
    assert sorted(found.items[found.items >= 0]) == [n for n in range(0, 40, 3) if n not in (3, 9, 12)]
    store.merge().result()
    recommender.recommend([[3]], replace(OPTIONS, filter=some))
    assert recommender.now._rank_filters[some] is not kept
    store.close()


def test_under_children_a_retired_item_gives_its_share_away_when_it_leaves_the_index(fixed_case):
    recommender = fixed_case.recommender(loss="children")
    first = CatalogSnapshot.of(fixed_case.codes)
    recommender.swap(first)
    before = recommender.score(fixed_case.histories, np.arange(1, 40))
    recommender.swap(retired := first.retiring([0]))
    np.testing.assert_allclose(recommender.score(fixed_case.histories, np.arange(1, 40)), before, atol=1e-5)
    store = CatalogStore(retired, publish=recommender.swap)
    store.merge().result()
    store.close()
    after = recommender.score(fixed_case.histories, np.arange(1, 40))
    assert (after >= before - 1e-5).all()
    assert np.isneginf(recommender.score(fixed_case.histories, [0])).all()


def test_new_items_are_read_and_written_by_their_ids(fixed_case):
    ids = tuple(f"item-{n}" for n in range(40))
    catalog = ItemCatalog(ids, {"title": [""] * 40}).retire(["item-7"])
    codes = replace(fixed_case.codes, catalog=catalog.fingerprint)
    model = GenerativeRecommender(fixed_case.model, fixed_case.token_map, codes, CatalogIndex.build(codes))
    model._load_catalog = lambda: catalog
    assert model.catalog is catalog
    store = CatalogStore(CatalogSnapshot.of(codes, catalog=catalog), publish=model.swap)
    assert np.flatnonzero(store.snapshot.retired).tolist() == [7]
    before = model.recommend([[1]], OPTIONS)
    later = catalog.append(["new-a", "new-b"], {})
    store.add(rows_of(codes, [5, 6]), catalog=later).result()
    found = model.recommend([["item-1", "new-b"]], OPTIONS)
    assert model.catalog is later
    assert sorted(found.to_ids(model.catalog)[0]) == sorted({*later.ids} - {"item-1", "item-7", "new-b"})
    assert before.to_ids(later) == before.to_ids(catalog)
    with pytest.raises(DataError, match=r"expected 0\.\.39"):
        found.to_ids(catalog)
    store.add(rows_of(codes, [5]), catalog="a fingerprint alone").result()
    assert model.catalog is catalog and store.snapshot.n_items == 43
    store.close()


def test_the_catalog_of_new_items_goes_on_where_the_present_one_ends(fixed_case):
    catalog = ItemCatalog(tuple(f"item-{n}" for n in range(40)), {"title": [""] * 40})
    codes = replace(fixed_case.codes, catalog=catalog.fingerprint)
    store = CatalogStore(CatalogSnapshot.of(codes, catalog=catalog))
    other = ItemCatalog(tuple(f"item-{n}" for n in range(1, 42)), {"title": [""] * 41})
    same = ItemCatalog((*catalog.ids, "new"), {"title": [""] * 41})  # not appended, and the same all the same
    with pytest.raises(FingerprintMismatch, match="does not begin with"):
        store.add(rows_of(codes, [5]), catalog=other).result()
    with pytest.raises(DataError, match="2 identifiers, and the catalog has 1 more"):
        store.add(rows_of(codes, [5, 6]), catalog=same).result()
    assert store.add(rows_of(codes, [5]), catalog=same).result().catalog is same
    with pytest.raises(FingerprintMismatch, match="codes belong to catalog"):
        CatalogSnapshot.of(codes, catalog=other)
    store.close()


def test_what_cannot_be_swapped_in(fixed_case):
    recommender = fixed_case.recommender()
    with pytest.raises(ConfigError, match="no named filters"):
        recommender.recommend(fixed_case.histories, SearchOptions(filter="some"))
    other = ItemCodes.from_int(np.roll(fixed_case.codes.as_int(), 1, axis=0), fixed_case.codes.level_sizes, "c")
    for codes in (other, ItemCodes.from_int(fixed_case.codes.as_int(), (4, 3, 6), "c")):
        with pytest.raises(FingerprintMismatch, match="do not begin with"):
            recommender.swap(CatalogSnapshot.of(codes))
    assert recommender.recommend(fixed_case.histories).version is None


def test_every_answer_under_fire_is_that_of_exactly_one_version(fixed_case):
    """Readers hammer while a writer adds and retires: each list is the list of the version that it names."""
    recommender = fixed_case.recommender()
    seen = {}

    def publish(snapshot):
        recommender.swap(snapshot)
        seen[snapshot.version] = snapshot

    some = {"some": ItemFilter.of_items(range(0, 40, 3), 40, fixed_case.codes.catalog)}
    store = CatalogStore(CatalogSnapshot.of(fixed_case.codes, filters=some), publish=publish)
    asked = [OPTIONS, replace(OPTIONS, filter="some"), replace(OPTIONS, filter="~some")]
    answers, errors, done = [], [], threading.Event()

    def read(number):
        histories = fixed_case.histories.take([number, number + 1])
        while not done.is_set():
            try:
                answers.append((number, recommender.recommend(histories, asked[number])))
            except Exception as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for each in readers:
        each.start()
    random = np.random.default_rng(0)
    while len(answers) < 3:
        pass
    for turn in range(6):
        rows = rows_of(fixed_case.codes, random.integers(0, 40, 2))
        waiting = store.add(rows, catalog=f"version {turn}", new=turn % 2 == 0)
        store.retire(random.integers(0, 40, 2))
        waiting.result()
        n_answers = len(answers)
        while len(answers) < n_answers + 2 and not errors:
            pass
    done.set()
    for each in readers:
        each.join()
    store.close()
    assert errors == [] and store.snapshot.version == 12 and store.snapshot.n_items == 52
    assert len({found.version for _, found in answers}) >= 4
    expected = {}
    for number, found in answers:
        key = (number, found.version)
        if key not in expected:
            alone, live = fresh(fixed_case, seen[found.version])
            named = seen[found.version].filters
            live = live & named[asked[number].filter] if asked[number].filter else live
            histories = fixed_case.histories.take([number, number + 1])
            expected[key] = alone.recommend(histories, replace(OPTIONS, filter=live))
        assert_same_lists(found, expected[key])
