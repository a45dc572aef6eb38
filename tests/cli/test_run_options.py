"""Options of ``genrec run`` that are short for settings of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from genrec.cli.main import app
from genrec.errors import ConfigError, DataError

PIPELINE = """
name: shop
data:
  reader: {format: tabular, path: nowhere, interactions: log.csv, time_column: timestamp, unknown_items: add}
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    rows = "".join(f"u{n % 4},i{n % 7},{n}\n" for n in range(40))
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows},i1,5\nu1,i1,never\nu2,i1,later\n")
    (tmp_path / "shop.yaml").write_text(PIPELINE)
    return [
        "run", str(tmp_path / "shop.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "out"),
        "--until", "prepare",
    ]  # fmt: skip


def test_malformed_rows_stop_the_run_or_are_counted(command: list[str]) -> None:
    stopped = CliRunner().invoke(app, command)
    assert isinstance(stopped.exception, DataError)
    assert "log.csv, line 42, field 'user_id'" in str(stopped.exception)
    assert "--on-error skip" in str(stopped.exception.hint)
    for _ in range(2):  # the second run reads nothing, and still says what is missing
        done = CliRunner().invoke(app, [*command, "--on-error", "skip"])
        assert done.exit_code == 0, done.exception
        assert "left out 3 of 43 rows of log.csv: 1 x empty id, 2 x wrong type" in done.stdout


def test_on_error_takes_the_values_of_the_setting(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--on-error", "ignore"])
    assert isinstance(done.exception, ConfigError)
    assert "data.on_error" in str(done.exception) and "'skip'" in str(done.exception)
