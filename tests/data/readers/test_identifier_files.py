import gzip
import json

import pytest

from genrec.data.readers.identifier_files import read_identifiers
from genrec.errors import DataError


@pytest.mark.parametrize(
    ("text", "form", "items", "tokens"),
    [
        ('{"b": ["<a_1>", "<b_2>"], "a": ["<a_1>"]}', "index json", ("b", "a"), (("<a_1>", "<b_2>"), ("<a_1>",))),
        ('\n {"7": "<a_1><b_2>"}', "index json", ("7",), (("<a_1>", "<b_2>"),)),
        ('{"x": [3, 14]}', "index json", ("x",), (("3", "14"),)),
        ("B1 |▁loss|▁brake\r\nB2 |▁iron|du\n", "pieces", ("B1", "B2"), (("▁loss", "▁brake"), ("▁iron", "du"))),
        ("B1 nail  file\nB2\tsea mud\n", "words", ("B1", "B2"), (("nail", "file"), ("sea", "mud"))),
        ("<a_1><b_2>\tA title, long\t17\n", "token table", ("17",), (("<a_1>", "<b_2>"),)),
    ],
)
def test_every_form_is_recognised(tmp_path, text, form, items, tokens):
    file = tmp_path / "ids"
    file.write_text(text, encoding="utf-8", newline="")
    found = read_identifiers(file)
    assert (found.form, found.items, found.tokens, found.empty) == (form, items, tokens, ())


def test_items_without_anything_behind_them_are_named_not_refused(tmp_path):
    (tmp_path / "words").write_text("B1 nail file\nB2 \nB3 mud\n")
    assert read_identifiers(tmp_path / "words").empty == ("B2",)
    (tmp_path / "json").write_text(json.dumps({"x": ["<a_1>"], "y": []}))
    found = read_identifiers(tmp_path / "json")
    assert found.empty == ("y",) and found.items == ("x",)


def test_gzip_is_read_as_what_it_holds(tmp_path):
    (tmp_path / "ids.json.gz").write_bytes(gzip.compress(b'{"x": ["<a_1>"]}'))
    assert read_identifiers(tmp_path / "ids.json.gz").items == ("x",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no identifiers"),
        ("{}", "no identifiers"),
        ('{"x": []}', "no identifiers"),
        ('{"x": ["<a_1>"}', "not JSON"),
        ('[["<a_1>"]]', "expected an object"),
        ('{"x": "plain"}', "item 'x': expected a list of tokens, got 'plain'"),
        ('{"x": ["<a_1>"], "y": [1, "<b_2>"]}', "item 'y': expected a list of tokens"),
        ('{"x": [true]}', "item 'x'"),
        ('{"x": [""]}', "item 'x'"),
        ('{"x": ["<a_1>"], "x": ["<a_2>"]}', "item 'x': it has two entries"),
        ("B1 |a|b\nB2 |c\nB3 plain", "line 3: expected B00X |"),
        ("sku,name\nB1,Nail file\nB2,Mud\n", "between commas"),
        ("B1 nail file\nB2 mud\nB1 sea", "line 3: item 'B1' has a line already"),
        ("<a_1><b_2>\ttitle\t\n", "line 1: expected <a_12>"),
    ],
)
def test_bad_files_are_refused_by_place_with_what_to_do(tmp_path, text, said):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(DataError, match="bad") as refused:
        read_identifiers(tmp_path / "bad")
    assert said in str(refused.value) and refused.value.hint


def test_other_encodings_folders_and_missing_files(tmp_path):
    (tmp_path / "latin").write_bytes("B1 na\u00efl\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 1: not utf-8") as refused:
        read_identifiers(tmp_path / "latin")
    assert "UTF-8" in refused.value.hint
    with pytest.raises(DataError, match="a folder") as refused:
        read_identifiers(tmp_path)
    assert "genrec inspect" in refused.value.hint
    with pytest.raises(DataError, match="no such file"):
        read_identifiers(tmp_path / "nothing")
