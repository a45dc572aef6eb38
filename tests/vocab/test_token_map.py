from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.token_map import TextBase, TokenMap


@st.composite
def map_and_codes(draw):
    ragged = draw(st.booleans())
    shared = draw(st.booleans())
    n_levels = draw(st.integers(1, 5))
    size = draw(st.integers(1, 9))
    sizes = (size,) * n_levels if shared else tuple(draw(st.integers(1, 9)) for _ in range(n_levels))
    tokens = TokenMap(sizes, ragged, draw(st.integers(0, 4)), shared)
    rows = []
    for _ in range(draw(st.integers(0, 6))):
        length = draw(st.sampled_from(range(n_levels + 1) if ragged else [0, n_levels]))
        rows.append([draw(st.integers(0, k - 1)) for k in sizes[:length]] + [-1] * (n_levels - length))
    return tokens, np.array(rows, dtype=np.int64).reshape(len(rows), n_levels)


@given(map_and_codes())
@settings(max_examples=80, deadline=None)
def test_decoding_undoes_encoding(case):
    tokens, codes = case
    ids = tokens.token_ids(codes)
    assert ids.shape == (len(codes), tokens.n_tokens_per_item)
    assert tokens.codes(ids).tolist() == codes.tolist()
    strings = tokens.tokens()
    assert len(strings) == len(set(strings)) == tokens.vocab_size
    for row, row_ids in zip(codes, ids, strict=True):
        words = [strings[i] for i in row_ids if i not in (tokens.pad_id, tokens.eos_id)]
        assert " ".join(words) == tokens.text(row)
        assert (row_ids == tokens.eos_id).sum() == (tokens.ragged and (row >= 0).any())


@given(map_and_codes())
@settings(max_examples=30, deadline=None)
def test_json_round_trip(case):
    tokens, _ = case
    back = TokenMap.from_dict(json.loads(json.dumps(tokens.to_dict())))
    assert back == tokens
    assert back.fingerprint == tokens.fingerprint


def test_ids_by_hand():
    tokens = TokenMap((4, 2), n_user_tokens=2)
    assert " ".join(tokens.tokens()) == "<pad> </s> <s> <a_0> <a_1> <a_2> <a_3> <b_0> <b_1> <u_0> <u_1>"
    assert tokens.level_offset == (3, 7)
    assert tokens.token_ids([[[3, 0], [-1, -1]]]).tolist() == [[[6, 7], [0, 0]]]
    assert TokenMap((4, 2), ragged=True).token_ids([[3, 0], [2, -1]]).tolist() == [[6, 7, 1], [5, 1, 0]]
    assert TokenMap((4, 4), shared_vocabulary=True).token_ids([3, 3]).tolist() == [6, 6]


def test_every_setting_changes_the_fingerprint():
    maps = [
        TokenMap((4, 4)),
        TokenMap((4, 5)),
        TokenMap((4, 4), ragged=True),
        TokenMap((4, 4), n_user_tokens=1),
        TokenMap((4, 4), shared_vocabulary=True),
    ]
    assert len({m.fingerprint for m in maps}) == len(maps)


def test_more_levels_than_letters_keep_tokens_apart():
    tokens = TokenMap((1,) * 60, n_user_tokens=1)
    assert len(set(tokens.tokens())) == tokens.vocab_size
    assert tokens.tokens()[-1] == "<u_0>"


@pytest.mark.parametrize(
    ("rows", "ragged", "message"),
    [
        ([[4, 0]], False, r"at \(0, 0\): expected -1..3, got 4"),
        ([[0, 0], [0, -2]], False, r"at \(1, 1\)"),
        ([[0, -1]], False, "expected 2 codes"),
        ([[-1, 0]], True, "codes then -1"),
        ([[0, 0, 0]], False, "expected integers"),
    ],
)
def test_wrong_codes_are_refused(rows, ragged, message):
    with pytest.raises(DataError, match=message):
        TokenMap((4, 2), ragged=ragged).token_ids(rows)


@pytest.mark.parametrize(
    ("ids", "ragged"),
    [
        ([[3, 7], [7, 3]], False),  # levels swapped
        ([[3, 7], [3, 1]], False),  # end token in a fixed-length identifier
        ([[3, 7], [3, 0]], False),
        ([[3, 7, 1], [3, 7, 0]], True),  # no end
        ([[3, 7, 1], [3, 1, 1]], True),
        ([[3, 7, 1], [0, 7, 1]], True),
    ],
)
def test_tokens_that_are_no_identifier_are_refused(ids, ragged):
    with pytest.raises(DataError, match=r"row \(1,\)"):
        TokenMap((4, 2), ragged=ragged).codes(ids)


def test_users_hash_the_same_in_every_process():
    tokens = TokenMap((4,), n_user_tokens=2000)
    users = [f"user {n}" for n in range(500)]
    ids = tokens.user_tokens(users)
    assert ids.min() >= tokens.user_offset
    assert ids.max() < tokens.vocab_size
    assert len(set(ids.tolist())) > 400
    script = (
        "from genrec.vocab.token_map import TokenMap;"
        "print(TokenMap((4,), n_user_tokens=2000).user_tokens([f'user {n}' for n in range(500)]).tolist())"
    )
    environment = {"PYTHONHASHSEED": "7", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == str(ids.tolist())
    with pytest.raises(ConfigError, match="n_user_tokens"):
        TokenMap((4,)).user_tokens(users)


def test_map_of_codes():
    fixed = ItemCodes(np.array([[0, 1]]), (2, 2), "c")
    ragged = ItemCodes.from_int([[0, 1], [0, -1]], (2, 2), "c")
    assert TokenMap.of(fixed, n_user_tokens=3) == TokenMap((2, 2), n_user_tokens=3)
    assert TokenMap.of(ragged).ragged


@pytest.mark.parametrize("values", [{}, {"level_sizes": [2], "levels": 1}])
def test_foreign_json_is_refused(values):
    with pytest.raises(ConfigError, match="token map"):
        TokenMap.from_dict(values)


def test_saved_text_tokenizer_loads_without_genrec(tmp_path):
    from transformers import AutoTokenizer

    tokens = TokenMap((300, 5, 5), n_user_tokens=3)
    words = tokens.text_tokenizer()
    codes = np.array([[299, 4, 0], [10, 1, 2]])
    text = "<u_2> " + " ".join(tokens.text(row) for row in codes)
    expected = [tokens.user_offset + 2, *tokens.token_ids(codes).ravel().tolist()]
    assert words.encode(text) == expected
    assert words.convert_tokens_to_ids(tokens.tokens()) == list(range(tokens.vocab_size))
    assert (words.pad_token_id, words.eos_token_id, words.bos_token_id) == (0, 1, 2)
    assert len(words) == tokens.vocab_size
    with pytest.raises(Exception, match="UNK"):
        words.encode("<a_300>")

    words.save_pretrained(tmp_path)
    back = AutoTokenizer.from_pretrained(tmp_path)
    assert type(back).__module__.startswith("transformers.")  # no code of ours is needed to load it
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert back.encode(text) == expected
    assert back.decode(expected) == text
    assert (back.pad_token_id, back.eos_token_id, back.bos_token_id) == (0, 1, 2)
    assert back(["<a_1>", "<a_1> <b_1>"], padding=True)["input_ids"] == [[4, 0], [4, 304]]


def test_a_map_without_text_is_stored_as_before():
    """Bundles of older versions load, and their models stay bound to them."""
    tokens = TokenMap((4, 4))
    assert tokens.to_dict() == {"level_sizes": [4, 4], "ragged": False, "n_user_tokens": 0, "shared_vocabulary": False}
    assert tokens.fingerprint == "2ee39f0cf9372eeef14ec5904265327c"


@given(map_and_codes(), st.integers(2, 50), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_behind_a_text_vocabulary_everything_moves(case, first, one_token, has_bos):
    alone, codes = case
    base = TextBase(first, pad_id=0, eos_id=0 if one_token else 1, bos_id=1 if has_bos else None, tokenizer="t")
    tokens = replace(alone, base=base)
    ids, before = tokens.token_ids(codes), alone.token_ids(codes)
    real = before != alone.pad_id
    assert tokens.real(ids).tolist() == alone.real(before).tolist() == real.tolist()
    assert (ids[before >= 3] == before[before >= 3] - 3 + first).all()
    assert (ids[before == alone.eos_id] == tokens.eos_id).all() and (ids[~real] == tokens.pad_id).all()
    assert tokens.codes(ids).tolist() == codes.tolist()
    assert tokens.vocab_size - first == alone.vocab_size - 3 == len(tokens.new_tokens())
    assert TokenMap.from_dict(json.loads(json.dumps(tokens.to_dict()))) == tokens
    assert tokens.fingerprint != alone.fingerprint
