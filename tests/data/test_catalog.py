import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog, clean_text, fingerprint
from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.seeding import id_hash

few = settings(max_examples=50, deadline=None)
# every string that UTF-8 can hold, NUL excepted
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
ids = st.lists(text.filter(bool), unique=True, max_size=8)


def make(*item_ids, **fields):
    return ItemCatalog(item_ids, {"title": [f"title of {i}" for i in item_ids], **fields})


@few
@given(ids)
def test_numbers_and_ids_are_inverse(item_ids):
    catalog = make(*item_ids)
    numbers = catalog.numbers(item_ids)
    assert numbers.dtype == np.int32 and numbers.tolist() == list(range(catalog.N))
    assert catalog.ids_of(numbers) == item_ids and len(catalog) == catalog.N == len(item_ids)


def test_unknown_ids_are_an_error_or_negative():
    catalog = make("a", "b")
    with pytest.raises(DataError, match=r"1 of 2 ids .* first \['x'\]"):
        catalog.numbers(["a", "x"])
    assert catalog.numbers(iter(["b", "x", "a"]), missing="negative").tolist() == [1, -1, 0]
    assert catalog.numbers([]).dtype == np.int32
    with pytest.raises(ConfigError, match="missing"):
        catalog.numbers(["a"], missing="ignore")
    with pytest.raises(ConfigError, match="the string 'ab'"):
        catalog.numbers("ab")


@pytest.mark.parametrize("numbers", [[-1], [2], [0, 5]])
def test_numbers_outside_the_catalog_are_refused(numbers):
    with pytest.raises(DataError, match=r"expected 0..1"):
        make("a", "b").ids_of(numbers)


@few
@given(ids, ids)
def test_fingerprints_are_equal_only_for_the_same_numbering(a, b):
    assert (fingerprint(a) == fingerprint(b)) == (a == b)


def test_a_catalog_begins_with_its_older_versions():
    ids = [f"i{n}" for n in range(5)]
    catalog = ItemCatalog(tuple(ids), {"title": [""] * 5})
    for n in range(1, 6):
        assert catalog.begins_with(fingerprint(ids[:n]))
    assert not catalog.begins_with(fingerprint(["i1"])) and not catalog.begins_with("")


def test_fingerprint_looks_at_borders_between_ids():
    assert len({fingerprint(x) for x in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"])}) == 4
    assert len(fingerprint(["a"])) == 32


@pytest.mark.parametrize(
    "item_ids, fields, message",
    [
        (("a", "a"), {}, "item 1: id 'a' is already item 0"),
        (("a", ""), {}, "item 1: expected a non-empty text"),
        (("a", 5), {}, "item 1: expected a non-empty text as id, got 5"),
        (("a", "\0"), {}, "item 1"),
        (("a", "\ud800"), {}, "item 1"),
        (("a", "b"), {"brand": ["x"]}, "field 'brand': expected 2 values, got 1"),
        (("a", "b"), {"brand": ["x", ["y"]]}, "field 'brand', item 1: expected text like the items before"),
        (("a", "b"), {"brand": ["x", {}]}, "field 'brand', item 1: .*got dict"),
        (("a", "b"), {"price": [1, float("nan")]}, "field 'price', item 1: .*nan"),
        (("a", "b"), {"price": [True, 1]}, "field 'price', item 1"),
        (("a", "b"), {"price": [2**63, 1]}, "field 'price', item 0"),
        (("a", "b"), {"tags": [["x"], ["y", 1]]}, "field 'tags', item 1"),
        (("a", "b"), {"brand": ["x", "\ud800"]}, "field 'brand', item 1"),
    ],
)
def test_wrong_catalogs_are_refused_with_item_and_field(item_ids, fields, message):
    with pytest.raises(DataError, match=message):
        ItemCatalog(item_ids, {"title": ["t"] * len(item_ids), **fields})


def test_title_is_always_there():
    with pytest.raises(DataError, match="'title' is missing"):
        ItemCatalog(("a",), {"brand": ["x"]})


def test_text_is_raw_unless_asked_to_be_clean():
    raw = "Salt &amp; <b>Pepper</b>\t Mill &lt;2&gt;"
    catalog = ItemCatalog(("a", "b"), {"title": [raw, None], "path": [["x", "y"], []], "price": [1.5, 2]})
    assert catalog.text("title") == [raw, ""]
    assert catalog.text("title", clean=True)[0] == "Salt & Pepper Mill <2>"
    assert catalog.text("path") == ["x > y", ""] and catalog.text("price") == ["1.5", "2"]
    with pytest.raises(DataError, match=r"field 'brand' .* fields: title, path, price"):
        catalog.text("brand")


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("5 < 6 and 7 > 6", "5 < 6 and 7 > 6"),
        ("<p class='x'>One</p><br/>two", "One two"),
        ("I <3 cats", "I <3 cats"),
        ("&quot;A&quot;\u00a0&nbsp;B", '"A" B'),
        ("<!-- no -->text", "text"),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


@few
@given(ids, ids)
def test_append_keeps_every_number(old, more):
    new = [i for i in more if i not in old]
    parent = make(*old, brand=["x"] * len(old))
    child = parent.append(new, {"title": ["new"] * len(new), "price": [1.0] * len(new)})
    assert child.ids == (*old, *new) and child.parent == parent.fingerprint
    assert child.numbers(old).tolist() == parent.numbers(old).tolist()
    assert child.fields["brand"] == ["x"] * len(old) + [None] * len(new)
    assert child.fields["price"] == [None] * len(old) + [1.0] * len(new)
    assert child.extends(parent.fingerprint, parent.N)
    assert not parent.extends(child.fingerprint, child.N) or not new
    assert "price" not in parent.fields


def test_append_refuses_known_ids_and_other_types():
    catalog = make("a", "b", brand=["x", "y"])
    with pytest.raises(DataError, match=r"1 of 2 new ids .* \['b'\]"):
        catalog.append(["c", "b"], {"title": ["", ""]})
    with pytest.raises(DataError, match="field 'brand', item 2"):
        catalog.append(["c"], {"title": [""], "brand": [5]})
    with pytest.raises(DataError, match="field 'title': expected 1 values, got 2"):
        catalog.append(["c"], {"title": ["", ""]})
    with pytest.raises(DataError, match="already item 2"):
        catalog.append(["c", "c"], {"title": ["", ""]})


def test_retiring_sets_a_tombstone_that_lasts():
    catalog = make("a", "b", "c")
    gone = catalog.retire(["b"]).retire(["c"])
    assert gone.retired.tolist() == [False, True, True] and catalog.retired is None
    assert gone.fingerprint == catalog.fingerprint and gone.numbers(["b"]).tolist() == [1]
    assert gone.append(["d"], {"title": [""]}).retired.tolist() == [False, True, True, False]
    with pytest.raises(DataError):
        catalog.retire(["x"])


def test_order_keys_depend_on_ids_and_seed_alone():
    catalog = make("a", "b", "c")
    assert catalog.order_keys(1).tolist() == id_hash(["a", "b", "c"], 1).tolist()
    assert catalog.order_keys(1).tolist() != catalog.order_keys(2).tolist()


values = {
    "text": st.none() | text,
    "list": st.none() | st.lists(text, max_size=3),
    "int": st.none() | st.integers(-(2**63), 2**63 - 1),
    "float": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.none() | st.booleans(),
    "nothing": st.none(),
}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_save_and_load_give_an_equal_catalog(tmp_path_factory, data):
    item_ids = data.draw(ids)
    fields = {k: data.draw(st.lists(v, min_size=len(item_ids), max_size=len(item_ids))) for k, v in values.items()}
    catalog = make(*item_ids, **fields)
    if item_ids:
        catalog = catalog.retire(item_ids[:1])
    folder = tmp_path_factory.mktemp("catalog") / "c"
    catalog.save(folder)
    again = ItemCatalog.load(folder)
    assert (again.ids, again.fields, again.fingerprint) == (catalog.ids, catalog.fields, catalog.fingerprint)
    assert (again.retired is None) == (catalog.retired is None)
    assert again.retired is None or again.retired.tolist() == catalog.retired.tolist()


def test_the_parent_survives_saving_and_folders_are_not_overwritten(tmp_path):
    child = make("a").append(["b"], {"title": ["t"]})
    child.save(tmp_path / "c")
    assert ItemCatalog.load(tmp_path / "c").parent == make("a").fingerprint
    with pytest.raises(ArtifactError):
        child.save(tmp_path / "c")
    child.save(tmp_path / "c", overwrite=True)
