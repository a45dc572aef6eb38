import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genrec.errors import ArtifactError, ConfigError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.text_models import byte_level_tokenizer, unigram_tokenizer
from genrec.vocab.text_vocabulary import TextVocabulary, extend_vocabulary
from genrec.vocab.token_map import TokenMap

KINDS = ["byte", "byte with bos", "unigram"]


@cache
def made(kind):
    return unigram_tokenizer() if kind == "unigram" else byte_level_tokenizer(bos=kind.endswith("bos"))


@cache
def extended(kind):
    return extend_vocabulary(made(kind), (4, 12), n_user_tokens=3)


@pytest.fixture(params=KINDS)
def vocabulary(request):
    return extended(request.param)


def test_every_new_token_is_one_id_behind_the_old_ones(vocabulary):
    tokens, words = vocabulary.token_map, vocabulary.tokenizer
    first = tokens.first_item_id
    assert words.convert_tokens_to_ids(tokens.new_tokens()) == list(range(first, tokens.vocab_size))
    assert len(words) == tokens.vocab_size == first + 4 + 12 + 3
    codes = np.array([[3, 11], [0, 1]])
    ids = vocabulary.item_ids(codes)
    text = "".join(tokens.text(row, sep="") for row in codes)
    for one in (text, "<u_2>" + text):
        got = words.encode(one, add_special_tokens=False)
        assert got[-4:] == ids.ravel().tolist() and len(got) == one.count("<")
    assert vocabulary.decode(ids.ravel()) == text == words.decode(ids.ravel(), skip_special_tokens=True)
    assert tokens.codes(ids).tolist() == codes.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_text_around_items_is_as_it_is_without_them(kind):
    """No space is swallowed, and none appears."""
    vocabulary = extended(kind)
    got = vocabulary.tokenizer.encode("red wool<a_3>", add_special_tokens=False)
    assert got == [*vocabulary.encode_text("red wool"), *vocabulary.tokenizer.convert_tokens_to_ids(["<a_3>"])]
    assert vocabulary.encode_text("red wool scarf") == made(kind).encode("red wool scarf", add_special_tokens=False)


def test_special_tokens_are_those_of_the_text_vocabulary():
    for kind in KINDS:
        tokens, words = extended(kind).token_map, made(kind)
        assert (tokens.eos_id, tokens.bos_id) == (words.eos_token_id, words.bos_token_id)
        assert tokens.pad_id == (words.eos_token_id if kind == "byte with bos" else words.pad_token_id)
    assert extended("byte").token_map.bos_id is None


def test_the_given_tokenizer_is_left_as_it_was():
    words = byte_level_tokenizer(bos=True)
    before = words.get_vocab(), words.pad_token
    extend_vocabulary(words, (4, 4))
    assert (words.get_vocab(), words.pad_token) == before


NASTY = st.lists(
    st.one_of(
        st.sampled_from(
            ["<a_3>", "<b_11>", "<u_0>", "</s>", "<pad>", "<s>", "<unk>", "<|im_end|>", "<|endoftext|>", "<extra_id_0>"]
        ),
        st.sampled_from(["<|im_start|>", "<|end_of_text|>", "<", ">", "/s", " ", "a_3>", "▁", "Ġ", "\x00", "\ud800"]),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(text=NASTY)
@settings(max_examples=60, deadline=None)
@example(text="<a_<a_3>3>")
@example(text="</s></s> </s>")
def test_text_never_yields_an_item_or_a_special_token(kind, text):
    vocabulary = extended(kind)
    words, tokens = vocabulary.tokenizer, vocabulary.token_map
    special = {*words.all_special_ids, *words.added_tokens_decoder, tokens.pad_id, tokens.eos_id, tokens.bos_id}
    special -= {words.unk_token_id}
    got = vocabulary.encode_text(text)
    assert not special & set(got)
    assert all(i < tokens.first_item_id for i in got)
    assert vocabulary.encode_texts(["x", text]) == [vocabulary.encode_text("x"), got]


def test_bytes_keep_every_text():
    vocabulary = extended("byte")
    for text in ("</s> <a_3> <|im_end|>", "naïve 12 €", "  two  spaces ", "日本"):
        assert vocabulary.decode(vocabulary.encode_text(text)) == text


def test_a_piece_of_the_model_that_reads_as_a_special_token_is_broken_up():
    words = made("unigram")
    base = words.backend_tokenizer.model
    assert base.token_to_id("</s>") == 1  # so a plain encode without added tokens would yield it
    got = extended("unigram").encode_text("red</s>")
    assert 1 not in got and got[: len(extended("unigram").encode_text("red"))] == extended("unigram").encode_text("red")


def test_saved_tokenizers_load_with_and_without_genrec(tmp_path, vocabulary):
    vocabulary.save(tmp_path)
    again = TextVocabulary.load(tmp_path, TokenMap.from_dict(vocabulary.token_map.to_dict()))
    text = "red <a_3> </s>"
    assert again.encode_text(text) == vocabulary.encode_text(text)
    other = extend_vocabulary(unigram_tokenizer(["something else"], 40), (4, 12), n_user_tokens=3)
    for wrong in (other.token_map, TokenMap((4, 12)), TokenMap((12, 4), base=vocabulary.token_map.base)):
        with pytest.raises(FingerprintMismatch):
            TextVocabulary.load(tmp_path, wrong)
    with pytest.raises(ArtifactError, match="not a loadable"):
        (tmp_path / "empty").mkdir()
        TextVocabulary.load(tmp_path / "empty", vocabulary.token_map)


def test_auto_tokenizer_needs_no_genrec(tmp_path):
    extended("byte").save(tmp_path)
    code = (
        "import sys; sys.modules['genrec'] = None\n"
        "from transformers import AutoTokenizer\n"
        f"print(AutoTokenizer.from_pretrained({str(tmp_path)!r}).encode('<a_3><b_11>'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(extended("byte").item_ids([3, 11]).tolist())


def test_codes_decide_the_shape():
    ragged = ItemCodes.from_int([[0, 1], [0, -1]], (2, 2), "c")
    tokens = extend_vocabulary(made("byte with bos"), ragged).token_map
    first, end = tokens.first_item_id, tokens.eos_id
    assert tokens.ragged and tokens.pad_id == end
    ids = tokens.token_ids([[0, 1], [0, -1], [-1, -1]])
    assert ids.tolist() == [[first, first + 3, end], [first, end, end], [end, end, end]]
    assert tokens.real(ids).tolist() == [[True, True, True], [True, True, False], [False] * 3]
    assert tokens.codes(ids).tolist() == [[0, 1], [0, -1], [-1, -1]]


def test_what_cannot_be_extended_is_refused():
    with pytest.raises(ConfigError, match="already"):
        extend_vocabulary(extended("byte").tokenizer, (4, 4))
    with pytest.raises(ConfigError, match="fast"):
        extend_vocabulary(object(), (4, 4))
    words = byte_level_tokenizer()
    words.eos_token = None
    with pytest.raises(ConfigError, match="end token"):
        extend_vocabulary(words, (4, 4))
    for call in ("tokens", "text_tokenizer"):
        with pytest.raises(ConfigError, match="text vocabulary"):
            getattr(extended("byte").token_map, call)()
