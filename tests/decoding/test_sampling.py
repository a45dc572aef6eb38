"""Draws without replacement, against the law of the model's probabilities; every seed is fixed.

Counts are compared by chi-square: a right sampler exceeds the bound in one of a million choices of seeds.
"""

from decimal import Decimal, localcontext
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from genrec.data.histories import Histories
from genrec.decoding import guided
from genrec.decoding.diverse import diverse_lists
from genrec.decoding.diversity import Interests, MaxPer
from genrec.decoding.exact import score_items
from genrec.decoding.filters import ItemFilter, RankFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import SearchOptions
from genrec.decoding.sampling import check_seed, draw, given_maximum, gumbel, row_keys
from genrec.decoding.scorer import Prompts
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import DeviceIndex
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.oracles import dict_trie, exhaustive_scores
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts

CPU = torch.device("cpu")
N_DRAWS = 4000


def build(codes):
    return CatalogIndex.build(codes)


def normalised(logp):
    """Log-probabilities that sum to 1 over the symbols of each level."""

    def out(row, prefix):
        values = logp(row, prefix)
        return values - np.logaddexp.reduce(values)

    return out


def memo(logp):
    known = {}

    def out(row, prefix):
        if (row, prefix) not in known:
            known[row, prefix] = logp(row, prefix)
        return known[row, prefix]

    return out


def drawn(codes, logp, rows, seeds, *, top_k, n_beams, denied=None, allowed=None, normalize="vocab", **how):
    """One draw for each row; denied, allowed: the same for all of them."""
    index = build(codes)
    chosen = None if allowed is None else RankFilter.of(ItemFilter.of_items(allowed, codes.n_items), index)
    prompts = row_prompts(rows)
    deny = None if denied is None else Histories.from_lists([denied] * len(rows))
    batch = Batch(prompts, deny, [chosen] * len(rows))
    wanted = SearchOptions(top_k=top_k, max_beams=how.pop("max_beams", 4096))
    search = Search(ScriptedScorer(logp), DeviceIndex(index, CPU), wanted, n_beams, normalize)
    return draw(search, batch, row_keys(prompts, seeds), **how)


def law(codes, logp, allowed, normalize="vocab"):
    """P(item) among the allowed ones: identifiers share theirs equally among all their items."""
    trie = dict_trie(codes.as_int(), ragged=codes.ragged) if normalize == "children" else None
    scores = exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=0, ragged=codes.ragged, trie=trie)
    owners = np.array([(codes.as_int() == row).all(1).sum() for row in codes.as_int()])
    p = np.where(np.isin(np.arange(len(scores)), allowed), np.exp(scores) / owners, 0.0)
    return p / p.sum()


def fits(counts, p):
    """Whether counts could be those of draws from p: chi-square, wrong once in a million."""
    counts, p = np.asarray(counts, dtype=float), np.asarray(p)
    assert (counts[p == 0] == 0).all()
    expected, found = (counts.sum() * p)[p > 0], counts[p > 0]
    rare = expected < 5  # counted together
    expected, found = (np.append(x[~rare], x[rare].sum()) for x in (expected, found))
    expected, found = expected[expected > 0], found[expected > 0]
    return ((found - expected) ** 2 / expected).sum() < chi2.isf(1e-6, len(expected) - 1)


CODES = {
    "fixed": ItemCodes.from_int(np.array([[0, 0], [0, 1], [1, 0], [1, 2], [1, 2], [2, 1], [2, 2]]), (3, 3), "c"),
    "ragged": ItemCodes.from_int(np.array([[0, -1], [0, 1], [1, 0], [1, 2], [1, 2], [2, -1], [2, 2]]), (3, 3), "c"),
}


@pytest.mark.parametrize("allowed", [None, [0, 2, 4, 6]])
@pytest.mark.parametrize("normalize", ["vocab", "children"])
@pytest.mark.parametrize("kind", ["fixed", "ragged"])
def test_the_first_item_follows_the_model_among_what_is_allowed(kind, normalize, allowed, monkeypatch):
    """From one beam, also under a filter. Codes that no item has, and what is left out, are no one's gain."""
    monkeypatch.setattr(guided, "SMALL_SET", -1)
    codes = CODES[kind]
    logp = memo(normalised(random_logp(codes.level_sizes, ragged=codes.ragged, seed=5)))
    left = [i for i in (allowed or range(7)) if i != 2]
    p = law(codes, logp, left, normalize)
    got = drawn(
        codes, logp, [0] * N_DRAWS, range(N_DRAWS), top_k=1, n_beams=1, denied=[2], allowed=allowed, normalize=normalize
    )
    assert got.exact.all() and fits(np.bincount(got.items[:, 0], minlength=7), p)


def test_renormalising_prefix_by_prefix_would_be_another_law():
    """Nearly all that is below code 0 is denied: its one other item is drawn as rarely as the model says."""
    codes = ItemCodes.from_int(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2), "c")

    def logp(row, prefix):
        return np.log({(): [0.5, 0.5], (0,): [0.9, 0.1], (1,): [0.5, 0.5]}[prefix])

    got = drawn(codes, logp, [0] * N_DRAWS, range(N_DRAWS), top_k=1, n_beams=1, denied=[0], normalize="children")
    counts = np.bincount(got.items[:, 0], minlength=4)
    assert got.exact.all() and fits(counts, np.array([0, 1, 5, 5]) / 11)
    assert not fits(counts, np.array([0, 2, 1, 1]) / 4)


@pytest.mark.parametrize("kind", ["fixed", "ragged"])
def test_the_order_of_three_follows_the_law_of_drawing_without_replacement(kind):
    """P(i, j, k) = p_i · p_j / (1 - p_i) · p_k / (1 - p_i - p_j), over all orders of four allowed items."""
    codes, allowed = CODES[kind], [0, 3, 4, 6]
    logp = memo(normalised(random_logp(codes.level_sizes, ragged=codes.ragged, seed=2)))
    p = law(codes, logp, allowed)
    got = drawn(codes, logp, [0] * N_DRAWS, range(N_DRAWS), top_k=3, n_beams=3, denied=[1, 2, 5])
    orders = list(permutations(allowed, 3))
    expected = [p[i] * p[j] / (1 - p[i]) * p[k] / (1 - p[i] - p[j]) for i, j, k in orders]
    counts = [(got.items == order).all(1).sum() for order in np.array(orders)]
    assert got.exact.all() and sum(counts) == N_DRAWS and fits(counts, expected)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_draws_are_the_largest_of_independent_noise_whatever_the_beams(data):
    """A wider search draws the same, k beams suffice where nothing is lost, and all items are a permutation."""
    kind, normalize = data.draw(st.sampled_from(["fixed", "ragged"])), data.draw(st.sampled_from(["vocab", "children"]))
    codes, seed = CODES[kind], data.draw(st.integers(-(2**40), 2**40))
    logp = memo(normalised(random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 9)))))
    denied = data.draw(st.lists(st.integers(0, 6), max_size=7))
    left = sorted(set(range(7)) - set(denied))
    how = {"denied": denied, "normalize": normalize, "temperature": data.draw(st.sampled_from([0.5, 1.0, 3.0]))}
    every = drawn(codes, logp, [0], [seed], top_k=None, n_beams=1, **how)
    items = every.items[0].tolist()
    assert sorted(items) == left and every.exact.all()
    assert (np.diff(every.perturbed[0]) < 0).all()
    for n_beams in (1, 2, 100):
        few = drawn(codes, logp, [0], [seed], top_k=3, n_beams=n_beams, **how)
        assert few.exact.all() and [i for i in few.items[0].tolist() if i >= 0] == items[:3]
        np.testing.assert_allclose(few.perturbed[0][: len(items)], every.perturbed[0][:3], rtol=1e-5)
    if normalize == "children" and not denied:
        assert drawn(codes, logp, [0], [seed], top_k=3, n_beams=3, max_beams=3, **how).exact.all()


@pytest.mark.parametrize("normalize", ["vocab", "level", "children"])
def test_log_probabilities_are_those_of_the_tempered_model(normalize):
    codes, tau = CODES["fixed"], 2.0
    logp = memo(normalised(random_logp(codes.level_sizes, ragged=False, seed=1)))
    plain = drawn(codes, logp, [0], [3], top_k=None, n_beams=9, normalize=normalize)
    warm = drawn(codes, logp, [0], [3], top_k=None, n_beams=9, normalize=normalize, temperature=tau)
    for got, model in ((plain, logp), (warm, normalised(lambda row, prefix: logp(row, prefix) / tau))):
        trie = dict_trie(codes.as_int(), ragged=False) if normalize == "children" else None
        slow = exhaustive_scores(codes.as_int(), (3, 3), model, row=0, ragged=False, trie=trie)
        slow[[3, 4]] -= np.log(2)
        np.testing.assert_allclose(got.logp[0], slow[got.items[0]], atol=1e-5)
    if normalize == "children":
        assert np.exp(plain.logp).sum() == pytest.approx(1, abs=1e-5)


def test_the_level_keeps_its_share_of_the_vocabulary_at_any_temperature():
    codes = ItemCodes.from_int(np.arange(3)[:, None], (3,), "c")

    def logp(row, prefix):
        return np.log([0.32, 0.16, 0.32])  # the other tokens have 0.2

    got = drawn(codes, logp, [0], [3], top_k=None, n_beams=3, temperature=0.5)
    expected = 0.8 * np.array([4, 1, 4]) / 9
    np.testing.assert_allclose(np.exp(got.logp[0]), expected[got.items[0]], rtol=1e-5)


def test_a_draw_does_not_depend_on_the_batch_but_on_seed_and_prompt():
    codes = ItemCodes.from_int(np.array([[a, b] for a in range(4) for b in range(4)]), (4, 4), "c")
    logp = memo(normalised(random_logp((4, 4), ragged=False, seed=1)))
    how = {"top_k": 5, "n_beams": 2, "denied": [3, 4]}
    got = drawn(codes, logp, [2, 0, 1, 0, 2], [7, 7, 7, 8, 7], **how)
    for row, (prompt, seed) in enumerate([(2, 7), (0, 7), (1, 7), (0, 8), (2, 7)]):
        alone = drawn(codes, logp, [prompt], [seed], **how)
        assert alone.items[0].tolist() == got.items[row].tolist()
        assert alone.perturbed[0].tolist() == got.perturbed[row].tolist()
    assert got.items[0].tolist() == got.items[4].tolist() and len({tuple(x) for x in got.items.tolist()}) == 4
    tokens, mask = np.array([[0, 5, 6]]), np.array([[False, True, True]])
    padded = row_keys(Prompts(np.pad(tokens, ((0, 0), (2, 0))), np.pad(mask, ((0, 0), (2, 0)))), [1])
    assert padded == row_keys(Prompts(tokens, mask), [1]) == row_keys(Prompts(tokens[:, 1:], mask[:, 1:]), [1])


def test_too_few_beams_are_said():
    """Nearly all probability is denied one by one below a prefix that lives: one beam proves nothing."""
    codes = ItemCodes.from_int(np.array([[a, b] for a in range(8) for b in range(8)]), (8, 8), "c")
    logp = memo(normalised(random_logp((8, 8), ragged=False, seed=1)))
    denied = [item for item in range(64) if item % 8]
    got = drawn(codes, logp, [0] * 20, range(20), top_k=4, n_beams=1, max_beams=4, denied=denied)
    full = drawn(codes, logp, [0] * 20, range(20), top_k=4, n_beams=1, denied=denied)
    assert full.exact.all() and not got.exact.all()
    assert (got.items >= 0).all() and not np.isin(got.items, denied).any()
    assert got.items[got.exact].tolist() == full.items[got.exact].tolist()


class Broken(ScriptedScorer):
    """Says something wrong of one code behind one beam of the first row."""

    def __init__(self, logp, wrong, beam):
        super().__init__(logp)
        self.wrong, self.beam = wrong, beam

    def step(self, state, parents, codes):
        found = super().step(state, parents, codes)
        if codes is not None:
            found.values_BWS[0, self.beam, 1] = self.wrong
        return found


@pytest.mark.parametrize("diversity", [None, MaxPer(3, depth=1), Interests(2)])
@pytest.mark.parametrize("wrong", [np.inf, np.nan])
@pytest.mark.parametrize("normalize", ["vocab", "children"])
def test_a_broken_model_is_an_error_and_what_it_says_of_dead_beams_is_ignored(diversity, wrong, normalize):
    """The only item below the first row's other prefix is denied, so its second beam is dead."""
    codes = ItemCodes.from_int([[0, 0], [1, 0], [1, 1]], (2, 2), "c")
    logp, prompts = normalised(random_logp((2, 2), ragged=False, seed=0)), row_prompts([0, 1])
    batch = Batch(prompts, Histories.from_lists([[0], []]), [None, None])

    def answer(wrong, beam):
        wanted = SearchOptions(top_k=3, diversity=diversity)
        search = Search(Broken(logp, wrong, beam), DeviceIndex(build(codes), CPU), wanted, 4, normalize)
        return draw(search, batch, row_keys(prompts, [1, 1])) if diversity is None else diverse_lists(search, batch)

    with pytest.raises(DataError, match="inf or NaN for 1 of"):
        answer(wrong, beam=0)
    found = answer(wrong, beam=1)
    assert found.items.tolist() == answer(0.0, beam=1).items.tolist() and sorted(found.items[0]) == [-1, 1, 2]


@pytest.mark.parametrize("how", [None, MaxPer(3, depth=1), Interests(2), "score"])
@pytest.mark.parametrize("wrong", [-np.inf, np.inf, np.nan])
def test_what_the_model_says_behind_the_end_of_an_identifier_is_ignored(how, wrong):
    codes = ItemCodes.from_int([[0, -1], [1, 0], [1, 1]], (2, 2), "c")
    inside = normalised(random_logp((2, 2), ragged=True, seed=3))
    scorer = ScriptedScorer(lambda row, prefix: np.full(1, wrong) if prefix == (0, 0) else inside(row, prefix))
    index, prompts = DeviceIndex(build(codes), CPU), row_prompts([0])
    if how == "score":
        assert np.isfinite(score_items(scorer, index, prompts, np.arange(3), normalize="vocab")).all()
        return
    search = Search(scorer, index, SearchOptions(top_k=3, diversity=how), 3, "vocab")
    batch = Batch(prompts, None, [None])
    found = draw(search, batch, row_keys(prompts, [1])) if how is None else diverse_lists(search, batch)
    assert sorted(found.items[0]) == [0, 1, 2]


def test_a_level_that_the_model_rules_out_is_no_error_at_any_temperature():
    """Below the first code both codes are ruled out: only the items below the second one can be drawn."""
    codes = ItemCodes.from_int([[0, 0], [0, 1], [1, 0]], (2, 2), "c")

    def logp(row, prefix):
        return np.full(2, -np.inf) if prefix == (0,) else np.log([0.5, 0.5])

    for temperature in (1.0, 0.5):
        found = drawn(codes, logp, [0], [1], top_k=3, n_beams=3, temperature=temperature)
        assert found.items[0].tolist() == [2, -1, -1]


def test_noise_is_gumbel_and_independent_of_its_neighbours():
    key, number = torch.arange(100)[:, None], torch.arange(200)[None]
    noise = gumbel(key, 3, number)
    assert kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    others = [gumbel(key, 4, number), gumbel(key + 1, 3, number), gumbel(key, 3, number + 1), gumbel(key, -3, number)]
    for other in others:
        assert abs(np.corrcoef(noise.flatten(), other.flatten())[0, 1]) < 0.03
    assert torch.isfinite(noise).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-40, 10), min_size=1, max_size=5), st.floats(-30, 30))
def test_variables_given_their_maximum(raw, maximum):
    """Against the definition in 60 digits."""
    values = torch.tensor(raw, dtype=torch.float64)
    got = given_maximum(values, values.max(), torch.tensor(maximum, dtype=torch.float64))
    with localcontext(prec=60):
        down = [(-Decimal(x)).exp() for x in (maximum, max(raw), *raw)]
        slow = [float(-(down[0] - down[1] + each).ln()) for each in down[2:]]
    assert got.max() == maximum
    np.testing.assert_allclose(got.numpy(), slow, rtol=1e-9, atol=1e-9)


def test_seeds_and_temperatures_are_checked():
    assert check_seed(3, 2).tolist() == [3, 3] and check_seed([1, 2], 2).tolist() == [1, 2]
    assert check_seed([], 0).tolist() == check_seed(3, 0).tolist() == []
    for wrong in ([1], [], 1.5, [[1, 2]], True):
        with pytest.raises(DataError, match="seed: expected an integer, or 2"):
            check_seed(wrong, 2)
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="temperature"):
            drawn(CODES["fixed"], None, [0], [0], top_k=1, n_beams=1, temperature=wrong)
