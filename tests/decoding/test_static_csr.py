"""STATIC's arrays by their definition; against its own code where STATIC_DECODING is the folder of a checkout."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding.index import CatalogIndex
from genrec.decoding.static_csr import StaticCsr, from_static, to_static
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes


@st.composite
def rows(draw):
    depth = draw(st.integers(2, 4))
    return sorted(draw(st.lists(st.tuples(*[st.integers(0, 3)] * depth), min_size=1, max_size=12)))


def slow_static(rows, n_tokens, dense):
    """Prefix by prefix, as the paper describes the arrays."""
    depth = len(rows[0])
    by_depth = [sorted({row[:n] for row in rows}) for n in range(depth + 1)]
    state = {prefix: prefix[0] + 1 for prefix in by_depth[1]}
    for prefixes in by_depth[2:depth]:
        first = n_tokens + 1 + sum(map(len, by_depth[2 : len(prefixes[0])]))
        state |= {prefix: first + n for n, prefix in enumerate(prefixes)}
    state |= dict.fromkeys(by_depth[depth], 0)
    n_states = n_tokens + 1 + sum(map(len, by_depth[2:depth]))
    below = {s: [] for s in range(n_states)}
    for prefix in [p for prefixes in by_depth[2:] for p in prefixes]:
        below[state[prefix[:-1]]].append([prefix[-1], state[prefix]])
    packed, ends = [], [0]
    for s in range(n_states):
        packed += below[s]
        ends.append(len(packed))
    mask, states = np.zeros((n_tokens,) * dense, bool), np.zeros((n_tokens,) * dense, int)
    for prefix in by_depth[dense]:
        mask[prefix], states[prefix] = True, state[prefix]
    most = [
        max(sum(longer[:-1] == prefix for longer in by_depth[n + 1]) for prefix in by_depth[n]) for n in range(depth)
    ]
    return StaticCsr(
        np.array(packed + [[n_tokens, 0]] * n_tokens),
        np.array([*ends, ends[-1] + n_tokens]),
        tuple(most),
        np.isin(np.arange(n_tokens), [row[0] for row in rows]),
        mask,
        states,
    )


def assert_same(found, expected):
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(rows(), st.data())
def test_the_arrays_and_back(rows, data):
    n_tokens = data.draw(st.integers(4, 6))
    dense = data.draw(st.integers(1, len(rows[0]) - 1))
    index = CatalogIndex.build(ItemCodes.from_int(np.array(rows), (4,) * len(rows[0]), "c"))
    found = to_static(index, n_tokens, dense_layers=dense)
    assert_same(found, slow_static(rows, n_tokens, dense))
    back = from_static(found, level_sizes=index.level_sizes, catalog="c")
    assert back.items.tolist() == list(range(index.n_identifiers))
    for name, array in (
        CatalogIndex.from_sorted(np.array(sorted(set(rows)), dtype=np.uint8), index.level_sizes).arrays().items()
    ):
        np.testing.assert_array_equal(back.arrays()[name], array)


@pytest.mark.skipif("STATIC_DECODING" not in os.environ, reason="no checkout of STATIC")
@pytest.mark.parametrize("dense", [1, 2])
def test_the_arrays_are_those_of_its_own_code(dense):
    file = Path(os.environ["STATIC_DECODING"]) / "static_decoding" / "csr_utils.py"
    spec = importlib.util.spec_from_file_location("static_csr_utils", file)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    rows = np.random.default_rng(0).integers(0, 20, (3000, 4))
    rows = rows[np.lexsort(rows.T[::-1])]
    index = CatalogIndex.build(ItemCodes.from_int(rows, (20,) * 4, "c"))
    expected = theirs.build_static_index(rows, vocab_size=24, dense_lookup_layers=dense)
    assert_same(to_static(index, 24, dense_layers=dense), StaticCsr(*expected))
    back = from_static(StaticCsr(*expected))
    assert (back.path_codes(np.arange(back.n_items)) == np.unique(rows, axis=0)).all()


def test_what_cannot_be_converted():
    fixed = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 0], [1, 1]], (2, 2), "c"))
    ragged = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, -1]], (2, 2), "c"))
    with pytest.raises(ConfigError, match="ragged"):
        to_static(ragged, 8)
    with pytest.raises(ConfigError, match="2 or more"):
        to_static(fixed, 1, dense_layers=1)
    with pytest.raises(ConfigError, match=r"1 \.\. 1"):
        to_static(fixed, 2)
    found = to_static(fixed, 2, dense_layers=1)
    falling = found.packed_csr.copy()
    falling[[1, 2]] = falling[[2, 1]]
    with pytest.raises(DataError, match="ascending"):
        from_static(replace(found, packed_csr=falling))
    unended = found.packed_csr.copy()
    unended[:, 1] = 1
    with pytest.raises(DataError, match="ends"):
        from_static(replace(found, packed_csr=unended))
