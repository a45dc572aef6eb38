import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.decoding.catalog_store import CatalogStore
from genrec.decoding.filters import ItemFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Recommender, SearchOptions
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.models.cold import ColdDrafting, ColdSettings
from genrec.models.recommender import GenerativeRecommender
from genrec.models.whole_catalog import WholeCatalog

N = 40
COLD = np.arange(24, 40)
VECTORS = np.random.default_rng(5).normal(size=(N, 6)).astype(np.float32)


def drafting(case, cold=COLD, vectors=VECTORS, **settings):
    return ColdDrafting(case.recommender(), ItemEmbeddings(vectors, "c"), cold, ColdSettings(**settings))


def brute_force(case, history, wanted, *, n_places, taken, allowed=None, **settings):
    """The drafts of one user in their order, item by item."""
    how = ColdSettings(**settings)
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    profile = sum(how.decay ** (len(history) - 1 - place) * unit[item] for place, item in enumerate(history))
    profile = profile / sum(how.decay**age for age in range(len(history)))
    open_ = [i for i in COLD if i not in taken and not (wanted.exclude_seen and i in history)]
    open_ = [i for i in open_ if allowed is None or allowed.mask[i]]
    nearest = sorted(open_, key=lambda item: -float(profile @ unit[item]))[: how.n_drafts]
    content = np.array([profile @ unit[item] for item in nearest])
    logp = case.recommender().score([history], nearest)[0]
    worth = (content - content.mean()) / content.std() + how.score_weight * (logp - logp.mean()) / logp.std()
    return [nearest[place] for place in np.argsort(-worth)][:n_places]


@pytest.mark.parametrize("settings", [{}, {"score_weight": 0.0}, {"score_weight": 3.0, "n_drafts": 6, "decay": 0.5}])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_drafts_and_the_rest_are_those_of_brute_force(fixed_case, settings, exclude_seen):
    histories = Histories.from_lists([[30, 2, 5], [25, 39, 1, 8], [3]])
    options = SearchOptions(top_k=10, n_beams=12, exclude_seen=exclude_seen)
    plain = fixed_case.recommender().recommend(histories, options)
    got = drafting(fixed_case, **settings).recommend(histories, options)
    assert isinstance(drafting(fixed_case), Recommender)
    assert got.items.shape == (3, 10) and got.certified is None
    assert got.drafted.sum(axis=1).tolist() == [2, 2, 2] and got.drafted[:, [4, 9]].all()  # every fifth place
    for row, history in enumerate(histories):
        kept = plain.items[row, :8].tolist()
        drafts = brute_force(fixed_case, history.tolist(), options, n_places=2, taken=kept, **settings)
        assert got.items[row][got.drafted[row]].tolist() == drafts
        assert got.items[row][~got.drafted[row]].tolist() == kept
        assert len(set(got.items[row].tolist())) == 10
        scores = fixed_case.recommender().score([history], got.items[row])[0]
        np.testing.assert_allclose(got.scores[row], scores, atol=1e-5)
    assert got.ranks.tolist() == [list(range(1, 11))] * 3


@pytest.mark.parametrize("quota", [0.0, 0.1, 0.2, 0.3, 0.5])
def test_every_beginning_of_a_list_keeps_the_quota(case, quota):
    histories = Histories.from_lists([[1, 2], [7]])
    got = drafting(case, quota=quota).recommend(histories, SearchOptions(top_k=10, n_beams=40))
    upto = np.cumsum(got.drafted, axis=1)
    assert upto.tolist() == [[int(np.floor(p * quota + 1e-9)) for p in range(1, 11)]] * 2
    assert np.isin(got.items[got.drafted], COLD).all()
    assert all(len(set(row)) == 10 for row in got.items.tolist())
    if quota == 0:
        assert got.items.tolist() == case.recommender().recommend(histories, SearchOptions(n_beams=40)).items.tolist()


def test_filters_seen_items_and_a_lack_of_drafts(fixed_case):
    """Three allowed cold items of which one was seen: two drafts in places 2 and 4, then the model's own go on."""
    allowed = ItemFilter.of_items([*range(12), 30, 31, 32], N)
    histories = Histories.from_lists([[31, 4], [4]])
    options = SearchOptions(top_k=8, n_beams=40, filter=[allowed, None])
    cold = np.array([30, 31, 32])
    got = drafting(fixed_case, cold, quota=0.5).recommend(histories, options)
    plain = fixed_case.recommender().recommend(histories, options)
    drafted = got.items[0][got.drafted[0]].tolist()
    assert set(drafted) <= {30, 32} and len(drafted) == 2 - len({30, 32} & set(plain.items[0, :4].tolist()))
    rest = [item for item in plain.items[0].tolist() if item not in drafted]
    assert got.items[0][~got.drafted[0]].tolist() == rest[: 8 - len(drafted)]
    assert 31 not in got.items[0].tolist() and allowed.mask[got.items[0]].all()
    assert got.drafted[1].sum() == 3 - len(set(cold.tolist()) & set(plain.items[1, :4].tolist()))


def test_what_cannot_be_drafted(fixed_case):
    """Histories and items of which nothing is known, items outside the index, no cold items at all."""
    vectors = VECTORS.copy()
    vectors[[3, 25]] = 0
    keep = np.arange(N) != 26
    index = CatalogIndex.build(fixed_case.codes, keep=keep)
    model = GenerativeRecommender(fixed_case.model, fixed_case.token_map, fixed_case.codes, index)
    histories, options = Histories.from_lists([[3], [], [1, 2]]), SearchOptions(top_k=5, n_beams=40)
    got = ColdDrafting(model, vectors, np.array([25, 26, 27]), ColdSettings(quota=0.6)).recommend(histories, options)
    assert not got.drafted[:2].any() and set(got.items[2][got.drafted[2]].tolist()) <= {27}
    assert (got.items >= 0).all()
    nothing = ColdDrafting(model, vectors, np.zeros(N, dtype=bool)).recommend(histories, options)
    assert nothing.items.tolist() == model.recommend(histories, options).items.tolist()


def test_a_batch_is_its_rows_and_everything_found_keeps_the_quota(fixed_case):
    histories = Histories.from_lists([[1, 30], [7], [9, 2, 4]])
    model, options = drafting(fixed_case), SearchOptions(top_k=None, n_beams=8)
    together = model.recommend(histories, options)
    assert np.cumsum(together.drafted, axis=1)[:, 9].tolist() == [2, 2, 2]
    for row in range(3):
        alone = model.recommend(histories.take([row]), options)
        length = int((alone.items[0] >= 0).sum())
        assert together.items[row, :length].tolist() == alone.items[0, :length].tolist()
    assert len(model.recommend(histories.take([]), options)) == 0


def test_impossible_settings_and_inputs_are_refused(fixed_case):
    for wrong in ({"quota": 1.0}, {"quota": -0.1}, {"n_drafts": 0}, {"decay": 0.0}, {"score_weight": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ColdSettings(**wrong)
    with pytest.raises(DataError, match="one row for each of 40 items"):
        drafting(fixed_case, vectors=VECTORS[:3])
    with pytest.raises(DataError, match="cold_items: expected item numbers"):
        drafting(fixed_case, cold=np.array([40]))
    with pytest.raises(DataError, match="cold_items: expected 40 flags"):
        drafting(fixed_case, cold=np.zeros(3, dtype=bool))


def test_a_catalog_that_changes_in_service(fixed_case):
    """Retired items are not drafted, names of filters are known, histories may hold items added later."""
    recommender = fixed_case.recommender()
    drafter = ColdDrafting(recommender, VECTORS, COLD, ColdSettings(quota=0.5))
    named = {"some": ItemFilter.of_items(range(0, N, 2), N, fixed_case.codes.catalog)}
    store = CatalogStore(CatalogSnapshot.of(fixed_case.codes, filters=named), publish=recommender.swap)
    store.retire(COLD[::4])
    store.add(fixed_case.codes.as_int()[[5, 6]], catalog="more", new=False).result()
    store.close()
    histories = Histories.from_lists([[1, 41], [40], [2, 3]])
    got = drafter.recommend(histories, SearchOptions(top_k=10, n_beams=42, filter=[None, None, "some"]))
    assert got.version == store.snapshot.version and drafter.n_items == N + 2
    assert got.drafted[0].sum() == 5 and not got.drafted[1].any()  # of item 40 nothing is known
    assert not np.isin(got.items, COLD[::4]).any() and (got.items[2][got.items[2] >= 0] % 2 == 0).all()
    scores = WholeCatalog(recommender).score_all(histories)
    assert np.isneginf(scores[:, COLD[::4]]).all() and np.isfinite(scores[:, [0, 40, 41]]).all()
