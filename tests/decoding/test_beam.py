import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding.beam import beam_search
from genrec.decoding.exact import score_items
from genrec.decoding.index import CatalogIndex
from genrec.decoding.listing import list_items
from genrec.decoding.select import DeviceIndex, best
from genrec.decoding.steps import TorchStep
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.oracles import beam_scores, dict_trie, exhaustive_scores, expected_ranks
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts

CPU = torch.device("cpu")


def build(codes, keep=None):
    return CatalogIndex.build(codes, keep=keep)


@st.composite
def cases(draw, ragged=None, max_items=12):
    n = draw(st.integers(1, max_items))
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    row = st.tuples(*(st.integers(0, k - 1) for k in sizes))
    rows = np.array(draw(st.lists(row, min_size=n, max_size=n)))
    if draw(st.booleans()) if ragged is None else ragged:
        lengths = np.array(draw(st.lists(st.integers(1, len(sizes)), min_size=n, max_size=n)))
        rows = np.where(np.arange(len(sizes)) < lengths[:, None], rows, -1)
    return ItemCodes.from_int(rows, sizes, "catalog")


def search(codes, logp, rows, *, n_beams, normalize="vocab", deny=None, index=None, top_k=None, step=None):
    index = index or build(codes)
    found = beam_search(
        ScriptedScorer(logp),
        DeviceIndex(index, CPU),
        row_prompts(rows),
        n_beams=n_beams,
        normalize=normalize,
        deny=deny,
        step=step,
    )
    listed = list_items(
        index, found.leaves, found.scores, top_k=top_k, normalize=normalize, deny=deny, pruned=found.pruned
    )
    return found, listed


def listed_scores(listed, row, n_items):
    out = np.full(n_items, -np.inf)
    real = listed.items[row] >= 0
    out[listed.items[row][real]] = listed.scores[row][real]
    return out


@pytest.mark.parametrize("step", [None, TorchStep])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_enough_beams_are_an_exhaustive_search(step, data):
    """Ragged or not, collisions, ties, both normalisers, denied items: scores and expected ranks of all."""
    codes = data.draw(cases())
    n = codes.n_items
    grid = data.draw(st.sampled_from([None, 0.25]))
    normalize = data.draw(st.sampled_from(["vocab", "children"]))
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)), grid=grid)
    denied = [data.draw(st.lists(st.integers(0, n - 1), max_size=2 * n)) for _ in range(2)]
    _, listed = search(
        codes, logp, [4, 7], n_beams=n, normalize=normalize, deny=Histories.from_lists(denied), step=step
    )
    trie = dict_trie(codes.as_int(), ragged=codes.ragged) if normalize == "children" else None
    for row, name in enumerate([4, 7]):
        slow = exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=name, ragged=codes.ragged, trie=trie)
        slow[denied[row]] = -np.inf
        got = listed_scores(listed, row, n)
        np.testing.assert_allclose(got, slow, atol=1e-5)
        if grid is not None and trie is None:
            real = listed.items[row] >= 0
            expected = expected_ranks(slow)[listed.items[row][real]]
            assert listed.ranks[row][real].tolist() == expected.tolist()
        assert listed.certified[row]


@pytest.mark.parametrize("step", [None, TorchStep])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_few_beams_with_ties_agree_with_the_python_loop(step, data):
    codes = data.draw(cases(ragged=False, max_items=20))
    grid = data.draw(st.sampled_from([None, 0.5]))
    logp = random_logp(codes.level_sizes, ragged=False, seed=data.draw(st.integers(0, 99)), grid=grid)
    n_beams = data.draw(st.integers(1, 4))
    index = build(codes)
    found, _ = search(codes, logp, [3], n_beams=n_beams, index=index, step=step)
    slow = beam_scores(dict_trie(codes.as_int(), ragged=False), codes.n_levels, logp, row=3, n_beams=n_beams)
    leaves = found.leaves[0][found.leaves[0] >= 0]
    items = index.items[index.leaf_ranks[leaves]]
    assert [tuple(row) for row in codes.as_int()[items].tolist()] == [prefix for prefix, _ in slow]
    np.testing.assert_allclose(found.scores[0][: len(slow)], [s for _, s in slow], atol=1e-5)


@pytest.mark.parametrize("normalize", ["vocab", "level"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_denying_items_equals_an_index_without_them_so_no_beam_is_wasted(normalize, data):
    codes = data.draw(cases(max_items=16))
    n = codes.n_items
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    n_beams = data.draw(st.integers(1, 4))
    denied = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1)))
    keep = np.ones(n, dtype=bool)
    keep[denied] = False
    how = {"n_beams": n_beams, "normalize": normalize}
    _, listed = search(codes, logp, [1], **how, deny=Histories.from_lists([denied]))
    _, rebuilt = search(codes, logp, [1], **how, index=build(codes, keep))
    assert listed.items.tolist() == rebuilt.items.tolist()
    assert listed.scores.tolist() == rebuilt.scores.tolist()
    assert listed.ranks.tolist() == rebuilt.ranks.tolist()


@pytest.mark.parametrize("normalize", ["vocab", "level", "children"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_denying_items_changes_no_score_of_the_others(normalize, data):
    """What is denied keeps its probability: its siblings under "children" gain nothing."""
    codes = data.draw(cases(max_items=16))
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    denied = sorted(data.draw(st.sets(st.integers(0, codes.n_items - 1), max_size=codes.n_items - 1)))
    how = {"n_beams": codes.n_items, "normalize": normalize}
    _, everything = search(codes, logp, [1], **how)
    _, rest = search(codes, logp, [1], **how, deny=Histories.from_lists([denied]))
    expected = listed_scores(everything, 0, codes.n_items)
    expected[denied] = -np.inf
    np.testing.assert_allclose(listed_scores(rest, 0, codes.n_items), expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_rows_do_not_influence_each_other(data):
    codes = data.draw(cases())
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=1, grid=0.5)
    rows = data.draw(st.permutations([0, 1, 2, 3]))
    deny = [[] if row == 2 else [row % codes.n_items, 0] for row in rows]
    found, _ = search(codes, logp, rows, n_beams=3, deny=Histories.from_lists(deny))
    for place, row in enumerate(rows):
        alone, _ = search(codes, logp, [row], n_beams=3, deny=Histories.from_lists([deny[place]]))
        assert found.leaves[place].tolist() == alone.leaves[0].tolist()
        assert found.scores[place].tolist() == alone.scores[0].tolist()
        assert found.pruned[place] == alone.pruned[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_certified_list_is_the_exact_one(data):
    codes = data.draw(cases(max_items=20))
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    k = data.draw(st.integers(1, 3))
    _, listed = search(codes, logp, [0], n_beams=data.draw(st.integers(1, 5)), top_k=k)
    slow = exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=0, ragged=codes.ragged)
    if listed.certified[0]:
        exact = np.sort(slow)[::-1][:k]
        np.testing.assert_allclose(listed.scores[0, : len(exact)], exact, atol=1e-5)


@pytest.mark.parametrize("normalize", ["vocab", "children"])
def test_no_certificate_is_wrong_whichever_way_an_identifier_was_dropped(normalize):
    """Ragged identifiers are dropped in four ways: each alone would make a wrong list look exact."""
    random = np.random.default_rng(0)
    n_certified = 0
    for seed in range(250):
        rows = random.integers(0, 3, (12, 2))
        rows[:, 1] = np.where(random.random(12) < 0.5, -1, rows[:, 1])
        codes = ItemCodes.from_int(rows, (3, 3), "c")
        n_beams, top_k = random.integers(1, 5), random.integers(1, 8)
        logp = random_logp((3, 3), ragged=codes.ragged, seed=seed)
        denied = random.integers(0, 12, 3)
        deny = Histories.from_lists([denied])
        _, listed = search(codes, logp, [0], n_beams=int(n_beams), normalize=normalize, deny=deny, top_k=int(top_k))
        if listed.certified[0]:
            trie = dict_trie(codes.as_int(), ragged=codes.ragged) if normalize == "children" else None
            slow = exhaustive_scores(codes.as_int(), (3, 3), logp, row=0, ragged=codes.ragged, trie=trie)
            slow[denied] = -np.inf
            np.testing.assert_allclose(listed.scores[0], np.sort(slow)[::-1][:top_k], atol=1e-5)
            n_certified += 1
    assert 50 < n_certified < 250


def test_certificates_are_given_and_refused():
    rows = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), axis=1)
    codes = ItemCodes.from_int(rows, (4, 4, 4), "c")
    logp = random_logp((4, 4, 4), ragged=False, seed=0)
    given_ = [search(codes, logp, [row], n_beams=2, top_k=2)[1].certified[0] for row in range(20)]
    assert 0 < sum(given_) < 20


@pytest.mark.parametrize("normalize", ["vocab", "children"])
def test_scores_of_items_equal_those_of_the_search(normalize):
    rows = np.random.default_rng(0).integers(0, 3, (25, 3))
    rows[::4, 2] = -1
    rows[::8, 1] = -1
    codes = ItemCodes.from_int(rows, (3, 3, 3), "c")
    index = build(codes)
    logp = random_logp((3, 3, 3), ragged=True, seed=2)
    _, listed = search(codes, logp, [0, 1], n_beams=25, normalize=normalize, index=index)
    items = np.array([[3, 0, -1, 24, 3], [8, 1, 2, -1, 16]])
    got = score_items(ScriptedScorer(logp), DeviceIndex(index, CPU), row_prompts([0, 1]), items, normalize=normalize)
    for row in range(2):
        all_scores = listed_scores(listed, row, 25)
        expected = np.where(items[row] >= 0, all_scores[items[row]], -np.inf)
        np.testing.assert_allclose(got[row], expected, atol=1e-5)
    with pytest.raises(DataError, match="not in the index"):
        part = DeviceIndex(build(codes, np.arange(25) > 0), CPU)
        score_items(ScriptedScorer(logp), part, row_prompts([0]), np.array([[0]]), normalize=normalize)


def test_first_step_has_one_beam_and_no_step_has_more_than_there_are_prefixes():
    rows = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), axis=1)
    index = build(ItemCodes.from_int(rows, (3, 3, 3), "c"))
    scorer = ScriptedScorer(random_logp((3, 3, 3), ragged=False, seed=0))
    found = beam_search(scorer, DeviceIndex(index, CPU), row_prompts([0, 1]), n_beams=5, normalize="vocab")
    assert scorer.shapes == [(2, 1), (2, 3), (2, 5)]
    assert found.leaves.shape == (2, 5)


def test_everything_denied_finds_nothing():
    codes = ItemCodes.from_int([[0, 0], [1, 0]], (2, 2), "c")
    logp = random_logp((2, 2), ragged=False, seed=0)
    found, listed = search(codes, logp, [0, 1], n_beams=2, deny=Histories.from_lists([[1, 0], [0]]), top_k=2)
    assert (found.leaves[0] == -1).all() and np.isneginf(found.scores[0]).all()
    assert listed.items.tolist() == [[-1, -1], [1, -1]]
    assert listed.n_identifiers.tolist() == [0, 1]


def test_a_model_that_returns_nan_is_an_error():
    codes = ItemCodes.from_int([[0, 0], [1, 1]], (2, 2), "c")
    good = random_logp((2, 2), ragged=False, seed=0)

    def logp(row, prefix):
        return np.full(2, -np.nan) if row == 5 and prefix == (1,) else good(row, prefix)

    with pytest.raises(DataError, match="NaN for 1 of 2 rows of the batch, first row 1"):
        search(codes, logp, [4, 5], n_beams=2)


def test_best_orders_ties_by_column_and_extremes_correctly():
    row = torch.tensor([[-1.0, 0.0, float("-inf"), -1.0, -0.0, -3.5, 2.0, -1.0]])
    columns, left = best(row, 5)
    assert columns.tolist() == [[6, 1, 4, 0, 3]] and left.tolist() == [-1.0]
    columns, left = best(row, 8)
    assert columns.tolist() == [[6, 1, 4, 0, 3, 7, 5, 2]] and left.tolist() == [float("-inf")]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30), st.integers(1, 30))
def test_best_is_a_stable_sort(values, n):
    score = torch.tensor([values], dtype=torch.float32)
    n = min(n, len(values))
    expected = np.argsort(-score.numpy()[0].astype(np.float64), kind="stable")[:n]
    assert best(score, n)[0][0].tolist() == expected.tolist()
