"""RecBole's atomic files and tables of any shape. All lines here are made up."""

import datetime
import logging
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.data.readers import ReaderSettings, read
from genrec.errors import DataError

INTER = [
    "user_id:token\titem_id:token\ttimestamp:float\tprice:float\tday:token",
    "a\ti1\t8.0\t1.5\tmo",
    "a\ti2\t7\t\t",
]
ITEM = ["item_id:token\tmovie_title:token_seq\tclass:token_seq\tyear:float", "i1\tA b\tx y\t1999", "i2\t\t\t"]


def write(folder, **files):
    for name, lines in files.items():
        (folder / name.replace("_", ".")).write_text("\n".join(lines), encoding="utf-8")


def test_atomic_files(tmp_path):
    write(tmp_path, d_inter=INTER, d_item=ITEM)
    loaded = read(ReaderSettings("recbole", tmp_path))
    assert loaded.catalog.fields == {
        "title": ["A b", None],
        "class": [["x", "y"], None],
        "year": [1999.0, None],
    }
    inter = loaded.interactions
    assert (inter.item.tolist(), inter.time.tolist()) == ([1, 0], [7, 8])
    assert str(inter.columns["price"].tolist()) == "[nan, 1.5]" and inter.columns["day"].tolist() == [
        None,
        "mo",
    ]


def test_atomic_files_without_time_and_title(tmp_path, caplog):
    write(tmp_path, d_inter=["u:token\titem_id:token", "a\ti1", "a\ti1"], d_item=["item_id:token", "i1"])
    caplog.set_level(logging.WARNING)
    loaded = read(ReaderSettings("recbole", tmp_path, user_column="u"))
    assert loaded.interactions.time.tolist() == [0, 1] and loaded.catalog.fields == {"title": [None]}
    assert "no title column" in caplog.text


@pytest.mark.parametrize(
    "bad, field, reason",
    [
        ("a\ti1\t1", "line", "ragged row"),
        ("a\ti9\t1\t1\tx", "item_id", "item not in catalog"),
        ("\ti1\t1\t1\tx", "user_id", "empty id"),
        ("a\ti1\t0.5\t1\tx", "timestamp", "fractional time"),
        ("a\ti1\t1\tcheap\tx", "price", "wrong type"),
    ],
)
def test_malformed_atomic_events(tmp_path, bad, field, reason):
    write(tmp_path, d_inter=[*INTER, bad], d_item=ITEM)
    with pytest.raises(DataError, match=f"d.inter, line 4, field '{field}'"):
        read(ReaderSettings("recbole", tmp_path))
    rejected = read(ReaderSettings("recbole", tmp_path), "skip").rejected
    assert rejected.counts == {(str(tmp_path / "d.inter"), reason): 1}


@pytest.mark.parametrize(
    "header, message",
    [
        ("user_id\titem_id", "expected name:type .* got 'user_id'"),
        ("user_id:token\titem_id:int", "got 'item_id:int'"),
        ("user_id:token\tuser_id:token", "each name once"),
        ("user_id:token\tx:token", "column 'item_id' is missing; found user_id, x"),
    ],
)
def test_malformed_atomic_headers(tmp_path, header, message):
    write(tmp_path, d_inter=[header], d_item=ITEM)
    with pytest.raises(DataError, match=message):
        read(ReaderSettings("recbole", tmp_path), "skip")


def test_real_atomic_sample(data_set):
    loaded = read(ReaderSettings("recbole", data_set("raw-samples/recbole-atomic"), unknown_items="add"))
    assert [r.rows_kept for r in loaded.rejected.rows.values()] == [500, 500]


def test_tables_with_named_columns(tmp_path):
    (tmp_path / "log.tsv").write_text("who\twhat\twhen\tkind\nu\ti1\t5\tbuy\nu\ti2\t4\tview\n")
    (tmp_path / "goods.csv").write_text('what,name,brand,size\ni1,"One, two",B,\ni2,,,3\n')
    settings = ReaderSettings(
        "tabular",
        tmp_path,
        interactions="log.tsv",
        items="goods.csv",
        user_column="who",
        item_column="what",
        time_column="when",
        title_column="name",
        context=("kind",),
    )
    loaded = read(settings)
    assert loaded.catalog.fields == {"title": ["One, two", ""], "brand": ["B", None], "size": [None, "3"]}
    assert loaded.interactions.item.tolist() == [1, 0]
    assert loaded.interactions.columns["kind"].tolist() == ["view", "buy"]


def test_a_delimiter_and_an_encoding_can_be_given(tmp_path):
    (tmp_path / "events.csv").write_bytes("user_id;item_id\nRené;i1\nRené;i1\n".encode("latin-1"))
    base = {"format": "tabular", "path": tmp_path, "delimiter": ";", "unknown_items": "add"}
    inter = read(ReaderSettings(**base, encoding="latin-1")).interactions
    assert inter.user_ids == ("René",) and inter.time.tolist() == [0, 1] and not inter.columns
    with pytest.raises(DataError, match=r"events.csv, line 2, field 'line': not utf-8") as caught:
        read(ReaderSettings(**base))
    assert "latin-1" in caught.value.__notes__[0]


def test_parquet_tables_keep_types(tmp_path):
    pq.write_table(pa.table({"user_id": [1, 1, 2], "item_id": [7, 8, 7], "n": [1, 2, 3]}), tmp_path / "events.parquet")
    day = datetime.date(2020, 1, 2)
    table = {
        "item_id": [7, 8],
        "title": ["a", None],
        "since": [day, None],
        "tags": [["x"], []],
        "ok": [True, None],
    }
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    loaded = read(ReaderSettings("tabular", tmp_path, context=("n",)))
    assert loaded.catalog.ids == ("7", "8") and loaded.interactions.columns["n"].tolist() == [1, 2, 3]
    assert loaded.catalog.fields == {
        "title": ["a", None],
        "since": ["2020-01-02", None],
        "tags": [["x"], []],
        "ok": [True, None],
    }


@pytest.mark.parametrize(
    "values, message",
    [
        ({"item_id": [7, 7], "title": ["a", "b"]}, "row 2, field 'item_id': id '7' occurred before"),
        ({"item_id": [7, None], "title": ["a", "b"]}, "row 2, field 'item_id': expected an id"),
        ({"item_id": [7, 8], "title": [1, 2]}, "row 1, field 'title': expected text, got int"),
        ({"item_id": [7, 8], "title": ["a", "b"], "x": [1.0, float("nan")]}, "row 2, field 'x'"),
        ({"item_id": [7, 8]}, "column 'title' is missing; found item_id"),
    ],
)
def test_malformed_item_tables(tmp_path, values, message):
    pq.write_table(pa.table({"user_id": ["u"], "item_id": [7]}), tmp_path / "events.parquet")
    pq.write_table(pa.table(values), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=f"items.parquet, .*{message}"):
        read(ReaderSettings("tabular", tmp_path))


def test_without_items_the_log_must_be_allowed_to_add_them(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id\nu,i1\n")
    with pytest.raises(DataError, match="no items table"):
        read(ReaderSettings("tabular", tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no interactions table"):
        read(ReaderSettings("tabular", tmp_path / "empty", unknown_items="add"))


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_another_delimiter_is_guessed_in_the_hint(tmp_path, mark):
    (tmp_path / "items.csv").write_text(f"item_id{mark}title\nx{mark}X\n")
    (tmp_path / "log.csv").write_text(f"user_id{mark}item_id\na{mark}x\n")
    wrong = ReaderSettings("tabular", tmp_path, interactions="log.csv", items="items.csv")
    with pytest.raises(DataError) as error:
        read(wrong)
    assert error.value.hint == f"the columns seem to be separated by {mark!r}: set delimiter"
    assert len(read(replace(wrong, delimiter=mark)).catalog) == 1
