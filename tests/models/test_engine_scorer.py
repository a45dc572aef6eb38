"""Models in an engine: the same lists as of the model in this process, from log-probabilities of the children alone."""

import functools
import json
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.decoding.filters import ItemFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import SearchOptions
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import DecoderSettings, T5Settings, build
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.prompting import build_prompts
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.testing.engines import ModelEngine
from genrec.testing.oracles import beam_scores, dict_trie
from genrec.vocab.token_map import TokenMap

SIZES = (150, 4, 3)
SMALL = DecoderSettings(hidden_size=16, n_layers=1, n_heads=2, d_ff=24)
HISTORIES = [[], [3], [5, 1, 60], [9] * 7]


@functools.cache
def sides(ragged=False):
    """The same model here and in an engine, over 150 first codes: more than one request of vLLM can ask for."""
    random = np.random.default_rng(0)
    rows = np.unique(random.integers(0, SIZES, (150, 3)), axis=0)
    rows = np.concatenate([np.column_stack([np.arange(150), np.zeros((150, 2), int)]), rows])
    random.shuffle(rows)
    if ragged:
        rows = np.where(np.arange(3) < random.integers(1, 4, len(rows))[:, None], rows, -1)
    codes = ItemCodes.from_int(rows, SIZES, "c")
    tokens = TokenMap.of(codes)
    model = build(SMALL, tokens, seed=0).eval()
    engine = ModelEngine(model)
    parts = (model, tokens, codes, CatalogIndex.build(codes), DecodingSettings(n_beams=10))
    return GenerativeRecommender(*parts), GenerativeRecommender(*parts, engine=engine), engine


def few(n):
    return ItemFilter.of_items(np.arange(n), 294, "c")


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"normalize": "children"},
        {"normalize": "level"},
        {"filter": few(280)},
        {"filter": few(9), "top_k": 20},
        {"n_beams": 500, "top_k": 400},
        {"exact": True, "max_beams": 40, "top_k": 3},
        {"exclude_seen": False},
    ],
    ids=lambda asked: "-".join(asked) if isinstance(asked, dict) else str(asked),
)
def test_lists_scores_and_certificates_are_those_of_the_model(ragged, asked):
    here, there, _ = sides(ragged)
    options = SearchOptions(**asked)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="decoding with normalize")
        ours, theirs = here.recommend(HISTORIES, options), there.recommend(HISTORIES, options)
    np.testing.assert_array_equal(ours.items, theirs.items)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours.certified, theirs.certified)


def test_it_is_the_beam_search_of_plain_python():
    _, there, _ = sides()
    tokens, codes = there.token_map, there.codes
    history = [[5, 1, 60]]
    prompt = build_prompts("decoder", Histories.from_lists(history), there._tokens_NM, tokens).tokens_BT[0].tolist()

    @torch.no_grad()
    def logp(row, prefix):
        offset = tokens.level_offset
        ids = prompt + [offset[level] + code for level, code in enumerate(prefix)]
        values = there.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        return values[offset[len(prefix)] : offset[len(prefix)] + SIZES[len(prefix)]].double().numpy()

    wanted = beam_scores(dict_trie(codes.as_int(), ragged=False), 3, logp, row=0, n_beams=10)
    found = there.recommend(history, SearchOptions(top_k=None, n_beams=10, exclude_seen=False))
    rows = [tuple(codes.as_int()[item].tolist()) for item in found.items[0] if item >= 0]
    assert list(dict.fromkeys(rows)) == [each for each, _ in wanted]
    np.testing.assert_allclose(found.scores[0][0], wanted[0][1], atol=1e-5)


def test_each_prefix_of_a_user_is_asked_for_once_and_only_its_children():
    _, there, engine = sides()
    engine.asked.clear()
    there.recommend(HISTORIES, SearchOptions(top_k=5, n_beams=10))
    of_user = Counter(tuple(ask.prompt) for ask in engine.asked)
    assert len(of_user) == 4 and max(of_user.values()) <= 1 + 2 * 10
    prefixes = [(*ask.prompt, -1, *ask.prefix) for ask in engine.asked]
    assert len(set(prefixes)) == len(prefixes)
    tree = dict_trie(there.codes.as_int(), ragged=False)
    offset = there.token_map.level_offset
    for ask in engine.asked:
        node = tree
        for level, token in enumerate(ask.prefix):
            node = node[token - offset[level]]
        assert (ask.ids - offset[len(ask.prefix)]).tolist() == sorted(node)


def test_an_answer_of_another_size_or_nan_is_an_error():
    here, _, _ = sides()

    class Short(ModelEngine):
        def logprobs(self, asks):
            return [each[1:] for each in super().logprobs(asks)]

    class Broken(ModelEngine):
        def logprobs(self, asks):
            return [each * np.nan for each in super().logprobs(asks)]

    parts = (here.model, here.token_map, here.codes, here.index, here.settings)
    with pytest.raises(DataError, match=r"answered 149 log-probabilities, 150"):
        GenerativeRecommender(*parts, engine=Short(here.model)).recommend([[1]])
    with pytest.raises(DataError, match="inf or NaN"):
        GenerativeRecommender(*parts, engine=Broken(here.model)).recommend([[1]])


def test_a_bundle_in_an_engine_reads_no_weights(tmp_path):
    here, _, engine = sides()
    save_bundle(tmp_path / "bundle", here)
    there = load_bundle(tmp_path / "bundle", engine=engine, dtype=torch.bfloat16).recommender
    assert there.model.device.type == "meta" and there.model.dtype == torch.bfloat16
    np.testing.assert_array_equal(there.recommend(HISTORIES).items, here.recommend(HISTORIES).items)
    with pytest.raises(ConfigError, match="temperature 1"):
        there.sample(HISTORIES, seed=0, temperature=0.5)
    np.testing.assert_array_equal(there.sample(HISTORIES, seed=0).items, here.sample(HISTORIES, seed=0).items)


def test_an_encoder_decoder_is_for_no_engine(tmp_path):
    here, _, engine = sides()
    t5 = build(T5Settings(d_model=16, n_layers=1, n_heads=2, d_kv=8, d_ff=16), here.token_map, seed=0)
    save_bundle(tmp_path / "bundle", GenerativeRecommender(t5.eval(), here.token_map, here.codes, here.index))
    config = json.loads((tmp_path / "bundle" / "model" / "config.json").read_text())
    assert config["is_encoder_decoder"]
    with pytest.raises(ConfigError, match="a t5 model has an encoder"):
        load_bundle(tmp_path / "bundle", engine=engine)
