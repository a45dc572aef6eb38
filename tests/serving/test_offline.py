"""`genrec batch`: the lists of the endpoint, for a table of users."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.testing.shop_endpoint import IDS, save_shop


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
    return save_shop(tmp_path_factory.mktemp("batch") / "shop")


@pytest.fixture
def users(tmp_path):
    random = np.random.default_rng(0)
    histories = [[IDS[i] for i in random.integers(0, 40, n % 6)] + ["unknown"] * (n % 3 == 0) for n in range(50)]
    names = [f"u{n % 10}" if n % 7 == 0 else None for n in range(50)]
    table = pa.table({"more": range(50), "user": names, "history": histories})
    parquet.write_table(table, tmp_path / "users.parquet", row_group_size=20)
    return tmp_path / "users.parquet"


def wanted(**changes):
    from genrec.serving.schemas import RecommendationRequest

    return RecommendationRequest(history=[], **{"top_k": 7, "where": ["kind = tea"], **changes})


def rows_of(made):
    return [row for file in made.files for row in parquet.read_table(file).to_pylist()]


def test_every_user_gets_the_list_of_the_endpoint(run, users, tmp_path, client):
    from genrec.serving.model import ServedModel
    from genrec.serving.offline import recommend_all
    from genrec.serving.settings import ServeSettings

    made, shop = recommend_all(run, users, tmp_path / "out", wanted()), client()
    loaded = ServedModel.load(run)
    assert loaded.max_beams == ServeSettings().max_beams  # of an exact search, wherever it is made
    loaded.close()
    given, rows = parquet.read_table(users).to_pylist(), rows_of(made)
    assert len(made.files) == 3 and made.users == len(rows) == len(given) == 50
    assert [row["row"] for row in rows] == [*range(20), *range(20), *range(10)]
    for row, asked in zip(rows, given, strict=True):
        (one,) = shop.recommend(history=asked["history"], top_k=7, where=["kind = tea"]).json["data"]
        assert row["items"] == [item["id"] for item in one["items"]] and row["user"] == asked["user"]
        scores = [np.nan if s is None else s for s in row["scores"]]
        expected = [np.nan if item["score"] is None else item["score"] for item in one["items"]]
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert (row["source"], row["skipped_items"]) == (one["source"], one["skipped_items"])
    assert made.cold == sum(row["source"] == "popular" for row in rows) > 0 and made.skipped_items == 17


def test_a_server_that_went_back_has_the_lists_of_the_earlier_model(run, users, tmp_path):
    from genrec.serving.changes import Changes
    from genrec.serving.digests import at
    from genrec.serving.offline import recommend_all

    newer = save_shop(tmp_path / "newer", seed=1)
    journal = tmp_path / "journal"
    changes = Changes(journal)
    back = {"place": str(run), "digest": at(run), "instead_of": at(newer)}
    changes.go_back(back)
    found = rows_of(recommend_all(newer, users, tmp_path / "out", wanted(), journal=journal))
    assert found == rows_of(recommend_all(run, users, tmp_path / "old", wanted()))
    changes.go_back({**back, "digest": "another"})
    with pytest.raises(ArtifactError, match="not there any more"):
        recommend_all(newer, users, tmp_path / "out", wanted(), journal=journal)
    changes.go_back({**back, "instead_of": "another"})  # a later deployment counts
    assert found != rows_of(recommend_all(newer, users, tmp_path / "new", wanted(), journal=journal))
    changes.close()


def test_a_finished_file_is_not_made_again_and_another_job_is_refused(run, users, tmp_path):
    from genrec.serving.offline import recommend_all

    out = tmp_path / "out"
    first = recommend_all(run, users, out, wanted())
    content = [file.read_bytes() for file in first.files]
    first.files[1].unlink()
    times = [first.files[n].stat().st_mtime_ns for n in (0, 2)]
    again = recommend_all(run, users, out, wanted())
    assert again.reused_shards == 2 and [file.read_bytes() for file in again.files] == content
    assert [again.files[n].stat().st_mtime_ns for n in (0, 2)] == times
    with pytest.raises(ConfigError, match="another request"):
        recommend_all(run, users, out, wanted(top_k=8))
    assert rows_of(recommend_all(run, users, out, wanted(top_k=8), overwrite=True))[4]["items"][7:] != []
    os.utime(users, ns=(1, 1))
    with pytest.raises(DataError, match="changed since"):
        recommend_all(run, users, out, wanted(top_k=8))


def test_a_user_who_is_not_in_the_log_ends_no_job(run, tmp_path):
    from genrec.serving.offline import recommend_all

    parquet.write_table(pa.table({"user": ["u1", "nobody"]}), tmp_path / "users.parquet")
    made = recommend_all(run, tmp_path / "users.parquet", tmp_path / "out", wanted())
    assert [row["source"] for row in rows_of(made)] == ["model", "popular"] and made.cold == 1
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "bundle").symlink_to(run / "bundle")
    with pytest.raises(DataError, match="row 0: user: this server has no log"):
        recommend_all(tmp_path / "bare", tmp_path / "users.parquet", tmp_path / "other", wanted())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"name": ["x"]}, "expected a column 'history' or 'user'"),
        ({"history": ["item-01"]}, "expected lists of item ids"),
        ({"history": [["item-01"], None]}, "row 1: expected a history or a user"),
        ({"history": [["item-01", None]]}, "row 0: an item id"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_place(run, tmp_path, columns, words):
    from genrec.serving.offline import recommend_all

    parquet.write_table(pa.table(columns), tmp_path / "users.parquet")
    with pytest.raises(DataError, match=words):
        recommend_all(run, tmp_path / "users.parquet", tmp_path / "out", wanted())
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.slow
def test_the_command(run, users, tmp_path):
    (tmp_path / "gone.txt").write_text(f"{IDS[0]}\n{IDS[2]}\n")
    options = ["--top-k", "5", "--where", "kind = tea", "--deny-file", str(tmp_path / "gone.txt"), "--json"]
    command = [sys.executable, "-m", "genrec.cli.main", "batch", str(run), str(users), str(tmp_path / "out"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["users"] == 50 and len(found["files"]) == 3
    items = {item for file in found["files"] for row in parquet.read_table(file).to_pylist() for item in row["items"]}
    assert items and items <= set(IDS[4::2])
    wrong = subprocess.run(
        [*command, "--overwrite", "--where", "nofield < 3"], capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 1 and "where" in wrong.stderr and "Traceback" not in wrong.stderr
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3  # what was there stays
