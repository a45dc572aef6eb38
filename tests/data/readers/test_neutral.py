"""The neutral reader, and with it what all readers share: the account of rows, gzip, limits, encodings."""

import gzip
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.data.readers import ReaderSettings, Rejected, read
from genrec.data.readers.base import Ledger
from genrec.errors import ConfigError, DataError

ITEMS = ['{"item_id": "i1", "title": "One"}', '{"item_id": "i2", "title": "Two &amp; a half", "brand": "B"}']
EVENTS = ["user_id,item_id,timestamp,rating", "u1,i1,10,4.5", "u1,i2,10,", "u2,i2,-3,2"]


def write(folder, items=ITEMS, events=EVENTS, log="interactions.csv"):
    def raw(lines):
        return lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()

    (folder / "items.jsonl").write_bytes(raw(items))
    (folder / log).write_bytes(raw(events))
    return ReaderSettings("neutral", folder)


def test_a_folder_is_read(tmp_path):
    loaded = read(write(tmp_path))
    catalog, inter = loaded.catalog, loaded.interactions
    assert catalog.ids == ("i1", "i2")
    assert catalog.fields == {"title": ["One", "Two &amp; a half"], "brand": [None, "B"]}
    assert inter.user_ids == ("u1", "u2") and inter.catalog == catalog.fingerprint
    assert (inter.item.tolist(), inter.time.tolist()) == ([0, 1, 1], [10, 10, -3])
    np.testing.assert_array_equal(inter.columns["rating"], [4.5, np.nan, 2.0])
    rows = loaded.rejected.rows[str(tmp_path / "interactions.csv")]
    assert (rows.rows_in, rows.rows_kept, rows.rows_rejected) == (3, 3, 0) and loaded.rejected.total == 0


def test_gzip_bom_crlf_and_blank_lines_change_nothing(tmp_path):
    plain = read(write(tmp_path))
    (tmp_path / "other").mkdir()
    text = "\ufeff" + "\r\n".join([*EVENTS[:2], "", *EVENTS[2:]])
    other = read(
        write(
            tmp_path / "other",
            ("\ufeff" + "\r\n\r\n".join(ITEMS)).encode(),
            gzip.compress(text.encode()),
            "interactions.csv.gz",
        )
    )
    assert other.catalog.fields == plain.catalog.fields and other.catalog.ids == plain.catalog.ids
    assert other.interactions.item.tolist() == plain.interactions.item.tolist()
    assert other.interactions.time.tolist() == plain.interactions.time.tolist()


def test_quoted_values_may_hold_anything(tmp_path):
    odd = 'a, "b"\n\nc\r\nd'
    quoted = '"' + odd.replace('"', '""') + '"'
    events = f"user_id,item_id,timestamp,event\n{quoted},i1,1,x\nu2,i2,2,{quoted}\n"
    inter = read(write(tmp_path, events=events.encode())).interactions
    assert inter.user_ids == (odd, "u2") and inter.columns["event"].tolist() == ["x", odd]


def test_nested_values_become_paths_or_json(tmp_path):
    item = {
        "item_id": "i1",
        "title": "",
        "paths": [["a", "b"], ["c"]],
        "more": {"x": [1]},
        "sizes": [1, 2],
        "no": None,
    }
    catalog = read(write(tmp_path, [json.dumps(item)], EVENTS[:2])).catalog
    assert {k: v[0] for k, v in catalog.fields.items()} == {
        "title": "",
        "paths": ["a > b", "c"],
        "more": '{"x": [1]}',
        "sizes": "[1, 2]",
        "no": None,
    }


BAD_ITEMS = [
    ('{"item_id": "i1", "title": "again"}', "item_id", "duplicate item id"),
    ('{"item_id": "", "title": "t"}', "item_id", "empty id"),
    ('{"item_id": " ", "title": "t"}', "item_id", "empty id"),
    ('{"item_id": 7, "title": "t"}', "item_id", "wrong type"),
    ('{"item_id": "x\\u0000", "title": "t"}', "item_id", "bad encoding"),
    ('{"item_id": "\\ud800", "title": "t"}', "item_id", "bad encoding"),
    ('{"title": "t"}', "item_id", "missing field"),
    ('{"item_id": "i9"}', "title", "wrong type"),
    ('{"item_id": "i9", "title": null}', "title", "wrong type"),
    ('{"item_id": "i9", "title": 3}', "title", "wrong type"),
    ('{"item_id": "i9", "title": "\\ud800"}', "title", "wrong type"),
    ('{"item_id": "i9", "title": "t", "brand": 4}', "brand", "wrong type"),
    ('{"item_id": "i9", "title": "t", "price": NaN}', "line", "bad JSON"),
    ('{"item_id": "i9", "title": "t", "price": -Infinity}', "line", "bad JSON"),
    ('{"item_id": "i9", "title": "t", "price": 1e999}', "price", "wrong type"),
    ('{"item_id": "i9", "title": "t", "x": {"y": 1e999}}', "x", "not finite"),
    ('{"item_id": "i9", "title": "t"', "line", "bad JSON"),
    ('["i9", "t"]', "line", "bad JSON"),
    ("[" * 100_000, "line", "bad JSON"),
    (b'{"item_id": "i9", "title": "caf\xe9"}', "line", "bad encoding"),
    ('{"item_id": "i9", "title": "a\0"}', "line", "NUL"),
]
BAD_EVENTS = [
    ("u3,i9,1,5", "item_id", "item not in catalog"),
    ("u3,,1,5", "item_id", "empty id"),
    (",i1,1,5", "user_id", "empty id"),
    ("u3,i1,,5", "timestamp", "wrong type"),
    ("u3,i1,noon,5", "timestamp", "wrong type"),
    ("u3,i1,1_0,5", "timestamp", "wrong type"),
    ("u3,i1,nan,5", "timestamp", "not finite"),
    ("u3,i1,inf,5", "timestamp", "not finite"),
    ("u3,i1,1.5,5", "timestamp", "fractional time"),
    (f"u3,i1,{2**63},5", "timestamp", "time out of range"),
    (f"u3,i1,{-(2**63) - 1},5", "timestamp", "time out of range"),
    ("u3,i1,1e30,5", "timestamp", "time out of range"),
    ("u3,i1,1,good", "rating", "wrong type"),
    ("u3,i1,1,NaN", "rating", "not finite"),
    ("u3,i1,1", "line", "ragged row"),
    ("u3,i1,1,5,6", "line", "ragged row"),
    ('u3,"i1"x,1,5', "line", "bad CSV"),
    ("u3,i1\0,1,5", "line", "NUL"),
    (b"u\xff,i1,1,5", "line", "bad encoding"),
]


def as_bytes(lines):
    return b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines)


@pytest.mark.parametrize("in_items, bad, field, reason", [
    *[(True, *case) for case in BAD_ITEMS], *[(False, *case) for case in BAD_EVENTS]
])  # fmt: skip
def test_every_malformed_row_is_named_or_counted(tmp_path, in_items, bad, field, reason, caplog):
    lines = [*(ITEMS if in_items else EVENTS)]
    lines.insert(2, bad)
    settings = write(tmp_path, **{"items" if in_items else "events": as_bytes(lines)})
    file = tmp_path / ("items.jsonl" if in_items else "interactions.csv")

    with pytest.raises(DataError) as caught:
        read(settings)
    assert str(caught.value).startswith(f"{file}, line 3, field {field!r}: ")
    assert caught.value.__notes__[0].startswith("hint: ")
    assert len(str(caught.value)) < 400

    caplog.set_level(logging.WARNING)
    loaded = read(settings, on_error="skip")
    assert loaded.rejected.counts == {(str(file), reason): 1}
    example = loaded.rejected.examples[0]
    assert (example.file, example.line, example.field, example.reason) == (str(file), 3, field, reason)
    balance = loaded.rejected.rows[str(file)]
    assert balance.rows_in == balance.rows_kept + 1 == (3 if in_items else 4)
    assert f"left out 1 of {balance.rows_in} rows" in caplog.text
    assert loaded.catalog.ids == ("i1", "i2") and len(loaded.interactions) == 3


HEADERS = [
    (["user_id,item_id"], "column 'timestamp' is missing"),
    (["user_id,item_id,timestamp,ratnig"], "unknown column 'ratnig'"),
    (["user_id,item_id,timestamp,item_id"], "different non-empty names"),
    (["user_id,item_id,timestamp,"], "different non-empty names"),
    ([], "the file is empty"),
    ([b'user_id,"item_id'], "not a CSV row"),
]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("lines, message", HEADERS)
def test_a_wrong_header_is_an_error_either_way(tmp_path, lines, message, on_error):
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path, events=as_bytes(lines)), on_error)
    assert "interactions.csv, line 1" in str(caught.value)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:30] + b"\xff" * 8 + b[38:], lambda b: b[:15]])
def test_damaged_gzip_is_an_error_either_way(tmp_path, damage, on_error):
    packed = gzip.compress(as_bytes(EVENTS * 50))
    with pytest.raises(DataError, match=r"interactions.csv.gz: damaged gzip data after line \d") as caught:
        read(write(tmp_path, events=damage(packed), log="interactions.csv.gz"), on_error)
    assert "download it again" in caught.value.__notes__[0]


def test_decompression_stops_at_the_limit(tmp_path):
    bomb = gzip.compress(b"user_id,item_id,timestamp\n" + b"x" * 5_000_000)
    settings = write(tmp_path, events=bomb, log="interactions.csv.gz")
    limited = ReaderSettings("neutral", tmp_path, max_bytes=2_000_000)
    with pytest.raises(DataError, match="more than 2000000 bytes after decompression") as caught:
        read(limited, "skip")
    assert "max_bytes" in caught.value.__notes__[0]
    with pytest.raises(DataError, match="none of the 1 rows can be used"):
        read(settings, "skip")


def test_files_without_a_usable_row_are_errors_when_skipping(tmp_path):
    with pytest.raises(DataError, match="none of the 2 rows can be used, first: line 2, field 'item_id'"):
        read(write(tmp_path, events=[EVENTS[0], "u,x,1,1", "u,y,1,1"]), "skip")
    with pytest.raises(DataError, match=r"items.jsonl: no rows in the file"):
        read(write(tmp_path, items=b""))


def test_examples_stop_at_twenty_and_every_file_has_one(tmp_path):
    items = [*ITEMS, *['{"item_id": "", "title": ""}'] * 30]
    loaded = read(write(tmp_path, items, [*EVENTS, "u,x,1,1", "u,y,z,1"]), "skip")
    rejected = loaded.rejected
    assert rejected.total == 32 and len(rejected.examples) == 20
    assert rejected and not read(write(tmp_path)).rejected
    assert f"{tmp_path / 'items.jsonl'}: 30 x empty id; first: line 3: expected" in str(rejected)
    assert {e.file for e in rejected.examples} == {str(tmp_path / n) for n in ("items.jsonl", "interactions.csv")}
    account = rejected.account(tmp_path)
    assert account["items.jsonl"] == {
        "rows_in": 32, "rows_kept": 2, "rows_rejected": 30, "reasons": {"empty id": 30}
    }  # fmt: skip
    assert list(rejected.account(tmp_path / "elsewhere")) == [
        str(tmp_path / n) for n in ("items.jsonl", "interactions.csv")
    ]
    assert read(write(tmp_path)).rejected.account(tmp_path) == {}


@pytest.mark.parametrize(
    "stray, reason",
    [
        ({2: 'u1,"i1,5,'}, "bad CSV"),  # opened, never closed
        ({2: 'u1,"i1,5,', 500: 'u1",i1,5,'}, "ragged row"),  # closed 500 lines later: five values
    ],
)
def test_a_stray_quote_costs_only_its_own_line(tmp_path, stray, reason):
    lines = [EVENTS[0], *(f"u{n},i1,{n}," for n in range(999))]
    for at, line in stray.items():
        lines[at] = line
    settings = write(tmp_path, events=lines)
    with pytest.raises(DataError, match=r"interactions.csv, line 3, field 'line': "):
        read(settings)
    loaded = read(settings, "skip")
    balance = loaded.rejected.rows[str(tmp_path / "interactions.csv")]
    assert (balance.rows_in, balance.rows_rejected) == (999, 1) and len(loaded.interactions) == 998
    assert next((e.line, e.reason) for e in loaded.rejected.examples) == (3, reason)


def test_the_first_bad_row_is_told_with_the_number_of_all(tmp_path):
    events = [EVENTS[0], "u,i1,1,1", "u,x,1,1", "u,i1,1", "u,y,1,1"]
    with pytest.raises(
        DataError, match=r"line 3, .*\(3 bad rows in this file: 2 x item not in catalog, 1 x ragged row\)"
    ):
        read(write(tmp_path, events=events))
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, events=events[:3]))
    assert "bad rows" not in str(caught.value)
    cut = gzip.compress(as_bytes([*events, *["u" * 5000 + ",i1,1,1"] * 500]))[:-12]
    (tmp_path / "interactions.csv").unlink()
    with pytest.raises(DataError, match=r"interactions.csv.gz, line 3, field 'item_id'"):  # not the damage behind it
        read(write(tmp_path, events=cut, log="interactions.csv.gz"))


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_log_without_rows_is_an_error(tmp_path, on_error):
    with pytest.raises(DataError, match=r"interactions.csv: no rows in the file"):
        read(write(tmp_path, events=EVENTS[:1]), on_error)


def test_a_setting_without_effect_is_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    write(tmp_path)
    read(ReaderSettings("neutral", tmp_path, user_column="customer", delimiter=","))
    assert "user_column has no effect on data in the format neutral" in caplog.text and "delimiter" not in caplog.text


def test_rows_that_get_lost_without_a_reason_are_noticed(tmp_path):
    ledger = Ledger(tmp_path / "f", "skip", Rejected())
    with pytest.raises(DataError, match=r"rows_in=2, rows_kept=1, rows_rejected=0"):
        kept = []
        ledger.read([(1, "a"), (2, "b")], lambda row: kept.append(row) if row == "a" else None, kept.__len__)


def test_unknown_items_are_added_last_in_an_order_without_meaning(tmp_path):
    write(tmp_path, events=[EVENTS[0], *(f"u,new{n},{n},1" for n in range(9))])
    loaded = read(ReaderSettings("neutral", tmp_path, unknown_items="add"))
    added = list(loaded.catalog.ids[2:])
    assert loaded.catalog.ids[:2] == ("i1", "i2") and sorted(added) == [f"new{n}" for n in range(9)]
    assert added != sorted(added) and loaded.catalog.text("title")[2:] == [""] * 9
    # the order depends on the ids, not on who met them first
    write(tmp_path, events=[EVENTS[0], *(f"u,new{n},{n},1" for n in reversed(range(9)))])
    assert read(ReaderSettings("neutral", tmp_path, unknown_items="add")).catalog.ids == loaded.catalog.ids
    (tmp_path / "items.jsonl").unlink()
    alone = read(ReaderSettings("neutral", tmp_path, unknown_items="add")).catalog
    assert list(alone.ids) == added and alone.fields == {"title": [None] * 9}


def test_context_names_the_columns_to_keep(tmp_path):
    write(tmp_path, events=["user_id,item_id,timestamp,shop,rating", "u,i1,1,de,3"])
    settings = ReaderSettings("neutral", tmp_path, context=("shop",))
    assert {k: v.tolist() for k, v in read(settings).interactions.columns.items()} == {"shop": ["de"]}
    with pytest.raises(DataError, match="column 'x' is missing; found user_id"):
        read(ReaderSettings("neutral", tmp_path, context=("x",)))


def test_fractional_seconds_can_be_scaled(tmp_path):
    write(tmp_path, events=[EVENTS[0], "u,i1,1.5,", "u,i2,2,"])
    settings = ReaderSettings("neutral", tmp_path, time_scale=1000)
    assert read(settings).interactions.time.tolist() == [1500, 2000]


def test_parquet_events_equal_csv_events(tmp_path):
    plain = read(write(tmp_path)).interactions
    (tmp_path / "p").mkdir()
    settings = write(tmp_path / "p", log="unused")
    table = {"user_id": ["u1", "u1", "u2"], "item_id": ["i1", "i2", "i2"], "timestamp": [10, 10, -3]}
    pq.write_table(pa.table(table | {"rating": [4.5, None, 2.0]}), tmp_path / "p" / "interactions.parquet")
    other = read(settings).interactions
    assert other.item.tolist() == plain.item.tolist() and other.time.tolist() == plain.time.tolist()
    np.testing.assert_array_equal(other.columns["rating"], plain.columns["rating"])

    pq.write_table(pa.table(table | {"user_id": ["u1", None, "u2"]}), tmp_path / "p" / "interactions.parquet")
    with pytest.raises(
        DataError, match=r"interactions.parquet, row 2, field 'user_id': expected an id as text, got None"
    ):
        read(settings)
    (tmp_path / "p" / "interactions.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read(settings)
    pq.write_table(pa.table({"user_id": ["u" * 1000]}), tmp_path / "p" / "interactions.parquet")
    with pytest.raises(DataError, match="bytes decompressed, limit 500"):
        read(ReaderSettings("neutral", tmp_path / "p", max_bytes=500))


def test_missing_files_say_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read(ReaderSettings("neutral", tmp_path / "none"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no items file; looked for items.jsonl, .*; found notes.txt"):
        read(ReaderSettings("neutral", tmp_path))
    with pytest.raises(DataError, match=r"none.csv: no such file; in the folder: notes.txt"):
        read(ReaderSettings("neutral", tmp_path, items="none.csv"))
    with pytest.raises(DataError, match="expected a folder"):
        read(ReaderSettings("neutral", tmp_path / "notes.txt"))
    write(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    with pytest.raises(DataError, match="no interactions file"):
        read(ReaderSettings("neutral", tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"unknown_items": "drop"},
        {"delimiter": ",,"},
        {"time_scale": 0},
        {"time_scale": float("nan")},
        {"max_bytes": 0},
        {"encoding": "utf8x"},
        {"encoding": "utf-16"},
        {"encoding": "base64"},
    ],
)
def test_settings_check_their_ranges(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        ReaderSettings("neutral", "folder", **change)


def test_unknown_format_and_error_rule_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="format: expected one of neutral"):
        read(ReaderSettings("csv", tmp_path))
    with pytest.raises(ConfigError, match="on_error"):
        read(write(tmp_path), "ignore")
