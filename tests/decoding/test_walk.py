import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding import exact
from genrec.decoding.exact import score_items
from genrec.decoding.index import CatalogIndex
from genrec.decoding.select import DeviceIndex
from genrec.decoding.walk import n_prefixes
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.oracles import dict_trie, exhaustive_scores
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts

CPU = torch.device("cpu")


def build(codes, keep=None):
    return CatalogIndex.build(codes, keep=keep)


@st.composite
def catalogs(draw):
    """Few codes, so that identifiers collide and prefixes are shared; fixed or ragged, 1 to 4 levels."""
    n = draw(st.integers(1, 14))
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    rows = np.array(draw(st.lists(st.tuples(*(st.integers(0, k - 1) for k in sizes)), min_size=n, max_size=n)))
    if draw(st.booleans()):
        lengths = np.array(draw(st.lists(st.integers(1, len(sizes)), min_size=n, max_size=n)))
        rows = np.where(np.arange(len(sizes)) < lengths[:, None], rows, -1)
    return ItemCodes.from_int(rows, sizes, "catalog")


class Counting(ScriptedScorer):
    """Notes the prefixes that it is fed with."""

    def __init__(self, logp):
        super().__init__(logp)
        self.fed = []

    def step(self, state, parents_BW, codes_BW):
        found = super().step(state, parents_BW, codes_BW)
        self.fed.append([list(beams) for beams in state.prefixes])
        return found


def slow_scores(codes, logp, row, normalize, keep=None):
    kept = None if keep is None else np.flatnonzero(keep).tolist()
    trie = dict_trie(codes.as_int(), ragged=codes.ragged, keep=kept) if normalize == "children" else None
    if keep is None or trie is None:
        return exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=row, ragged=codes.ragged, trie=trie)
    some = codes.as_int()[keep]
    out = np.full(codes.n_items, -np.inf)
    out[keep] = exhaustive_scores(some, codes.level_sizes, logp, row=row, ragged=codes.ragged, trie=trie)
    return out


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_scores_are_those_of_every_item_alone(data):
    """Per row or the same for all, padding, repeats, collisions, ragged, small blocks, against one prefix at a time."""
    codes = data.draw(catalogs())
    n, rows = codes.n_items, [4, 7, 9]
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    normalize = data.draw(st.sampled_from(["vocab", "children"]))
    m = data.draw(st.integers(0, 2 * n))
    item = st.integers(-1, n - 1)
    shared = data.draw(st.booleans())
    asked = np.array(data.draw(st.lists(item, min_size=m * (1 if shared else 3), max_size=m * (1 if shared else 3))))
    asked = asked.astype(np.int64) if shared else asked.reshape(3, m).astype(np.int64)
    width = data.draw(st.integers(1, 4))
    scorer = Counting(logp)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "PREFIXES_AT_ONCE", width)
        got = score_items(scorer, DeviceIndex(build(codes), CPU), row_prompts(rows), asked, normalize=normalize)
    assert got.shape == (3, m) and got.dtype == np.float32
    assert all(n_beams <= width for _, n_beams in scorer.shapes)
    for row, items in enumerate(np.broadcast_to(asked, (3, m))):
        expected = np.where(items >= 0, slow_scores(codes, logp, rows[row], normalize)[items], -np.inf)
        np.testing.assert_allclose(got[row], expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_whole_catalog_and_what_is_outside_the_index(data):
    codes = data.draw(catalogs())
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=codes.n_items, max_size=codes.n_items)))
    keep[0] = True
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=1)
    normalize = data.draw(st.sampled_from(["vocab", "children"]))
    index = DeviceIndex(build(codes, keep), CPU)
    got = score_items(ScriptedScorer(logp), index, row_prompts([0, 5]), None, normalize=normalize)
    for row, name in enumerate([0, 5]):
        expected = np.where(keep, slow_scores(codes, logp, name, normalize, keep), -np.inf)
        np.testing.assert_allclose(got[row], expected, atol=1e-5)


def test_every_prefix_is_fed_once():
    """Of 60 items below 3 x 4 prefixes, the scorer sees 1, 3 and 12, not 60 at each level."""
    rows = np.stack(np.unravel_index(np.arange(60), (3, 4, 5)), axis=1)
    codes = ItemCodes.from_int(rows, (3, 4, 5), "c")
    index = DeviceIndex(build(codes), CPU)
    scorer = Counting(random_logp((3, 4, 5), ragged=False, seed=0))
    score_items(scorer, index, row_prompts([0, 1]), None, normalize="level")
    assert scorer.shapes == [(2, 1), (2, 3), (2, 12)]
    for fed in scorer.fed:
        assert all(len(set(beams)) == len(beams) for beams in fed)
    assert n_prefixes(index.host, np.arange(60)) == 12 and n_prefixes(index.host, np.arange(5)) == 1


def test_rows_of_unequal_size_are_walked_together():
    codes = ItemCodes.from_int(np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), axis=1), (4, 4, 4), "c")
    logp = random_logp((4, 4, 4), ragged=False, seed=3)
    asked = np.full((3, 64), -1)
    asked[0, :1], asked[2] = 5, np.random.default_rng(0).permutation(64)
    index, rows = DeviceIndex(build(codes), CPU), [0, 1, 2]
    got = score_items(ScriptedScorer(logp), index, row_prompts(rows), asked, normalize="children")
    for row in rows:
        alone = score_items(ScriptedScorer(logp), index, row_prompts([row]), asked[row : row + 1], normalize="children")
        assert alone[0].tolist() == got[row].tolist()
    assert np.isneginf(got[1]).all() and np.isfinite(got[2]).all()


def test_items_that_do_not_exist_and_models_that_return_nan_are_errors():
    codes = ItemCodes.from_int([[0, 0], [1, 1]], (2, 2), "c")
    index = DeviceIndex(build(codes), CPU)
    good = random_logp((2, 2), ragged=False, seed=0)
    with pytest.raises(DataError, match="item 2 is not in the index"):
        score_items(ScriptedScorer(good), index, row_prompts([0]), np.array([[1, 2]]), normalize="vocab")
    with pytest.raises(DataError, match="NaN"):
        broken = ScriptedScorer(lambda row, prefix: np.full(2, np.nan) if prefix else good(row, prefix))
        score_items(broken, index, row_prompts([0]), np.array([0]), normalize="vocab")


@pytest.mark.parametrize("normalize", ["vocab", "level", "children"])
@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_infinity_beside_the_items_that_are_asked_for_is_an_error(normalize, wrong):
    """Divided by an infinite total, every item would score minus infinity without a word."""

    class Broken(ScriptedScorer):
        def step(self, state, parents, codes):
            found = super().step(state, parents, codes)
            found.values_BWS[..., 1] = torch.where(torch.tensor(codes is not None), wrong, found.values_BWS[..., 1])
            return found if normalize == "vocab" else type(found)(found.values_BWS)

    index = DeviceIndex(CatalogIndex.build(ItemCodes.from_int([[0, 0], [1, 1]], (2, 2), "c")), CPU)
    scorer = Broken(random_logp((2, 2), ragged=False, seed=0))
    with pytest.raises(DataError, match="inf or NaN"):
        score_items(scorer, index, row_prompts([0]), np.array([0]), normalize=normalize)


@pytest.mark.parametrize("normalize", ["vocab", "level", "children"])
def test_a_code_that_the_model_rules_out_scores_minus_infinity(normalize):
    """Also where nothing else follows, and its total is minus infinity too."""
    codes = ItemCodes.from_int([[0, 0], [1, 1]], (2, 2), "c")

    def logp(row, prefix):
        return np.array([-np.inf, -np.inf] if prefix == (1,) else [-0.5, -1.5])

    class Unnormalised(ScriptedScorer):
        def step(self, state, parents, codes):
            found = super().step(state, parents, codes)
            return found if normalize == "vocab" else type(found)(found.values_BWS)

    index = DeviceIndex(CatalogIndex.build(codes), torch.device("cpu"))
    found = score_items(Unnormalised(logp), index, row_prompts([0]), np.array([[0, 1]]), normalize=normalize)
    assert np.isfinite(found[0, 0]) and found[0, 1] == -np.inf
