"""Times written as dates."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.data.readers import ReaderSettings, read
from genrec.data.readers.build import RowError, timestamp
from genrec.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-02", 86_400),
        ("2020-11-03T13:13:43Z", int(datetime(2020, 11, 3, 13, 13, 43, tzinfo=UTC).timestamp())),
        ("2020-11-03 13:13:43", int(datetime(2020, 11, 3, 13, 13, 43, tzinfo=UTC).timestamp())),
        ("2020-11-03T15:13:43+02:00", int(datetime(2020, 11, 3, 13, 13, 43, tzinfo=UTC).timestamp())),
        ("1604409223", 1_604_409_223),
    ],
)
def test_dates_are_seconds(text, expected):
    assert timestamp(text, "time") == expected


@pytest.mark.parametrize("text", ["2020-13-03", "2020-11-03T25:00:00", "2020-11-03 or so", "03/11/2020", "never"])
def test_what_is_no_date_is_refused(text):
    with pytest.raises(RowError, match="a number or an ISO date as time, such as 2020-11-03 "):
        timestamp(text, "time")


def test_dates_of_tables_are_seconds():
    east = timezone(timedelta(hours=2))
    assert timestamp(date(1970, 1, 2), "time") == timestamp(datetime(1970, 1, 2), "time") == 86_400
    assert timestamp(datetime(1970, 1, 2, 2, tzinfo=east), "time") == 86_400
    assert timestamp("1969-12-31T23:59:59", "time") == -1


def test_fractions_of_seconds_are_kept_or_refused():
    with pytest.raises(RowError, match="expected whole units"):
        timestamp("2020-01-01T00:00:00.900", "time")
    assert timestamp("2020-01-01T00:00:00.900", "time", 1000) == 1_577_836_800_900
    assert timestamp("1969-12-31T23:59:59.25", "time", 1000) == -750
    assert timestamp(datetime(2020, 1, 1, microsecond=123_457), "time", 1e6) == 1_577_836_800_123_457


def shop(tmp_path, log_name):
    (tmp_path / "items.csv").write_text("item_id,title\nx,X\ny,Y\nz,Z\n")
    return ReaderSettings("tabular", tmp_path, interactions=log_name, items="items.csv", time_column="ts")


@pytest.mark.parametrize("odd", ["20200102", "1577923200"])
def test_numbers_and_dates_in_one_column_are_refused(tmp_path, odd):
    (tmp_path / "log.csv").write_text(f"user_id,item_id,ts\na,x,2020-01-01\na,y,{odd}\na,z,2020-01-03\n")
    with pytest.raises(DataError, match=r"log.csv, line 3, field 'ts': expected a date like the times before"):
        read(shop(tmp_path, "log.csv"))
    loaded = read(shop(tmp_path, "log.csv"), "skip")
    assert len(loaded.interactions) == 2


def test_a_parquet_log_with_timestamps_is_read_in_order(tmp_path):
    times = [datetime(2020, 1, 3), datetime(2020, 1, 1), datetime(2020, 1, 2)]
    for kind in (pa.timestamp("us"), pa.timestamp("ms", tz="UTC"), pa.date32()):
        table = pa.table({"user_id": ["a"] * 3, "item_id": ["x", "y", "z"], "ts": pa.array(times, kind)})
        pq.write_table(table, tmp_path / "log.parquet")
        loaded = read(shop(tmp_path, "log.parquet"))
        assert [loaded.catalog.ids[item] for item in loaded.interactions.item] == ["y", "z", "x"]
        assert loaded.interactions.time.tolist() == [1_577_836_800, 1_577_923_200, 1_578_009_600]
