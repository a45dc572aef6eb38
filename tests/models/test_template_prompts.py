"""A model is asked with the words that it was trained with: scores at serving are the losses of training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from genrec.data.histories import Histories
from genrec.data.splits import leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.decoding.index import CatalogIndex
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.prompts.data import TaskData
from genrec.prompts.encode import ExampleEncoder, TokenRows
from genrec.prompts.tasks import load_task
from genrec.prompts.template import PromptTemplate
from genrec.prompts.wrapper import Wrapper
from genrec.testing.text_models import byte_level_tokenizer, unigram_tokenizer
from genrec.training.alignment import AlignmentCollator, AlignmentLoss
from genrec.training.module import TrainingModule
from genrec.vocab.text_vocabulary import extend_vocabulary
from genrec.vocab.user_index import user_tokens

N = 40  # items that the model knows; the others come later


def prepared(kind: str, *, n_user_tokens: int = 0, max_tokens: int = 256):
    shop = make(tiny(n_users=20))
    rows = np.stack([np.arange(60) // 8, np.arange(60) % 8], axis=1)
    codes = ItemCodes(rows, (8, 8), catalog=shop.catalog.fingerprint)
    decoder = kind == "decoder"
    text = byte_level_tokenizer() if decoder else unigram_tokenizer()
    vocabulary = extend_vocabulary(text, codes, n_user_tokens=n_user_tokens)
    size = vocabulary.token_map.vocab_size
    torch.manual_seed(0)
    if decoder:
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=size, num_attention_heads=2, num_key_value_heads=1, **shape))
    else:
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
    users = list(shop.interactions.user_ids)
    encoder = ExampleEncoder(
        vocabulary, codes, layout="decoder" if decoder else "encoder", wrapper=Wrapper.named("plain"),
        max_tokens=max_tokens, users_UM=user_tokens(vocabulary.token_map, users),
    )  # fmt: skip
    data = TaskData(shop.catalog, leave_one_out(shop.interactions).train(), with_users=n_user_tokens > 0)
    return data, codes, encoder, model.eval(), users


def recommender(codes, encoder, model, users, wording=0) -> GenerativeRecommender:
    prompts = TemplatePrompts(load_task("sequential").template, encoder, wording=wording)
    settings = DecodingSettings(n_beams=10, loss="level", batch_size=7)
    index = CatalogIndex.build(codes)
    tokens = encoder.vocabulary.token_map
    return GenerativeRecommender(model, tokens, codes, index, settings, user_ids=users, prompts=prompts)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize(("wording", "n_user_tokens"), [(0, 0), (1, 4)])
def test_the_score_of_an_item_is_its_loss_in_training(kind, wording, n_user_tokens):
    data, codes, encoder, model, users = prepared(kind, n_user_tokens=n_user_tokens)
    serving, task = recommender(codes, encoder, model, users, wording), load_task("sequential")
    tokens = encoder.vocabulary.token_map
    loss = TrainingModule(model, AlignmentLoss(tokens, "level", 0.0, codes))
    collate = AlignmentCollator(codes, tokens, encoder.layout)
    for place in range(0, data.n_rows("steps"), 9):
        row = data.row("steps", place)
        example = task.template.render(task.draw(data, row, np.random.default_rng(0)), wording)
        batch = collate(TokenRows.of([encoder(example)]))
        n_words = batch["level_counts"][-1]
        assert n_words == 1  # the end token, which the search does not score
        items = {key: batch[key][:-1] for key in ("positions", "targets", "nodes")}
        with torch.no_grad():
            expected = -loss(**{**batch, **items, "level_counts": [*batch["level_counts"][:-1], 0]}, scale=1.0)
        users_of = [row.user] if n_user_tokens else None
        found = serving.score([list(row.history)], [[row.item]], users_of)
        assert found[0, 0] == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_a_batch_equals_one_by_one(kind):
    data, codes, encoder, model, users = prepared(kind)
    serving = recommender(codes, encoder, model, users)
    histories = Histories.from_lists([*data.histories.to_lists()[:9], []])
    together = serving.recommend(histories, top_k=5)
    alone = [serving.recommend(histories.take([u]), top_k=5).items[0].tolist() for u in range(len(histories))]
    assert together.items.tolist() == alone


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_long_histories_lose_their_oldest_items_as_in_training(kind):
    _, codes, encoder, model, users = prepared(kind, max_tokens=110)
    build = recommender(codes, encoder, model, users).prompts
    long = list(range(30))
    prompts = build(Histories.from_lists([long, long[-3:]]))
    room = 110 - (3 if kind == "decoder" else 0)
    assert room - 12 < prompts.mask_BT.sum(axis=1)[0] <= room
    row = prompts.tokens_BT[0][prompts.mask_BT[0]].tolist()
    first = encoder.vocabulary.token_map.first_item_id
    newest = [token for item in long for token in encoder.vocabulary.token_map.token_ids(codes.as_int()[item])]
    kept = [token for token in row if token >= first]
    assert kept == newest[-len(kept) :]


def test_items_that_come_later_are_read():
    _, codes, encoder, model, users = prepared("decoder")
    known = ItemCodes(codes.codes[:N], (8, 8), catalog="older")
    serving = recommender(known, encoder.with_codes(known), model, users)
    with pytest.raises(DataError, match="item numbers"):
        serving.recommend([[N + 3]], top_k=3)
    serving.swap(CatalogSnapshot.of(codes))
    whole = recommender(codes, encoder, model, users).recommend([[N + 3]], top_k=3)
    assert serving.recommend([[N + 3]], top_k=3).items.tolist() == whole.items.tolist()


def test_what_cannot_recommend_is_refused():
    _, _, encoder, *_ = prepared("decoder")
    template = load_task("sequential").template
    with pytest.raises(ConfigError, match="wording"):
        TemplatePrompts(template, encoder, wording=6)
    with pytest.raises(ConfigError, match="without the input 'history'"):
        TemplatePrompts(load_task("search").template, encoder)
    _, _, narrow, *_ = prepared("decoder", max_tokens=40)
    with pytest.raises(ConfigError, match="the words of the prompt alone"):
        TemplatePrompts(template, narrow)
    with pytest.raises(ConfigError, match="missing"):
        TemplatePrompts(load_task("search_with_history").template, encoder)


SEARCHES = {name: load_task(name).template for name in ("search", "search_with_history")}


@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize("n_user_tokens", [0, 4])
def test_a_query_is_asked_with_the_ids_of_training(kind, n_user_tokens, tmp_path):
    data, codes, encoder, _, _ = prepared(kind, n_user_tokens=n_user_tokens)
    made = TemplatePrompts(load_task("sequential").template, encoder, searches=SEARCHES, max_text=60)
    made.save(tmp_path)
    prompts = TemplatePrompts.load(tmp_path, encoder.vocabulary, codes, layout=encoder.layout)
    row = data.row("steps", 9)
    user_tokens = encoder._users_UM[[row.user] * 3, 0] if n_user_tokens else None
    built = prompts(
        Histories.from_lists([[], list(row.history), list(row.history)]),
        user_tokens,
        ["wool scarf", "wool scarf", None],
    )
    user = row.user if n_user_tokens else None
    searched = {"history": row.history, "query": "wool scarf", "target": row.item, "user": user}
    expected = [
        SEARCHES["search"].render({"query": "wool scarf", "item": row.item}, 0),
        SEARCHES["search_with_history"].render(searched, 0),
        load_task("sequential").template.render({"history": row.history, "target": row.item, "user": user}, 0),
    ]
    for ids, mask, example in zip(built.tokens_BT, built.mask_BT, expected, strict=True):
        assert ids[mask].tolist() == list(encoder(example).prompt)


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_a_query_names_no_item(kind):
    _, codes, encoder, _, _ = prepared(kind, max_tokens=140)
    prompts = TemplatePrompts(load_task("sequential").template, encoder, searches=SEARCHES)
    tokens = encoder.vocabulary.token_map
    for query in ("<a_1><b_2>", "a </s> <a_1>\n<b_2>", "\ue0000\ue001 {{ item }} {% if %}", "<|im_end|><a_0>"):
        built = prompts(Histories.from_lists([[], [3, 7]]), None, [query, query])
        ids = [row[mask].tolist() for row, mask in zip(built.tokens_BT, built.mask_BT, strict=True)]
        items = [[token for token in row if token >= tokens.first_item_id] for row in ids]
        assert items == [[], tokens.token_ids(codes.as_int()[[3, 7]]).ravel().tolist()]
        assert sum(token == tokens.eos_id for row in ids for token in row) == (2 if kind == "t5" else 0)
    for query, words in (("", "blank"), (" \x00 ", "blank"), ("wörld " * 60, "takes")):
        with pytest.raises(DataError, match=words):
            prompts.check_query(query, [1])
    with pytest.raises(ConfigError, match="task search_with_history"):
        TemplatePrompts(load_task("sequential").template, encoder, searches={"search": SEARCHES["search"]}).check_query(
            "scarf", [1]
        )
    # a template of the same name that needs more than a query
    other = PromptTemplate.parse(SEARCHES["search"].source.replace("{{ query }}", "{{ query }} {{ item }}"))
    assert TemplatePrompts(load_task("sequential").template, encoder, searches={"search": other}).searches == {}
