"""Models that know users by codes: these carry what a short prompt does not, and unknown users are asked about too.

Made data: users of two tastes walk round a ring of items, one forwards, the other backwards. What taste a user has,
only the first item of the history says, and prompts hold the last one alone.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genrec.data.catalog import fingerprint
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.data.ties import redraw
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import SearchOptions
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.users import user_vectors
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.recommender import GenerativeRecommender
from genrec.testing.walks import tiny_model, walks
from genrec.training.collate import Collator
from genrec.training.continual_rows import SampleRows
from genrec.training.dataset import TrainingData, prefix_samples, window_samples
from genrec.training.finetune import finetune
from genrec.training.losses import CodeLoss
from genrec.training.module import TrainingModule
from genrec.training.packing import PackedBatches
from genrec.training.preference_lists import ListMaker, queries_of
from genrec.training.settings import TrainSettings
from genrec.training.validation import decoding_settings
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex, UserSettings, first_part, index_users

RING, N_USERS = 8, 40
ONE_LEVEL = {"kind": "rqkmeans", "n_levels": 1, "level_size": 2, "collisions": "shared"}
SETTINGS = TrainSettings(
    epochs=60,
    batch_size=43,
    learning_rate=1e-2,
    user_drop=0.25,
    warmup_steps=10,
    max_items=1,
    eval_every=0,
    bf16=False,
    save_every=0,
)


@lru_cache
def tastes(with_users: bool = True) -> TrainingData:
    random = np.random.default_rng(0)
    step = np.where(np.arange(N_USERS) % 2, 1, -1)
    starts, lengths = random.integers(0, RING, N_USERS), random.integers(4, 7, N_USERS)
    walk = [(s + d * np.arange(n + 1)) % RING for s, d, n in zip(starts, step, lengths, strict=True)]
    markers = RING + (step > 0)
    train = Histories.from_lists([[m, *row[:-1]] for m, row in zip(markers, walk, strict=True)])
    codes = ItemCodes.from_int([[n // 4, n % 4] for n in range(RING + 2)], (3, 4), "ring")
    vectors = np.zeros((RING + 2, 2))
    vectors[RING], vectors[RING + 1] = (1, 0), (0, 1)  # the others are not known
    ids = [f"user {u}" for u in range(N_USERS)]
    index = None
    if with_users:
        index = index_users(train, ids, ItemEmbeddings(vectors, "ring"), UserSettings(share=0.2, tokenizer=ONE_LEVEL))
    return TrainingData(
        train,
        codes,
        TokenMap.of(codes, user_levels=() if index is None else index.level_sizes),
        valid=EvalSet(np.arange(N_USERS, dtype=np.int32), train, Histories.from_lists([row[-1:] for row in walk])),
        user_ids=ids,
        user_index=index,
    )


def recommender(model, data: TrainingData, settings=SETTINGS) -> GenerativeRecommender:
    index, search = CatalogIndex.build(data.codes), decoding_settings(settings)
    return GenerativeRecommender(
        model, data.token_map, data.codes, index, search, user_ids=data.user_ids, user_index=data.user_index
    )


def hits(model: GenerativeRecommender, data: TrainingData, users=None) -> float:
    """Share of validation targets in the first place; what was seen may be listed, for else it tells the direction."""
    found = model.recommend(data.valid.histories, SearchOptions(top_k=2, exclude_seen=False), users).items
    return float((found[:, 0] == data.valid.targets.items).mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = tastes()
    return finetune(tiny_model("decoder", data, dropout=0.0), data, SETTINGS, tmp_path_factory.mktemp("users")).model


def test_the_index_says_what_the_prompt_does_not(trained, tmp_path):
    data, bare = tastes(), tastes(with_users=False)
    model = recommender(trained, data)
    own, others = np.arange(N_USERS), np.arange(N_USERS) ^ 1  # the next user has the other taste
    assert hits(model, data, own) > 0.95 and hits(model, data, others) < 0.05
    without = finetune(tiny_model("decoder", bare, dropout=0.0), bare, SETTINGS, tmp_path).model
    assert hits(recommender(without, bare), bare) < 0.7  # one of two directions
    assert hits(model, data) < 0.7


def test_unknown_users_are_answered_as_if_nobody_was_named(trained):
    data = tastes()
    model, ring = recommender(trained, data), np.arange(RING)
    options = SearchOptions(top_k=2, exclude_seen=False)
    rows = Histories.from_lists([[n] for n in ring])
    strangers = model.recommend(rows, options, users=[f"stranger {n}" for n in ring])
    assert strangers.scores.tolist() == model.recommend(rows, options).scores.tolist()
    # of what is learned from samples whose users were dropped: either neighbour
    assert [set(row) for row in strangers.items.tolist()] == [{(n - 1) % RING, (n + 1) % RING} for n in ring]


def test_a_bundle_keeps_the_index_and_no_other_fits(trained, tmp_path):
    data = tastes()
    model, users = recommender(trained, data), [*data.user_ids[:3], "stranger"]
    save_bundle(tmp_path / "bundle", model)
    again = load_bundle(tmp_path / "bundle").recommender
    rows = data.valid.histories.take(range(4))
    assert again.recommend(rows, users=users).scores.tolist() == model.recommend(rows, users=users).scores.tolist()
    swapped = UserIndex(data.user_index.ids, data.user_index.codes.take(np.arange(N_USERS) ^ 1))
    other = dataclasses.replace(data, user_index=swapped)
    with pytest.raises(FingerprintMismatch, match="users"):
        recommender(trained, other)
    with pytest.raises(ConfigError, match="user index"):
        recommender(trained, dataclasses.replace(data, user_index=None))
    short = dataclasses.replace(SETTINGS, max_steps=1)
    finetune(tiny_model("decoder", data), data, short, tmp_path / "out")
    whole = dataclasses.replace(data, user_index=dataclasses.replace(data.user_index, share=1.0))
    for another in (other, whole):
        with pytest.raises(ConfigError, match="users"):  # nor is its training gone on with
            finetune(tiny_model("decoder", data), another, short, tmp_path / "out")


def numbered(lengths, share: float, tied=None) -> TrainingData:
    """Every event is of an item of its own, which has its number; every user has a code."""
    n_users, n_items = len(lengths), sum(lengths)
    ids = tuple(map(str, range(n_users)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    codes = ItemCodes.from_int(np.arange(n_items)[:, None], (n_items,), "numbers")
    own = ItemCodes.from_int(np.arange(n_users)[:, None], (n_users,), fingerprint(ids))
    index, histories = UserIndex(ids, own, share), Histories(offsets, np.arange(n_items, dtype=np.int32))
    token_map = TokenMap.of(codes, user_levels=(n_users,))
    return TrainingData(histories, codes, token_map, user_ids=ids, user_index=index, tied=tied)


def learned(data: TrainingData, layout: str, items, max_items: int) -> list[tuple[int, bool]]:
    """Every target, and whether its user's token is among the tokens that are read."""
    cut = window_samples if layout == "decoder" else prefix_samples
    samples = dataclasses.replace(cut(data.histories, max_items, data.told_E), items=items)
    collate = Collator(data, layout)
    if not len(samples):
        return []
    batch = collate(samples)
    symbols, width = (
        batch["targets"].tolist(),
        batch["input_ids" if layout == "decoder" else "decoder_input_ids"].shape[1],
    )
    assert len(symbols) == collate.n_targets(samples)
    rows = batch["input_ids"].tolist()
    user_E, users_UM = data.histories.rows(), data.users_UM
    found = []
    for at, item in zip(batch["positions"].tolist(), symbols, strict=True):
        own = users_UM[user_E[item], 0] in rows[at // width]
        assert own != (users_UM[-1, 0] in rows[at // width])  # else <unk_user>
        found.append((item, own))
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from([0.1, 0.5, 0.8]), st.integers(1, 9), st.data()
)
def test_no_target_stands_behind_codes_that_are_made_of_it(lengths, share, max_items, draw):
    assume(sum(lengths))
    place = np.concatenate([np.arange(n) for n in lengths])
    part = np.concatenate([np.full(n, math.ceil(Fraction(str(share)) * n)) for n in lengths])
    tied = np.array(draw.draw(st.lists(st.booleans(), min_size=len(place), max_size=len(place)))) & (place > 0)
    for layout, first in (("decoder", 0), ("encoder", 1)):
        plain, order = numbered(lengths, share), numbered(lengths, share, tied)
        found = learned(plain, layout, plain.histories.items, max_items)
        assert len({item for item, _ in found}) == len(found)  # each once
        assert all(own == (place[item] >= part[item]) for item, own in found)
        missing = set(np.flatnonzero(place >= first)) - {item for item, _ in found}
        # a window of one item is no sample
        assert not missing if layout == "encoder" else all(place[e] == 0 or place[e] < max_items + 1 for e in missing)
        redrawn = redraw(order.histories.items, tied, seed=0, epoch=1)
        assert not any(own and place[item] < part[item] for item, own in learned(order, layout, redrawn, max_items))
        whole = numbered(lengths, 1.0)  # as published
        assert all(own for _, own in learned(whole, layout, whole.histories.items, max_items))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_codes_do_not_tell_of_random_targets(share):
    """Items are near users whose codes are made of them. What comes next at random is no nearer than any other."""
    random = np.random.default_rng(0)
    train = Histories.from_lists([random.integers(0, 100, n) for n in random.integers(5, 15, 200)])
    items, ids = ItemEmbeddings(random.normal(size=(100, 16)), "c"), [str(n) for n in range(200)]
    tokenizer = {"kind": "rqkmeans", "n_levels": 2, "level_size": 32, "collisions": "shared"}
    index = index_users(train, ids, items, UserSettings(share=share, tokenizer=tokenizer))
    samples = prefix_samples(train, 20, index.told(train))
    samples = samples.take(np.flatnonzero(samples.rows >= 0))
    part = first_part(train.lengths, share)
    older = Histories.from_slices(train.items, train.offsets[:-1], train.offsets[:-1] + part)
    same = index.codes.collision_ids()[:, None] == index.codes.collision_ids()
    said = same @ user_vectors(older, items)[0]  # all that codes say: whose mean vectors have them
    nearness = said @ items.vectors.T / np.linalg.norm(items.vectors, axis=1)
    target = nearness[samples.rows, samples.items[samples.ends - 1]]
    rank = (nearness[samples.rows] < target[:, None]).mean(axis=1)
    chance = 1 / np.sqrt(12 * len(rank))
    assert abs(rank.mean() - 0.5) < 3 * chance if share < 1 else rank.mean() > 0.5 + 20 * chance


def test_preferences_and_new_items_are_learned_so_too():
    data = numbered([6, 3, 1], 0.5)
    model, unknown = tiny_model("decoder", data), data.users_UM[-1, 0]
    samples = prefix_samples(data.histories, 4)
    queries = queries_of(data.histories, samples, np.arange(len(samples)), told_E=data.told_E)
    prompts = ListMaker(model, data, "level").prompts(queries)
    told = [unknown not in row for row in prompts.tokens_BT.tolist()]
    assert queries.targets[told].tolist() == [3, 4, 5, 8]
    rows = SampleRows(model, data, None, 4)(samples.ends - 1, samples.ends - 1)
    kept = [unknown not in rows.ids[a:b] for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
    assert kept == told


def test_users_are_dropped_from_samples_by_chance():
    samples = window_samples(walks(n_users=400).histories, 3)
    dropped = samples.drop_users(0.25, seed=3, epoch=1)
    share = (dropped.rows == -1).mean()
    assert 0.15 < share < 0.35 and (dropped.rows[dropped.rows >= 0] == samples.rows[dropped.rows >= 0]).all()
    assert dropped.rows.tolist() == samples.drop_users(0.25, seed=3, epoch=1).rows.tolist()
    assert dropped.rows.tolist() != samples.drop_users(0.25, seed=3, epoch=2).rows.tolist()


@pytest.mark.parametrize("packing", [False, True])
def test_samples_with_and_without_a_user_predict_the_same_items(packing):
    """Rows of one batch have user tokens of unequal number; each has the loss that it has alone."""
    data, index = walks(ragged=True), UserSettings(tokenizer={**ONE_LEVEL, "n_levels": 3, "collisions": "suffix"})
    vectors = ItemEmbeddings(np.random.default_rng(0).normal(size=(24, 4)), "walks")
    users = index_users(data.histories, data.user_ids, vectors, index)
    tokens = TokenMap.of(data.codes, user_levels=users.level_sizes)
    data = dataclasses.replace(data, token_map=tokens, user_index=users)
    samples = window_samples(data.histories, 4)
    samples = samples.drop_users(0.5, seed=0, epoch=0)
    module = TrainingModule(tiny_model("decoder", data).eval(), CodeLoss(tokens, "level", 0.0, data.codes))
    collate = PackedBatches(Collator(data, "decoder")) if packing else Collator(data, "decoder")
    told = samples.rows >= 0
    assert told.any() and not told.all()
    with torch.no_grad():
        together = module(**collate(samples), scale=1.0)
        alone = sum(module(**collate(samples.take(np.array([n]))), scale=1.0) for n in range(len(samples)))
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
