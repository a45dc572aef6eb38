import logging
import warnings
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.decoding import search as search_module
from genrec.decoding import small as small_module
from genrec.decoding.beam import beam_search
from genrec.decoding.catalog_store import CatalogStore
from genrec.decoding.diverse import PerPrefix, _walked
from genrec.decoding.diversity import Interests, MaxPer
from genrec.decoding.exact import score_items
from genrec.decoding.filters import ItemFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import DenseRecommender, Recommender, SearchOptions
from genrec.decoding.sampling import draw, row_keys
from genrec.decoding.scorer import Prompts
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import DeviceIndex
from genrec.decoding.small import score_allowed
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.decoding.steps import TorchStep, fastest_step
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import T5Settings, build, layout_of
from genrec.models.prompting import build_prompts, item_tokens
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.whole_catalog import WholeCatalog
from genrec.testing.oracles import dict_trie, exhaustive_scores, expected_ranks
from genrec.training.module import TrainingModule
from genrec.vocab.token_map import TokenMap


def exhaustive(case, row, normalize):
    """Score of every item by one whole Hugging Face forward per prefix."""
    tokens = case.token_map
    prompts = build_prompts(layout_of(case.model), case.histories.take([row]), item_tokens(case.codes, tokens), tokens)
    ids = torch.from_numpy(prompts.tokens_BT)

    def logp(_, prefix):
        level = len(prefix)
        after = [tokens.level_offset[at] + code for at, code in enumerate(prefix)]
        with torch.no_grad():
            if layout_of(case.model) == "encoder":
                out = case.model(input_ids=ids, decoder_input_ids=torch.tensor([[0, *after]]))
            else:
                out = case.model(input_ids=torch.cat([ids, torch.tensor([after]).long()], 1))
        logits = out.logits[0, -1].double()
        sizes = (*tokens.level_sizes, 0)
        symbols = [(*tokens.level_offset, 0)[level] + k for k in range(sizes[level])]
        symbols += [tokens.eos_id] * tokens.ragged
        values = logits.log_softmax(-1)[symbols] if normalize == "vocab" else logits[symbols].log_softmax(-1)
        return values.numpy()

    rows = case.codes.as_int()
    trie = dict_trie(rows, ragged=tokens.ragged) if normalize == "children" else None
    known = {}

    def memo(row, prefix):
        if prefix not in known:
            known[prefix] = logp(row, prefix)
        return known[prefix]

    return exhaustive_scores(rows, tokens.level_sizes, memo, row=row, ragged=tokens.ragged, trie=trie)


@pytest.mark.parametrize("normalize", ["vocab", "level", "children"])
def test_enough_beams_rank_the_whole_catalog_exactly(case, normalize):
    """Collisions, ragged identifiers, seen items: item by item against the model's own forward."""
    recommender = case.recommender(normalize=normalize, loss="level" if normalize == "level" else "vocab")
    for exclude_seen in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if normalize == "children" else "error")
            got = recommender.recommend(
                case.histories, SearchOptions(top_k=None, n_beams=40, exclude_seen=exclude_seen)
            )
        assert got.normalize == normalize and got.certified.all()
        for row in (0, 1, 2):
            slow = exhaustive(case, row, normalize)
            if exclude_seen:
                slow[case.histories[row]] = -np.inf
            listed = got.items[row][got.items[row] >= 0]
            assert sorted(listed.tolist()) == np.flatnonzero(slow > -np.inf).tolist()
            np.testing.assert_allclose(got.scores[row, : len(listed)], slow[listed], atol=1e-5)
            # float32 and float64 round differently, so compare ranks where scores are apart
            same = case.codes.collision_ids()
            for place, item in enumerate(listed.tolist()):
                block = np.isin(listed, np.flatnonzero(same == same[item]))
                assert (got.ranks[row, : len(listed)][block] == got.ranks[row, place]).all()
            assert expected_ranks(got.scores[row]).tolist() == got.ranks[row].tolist()


def test_batch_equals_one_by_one_whatever_the_batch_size(case):
    rows = case.histories
    options = SearchOptions(top_k=8, n_beams=8)
    together = case.recommender().recommend(rows, options)
    in_twos = case.recommender(batch_size=2).recommend(rows, options)
    for row in range(len(rows)):
        alone = case.recommender().recommend(rows.take([row]), options)
        for other in (together, in_twos):
            assert other.items[row].tolist() == alone.items[0].tolist()
            np.testing.assert_allclose(other.scores[row], alone.scores[0], atol=1e-5)
            assert other.ranks[row].tolist() == alone.ranks[0].tolist()


def test_generation_config_of_the_model_plays_no_part(fixed_case, caplog):
    options = SearchOptions(top_k=5, n_beams=5)
    plain = fixed_case.recommender().recommend(fixed_case.histories, options)
    model = deepcopy(fixed_case.model)
    config = model.generation_config
    config.do_sample, config.temperature, config.top_k, config.repetition_penalty = True, 0.1, 2, 5.0
    config.length_penalty, config.num_beams, config.no_repeat_ngram_size = 3.0, 7, 1
    with caplog.at_level(logging.INFO, logger="genrec"):
        other = GenerativeRecommender(model, fixed_case.token_map, fixed_case.codes, fixed_case.index)
    assert "repetition_penalty" in caplog.text
    got = other.recommend(fixed_case.histories, options)
    assert got.items.tolist() == plain.items.tolist() and got.scores.tolist() == plain.scores.tolist()


def test_scores_equal_those_of_the_lists(case):
    recommender = case.recommender()
    lists = recommender.recommend(case.histories, SearchOptions(top_k=10, n_beams=20, exclude_seen=False))
    got = recommender.score(case.histories, lists.items)
    np.testing.assert_allclose(got, lists.scores, atol=1e-5)
    everyone = recommender.score(case.histories, np.arange(40))
    assert everyone.shape == (5, 40)
    np.testing.assert_allclose(everyone[2][lists.items[2]], lists.scores[2], atol=1e-5)
    np.testing.assert_allclose(case.recommender(batch_size=2).score(case.histories), everyone, atol=1e-5)
    with pytest.raises(DataError, match=r"items: expected integers \[5, M\] or \[M\], got int64 \[2, 3\]"):
        recommender.score(case.histories, np.zeros((2, 3), dtype=np.int64))
    for wrong in (3, np.arange(40) == 3, [0.5]):
        with pytest.raises(DataError, match="items: expected integers"):
            recommender.score(case.histories, wrong)


@pytest.mark.parametrize("normalize", ["vocab", "level", "children"])
def test_scores_equal_whole_forwards_of_the_model(case, normalize):
    recommender = case.recommender(loss=normalize)
    got = recommender.score(case.histories)
    for row in range(3):
        np.testing.assert_allclose(got[row], exhaustive(case, row, normalize), atol=1e-5)


def test_scoring_the_whole_catalog_shows_what_the_search_misses(fixed_case):
    model, n = fixed_case.recommender(), fixed_case.codes.n_items
    whole = WholeCatalog(model)
    assert isinstance(whole, DenseRecommender) and whole.n_items == n and whole.history_cap == model.history_cap
    assert not isinstance(model, DenseRecommender)  # evaluation searches unless it is told otherwise
    targets = Histories.from_lists([[row] for row in range(len(fixed_case.histories))])
    queries = EvalSet(np.arange(5, dtype=np.int32), fixed_case.histories, targets)
    exact = evaluate(whole, queries, settings=EvalSettings(n_bootstrap=0), progress=False)
    wide = evaluate(model, queries, settings=EvalSettings(n_bootstrap=0, n_beams=n), progress=False)
    np.testing.assert_allclose(exact.ranks, wide.ranks)
    assert exact.history_cap == model.history_cap
    part = np.arange(n) != 5
    left_out = CatalogIndex.build(fixed_case.codes, keep=part)
    smaller = GenerativeRecommender(fixed_case.model, fixed_case.token_map, fixed_case.codes, left_out)
    assert np.isneginf(WholeCatalog(smaller).score_all(fixed_case.histories)[:, 5]).all()


def test_the_limit_of_the_prompt_is_told(fixed_case):
    recommender = fixed_case.recommender(max_items=2)
    assert recommender.history_cap == 2
    long = Histories.from_lists([[5, 6, 7, 8], [7, 8]])
    scores = recommender.score(long, np.arange(10))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_seen_items_are_seen_even_beyond_the_prompt(fixed_case):
    recommender = fixed_case.recommender(max_items=2)
    long = Histories.from_lists([np.arange(30), np.arange(28, 30)])
    got = recommender.recommend(long, SearchOptions(top_k=None, n_beams=40))
    assert sorted(got.items[0][got.items[0] >= 0].tolist()) == list(range(30, 40))
    kept = recommender.recommend(long, SearchOptions(top_k=None, n_beams=40, exclude_seen=False))
    np.testing.assert_allclose(kept.scores[0], kept.scores[1], atol=1e-5)  # the prompt is the same


def test_seen_items_take_no_beam(fixed_case):
    """One beam finds an unseen item although all others are seen, in every row of every batch."""
    first = fixed_case.codes.as_int()[:, 0]
    rows = Histories.from_lists([np.flatnonzero(first != code) for code in (3, 0, 1)])
    got = fixed_case.recommender(batch_size=2).recommend(rows, SearchOptions(top_k=1, n_beams=1))
    assert first[got.items[:, 0]].tolist() == [3, 0, 1]


def test_training_mode_comes_back_and_does_not_matter(fixed_case):
    plain = fixed_case.recommender().recommend(fixed_case.histories, top_k=3)
    fixed_case.model.train()
    try:
        got = fixed_case.recommender().recommend(fixed_case.histories, top_k=3)
        assert fixed_case.model.training
    finally:
        fixed_case.model.eval()
    assert got.items.tolist() == plain.items.tolist()


def test_weights_trained_further_are_used(fixed_case):
    """Nothing of the weights is copied when the recommender is made."""
    case = deepcopy(fixed_case)
    recommender = case.recommender()
    before = recommender.recommend(case.histories, top_k=3)
    generator = torch.Generator().manual_seed(0)
    for parameter in case.model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    after = recommender.recommend(case.histories, top_k=3)
    fresh = case.recommender().recommend(case.histories, top_k=3)
    assert before.scores.tolist() != after.scores.tolist() == fresh.scores.tolist()


def test_decoding_unlike_training_warns(fixed_case):
    trained = fixed_case.recommender(loss="level")
    assert trained.recommend(fixed_case.histories, top_k=2).normalize == "level"
    with pytest.warns(UserWarning, match="normalize='vocab'"):
        got = trained.recommend(fixed_case.histories, SearchOptions(top_k=2, normalize="vocab"))
    assert got.normalize == "vocab"


def test_users_enter_the_prompt(fixed_case):
    token_map = TokenMap.of(fixed_case.codes, n_user_tokens=20)
    model = build(T5Settings(d_model=32, n_layers=1, n_heads=2, d_kv=16, d_ff=48), token_map, seed=0)
    recommender = GenerativeRecommender(
        model, token_map, fixed_case.codes, fixed_case.index, user_ids=["ann", "bob", "eve"]
    )
    rows = Histories.from_lists([[1, 2], [1, 2]])
    by_number = recommender.recommend(rows, users=np.array([0, 2]), top_k=3)
    by_id = recommender.recommend(rows, users=["ann", "eve"], top_k=3)
    assert by_number.scores.tolist() == by_id.scores.tolist()
    assert by_id.scores[0].tolist() != by_id.scores[1].tolist()
    with pytest.raises(DataError, match="user tokens"):
        recommender.recommend(rows)
    with pytest.raises(DataError, match="one per history"):
        recommender.recommend(rows, users=["ann"])


def test_no_users_no_items_no_trouble(fixed_case):
    recommender = fixed_case.recommender()
    assert isinstance(recommender, Recommender) and recommender.n_items == 40
    got = recommender.recommend(Histories.from_lists([]), top_k=4)
    assert got.items.shape == (0, 4)
    for unknown in (40, -1):
        # also where the item is too old to enter the prompt
        for history in ([unknown], [unknown, *range(25)]):
            with pytest.raises(DataError, match="item numbers"):
                recommender.recommend([history])
    for unknown in (40, -2, 1 << 40):
        with pytest.raises(DataError, match=r"items: expected numbers 0\.\.39, or -1, got"):
            recommender.score([[1]], [3, unknown])


@pytest.mark.parametrize("normalize", ["vocab", "level"])
def test_no_users_at_every_entry(case, normalize):
    """Nothing comes back, in the right shape; also from the loops and the scorer that a batch of none never reaches."""
    recommender, none = case.recommender(loss=normalize), Histories.from_lists([])
    for how in ({}, {"exact": True}, {"diversity": MaxPer(1, depth=1)}, {"diversity": Interests(2)}, {"filter": []}):
        assert recommender.recommend([], SearchOptions(top_k=4, **how), users=[]).items.shape == (0, 4)
    for seed in (1, []):
        assert recommender.sample(none, SearchOptions(top_k=4), seed=seed).items.shape == (0, 4)
    for items, width in ((None, 40), ([1, 2], 2), (np.zeros((0, 3), dtype=int), 3), ([], 0)):
        assert recommender.score(none, items).shape == (0, width)
    assert WholeCatalog(recommender).score_all(none).shape == (0, 40)
    scorer, prompts = recommender._scorer, Prompts(np.zeros((0, 3), dtype=np.int64), np.zeros((0, 3), dtype=bool))
    index, batch = DeviceIndex(case.index, torch.device("cpu")), Batch(prompts, none, [])
    for step in (TorchStep, fastest_step(index)):
        found = beam_search(scorer, index, prompts, n_beams=4, normalize=normalize, deny=none, step=step)
        assert found.leaves.shape == found.scores.shape == (0, 4)
    assert score_items(scorer, index, prompts, np.zeros((0, 3), dtype=int), normalize=normalize).shape == (0, 3)
    assert score_allowed(scorer, index, prompts, [], normalize=normalize).leaves.shape == (0, 1)
    search = Search(scorer, index, SearchOptions(top_k=4), 4, normalize)
    assert search(batch).items.shape == draw(search, batch, row_keys(prompts, [])).items.shape == (0, 4)
    assert _walked(search, batch, PerPrefix(index, MaxPer(1, depth=1), n_beams=4, top_k=4)).leaves.shape[0] == 0


def test_parts_that_do_not_belong_together_are_refused(fixed_case):
    case = fixed_case
    other = ItemCodes.from_int(np.roll(case.codes.as_int(), 1, axis=0), case.codes.level_sizes, "elsewhere")
    with pytest.raises(FingerprintMismatch, match="index was built"):
        GenerativeRecommender(case.model, case.token_map, other, case.index)
    wider = ItemCodes(case.codes.codes, (4, 3, 6), case.codes.catalog)
    index = CatalogIndex.build(wider)
    with pytest.raises(FingerprintMismatch, match="levels"):
        GenerativeRecommender(case.model, case.token_map, wider, index)


def test_a_model_understands_only_the_identifiers_it_was_trained_on(fixed_case):
    case, model = fixed_case, deepcopy(fixed_case.model)
    dealt = case.codes.take(np.roll(np.arange(40), 1))  # the same sizes, on other items
    index = CatalogIndex.build(dealt)
    GenerativeRecommender(model, case.token_map, dealt, index)  # no training says otherwise
    model.config.genrec_codes = case.codes.fingerprint
    GenerativeRecommender(model, case.token_map, case.codes, case.index)
    with pytest.raises(FingerprintMismatch, match="trained on codes"):
        GenerativeRecommender(model, case.token_map, dealt, index)


def test_the_number_of_beams_follows_the_length_of_the_list(fixed_case):
    recommender = fixed_case.recommender(n_beams=3)
    few = recommender.recommend([[1, 2]], SearchOptions(top_k=3)).n_identifiers[0]
    assert few == 3
    many = recommender.recommend([[1, 2]], top_k=12)
    assert (many.items >= 0).all()
    assert many.items.shape == (1, 12)
    with pytest.warns(UserWarning, match=r"n_beams=5 finds 5 identifiers: lists may be shorter than top_k=12"):
        assert recommender.recommend([[1, 2]], SearchOptions(top_k=12, n_beams=5)).n_identifiers[0] == 5
    for widening in ({"exact": True}, {"diversity": MaxPer(9, depth=1)}, {"top_k": None}):
        recommender.recommend([[1, 2]], SearchOptions(**{"top_k": 12, "n_beams": 5, **widening}))
    with pytest.raises(ConfigError, match="top_k: 3 beside options"):
        recommender.recommend([[1, 2]], SearchOptions(n_beams=5), top_k=3)


def test_an_adapter_on_the_output_layer_is_refused_rather_than_ignored(fixed_case):
    model = deepcopy(fixed_case.model)
    model.get_output_embeddings().lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(4, 4)})
    with pytest.raises(ConfigError, match=r"adapter \(lora_A\)"):
        GenerativeRecommender(model, fixed_case.token_map, fixed_case.codes, fixed_case.index)
    with pytest.raises(ConfigError, match="adapter"):
        TrainingModule(model, None)


@pytest.mark.parametrize("values", [{"n_beams": 0}, {"loss": "softmax"}, {"normalize": "all"}, {"max_items": 0}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        DecodingSettings(**values)


@pytest.mark.parametrize("small", [0, 256])
def test_a_filter_gives_the_best_of_the_allowed_items(case, small, monkeypatch):
    """Searched or scored one by one, alone or in a batch with other filters: the same as ranking everything."""
    monkeypatch.setattr(small_module, "SMALL_SET", small)
    model, n = case.recommender(), case.codes.n_items
    every = model.recommend(case.histories, SearchOptions(top_k=None, n_beams=40))
    even = ItemFilter.of_mask(np.arange(n) % 2 == 0, case.codes.catalog)
    one, nothing = ItemFilter.of_items([7], n), ItemFilter.of_items([], n)
    filters = [even, None, one, ~even, nothing]
    got = model.recommend(case.histories, SearchOptions(top_k=6, n_beams=40, filter=filters))
    for row, allowed in enumerate(filters):
        expected = [i for i in every.items[row].tolist() if i >= 0 and (allowed is None or allowed.mask[i])][:6]
        assert got.items[row][got.items[row] >= 0].tolist() == expected
        alone = model.recommend(case.histories.take([row]), SearchOptions(top_k=6, n_beams=40, filter=allowed))
        assert alone.items[0].tolist() == got.items[row].tolist()
    assert got.certified.all()


def test_few_beams_still_fill_the_list_under_a_filter(fixed_case, monkeypatch):
    monkeypatch.setattr(small_module, "SMALL_SET", 0)
    allowed = ItemFilter.of_mask(np.arange(fixed_case.codes.n_items) % 3 == 0)
    options = SearchOptions(top_k=5, n_beams=5, exclude_seen=True, filter=allowed)
    got = fixed_case.recommender().recommend(fixed_case.histories, options)
    assert (got.items >= 0).all() and allowed.mask[got.items].all()
    assert not any(set(row) & set(seen) for row, seen in zip(got.items.tolist(), fixed_case.histories, strict=True))


def test_an_exact_search_proves_every_list(case, monkeypatch):
    """One beam finds little; widened it lists what ranking the whole catalog lists, and only as wide as it must."""
    model, rows = case.recommender(), case.histories
    widths = []
    monkeypatch.setattr(
        search_module,
        "beam_search",
        lambda *a, n_beams, **k: widths.append(n_beams) or beam_search(*a, n_beams=n_beams, **k),
    )
    every = model.recommend(rows, SearchOptions(top_k=3, n_beams=40))
    with pytest.warns(UserWarning, match="n_beams=1"):
        one = model.recommend(rows, SearchOptions(top_k=3, n_beams=1))
    assert not one.certified.all() and set(widths) == {40, 1}
    widths.clear()
    got = model.recommend(rows, SearchOptions(top_k=3, n_beams=1, exact=True))
    assert got.certified.all() and got.items.tolist() == every.items.tolist()
    np.testing.assert_allclose(got.scores, every.scores, atol=1e-5)
    # wider until three items are found, then as wide as the proof needs, which is at most every identifier
    assert widths[0] == 1 and set(widths) <= {1, 4, 16, model.index.n_identifiers}
    capped = model.recommend(rows, SearchOptions(top_k=3, n_beams=1, exact=True, max_beams=2))
    assert not capped.certified.all()  # the budget ended before the proof


@pytest.mark.parametrize(
    "options",
    [
        {"n_beams": 4},
        {"n_beams": 1, "top_k": 1, "exact": True},
        {"filter": ItemFilter.of_items([1, 7, 30], 40)},
        {"n_beams": 8, "diversity": MaxPer(1, depth=1)},
    ],
    ids=["beams", "proof", "few allowed", "caps"],
)
def test_a_search_can_be_ended_before_every_step_of_the_model(fixed_case, options, monkeypatch):
    recommender, wanted, calls = fixed_case.recommender(), SearchOptions(**{"top_k": 4, **options}), []
    scorer = type(recommender._scorer)
    for name in ("start", "step"):
        real = getattr(scorer, name)
        monkeypatch.setattr(scorer, name, lambda *a, real=real: calls.append("model") or real(*a))
    free = recommender.lists(fixed_case.histories, wanted)
    assert set(calls) == {"model"}
    calls.clear()
    looked = recommender.lists(fixed_case.histories, wanted, look=lambda stage: calls.append("look"))
    assert looked.items.tolist() == free.items.tolist() and calls == ["look", "model"] * (len(calls) // 2)
    for most in (0, len(calls) // 4, len(calls) // 2 - 1):
        calls.clear()

        def look(stage, most=most):
            if len(calls) == most:
                raise TimeoutError("nobody waits")

        with pytest.raises(TimeoutError, match="nobody waits"):
            recommender.lists(fixed_case.histories, wanted, look=look)
        assert calls == ["model"] * most


def test_a_filter_of_another_catalog_is_refused(fixed_case):
    with pytest.raises(FingerprintMismatch, match="the filter is of catalog other"):
        fixed_case.recommender().recommend(
            fixed_case.histories, SearchOptions(filter=ItemFilter.of_items([0], 40, "other"))
        )
    with pytest.raises(DataError, match="a filter of 40 items, got one of 3"):
        fixed_case.recommender().recommend(fixed_case.histories, SearchOptions(filter=ItemFilter.of_items([0], 3)))


@pytest.mark.parametrize("diversity", [MaxPer(2, np.arange(40) % 5), MaxPer(1, depth=1), Interests(3)])
def test_diverse_lists_are_the_same_alone_and_in_a_batch(case, diversity):
    options = SearchOptions(top_k=6, n_beams=8, diversity=diversity)
    together = case.recommender(batch_size=3).recommend(case.histories, options)
    assert together.certified is None and together.normalize == "vocab"
    for row, seen in enumerate(case.histories):
        alone = case.recommender().recommend(case.histories.take([row]), options)
        assert alone.items[0].tolist() == together.items[row].tolist()
        listed = together.items[row][together.items[row] >= 0]
        assert not set(listed.tolist()) & set(seen.tolist())
        np.testing.assert_allclose(
            case.recommender().score(case.histories.take([row]), listed)[0],
            together.scores[row][: len(listed)],
            atol=1e-5,
        )
    if isinstance(diversity, MaxPer):
        for row in together.items:
            groups = row[row >= 0] % 5 if diversity.depth is None else case.codes.as_int()[row[row >= 0], 0]
            assert np.bincount(groups).max() <= diversity.most


def test_draws_are_the_same_alone_and_in_a_batch(case):
    options = SearchOptions(top_k=6, n_beams=2)
    together = case.recommender(batch_size=3).sample(case.histories, options, seed=[5, 6, 7, 8, 9], temperature=1.5)
    assert together.exact.all() and (together.items >= 0).all() and together.normalize == "vocab"
    for row, seen in enumerate(case.histories):
        alone = case.recommender().sample(case.histories.take([row]), options, seed=5 + row, temperature=1.5)
        assert alone.items[0].tolist() == together.items[row].tolist()
        np.testing.assert_allclose(alone.perturbed[0], together.perturbed[row], atol=1e-4)
        assert not set(alone.items[0].tolist()) & set(seen.tolist())


def test_a_draw_of_all_items_is_a_permutation_with_the_scores_of_the_model(case):
    """Items that share an identifier share its probability."""
    options = SearchOptions(top_k=None, exclude_seen=False)
    got = case.recommender().sample(case.histories, options, seed=1)
    owners = np.bincount(case.codes.collision_ids())[case.codes.collision_ids()]
    for row, items in enumerate(got.items):
        assert sorted(items.tolist()) == list(range(40))
        scores = case.recommender().score(case.histories.take([row]), items)[0]
        np.testing.assert_allclose(got.logp[row], scores - np.log(owners[items]), atol=1e-5)
    assert len({tuple(items) for items in got.items.tolist()}) == len(got)
    assert case.recommender().sample([], options, seed=1).items.shape == (0, 0)


def test_draws_and_diverse_lists_are_of_the_catalog_version_that_is_swapped_in(fixed_case):
    model, options = fixed_case.recommender(), SearchOptions(top_k=9, filter="even")
    even = {"even": ItemFilter.of_items(range(0, 40, 2), 40, fixed_case.codes.catalog)}
    store = CatalogStore(CatalogSnapshot.of(fixed_case.codes, filters=even), publish=model.swap)
    store.retire([2, 4])
    store.close()
    drawn = model.sample(fixed_case.histories, options, seed=1)
    lists = model.recommend(fixed_case.histories, replace(options, diversity=MaxPer(1, np.arange(40) // 4)))
    for found in (drawn, lists):
        assert found.version == 1
        assert set(found.items.ravel().tolist()) <= {-1, 0, *range(6, 40, 2)}


def test_a_draw_takes_no_options_of_rankings(fixed_case):
    for options in (SearchOptions(exact=True), SearchOptions(diversity=Interests())):
        with pytest.raises(ConfigError, match="are for recommend"):
            fixed_case.recommender().sample(fixed_case.histories, options, seed=0)
    with pytest.raises(DataError, match="seed: expected an integer, or 5 of them"):
        fixed_case.recommender().sample(fixed_case.histories, seed=[1, 2])
