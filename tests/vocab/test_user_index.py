"""Users as codes of their training histories: what they are made of, their tokens, and that nothing later leaks."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import fingerprint
from genrec.data.histories import Histories
from genrec.data.interactions import Interactions
from genrec.data.splits import leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.collaborative import SvdSettings, svd
from genrec.embeddings.users import user_vectors
from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.text_models import byte_level_tokenizer
from genrec.vocab.text_vocabulary import TextVocabulary, extend_vocabulary
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex, UserSettings, first_part, index_users, user_tokens

SMALL = UserSettings(tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 4, "collisions": "suffix"})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=5),
    st.floats(0.05, 1.0),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_user_vectors_are_weighted_means_of_known_items(rows, decay, known):
    vectors = np.random.default_rng(0).normal(size=(5, 3)) * np.array(known)[:, None]
    found, is_known = user_vectors(Histories.from_lists(rows), ItemEmbeddings(vectors, "c"), decay=decay)
    for u, row in enumerate(rows):
        total, weights = np.zeros(3), 0.0
        for age, item in enumerate(reversed(row)):
            if known[item]:
                total, weights = total + decay**age * vectors[item], weights + decay**age
        assert is_known[u] == (weights > 0)
        np.testing.assert_allclose(found[u], total / weights if weights else total, atol=1e-5)


def test_bad_vectors_are_refused():
    items = ItemEmbeddings(np.ones((2, 3)), "c")
    with pytest.raises(ConfigError, match="decay"):
        user_vectors(Histories.from_lists([[0]]), items, decay=0.0)
    with pytest.raises(DataError, match="item numbers"):
        user_vectors(Histories.from_lists([[2]]), items)
    with pytest.raises(ConfigError, match="share"):
        UserSettings(share=0.0)
    with pytest.raises(DataError, match="nobody"):
        index_users(Histories.from_lists([[], []]), ["a", "b"], items, SMALL)
    with pytest.raises(DataError, match="user_ids"):
        index_users(Histories.from_lists([[0]]), ["a", "b"], items, SMALL)
    with pytest.raises(ConfigError, match="gives sets of vectors"):
        index_users(Histories.from_lists([[0]]), ["a"], items, dataclasses.replace(SMALL, tokenizer={"kind": "setrec"}))


def index_of(log: Interactions, n_items: int, collisions: str = "suffix") -> UserIndex:
    """The index as a pipeline makes it: item vectors of the training part too."""
    train = leave_one_out(log).train()
    items = svd(train, n_items, SvdSettings(dim=6), log.catalog)
    chosen = dataclasses.replace(SMALL, tokenizer={**SMALL.tokenizer, "collisions": collisions})
    return index_users(train, log.user_ids, items, chosen, seed=1)


@pytest.mark.parametrize("collisions", ["suffix", "reassign"])
def test_nobody_s_index_moves_with_what_is_done_later(collisions):
    shop = make(tiny(n_users=14))
    log, n_items = shop.interactions, len(shop.catalog)
    before = index_of(log, n_items, collisions)
    assert len(before) > 10 and not before.codes.collisions()  # unique
    last = np.flatnonzero(np.diff(log.user, append=-1))
    later = np.sort(np.concatenate([last, last - 1]))  # validation and test
    other = log.item.copy()
    other[later] = (other[later] + 7) % n_items
    after = index_of(dataclasses.replace(log, item=other), n_items, collisions)
    assert after.ids == before.ids and after.fingerprint == before.fingerprint
    other[0] = (other[0] + 7) % n_items  # an event of the training part does count
    assert index_of(dataclasses.replace(log, item=other), n_items, collisions).fingerprint != before.fingerprint


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_only_the_oldest_part_of_a_history_counts(share):
    random = np.random.default_rng(0)
    rows = [random.integers(0, 50, n) for n in range(1, 31)]
    items = ItemEmbeddings(random.normal(size=(50, 4)), "c")
    part = [math.ceil(Fraction(str(share)) * len(row)) for row in rows]
    lengths = np.array([len(row) for row in rows])
    assert first_part(lengths, share).tolist() == part and first_part(np.array([0, 100]), 0.07).tolist() == [0, 7]
    made = [rows, [np.append(row[:n], (row[n:] + 7) % 50) for row, n in zip(rows, part, strict=True)]]
    made.append([np.append(row[: n - 1], (row[n - 1 :] + 7) % 50) for row, n in zip(rows, part, strict=True)])
    chosen = dataclasses.replace(SMALL, share=share)
    ids = [str(n) for n in range(30)]
    index, later, own = (index_users(Histories.from_lists(each), ids, items, chosen) for each in made)
    assert later.fingerprint == index.fingerprint != own.fingerprint and index.share == share
    assert index.told(Histories.from_lists(rows)) is None or share < 1


def small_index() -> UserIndex:
    train = Histories.from_lists([[0, 1], [], [2], [3, 0], [1]])
    items = ItemEmbeddings(np.random.default_rng(0).normal(size=(4, 3)), "c")
    return index_users(train, ["ann", "bob", "eve", "tim", "zoe"], items, SMALL)


def test_tokens_of_users_with_and_without_an_index():
    index = small_index()
    assert index.ids == ("ann", "eve", "tim", "zoe") and "ann" in index and "bob" not in index
    tokens = TokenMap((4, 4), user_levels=index.level_sizes)
    assert tokens.n_user_tokens == 1 + sum(index.level_sizes) and tokens.vocab_size == 3 + 8 + tokens.n_user_tokens
    names = tokens.tokens()
    found = user_tokens(tokens, ["tim", "bob", "nobody"], index)
    codes = index.codes.as_int()[2]
    assert index._codes_UL is index._codes_UL  # not copied at every request
    assert [names[t] for t in found[0]] == [f"<u{'abc'[level]}_{code}>" for level, code in enumerate(codes)]
    for row in found[1:]:
        assert names[row[0]] == "<unk_user>" and (row[1:] == -1).all()
    # no item token has the name or the id of a user's
    items = [t for t in names if not t.startswith("<u")]
    assert names == [*items, *names[tokens.user_offset :]] and len(set(names)) == len(names)
    assert not tokens.real(found.clip(0)).any()
    again = TokenMap.from_dict(tokens.to_dict())
    assert again == tokens and again.fingerprint != TokenMap((4, 4)).fingerprint


def test_a_map_and_an_index_of_other_levels_do_not_meet():
    index = small_index()
    with pytest.raises(ConfigError, match="none is given"):
        user_tokens(TokenMap((4, 4), user_levels=(3, 3)), ["ann"])
    with pytest.raises(ConfigError, match="user levels"):
        user_tokens(TokenMap((4, 4), n_user_tokens=3), ["ann"], index)
    with pytest.raises(ConfigError, match="n_user_tokens beside"):
        TokenMap((4, 4), n_user_tokens=3, user_levels=(3, 3))
    with pytest.raises(ConfigError, match="UserIndex"):
        TokenMap((4, 4), user_levels=(3, 3)).user_tokens(["ann"])
    with pytest.raises(DataError, match="user codes"):
        TokenMap((4, 4), user_levels=(3, 3)).user_token_ids(np.array([[3, 0]]))
    with pytest.raises(DataError, match="others"):
        UserIndex(("ann", "eve", "tim", "bob"), index.codes)
    text = ItemCodes(np.zeros((1, 1), int), (1,), fingerprint(("ann",)), shared_vocabulary=True, pieces=("a",))
    with pytest.raises(DataError, match="made of text"):
        UserIndex(("ann",), text)


def test_it_is_read_back_or_refused(tmp_path):
    index = small_index()
    index.save(tmp_path / "users")
    again = UserIndex.load(tmp_path / "users")
    assert (again.ids, again.fingerprint, again.share) == (index.ids, index.fingerprint, 0.5)
    file = tmp_path / "users" / "ids.json"
    file.write_text(file.read_text().replace("ann", "eva"))
    with pytest.raises(ArtifactError):
        UserIndex.load(tmp_path / "users")


def test_no_text_names_a_user(tmp_path):
    vocabulary = extend_vocabulary(byte_level_tokenizer(), (4, 4), user_levels=(3, 3))
    vocabulary.save(tmp_path)
    vocabulary = TextVocabulary.load(tmp_path, vocabulary.token_map)
    text = "<ua_1><ub_2> <unk_user>"
    assert vocabulary.tokenizer(text)["input_ids"][0] >= vocabulary.token_map.user_offset  # as tokens they are known
    assert max(vocabulary.encode_text(text)) < vocabulary.token_map.first_item_id
