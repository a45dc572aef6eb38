from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.actionpiece import ActionPiece, ActionPieceSettings
from genrec.item_tokenizers.actionpiece_features import bucket_numbers, with_buckets
from genrec.item_tokenizers.actionpiece_learning import MergeLearner
from genrec.item_tokenizers.actionpiece_nodes import EMPTY, Weights, count_pairs, pair_key, pair_of, tidy, tokens_of
from genrec.item_tokenizers.actionpiece_segment import SetSegmenter, merge_adjacent, merge_items, shuffled_features
from genrec.item_tokenizers.actionpiece_vocab import MergeVocabulary
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.registry import build_segmenter, build_slots, load_segmenter, settings_class
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.item_tokenizers.segmenter import TokenRows
from genrec.seeding import rng
from genrec.testing import actionpiece_oracle as oracle
from genrec.testing.segmenter_contract import SegmenterContract, planted_history_source

SMALL = ActionPieceSettings(n_tokens=120, n_levels=3, level_size=8, n_buckets=16, iterations=2)


class TestContract(SegmenterContract):
    def make(self):
        return ActionPiece(SMALL)


class TestContractWithoutMerges(SegmenterContract):
    def make(self):
        return ActionPiece(replace(SMALL, n_tokens=40))


# histories as lists of items, items as lists of base tokens


def corpora(max_items=7):
    """Category sizes, and histories of items as lists of base tokens; few values, so that pairs repeat and compete."""
    sizes = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
    return st.builds(drawn, sizes, st.integers(1, 5), st.integers(1, max_items), st.integers(0, 2**32))


def drawn(sizes, n_histories, max_items, seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(max_items + 1, size=n_histories)
    items = generator.integers(sizes, size=(lengths.sum(), len(sizes))) + np.cumsum([0, *sizes])[:-1]
    return sizes, [part.tolist() for part in np.split(items, np.cumsum(lengths)[:-1])]


def learner_of(sizes, histories):
    rows = [item for items in histories for item in items]
    offsets = np.cumsum([0, *map(len, histories)])
    return MergeLearner(np.array(rows, dtype=np.int64).reshape(-1, len(sizes)), offsets, sizes)


def chain_of(nodes, slots):
    """The state of one history as the oracle writes it."""
    chain = []
    for at, node in enumerate(nodes):
        assert len(set(node)) == len(node)
        chain.append(set(node))
        if at < len(slots):
            chain.append(None if slots[at] == EMPTY else slots[at])
    return chain


def recounted(learner):
    total = Counter()
    for nodes, slots in zip(learner.nodes, learner.slots, strict=True):
        total.update(count_pairs(nodes, slots, learner.weights))
    return dict(total)


def all_in_heap(learner):
    """Every pair above the heap's bound has an entry there that is not below its count."""
    highest = {}
    for negative, key in learner._heap:
        highest[key] = max(-negative, highest.get(key, 0))
    return all(highest.get(key, 0) >= n for key, n in learner.counts.items() if n >= learner._bound > 0)


def rotated(item, n):
    return [*item[n % len(item) :], *item[: n % len(item)]]


def rules_of(vocabulary):
    unit = vocabulary.weights.unit
    return [
        ((a, b), Fraction(n, unit))
        for (a, b), n in zip(vocabulary.pairs.tolist(), vocabulary.counts.tolist(), strict=True)
    ]


def random_corpus(seed=0, n_users=60, n_values=4, sizes=(4, 4, 4, 4, 4), n_items=30):
    generator = rng(seed, "toy corpus")
    starts = np.cumsum([0, *sizes])[:-1]
    items = (generator.integers(n_values, size=(n_items, len(sizes))) + starts).tolist()
    return sizes, [
        [items[n] for n in generator.integers(n_items, size=generator.integers(1, 9))] for _ in range(n_users)
    ]


# counting


def test_a_fresh_item_counts_four_and_a_boundary_one():
    weights = Weights.of(5)
    alone = count_pairs([[0, 10, 20, 30, 40]], [], weights)
    assert len(alone) == 10 and set(alone.values()) == {weights.unit * 2 // 5}
    assert sum(alone.values()) == 4 * weights.unit
    two = count_pairs([[0, 10, 20, 30, 40], [1, 11, 21, 31, 41]], [EMPTY], weights)
    across = {key: n for key, n in two.items() if (pair_of(key)[0] % 10) != (pair_of(key)[1] % 10)}
    assert len(across) == 25 and set(across.values()) == {weights.unit // 25}
    assert sum(across.values()) == weights.unit
    filled = count_pairs([[0, 10], [1, 11, 21]], [50], weights)
    assert filled[pair_key(50, 0)] == weights.unit // 2 and filled[pair_key(21, 50)] == weights.unit // 3
    assert pair_key(0, 1) not in filled


@pytest.mark.parametrize("n_features", [1, 2, 5, 8, 12])
def test_weights_are_exact(n_features):
    weights = Weights.of(n_features)
    for one in range(1, n_features + 1):
        assert Fraction(weights.inside[one], weights.unit) == Fraction(2, one)
        for two in range(1, n_features + 1):
            assert Fraction(weights.across[one][two], weights.unit) == Fraction(1, one * two)


@settings(max_examples=60, deadline=None)
@given(corpora())
def test_first_counts_equal_those_of_the_oracle(corpus):
    sizes, histories = corpus
    learner = learner_of(sizes, histories)
    expected = oracle.counts_of([oracle.fresh(items) for items in histories if items])
    assert {pair_of(key): Fraction(n, learner.weights.unit) for key, n in learner.counts.items()} == expected
    for key in learner.counts:
        held = [n for n, items in enumerate(histories) if pair_of(key) in oracle.counts_of([oracle.fresh(items)])]
        assert learner.holders(key) == held


@settings(max_examples=60, deadline=None)
@given(corpora(max_items=12), st.integers(1, 40))
def test_counts_stay_those_of_a_full_recount(corpus, n_merges):
    sizes, histories = corpus
    learner = learner_of(sizes, histories)
    for step in range(n_merges):
        learner.learn(sum(sizes) + step + 1)
        assert learner.counts == recounted(learner)
        assert all_in_heap(learner)
        for key in learner.counts:
            holders = set(learner.holders(key))
            for number, (nodes, slots) in enumerate(zip(learner.nodes, learner.slots, strict=True)):
                assert number in holders or key not in count_pairs(nodes, slots, learner.weights)


@settings(max_examples=50, deadline=None)
@given(corpora(), st.integers(0, 25))
def test_merges_equal_those_of_the_oracle(corpus, n_merges):
    sizes, histories = corpus
    learner = learner_of(sizes, histories)
    vocabulary = learner.learn(sum(sizes) + n_merges)
    rules, chains = oracle.learn(histories, sum(sizes), n_merges)
    assert rules_of(vocabulary) == rules
    assert [chain_of(n, s) for n, s in zip(learner.nodes, learner.slots, strict=True) if n] == chains
    assert len(learner.rules) == len(set(map(tuple, vocabulary.pairs.tolist()))) == len(vocabulary.pairs)


def test_a_larger_corpus_counts_exactly_every_hundred_merges():
    sizes, histories = random_corpus(n_users=300, n_items=100)
    learner = learner_of(sizes, histories)
    for n_merges in (100, 200, 300, 400):
        vocabulary = learner.learn(sum(sizes) + n_merges)
        assert len(vocabulary.pairs) == n_merges
        assert learner.counts == recounted(learner)
    assert learner.n_left == sum(len(tokens_of(*state)) for state in zip(learner.nodes, learner.slots, strict=True))


def test_a_pair_that_comes_together_again_gets_the_token_it_has():
    sizes = (2, 2, 2)  # found by search: the nodes between the tokens of a merged pair vanish
    histories = [
        [[1, 3, 5], [1, 3, 4], [0, 3, 5], [1, 3, 4], [1, 3, 5], [0, 3, 5]],
        [[1, 2, 4], [0, 2, 5]],
        [[0, 3, 4], [1, 3, 5], [1, 3, 4], [1, 2, 4], [0, 2, 5], [0, 2, 4]],
    ]
    learner = learner_of(sizes, histories)
    for n_merges in range(1, 40):
        vocabulary = learner.learn(6 + n_merges)
        assert all_in_heap(learner)
    rules, chains = oracle.learn(histories, 6, 1000)
    assert rules_of(vocabulary) == rules
    assert [chain_of(*state) for state in zip(learner.nodes, learner.slots, strict=True)] == chains
    assert not learner.counts  # all that can be merged is, and no rule is there twice


def test_the_merge_order_does_not_depend_on_the_order_of_histories():
    sizes, histories = random_corpus()
    first, second = (learner_of(sizes, order).learn(70) for order in (histories, histories[::-1]))
    assert first.pairs.tolist() == second.pairs.tolist()
    assert first.counts.tolist() == second.counts.tolist()


def test_tidy_removes_empty_nodes():
    nodes, slots = [[], [1], []], [EMPTY, 7]
    tidy(nodes, slots)
    assert (nodes, slots) == ([[1], [7]], [EMPTY])
    nodes, slots = [[1], [], [2]], [EMPTY, 7]  # nothing before it, and the slot after it is filled
    tidy(nodes, slots)
    assert (nodes, slots) == ([[1], [], [2]], [EMPTY, 7])


# segmentation


@settings(max_examples=50, deadline=None)
@given(corpora(max_items=9), st.integers(0, 25))
def test_deterministic_segmentation_equals_the_oracle_and_is_a_fixed_point(corpus, n_merges):
    sizes, histories = corpus
    vocabulary = learner_of(sizes, histories).learn(sum(sizes) + n_merges)
    cut = SetSegmenter(vocabulary)
    for items in histories:
        nodes, slots = [list(item) for item in items], [EMPTY] * (len(items) - 1)
        cut.reduce(nodes, slots)
        assert chain_of(nodes, slots) == oracle.segment(items, rules_of(vocabulary), sum(sizes))
        assert not count_pairs(nodes, slots, vocabulary.weights).keys() & vocabulary.rules.keys()
        again = [node.copy() for node in nodes], slots.copy()
        cut.reduce(*again)
        assert again == (nodes, slots)
        assert cut(items) == tokens_of(nodes, slots)


def test_a_token_in_a_slot_goes_to_the_side_where_it_weighs_more():
    vocabulary = MergeVocabulary((2, 2, 2), np.array([[0, 1], [4, 5], [2, 6]]), np.array([100, 90, 10]))
    items = [[0, 2, 4], [1, 2, 4], [1, 3, 5]]
    # 6 in the first slot; 7 in the second leaves {2} of the second item, so 6 meets 2 there more often than in {2, 4}
    assert SetSegmenter(vocabulary)(items) == [2, 4, 8, 7, 1, 3]
    assert oracle.segment(items, rules_of(vocabulary), 6) == [{2, 4}, None, {8}, 7, {1, 3}]
    even = [items[0], items[1]]
    assert SetSegmenter(vocabulary)(even) == [4, 8, 2, 4]  # the left one where both weigh the same
    assert oracle.segment(even, rules_of(vocabulary), 6) == [{4}, 8, {2, 4}]


def test_of_equal_scores_the_item_goes_before_the_slot_after_it():
    vocabulary = MergeVocabulary((2, 2), np.array([[0, 2], [2, 3]]), np.array([1, 4]))  # 1 * 2/2 and 4 * 1/4
    assert SetSegmenter(vocabulary)([[0, 2], [1, 3]]) == [4, 1, 3]
    assert oracle.segment([[0, 2], [1, 3]], rules_of(vocabulary), 4) == [{4}, None, {1, 3}]


def test_tokens_that_become_neighbours_are_merged():
    vocabulary = MergeVocabulary((3, 3), np.array([[0, 1], [2, 3]]), np.array([9, 9]))
    nodes, slots = [[2], [], [0], [1, 4]], [EMPTY, 3, EMPTY]
    SetSegmenter(vocabulary).reduce(nodes, slots)  # the third takes the 3 before it, and the second goes
    assert (nodes, slots) == ([[7], [4]], [6])


@settings(max_examples=50, deadline=None)
@given(corpora(max_items=9))
def test_with_one_merge_the_segmentation_is_the_state_of_the_learner(corpus):
    sizes, histories = corpus
    learner = learner_of(sizes, histories)
    cut = SetSegmenter(learner.learn(sum(sizes) + 1))
    for items, nodes, slots in zip(histories, learner.nodes, learner.slots, strict=True):
        assert cut(items) == tokens_of(nodes, slots)


@settings(max_examples=50, deadline=None)
@given(corpora(max_items=9), st.integers(0, 25), st.integers(0, 99))
def test_random_segmentation_is_byte_pair_encoding(corpus, n_merges, seed):
    sizes, histories = corpus
    vocabulary = learner_of(sizes, histories).learn(sum(sizes) + n_merges)
    for items in histories:
        flat = [token for item in items for token in rotated(item, seed)]
        expected = oracle.adjacent(flat, rules_of(vocabulary), sum(sizes))
        assert merge_adjacent(flat, vocabulary.rules) == expected


@settings(max_examples=50, deadline=None)
@given(corpora(max_items=9), st.integers(0, 40))
def test_items_alone_equal_histories_of_one_item(corpus, n_merges):
    sizes, histories = corpus
    vocabulary = learner_of(sizes, histories).learn(sum(sizes) + n_merges)
    items = [item for row in histories for item in row]
    found = merge_items(vocabulary, np.array(items, dtype=np.int64).reshape(-1, len(sizes)))
    cut = SetSegmenter(vocabulary)
    assert [[token for token in row if token >= 0] for row in found.tolist()] == [cut([item]) for item in items]


def test_shuffling_keeps_the_features_of_each_item_together():
    tokens = np.arange(300).reshape(60, 5)
    turned = shuffled_features(tokens, rng(0))
    assert (np.sort(turned, axis=1) == tokens).all()
    assert len({tuple(row) for row in (turned % 5).tolist()}) > 20
    assert (tokens == np.arange(300).reshape(60, 5)).all()


def test_random_orders_need_more_tokens_than_the_deterministic_segmentation():
    source, tokenizer = planted_history_source(), ActionPiece(replace(SMALL, n_tokens=400))
    tokenizer.fit(source, seed=0)
    histories = source.histories()
    one = tokenizer.segment(histories)
    views = [tokenizer.segment(histories, seed=seed) for seed in range(5)]
    assert np.mean([len(view.tokens) for view in views]) > len(one.tokens)
    assert len({view.tokens.tobytes() for view in views}) == 5
    assert len(one.tokens) < 4 * len(histories.items)
    assert len(one.tokens) >= tokenizer.report["tokens_per_training_item"] * len(histories.items)


# what it is for


def planted_pair(shuffled, n_users=120):
    """Items 0 and 1 always stand side by side; feature 9 of item 0 and 9 of item 1 are theirs alone."""
    generator = rng(0, "planted pair")
    features = generator.integers(8, size=(40, 4))
    features[0, 1], features[1, 2] = 9, 9
    rows = []
    for user in range(n_users):
        row = (2 + generator.integers(38, size=7)).tolist()
        if user % 2:
            at = int(generator.integers(6))
            row[at : at + 2] = [0, 1]
        rows.append(row)
    if shuffled:
        flat = generator.permutation([item for row in rows for item in row]).tolist()
        rows = [flat[start : start + 7] for start in range(0, len(flat), 7)]
    sizes = (10,) * 4
    tokens = features + np.arange(4) * 10
    return sizes, [[tokens[item].tolist() for item in row] for row in rows], (19, 29)


def test_neighbours_that_always_meet_get_a_token_of_their_own():
    for shuffled in (False, True):
        sizes, histories, (one, two) = planted_pair(shuffled)
        vocabulary = learner_of(sizes, histories).learn(sum(sizes) + 12)
        crossing = [set(vocabulary.features[token]) for token in range(40, vocabulary.n_tokens)]
        assert any({one, two} <= features for features in crossing) is not shuffled


def test_tokens_across_items_are_no_targets():
    vocabulary = MergeVocabulary((2, 2), np.array([[0, 2], [1, 3], [0, 1], [4, 4], [3, 6]]), np.ones(5, dtype=np.int64))
    assert vocabulary.features[4:] == [(0, 2), (1, 3), (0, 1), (0, 2, 0, 2), (3, 0, 1)]
    assert vocabulary.fits_one_item.tolist() == [True] * 6 + [False] * 3


def test_targets_have_a_token_for_each_feature_at_most_and_less_with_merges():
    source = planted_history_source()
    lengths = []
    for n_tokens in (40, 120, 400):
        tokenizer = ActionPiece(replace(SMALL, n_tokens=n_tokens))
        targets = tokenizer.fit(source, seed=0)
        assert targets.lengths.max() <= 4
        assert (tokenizer.segment(source.histories()).lengths <= 4 * source.histories().lengths).all()
        lengths.append(tokenizer.report["tokens_per_target"])
        assert tokenizer.report["n_merges"] == tokenizer.n_tokens - 40
    assert lengths[0] == 4
    assert all(after < before for before, after in pairwise(lengths))


def test_without_merges_an_item_is_its_features():
    source, tokenizer = planted_history_source(), ActionPiece(replace(SMALL, n_tokens=40))
    targets = tokenizer.fit(source, seed=0)
    starts = np.cumsum([0, *tokenizer.features.level_sizes])[:-1]
    assert targets.to_lists() == (tokenizer.features.as_int() + starts).tolist()


def test_the_order_of_the_catalog_does_not_show():
    source = planted_history_source()
    codes = RqKMeans(RqKMeansSettings(n_levels=2, level_size=8, collisions="shared")).fit(source, seed=0)
    order = rng(0).permutation(source.n_items)
    place = np.argsort(order)
    turned = TokenizerSource(
        source.catalog,
        source.item_keys[order],
        train=Histories(source.train.offsets, place[source.train.items].astype(np.int32)),
    )
    tokenizer = ActionPiece(SMALL)
    plain = tokenizer.fit(source, seed=0, features=codes)
    assert ActionPiece(SMALL).fit(turned, seed=0, features=codes.take(order)).to_lists() == plain.take(order).to_lists()
    with pytest.raises(ConfigError, match="given features"):
        tokenizer.encode(source)


def test_given_features_survive_a_file(tmp_path):
    source = planted_history_source()
    codes = ItemCodes(np.arange(60)[:, None] // [10, 1] % 10, (10, 10), source.catalog)
    tokenizer = ActionPiece(ActionPieceSettings(n_tokens=60, n_buckets=0))
    tokenizer.fit(source, seed=0, features=codes)
    tokenizer.save(tmp_path / "saved")
    back = load_segmenter(tmp_path / "saved")
    assert back.features.as_int().tolist() == codes.as_int().tolist()
    assert back.segment(source.histories()).to_lists() == tokenizer.segment(source.histories()).to_lists()
    with pytest.raises(ConfigError, match="given features"):
        back.encode(source)


def test_new_items_get_the_product_codes_of_their_vectors(tmp_path):
    source, tokenizer = planted_history_source(), ActionPiece(SMALL)
    tokenizer.fit(source, seed=0)
    tokenizer.save(tmp_path / "saved")
    for found in (tokenizer, ActionPiece.load(tmp_path / "saved")):
        assert found.encode(source).as_int().tolist() == tokenizer.features.as_int()[:, :-1].tolist()


def test_only_items_of_training_shape_the_features():
    source = planted_history_source()
    few = Histories.from_lists([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
    moved = source.vectors().copy()
    moved[30:] += 100 * rng(0).normal(size=moved[30:].shape).astype(np.float32)
    found = []
    for vectors in (source.vectors(), moved):
        tokenizer = ActionPiece(replace(SMALL, n_buckets=64))
        tokenizer.fit(replace(source, train=few, embeddings=replace(source.embeddings, vectors=vectors)), seed=0)
        found.append(tokenizer.encode(TokenizerSource.of_vectors(source.vectors())).as_int().tolist())
    assert found[0] == found[1]


# buckets


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 3))
def test_buckets_tell_equal_items_apart(groups, more, seed):
    n_buckets = max(Counter(groups).values()) + more
    keys = rng(seed, "keys").integers(2**63, size=len(groups)).astype(np.uint64)
    found = bucket_numbers(np.array(groups), keys, n_buckets, seed=seed)
    assert ((found >= 0) & (found < n_buckets)).all()
    assert len({*zip(groups, found.tolist(), strict=True)}) == len(groups)
    order = rng(seed, "order").permutation(len(groups))
    assert bucket_numbers(np.array(groups)[order], keys[order], n_buckets, seed=seed).tolist() == found[order].tolist()


def test_groups_beyond_32_bits_do_not_meet():
    """Group 42,949,673 with 100 buckets begins 4 cells behind group 0 where cells are counted in 32 bits."""
    keys = np.arange(101, dtype=np.uint64)
    groups = np.array([*[0] * 100, 42_949_673], dtype=np.int32)
    for seed in range(5):
        alone = bucket_numbers(groups[100:], keys[100:], 100, seed=seed)
        assert bucket_numbers(groups, keys, 100, seed=seed)[100] == alone[0]


def test_buckets_are_spread_and_seeded():
    keys = np.arange(6400, dtype=np.uint64)
    alone = np.arange(6400)
    found = bucket_numbers(alone, keys, 64, seed=0)
    assert np.bincount(found, minlength=64).min() > 60
    assert (found != bucket_numbers(alone, keys, 64, seed=1)).mean() > 0.9


def test_too_many_equal_items_are_refused():
    keys = np.arange(6, dtype=np.uint64)
    codes = ItemCodes(np.array([[0], [1], [1], [1], [2], [2]]), (3,), "c")
    assert with_buckets(codes, keys, 3, seed=0).collisions() == []
    for n_buckets in (0, 2):
        with pytest.raises(DataError, match=f"3 items share all their features, but there are {n_buckets} buckets"):
            with_buckets(codes, keys, n_buckets, seed=0)
    ragged = ItemCodes.from_int([[0, 1], [1, -1]], (3, 3), "c")
    with pytest.raises(DataError, match="equal length"):
        with_buckets(ragged, keys[:2], 3, seed=0)


# settings and types


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"n_tokens": 0}, "n_tokens"),
        ({"n_levels": 0}, "n_levels"),
        ({"level_size": 1}, "level_size"),
        ({"n_buckets": -1}, "n_buckets"),
        ({"rotation": "rpq"}, "rotation"),
    ],
)
def test_settings_out_of_range_are_refused(option, message):
    with pytest.raises(ConfigError, match=f"^{message}: expected"):
        replace(SMALL, **option)


def test_what_does_not_fit_is_refused():
    source = planted_history_source()
    with pytest.raises(DataError, match=r"expected 40 \(the features\)"):
        ActionPiece(replace(SMALL, n_tokens=39)).fit(source, seed=0)
    with pytest.raises(DataError, match="at least n_levels"):
        ActionPiece(replace(SMALL, n_levels=13)).fit(source, seed=0)
    with pytest.raises(DataError, match="item vectors"):
        ActionPiece(SMALL).fit(replace(source, embeddings=None), seed=0)
    with pytest.raises(DataError, match="64 bits"):
        learner_of((1,) * 40, [[list(range(40))]])
    short = ItemCodes(np.zeros((3, 1)).astype(int), (1,), source.catalog)
    with pytest.raises(DataError, match="expected 60 rows"):
        ActionPiece(SMALL).fit(source, seed=0, features=short)
    tokenizer = ActionPiece(SMALL)
    tokenizer.fit(source, seed=0)
    with pytest.raises(DataError, match="vocabulary of"):
        tokenizer.items_of(TokenRows.from_lists([[0]], 7))
    with pytest.raises(DataError, match=r"category 1 has values 0\.\.7, got 8"):
        tokenizer.vocabulary.base_tokens(np.array([[0, 8, 0, 0]]))
    for pairs in ([[0, 1], [0, 1]], [[1, 0]], [[0, 4]]):
        with pytest.raises(DataError, match="pairs"):
            MergeVocabulary((2, 2), np.array(pairs), np.ones(len(pairs), dtype=np.int64))


def test_the_registry_keeps_what_tokenizers_give_apart():
    assert isinstance(build_segmenter(SMALL), ActionPiece)
    with pytest.raises(ConfigError, match="gives tokens, got 'rqkmeans'") as caught:
        build_segmenter(settings_class("rqkmeans")())
    assert caught.value.hint.startswith("build and load_tokenizer")
    with pytest.raises(ConfigError, match="gives slots, got 'actionpiece', which gives tokens"):
        build_slots(SMALL)


def test_rows_of_tokens():
    rows = TokenRows.from_lists([[3, 1], [], [2]], n_tokens=4)
    assert len(rows) == 3
    assert [row.tolist() for row in rows] == rows.to_lists() == [[3, 1], [], [2]]
    assert rows[-1].tolist() == [2]
    assert rows.tokens.dtype == np.int32 and rows.offsets.dtype == np.int64
    assert rows.take([2, 0]).to_lists() == [[2], [3, 1]]
    assert rows.last(1).to_lists() == [[1], [], [2]]
    assert rows.padded().tolist() == [[3, 1], [-1, -1], [-1, 2]]
    for wrong in (-1, 4):
        with pytest.raises(DataError, match=r"tokens: expected 0\.\.3"):
            TokenRows.from_lists([[wrong]], n_tokens=4)
