"""Times written as dates."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from genrec.data.readers.build import RowError, timestamp


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
