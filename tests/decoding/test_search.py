import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding import search as search_module
from genrec.decoding import small
from genrec.decoding.filters import ItemFilter, RankFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import SearchOptions
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import DeviceIndex
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.oracles import dict_trie, exhaustive_scores
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts

CPU = torch.device("cpu")


def build(codes):
    return CatalogIndex.build(codes)


def grid_codes(*sizes):
    """Every combination of codes is an item; item numbers in lexicographic order."""
    return ItemCodes.from_int(np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1), sizes, "c")


def planted(row, prefix):
    """Behind the best first code the second codes are poor; the best item (3, 3, 3) lies behind the worst one."""
    if not prefix:
        return np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    return np.log([1e-9, 1e-9, 1e-9, 1.0]) if prefix[0] == 3 else np.log([0.25, 0.25, 0.25, 0.25])


def answer(codes, logp, rows, options, *, n_beams, normalize="vocab", deny=None, filters=None, scorer=None):
    index = build(codes)
    found = Search(scorer or ScriptedScorer(logp), DeviceIndex(index, CPU), options, n_beams, normalize)
    ranked = [None if each is None else RankFilter.of(each, index) for each in filters or [None] * len(rows)]
    return found(Batch(row_prompts(rows), deny, ranked))


def test_greedy_beams_miss_the_planted_item_and_say_so():
    codes, options = grid_codes(4, 4, 4), SearchOptions(top_k=1, n_beams=1)
    missed = answer(codes, planted, [0], options, n_beams=1)
    assert missed.items[0, 0] != 63 and not missed.certified[0]
    found = answer(codes, planted, [0], SearchOptions(top_k=1, exact=True), n_beams=1)
    assert found.items[0, 0] == 63 and found.certified[0]
    # a budget too small for the proof: no certificate
    capped = answer(codes, planted, [0], SearchOptions(top_k=1, exact=True, max_beams=3), n_beams=1)
    assert not capped.certified[0]


def test_only_what_could_still_enter_the_list_is_followed():
    """After one beam per level, the proof follows the prefixes above the item found: 4 of 4, then 13 of 16."""
    scorer = ScriptedScorer(planted)
    answer(grid_codes(4, 4, 4), planted, [0], SearchOptions(top_k=1, exact=True), n_beams=1, scorer=scorer)
    assert scorer.shapes == [(1, 1), (1, 1), (1, 1), (1, 1), (1, 4), (1, 13)]


def test_rows_with_a_proof_are_not_searched_again():
    def logp(row, prefix):
        return planted(row, prefix) if row == 1 else np.log([0.97, 0.01, 0.01, 0.01])

    scorer = ScriptedScorer(logp)
    rows = [0, 1, 2]
    found = answer(grid_codes(4, 4, 4), logp, rows, SearchOptions(top_k=1, exact=True), n_beams=1, scorer=scorer)
    assert found.certified.all() and found.items[:, 0].tolist() == [0, 63, 0]
    assert [batch for batch, _ in scorer.shapes] == [3, 3, 3, 1, 1, 1]


@st.composite
def requests(draw):
    n = draw(st.integers(1, 16))
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    rows = np.array(draw(st.lists(st.tuples(*(st.integers(0, k - 1) for k in sizes)), min_size=n, max_size=n)))
    if draw(st.booleans()):
        lengths = np.array(draw(st.lists(st.integers(1, len(sizes)), min_size=n, max_size=n)))
        rows = np.where(np.arange(len(sizes)) < lengths[:, None], rows, -1)
    codes = ItemCodes.from_int(rows, sizes, "c")
    denied = [draw(st.lists(st.integers(0, n - 1), max_size=n)) for _ in range(3)]
    masks = [np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))) if draw(st.booleans()) else None] * 2
    masks.append(np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))))
    return codes, denied, masks


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_exact_search_is_exact_and_no_certificate_is_ever_wrong(data):
    """Any budget, any filter and history, ties, ragged identifiers, rows scored and searched in one batch."""
    codes, denied, masks = data.draw(requests())
    top_k = data.draw(st.sampled_from([1, 2, 5, None]))
    max_beams = data.draw(st.sampled_from([1, 3, 4096]))
    normalize = data.draw(st.sampled_from(["vocab", "children"]))
    grid = data.draw(st.sampled_from([None, 0.25]))
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)), grid=grid)
    filters = [None if mask is None else ItemFilter.of_mask(mask) for mask in masks]
    rows = [3, 4, 5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "SMALL_SET", data.draw(st.sampled_from([0, 2, 256])))
        patch.setattr(search_module, "ROWS_TIMES_BEAMS", data.draw(st.sampled_from([1, 16_384])))
        found = answer(
            codes, logp, rows, SearchOptions(top_k=top_k, exact=data.draw(st.booleans()) or max_beams == 4096,
            max_beams=max_beams), n_beams=data.draw(st.integers(1, 3)), normalize=normalize,
            deny=Histories.from_lists(denied), filters=filters,
        )  # fmt: skip
    assert found.certified.all() or max_beams < 4096
    trie = dict_trie(codes.as_int(), ragged=codes.ragged) if normalize == "children" else None
    for row, name in enumerate(rows):
        slow = exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=name, ragged=codes.ragged, trie=trie)
        slow[denied[row]] = -np.inf
        if masks[row] is not None:
            slow[~masks[row]] = -np.inf
        listed = found.items[row][found.items[row] >= 0]
        np.testing.assert_allclose(found.scores[row][: len(listed)], slow[listed], atol=1e-5)
        if found.certified[row]:
            best = np.sort(slow[np.isfinite(slow)])[::-1][:top_k]
            np.testing.assert_allclose(found.scores[row][: len(listed)], best, atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_an_exact_search_that_runs_out_of_beams_loses_nothing(seed):
    """A last level more peaked than the others: the prefixes of the best items are not the best prefixes."""
    sizes = (5, 5, 5)
    base = random_logp(sizes, ragged=False, seed=seed)

    def logp(row, prefix):
        return base(row, prefix) * (4 if len(prefix) == 2 else 1)

    found = {
        exact: answer(
            grid_codes(*sizes), logp, [0, 1], SearchOptions(top_k=2, n_beams=2, exact=exact, max_beams=3), n_beams=2
        )
        for exact in (False, True)
    }
    assert (found[True].items >= 0).all()
    assert (found[True].scores >= found[False].scores - 1e-6).all()
