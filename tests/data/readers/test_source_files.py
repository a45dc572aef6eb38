"""Which files a reader reads: what tells a pipeline that data have changed."""

import pytest

from genrec.data.readers import FORMATS, ReaderSettings, read, source_files
from genrec.errors import ConfigError, DataError

FLAGS = "|".join(["0"] * 19)
USUAL = {
    "neutral": {
        "items.jsonl": '{"item_id": "i1", "title": "One"}',
        "interactions.csv": "user_id,item_id,timestamp\nu,i1,1",
    },
    "amazon": {
        "meta_Pans.json": '{"asin": "i1", "title": "One"}',
        "reviews_Pans_5.json": '{"reviewerID": "u", "asin": "i1", "unixReviewTime": 1, "overall": 5}',
    },
    "movielens": {"u.item": f"1|One|01-Jan-1995||http://x|{FLAGS}", "u.data": "7\t1\t5\t20"},
    "recbole": {
        "d.item": "item_id:token\ttitle:token_seq\ni1\tOne",
        "d.inter": "user_id:token\titem_id:token\ttimestamp:float\nu\ti1\t1",
    },
    "tabular": {"items.csv": "item_id,title\ni1,One", "events.csv": "user_id,item_id\nu,i1"},
}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    return [folder / name for name in files]


def test_every_format_is_here():
    assert set(USUAL) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_exactly_the_files_that_are_read(name, tmp_path):
    files = write(tmp_path / "data", USUAL[name])
    (tmp_path / "data" / "README.md").write_text("not read")
    settings = ReaderSettings(name, tmp_path / "data")
    assert source_files(settings) == files
    (tmp_path / "data" / "README.md").unlink()
    assert len(read(settings).interactions) == 1  # nothing else was needed
    for file in files:
        text = file.read_bytes()
        file.write_bytes(b"\xff")
        with pytest.raises(DataError, match=file.name):
            read(settings)
        file.write_bytes(text)


@pytest.mark.parametrize("name", FORMATS)
def test_named_files_in_subfolders_and_elsewhere(name, tmp_path):
    items, log = write(tmp_path / "data" / "raw", USUAL[name])
    away = tmp_path / log.name
    log.rename(away)
    settings = ReaderSettings(name, tmp_path / "data", items=f"raw/{items.name}", interactions=str(away))
    assert source_files(settings) == [items, away]
    assert len(read(settings).interactions) == 1


def test_the_log_alone_and_what_is_missing(tmp_path):
    (log,) = write(tmp_path, {"interactions.csv": USUAL["neutral"]["interactions.csv"]})
    assert source_files(ReaderSettings("neutral", tmp_path, unknown_items="add")) == [log]
    with pytest.raises(DataError, match=r"no items file; looked for items\.jsonl") as error:
        source_files(ReaderSettings("neutral", tmp_path))
    assert "unknown_items='add'" in error.value.hint
    with pytest.raises(ConfigError, match="format"):
        source_files(ReaderSettings("csv", tmp_path))
