import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.data.export import export_neutral, export_recbole
from genrec.data.interactions import Interactions
from genrec.data.readers import ReaderSettings, read
from genrec.errors import DataError, FingerprintMismatch

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
ids = st.lists(text.filter(lambda s: s and not s.isspace()), unique=True, min_size=1, max_size=5)
full = text.filter(bool)  # CSV cannot tell empty text from missing


@st.composite
def data_sets(draw):
    item_ids, users = draw(ids), draw(ids)
    n = len(item_ids)
    fields = {"title": draw(st.lists(text, min_size=n, max_size=n))}
    for name, values in {"brand": text, "tags": st.lists(text, max_size=2), "size": st.floats(-9, 9)}.items():
        fields[name] = draw(st.lists(st.none() | values, min_size=n, max_size=n))
    catalog = ItemCatalog(tuple(item_ids), fields)
    event_row = st.tuples(st.sampled_from(users), st.integers(0, n - 1), st.integers(-(2**63), 2**63 - 1))
    rows = draw(st.lists(event_row, min_size=1, max_size=8))
    who, what, when = (list(c) for c in zip(*rows, strict=True))
    rating = draw(st.lists(st.none() | st.floats(-5, 5), min_size=len(rows), max_size=len(rows)))
    event = draw(st.lists(st.none() | full, min_size=len(rows), max_size=len(rows)))
    columns = {"rating": np.array(rating, np.float64), "event": np.array([*event, None], object)[:-1]}
    inter = Interactions.from_arrays(
        who, what, np.array(when, np.int64), n_items=n, catalog=catalog.fingerprint, columns=columns
    )
    return catalog, inter


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_what_is_written_in_the_neutral_format_is_read_back(tmp_path_factory, data_set):
    catalog, inter = data_set
    folder = tmp_path_factory.mktemp("neutral")
    export_neutral(folder, catalog, inter)
    loaded = read(ReaderSettings("neutral", folder))
    assert loaded.catalog.ids == catalog.ids and loaded.catalog.fingerprint == catalog.fingerprint
    assert loaded.catalog.fields == {
        k: v for k, v in catalog.fields.items() if k == "title" or any(x is not None for x in v)
    }
    again = loaded.interactions
    assert again.user_ids == inter.user_ids
    for name in ("user", "item", "time"):
        assert getattr(again, name).tolist() == getattr(inter, name).tolist()
    for name, values in inter.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)


def small():
    catalog = ItemCatalog(("i1", "i2"), {"title": ["A\tb", None], "tags": [["x", "y"], None], "size": [1.5, None]})
    columns = {"rating": [4.0, np.nan], "event": np.array(["buy", None], object)}
    inter = Interactions.from_arrays(
        ["u", "v"], [1, 0], [5, 6], n_items=2, catalog=catalog.fingerprint, columns=columns
    )
    return catalog, inter


def test_same_data_same_bytes(tmp_path):
    for name in ("one", "two"):
        export_neutral(tmp_path / name, *small())
    for file in ("items.jsonl", "interactions.csv.gz"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_gzip_header_holds_no_time(tmp_path):
    export_neutral(tmp_path, *small())
    assert (tmp_path / "interactions.csv.gz").read_bytes()[4:8] == bytes(4)


def test_atomic_files_are_read_back(tmp_path):
    catalog, inter = small()
    export_recbole(tmp_path, "demo", catalog, inter)
    assert (tmp_path / "demo.inter").read_text().splitlines()[0] == (
        "user_id:token\titem_id:token\ttimestamp:float\trating:float\tevent:token"
    )
    loaded = read(ReaderSettings("recbole", tmp_path))
    assert loaded.catalog.ids == catalog.ids and loaded.interactions.item.tolist() == inter.item.tolist()
    assert loaded.catalog.fields == {"title": ["A b", None], "tags": [["x", "y"], None], "size": [1.5, None]}
    for name, values in inter.columns.items():
        np.testing.assert_array_equal(loaded.interactions.columns[name], values)


@pytest.mark.parametrize("export", [export_neutral, lambda f, c, i: export_recbole(f, "demo", c, i)])
def test_nothing_is_overwritten_and_catalogs_are_not_mixed(tmp_path, export):
    catalog, inter = small()
    export(tmp_path, catalog, inter)
    with pytest.raises(DataError, match="already there"):
        export(tmp_path, catalog, inter)
    with pytest.raises(FingerprintMismatch):
        export(tmp_path / "new", catalog.append(["i3"], {"title": ["t"]}), inter)


def test_ids_that_break_atomic_files_are_refused(tmp_path):
    catalog = ItemCatalog(("i\t1",), {"title": ["t"]})
    inter = Interactions.from_arrays(["u"], [0], [5], n_items=1, catalog=catalog.fingerprint)
    with pytest.raises(DataError, match="tab or line break"):
        export_recbole(tmp_path, "demo", catalog, inter)
