"""Conditions on item fields against loops over the items."""

import operator
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.data.attributes import OPERATORS, Attributes, Condition
from genrec.data.catalog import ItemCatalog
from genrec.errors import ConfigError

prices = st.one_of(st.none(), st.integers(-3, 3), st.floats(-3, 3, allow_nan=False))
brands = st.one_of(st.none(), st.sampled_from(["Acme", "Zeta", "7", ""]))
paths = st.one_of(st.none(), st.lists(st.sampled_from(["Shoes", "Men", "Hats"]), max_size=3))
PYTHON = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne}


def catalog(rows):
    names = ("price", "brand", "path", "sold")
    columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    return ItemCatalog(tuple(map(str, range(len(rows)))), {"title": [""] * len(rows), **columns})


def slow(value, how, wanted):
    if value is None:
        return False
    if how == "in":
        return value in wanted
    return wanted in value if how == "has" else PYTHON[how](value, wanted)


@given(
    st.lists(st.tuples(prices, brands, paths, st.sampled_from([True, False, None])), min_size=1, max_size=12), st.data()
)
def test_conditions_are_what_python_says_item_by_item(rows, data):
    found = Attributes(catalog(rows))
    asked = [
        ("price", data.draw(st.sampled_from(["<", "<=", ">", ">=", "=", "!="])), data.draw(st.integers(-3, 3))),
        ("brand", data.draw(st.sampled_from(["=", "!="])), data.draw(st.sampled_from(["Acme", "7", "Nobody"]))),
        ("brand", "in", ["Acme", "7"]),
        ("price", "in", [1, 2.0]),
        ("path", "has", data.draw(st.sampled_from(["Shoes", "Nothing"]))),
        ("sold", "=", True),
    ]
    for place, (field, how, wanted) in enumerate(asked):
        values = [row[("price", "brand", "path", "sold").index(field)] for row in rows]
        if all(value is None for value in values):
            continue
        expected = [slow(value, how, wanted) for value in values]
        assert found.where(Condition(field, how, wanted)).tolist() == expected, place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price<20", Condition("price", "<", 20.0)),
        (" price >= 2.5 ", Condition("price", ">=", 2.5)),
        ("brand = Acme & Co", Condition("brand", "=", "Acme & Co")),
        ("brand in Acme, Zeta", Condition("brand", "in", ["Acme", "Zeta"])),
        ("brand == Acme", Condition("brand", "=", "Acme")),
        ("brand != 'Acme'", Condition("brand", "!=", "Acme")),
        ("brand in 'Acme', \"Zeta\"", Condition("brand", "in", ["Acme", "Zeta"])),
        ("categories has Shoes", Condition("categories", "has", "Shoes")),
        ("main brand != x", Condition("main brand", "!=", "x")),
    ],
)
def test_conditions_are_read_from_text(text, expected):
    assert Condition.parse(text) == expected


def test_runs_of_blanks_are_read_in_linear_time():
    """Shared out between the parts of a pattern in every way, they took minutes: the bound is far from both."""
    start = time.process_time()
    for text in ("path = " + " " * 1500 + "\n" + " " * 500 + "y\nx", "path" + " " * 2000 + "y", "path x" * 700):
        with pytest.raises(ConfigError, match="expected FIELD OPERATOR VALUE"):
            Condition.parse(text)
        with pytest.raises(ConfigError, match="expected FIELD OPERATOR VALUE"):
            Attributes(catalog([(1, "a", None, True)])).parsed(text)
    assert Condition.parse("k = x" + " " * 2000 + "y").value == "x" + " " * 2000 + "y"
    assert time.process_time() - start < 20


def test_numbers_and_flags_can_be_written_as_text():
    found = Attributes(catalog([(1, "a", None, True), (2.5, "b", ["x"], False)]))
    assert found.where("price = 1").tolist() == [True, False]
    assert found.where("price in 2.5,7").tolist() == [False, True]
    assert found.where("sold = true").tolist() == [True, False]
    assert found.where("sold != true").tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = red", "'colour' is not in the catalog"),
        ("brand < 3", "brand <: the field is of type text"),
        ("path = Shoes", "path =: the field is of type list"),
        ("price has 3", "price has: the field is of type number"),
        ("price < cheap", "expected a number, got 'cheap'"),
        ("nonsense", "expected FIELD OPERATOR VALUE"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Attributes(catalog([(1, "a", ["x"], True)])).where(text)


def test_groups_number_the_values_of_a_field():
    found = Attributes(
        catalog([(1, "a", ["x"], True), (1.0, None, ["x"], None), (2, "b", [], True), (2, "a", ["x"], False)])
    )
    assert found.groups("brand").tolist() == [0, -1, 1, 0]
    assert found.groups("price").tolist() == [0, 0, 1, 1] and found.groups("sold").tolist() == [0, -1, 0, 1]
    for field, message in (("path", "path: an item has several values"), ("colour", "not in the catalog")):
        with pytest.raises(ConfigError, match=message):
            found.groups(field)


def test_large_numbers_are_exact():
    ids = [1789234567890123456, 1789234567890123457, 1789234567890123500, None, 5]
    found = Attributes(ItemCatalog(tuple("abcde"), {"title": [""] * 5, "seller": ids, "made in": list("xyxyx")}))
    assert found.where("seller = 1789234567890123456").tolist() == [True, False, False, False, False]
    assert found.where("seller <= 1789234567890123456").tolist() == [True, False, False, False, True]
    assert found.where("seller in 5,1789234567890123457").tolist() == [False, True, False, False, True]
    assert found.where("made in = x").tolist() == [True, False, True, False, True]  # a field with a word of ours in it


@pytest.mark.parametrize(
    ("field", "how", "value"),
    [("price", "!=", "cheap"), ("sold", "!=", "yes"), ("price", "=", None), ("price", "in", [None]),
     ("brand", "=", ["x"]), ("price", "<", float("nan"))],
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_refused_also_by_not_equal(field, how, value):
    with pytest.raises(ConfigError, match="expected a"):
        Attributes(catalog([(1, "a", ["x"], True)])).where(Condition(field, how, value))


def test_other_operators_are_refused():
    with pytest.raises(ConfigError, match="operator: expected one of"):
        Condition("price", "~", 3)
    with pytest.raises(ConfigError, match="expected a list"):
        Condition("price", "in", 3)
    assert "has" in OPERATORS


def test_values_like_those_of_a_condition() -> None:
    found = Attributes(catalog([(1, "Acme", ["Kitchen & Dining"], True), (2, "Zeta", ["Garden"], True)]))
    assert found.like("path has Kitchen") == ["Kitchen & Dining"]
    assert found.like("brand = Acne") == ["Acme"]
    assert found.like("price < 0") == [] and found.like("brand = qqqq") == []
