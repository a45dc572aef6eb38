import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.decoding.filter_set import LONGEST, FilterSet
from genrec.decoding.filters import ItemFilter
from genrec.errors import ConfigError, DataError, FingerprintMismatch

N = 70


def some(seed):
    return ItemFilter.of_mask(np.random.default_rng(seed).random(N) < 0.5)


expressions = st.recursive(
    st.sampled_from(["a", "b", " c "]),
    lambda inner: st.one_of(
        inner.map(lambda x: f"~ {x}"),
        inner.map(lambda x: f"( {x})"),
        st.tuples(inner, st.sampled_from([" & ", "|"]), inner).map("".join),
    ),
    max_leaves=8,
)


@given(expressions)
def test_expressions_are_sets(expression):
    """With or without parentheses as Python reads them, on integers whose bit n is item n."""
    named = {name: some(seed) for seed, name in enumerate("abc")}
    found = FilterSet(named, n_items=N)[expression]
    numbers = {name: sum(1 << n for n in np.flatnonzero(each.mask).tolist()) for name, each in named.items()}
    value = eval(expression.strip(), numbers)
    assert np.flatnonzero(found.mask).tolist() == [n for n in range(N) if value >> n & 1]


def test_long_chains_and_deep_nesting_are_no_trouble():
    """Also under names that are words of Python."""
    named = {f"filter_{n}": ItemFilter.of_mask(np.arange(N) != n % 60) for n in range(1_000)}
    filters = FilterSet({**named, "class": some(0), "None": some(1)}, n_items=N)
    assert np.flatnonzero(filters[" & ".join(named)].mask).tolist() == list(range(60, N))
    assert len(filters[" | ".join(named)]) == N
    nested = "(" * 3_000 + "class" + ")" * 3_000
    assert filters[nested] is filters["class"] and filters["~" * 3_000 + "class"].mask.tolist() == some(0).mask.tolist()
    assert filters["class & ~None"].mask.tolist() == (some(0).mask & ~some(1).mask).tolist()


def test_conditions_and_flags_of_a_catalog_by_name():
    catalog = ItemCatalog(("x", "y", "z"), {"title": ["", "", ""], "price": [10.0, None, 40.0]})
    given = {
        "cheap": "price < 30",
        "dear": "price >= 30",
        "some": [True, True, False],
        "one": ItemFilter.of_items([0], 3),
    }
    filters = FilterSet.of(catalog, given)
    assert filters["cheap | dear"].mask.tolist() == [True, False, True] and filters.catalog == catalog.fingerprint
    assert filters["some & ~one"].mask.tolist() == [False, True, False] and filters["one"] is given["one"]
    for wrong, error in (("cost < 3", ConfigError), ([True], DataError), ([0, 1, 2], DataError)):
        with pytest.raises(error):
            FilterSet.of(catalog, {"x": wrong})


def test_a_filter_is_kept_as_one_object_and_memory_is_counted():
    filters = FilterSet({"a": some(0), "b": some(1), "c": some(2)}, n_items=N, n_composed=2)
    per_filter = 8 * 2
    assert filters.nbytes == 3 * per_filter and filters.names == ("a", "b", "c") and "a" in filters
    assert filters["a"] is filters[" a "] and filters.nbytes == 3 * per_filter
    first = filters["a & b"]
    assert filters["(a)&b"] is first and filters.nbytes == 4 * per_filter
    filters["a & c"]
    assert filters["a & b"] is first  # used last: "b & c" drops "a & c"
    filters["b & c"]
    assert filters["a & b"] is first and filters.nbytes == 5 * per_filter
    changed = filters.with_filters({"c": some(3)})
    assert changed["a & b"] is first and changed["b & c"] is not filters["b & c"]
    assert changed["b & c"].mask.tolist() == (some(1).mask & some(3).mask).tolist()


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "expected names joined"),
        ("a &", "expected names joined"),
        ("a and b", "expected names joined"),
        ("a & 3", "expected names joined"),
        ("f(a)", "expected names joined"),
        ("a - b", "expected names joined"),
        ("d", "no filter is called 'd'"),
        ("a & d", "no filter is called 'd'"),
        ("~" * LONGEST + "a", "at most 16384 characters, got 16385"),
        ("~" * (LONGEST - 1) + "d", "no filter is called 'd'"),
        ("a\0", "expected names joined"),
        ("a b", "expected names joined"),
        ("& a", "expected names joined"),
        ("a ~", "expected names joined"),
        ("a ~b", "expected names joined"),
        ("()", "expected names joined"),
        ("(a", "expected names joined"),
        ("a)", "expected names joined"),
        ("a (b)", "expected names joined"),
        ("(a))(b", "expected names joined"),
    ],
)
def test_what_is_no_expression(expression, message):
    with pytest.raises(ConfigError, match=message):
        FilterSet({"a": some(0), "b": some(1)}, n_items=N)[expression]


def test_names_and_sizes_are_checked():
    with pytest.raises(ConfigError, match="expected a name"):
        FilterSet({"in stock": some(0)}, n_items=N)
    with pytest.raises(DataError, match="expected a filter of 71 items"):
        FilterSet({"a": some(0)}, n_items=N + 1)
    filters = FilterSet({"a": some(0)}, n_items=N).with_filters({"b": some(1)})
    assert filters.names == ("a", "b") and filters.without("a").names == ("b",)
    with pytest.raises(ConfigError, match="no filter is called"):
        filters.without("c")


def test_an_older_version_is_extended_with_a_stated_default_or_refused():
    catalog = ItemCatalog(("x", "y"), {"title": ["", ""]})
    child = catalog.append(["z", "w"], {})
    fp = catalog.fingerprint
    filters = FilterSet(
        {"a": ItemFilter.of_items([0], 2, fp), "b": ItemFilter.of_items([1], 2, fp)}, n_items=2, catalog=fp
    )
    grown = filters.extended(child, new={"a": True, "b": np.array([False, True])})
    assert grown["a"].mask.tolist() == [True, False, True, True]
    assert grown["b"].mask.tolist() == [False, True, False, True]
    assert grown["a | b"].catalog == child.fingerprint
    assert filters.extended(child, new=False)["a | b"].mask.tolist() == [True, True, False, False]
    with pytest.raises(ConfigError, match="filter 'b': are the 2 new items allowed"):
        filters.extended(child, new={"a": True})
    with pytest.raises(DataError, match=r"bool \[2\]"):
        filters.extended(child, new={"a": True, "b": np.zeros(3, dtype=bool)})
    with pytest.raises(FingerprintMismatch, match="does not begin with"):
        filters.extended(ItemCatalog(("y", "x"), {"title": ["", ""]}), new=True)
    with pytest.raises(FingerprintMismatch):
        filters["a"].check(4, child.fingerprint)
