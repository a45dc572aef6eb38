"""Several domains in one index, against one index for each domain and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding.beam import beam_search
from genrec.decoding.filters import RankFilter, RowFilters, in_namespace
from genrec.decoding.index import CatalogIndex
from genrec.decoding.listing import list_items
from genrec.decoding.namespaces import Namespace, join_codes
from genrec.decoding.select import DeviceIndex
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.oracles import exhaustive_scores
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts


@st.composite
def domains(draw):
    found = {}
    for name in draw(st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")])):
        n, sizes = draw(st.integers(1, 8)), tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
        rows = np.array(draw(st.lists(st.tuples(*(st.integers(0, k - 1) for k in sizes)), min_size=n, max_size=n)))
        if draw(st.booleans()):
            lengths = np.array(draw(st.lists(st.integers(1, len(sizes)), min_size=n, max_size=n)))
            rows = np.where(np.arange(len(sizes)) < lengths[:, None], rows, -1)
        found[name] = ItemCodes.from_int(rows, sizes, f"catalog {name}")
    return found


@settings(max_examples=40, deadline=None)
@given(domains(), st.data())
def test_domains_keep_their_identifiers_and_their_items(found, data):
    joined = join_codes(found)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(joined.codes), max_size=len(joined.codes))))
    keep[0] = True
    index = CatalogIndex.build(joined.codes, keep=keep, namespaces=joined.namespaces)
    rows, low = joined.codes.as_int(), 0
    for name, each in found.items():
        first, space = joined.first_item[name], next(x for x in joined.namespaces if x.name == name)
        theirs = rows[first : first + len(each)]
        assert ((theirs[:, 0] >= space.first_code) & (theirs[:, 0] < space.first_code + space.n_codes)).all()
        back = theirs[:, : each.n_levels] - np.eye(1, each.n_levels, dtype=int) * space.first_code
        assert back.tolist() == each.as_int().tolist() and (theirs[:, each.n_levels :] == -1).all()
        expected = first + np.flatnonzero(keep[first : first + len(each)])
        assert np.flatnonzero(in_namespace(index, name).mask).tolist() == expected.tolist()
        assert index.namespace_ranks(name) == (low, low + len(expected))
        low += len(expected)


@settings(max_examples=25, deadline=None)
@given(domains(), st.integers(0, 99))
def test_a_search_of_one_domain_is_brute_force_over_it(found, seed):
    joined = join_codes(found)
    codes = joined.codes
    index = CatalogIndex.build(codes, namespaces=joined.namespaces)
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=seed)
    names = list(found)
    wanted = [names[0], names[-1], None]
    filters = RowFilters.of([name and RankFilter.of(in_namespace(index, name), index) for name in wanted])
    scorer = ScriptedScorer(logp)
    leaves = beam_search(
        scorer,
        DeviceIndex(index, torch.device("cpu")),
        row_prompts([0, 1, 2]),
        n_beams=index.n_identifiers,
        normalize="vocab",
        filters=filters,
    )
    lists = list_items(index, leaves.leaves, leaves.scores, top_k=None, normalize="vocab", filters=filters)
    for row, name in enumerate(wanted):
        slow = exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=row, ragged=codes.ragged)
        first = joined.first_item.get(name, 0)
        items = np.arange(first, first + len(found[name])) if name else np.arange(len(codes))
        listed = lists.items[row][lists.items[row] >= 0]
        assert sorted(listed.tolist()) == items.tolist()
        np.testing.assert_allclose(lists.scores[row][: len(listed)], np.sort(slow[items])[::-1], atol=1e-5)


def test_namespaces_are_stored_and_checked(tmp_path):
    one = ItemCodes.from_int([[0, 1], [1, 0]], (2, 2), "one")
    joined = join_codes({"x": one, "y": one})
    index = CatalogIndex.build(joined.codes, namespaces=joined.namespaces)
    index.save(tmp_path / "index")
    assert CatalogIndex.load(tmp_path / "index").namespaces == joined.namespaces
    with pytest.raises(ConfigError, match="no namespace 'z'"):
        in_namespace(index, "z")
    for wrong in ((Namespace("x", 0, 3), Namespace("y", 2, 2)), (Namespace("x", 0, 5),), (Namespace("x", 0, 1),) * 2):
        with pytest.raises(DataError, match="namespace"):
            CatalogIndex.build(joined.codes, namespaces=wrong)
    with pytest.raises(DataError, match="different names"):
        CatalogIndex.build(joined.codes, namespaces=(Namespace("x", 0, 1), Namespace("x", 1, 1)))
    with pytest.raises(ConfigError, match="one domain or more"):
        join_codes({})
    assert join_codes({"x": one}).codes.catalog != join_codes({"y": one}).codes.catalog
    assert join_codes({"x": one}, catalog="mine").codes.catalog == "mine"
