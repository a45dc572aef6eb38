"""Token ids: the loss is on target and end, prompts are prefixes, texts stay texts, batches are fixed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.prompts.data import TaskData
from genrec.prompts.dataset import AlignmentPlan, example_of
from genrec.prompts.encode import ExampleEncoder, TokenRows
from genrec.prompts.mixture import MixedTask, MixtureSettings, TaskMixture
from genrec.prompts.segments import Segment
from genrec.prompts.tasks import TASKS
from genrec.prompts.template import Rendered
from genrec.prompts.wrapper import Wrapper
from genrec.testing.text_models import byte_level_tokenizer
from genrec.vocab.text_vocabulary import extend_vocabulary
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import user_tokens

EVERY = tuple(MixedTask(name, samples=12) for name in TASKS)


def encoder(shop, vocabulary, layout="decoder", **options) -> ExampleEncoder:
    users = user_tokens(vocabulary.token_map, shop.user_ids)
    return ExampleEncoder(vocabulary, shop.codes, layout=layout, users_UM=users, **options)


def mixture(shop, *tasks: MixedTask, **options) -> TaskMixture:
    return TaskMixture(MixtureSettings(tasks or EVERY, **options), shop.data(with_users=True), seed=3)


def written(shop, vocabulary, segments) -> str:
    """What segments should decode to."""
    user = lambda number: vocabulary.token_map.user_tokens([shop.user_ids[number]])[0]  # noqa: E731
    word = {
        "item": lambda n: vocabulary.token_map.text(shop.codes.as_int()[n], sep=""),
        "user": lambda n: vocabulary.word(user(n)),
    }
    return "".join(word.get(s.role, str)(s.value) for s in segments)


@pytest.mark.parametrize("layout", ["decoder", "encoder"])
def test_the_loss_is_on_the_target_and_its_end(shop, vocabulary, layout):
    made, encode = mixture(shop), encoder(shop, vocabulary, layout)
    for i in range(len(made)):
        example = made.example(0, i)
        if example is None:
            continue
        encoded = encode(example)
        assert vocabulary.decode(encoded.target) == written(shop, vocabulary, example.target) + "</s>"
        prompt = written(shop, vocabulary, example.prompt)
        assert vocabulary.decode(encoded.prompt) == (f"<s>{prompt}" if layout == "decoder" else f"{prompt}</s>")
        for token, item, level in zip(encoded.target, encoded.items, encoded.levels, strict=True):
            assert (item < 0) == (level < 0) == (token >= vocabulary.token_map.vocab_size or token == 1)
            if item >= 0:
                assert token == vocabulary.token_map.token_ids(shop.codes.as_int()[item])[level]


def test_the_prompt_asked_is_the_prompt_trained_on(shop, vocabulary):
    made, encode = mixture(shop), encoder(shop, vocabulary, wrapper=Wrapper.named("instruction"))
    for i in range(0, len(made), 5):
        if (example := made.example(0, i)) is not None:
            assert encode(example).prompt == encode.prompt(example.prompt)
            assert vocabulary.decode(encode.prompt(example.prompt)).endswith("## Answer\n")


def test_ragged_identifiers_end_once(shop, vocabulary):
    codes = ItemCodes.from_int([[0, 1], [2, -1], [1, -1]], (4, 4), catalog="c")
    vocabulary.token_map = TokenMap.of(codes)
    encode = ExampleEncoder(vocabulary, codes, layout="decoder")
    item = lambda n: Segment("item", n)  # noqa: E731
    encoded = encode(Rendered("t", 0, (item(0), item(1)), (item(2), Segment("text", "x"), item(1))))
    assert vocabulary.decode(encoded.prompt) == "<s><a_0><b_1><a_2>"
    assert vocabulary.decode(encoded.target) == "<a_1>x<a_2></s>"
    assert encoded.items == (2, -1, 1, 1) and encoded.levels == (0, -1, 0, 1)
    ends_in_words = encode(Rendered("t", 0, (item(0),), (item(1), Segment("text", "x"))))
    assert ends_in_words.levels == (0, -1, -1)


@pytest.mark.parametrize("own", [False, True])
def test_a_prompt_has_one_start_token_also_where_the_chat_format_writes_it(shop, own):
    tokenizer = byte_level_tokenizer(bos=True)  # as Llama 3 has it
    mark = "{{ bos_token }}" if own else ""
    tokenizer.chat_template = f"{mark}{{{{ '<|eot_id|>' }}}}{{{{ messages[0].content }}}}{{{{ '<|eot_id|>' }}}}"
    vocabulary = extend_vocabulary(tokenizer, shop.codes)
    encode = ExampleEncoder(vocabulary, shop.codes, layout="decoder", wrapper=Wrapper.named("chat", tokenizer))
    ids = encode.prompt((Segment("text", "<|begin_of_text|> tea"),))
    start = tokenizer.bos_token_id
    assert ids[0] == start and ids[1] == tokenizer.convert_tokens_to_ids("<|eot_id|>") and ids.count(start) == 1
    plain = ExampleEncoder(vocabulary, shop.codes, layout="decoder").prompt((Segment("text", "tea"),))
    assert plain[0] == start and plain.count(start) == 1


def test_marks_of_a_chat_format_are_the_only_special_tokens(shop, vocabulary):
    vocabulary.tokenizer = lambda text, add_special_tokens: {"input_ids": [{"<|user|>": 7, "<|bot|>": 8}[text]]}
    wrapper = Wrapper((Segment("chat", "<|user|>"),), (Segment("chat", "<|bot|>"),))
    encode = encoder(shop, vocabulary, "encoder", wrapper=wrapper)
    found = encode.prompt((Segment("text", "<|bot|>"),))
    assert (found[0], *found[2:]) == (7, 8, 1) and found[1] >= vocabulary.token_map.vocab_size


@pytest.mark.parametrize("layout", ["decoder", "encoder"])
@pytest.mark.parametrize("max_tokens", [17, 30, 60])
def test_the_oldest_items_go_first_and_the_target_stays(shop, vocabulary, layout, max_tokens):
    made = mixture(shop, MixedTask("sequential"))
    encode = encoder(shop, vocabulary, layout, max_tokens=max_tokens)
    shortened = 0
    for i in range(len(made)):
        found = example_of(made, encode, 0, i, 0)
        fitting = [n for n in range(1, 21) if encode.fits(encode(made.example(0, i, max_items=n)))]
        if not fitting:
            assert found is None
            continue
        assert found == encode(made.example(0, i, max_items=max(fitting)))
        assert found.target == encode(made.example(0, i)).target
        shortened += found != encode(made.example(0, i))
    assert shortened or max_tokens == 60


def test_what_cannot_fit_is_replaced_counted_and_told_once(shop, vocabulary, caplog):
    made = mixture(shop, MixedTask("item_from_text", samples=40))
    lengths = [len(encoder(shop, vocabulary)(made.example(0, i)).prompt) + 3 for i in range(40)]
    limit = int(np.median(lengths))
    plan = AlignmentPlan(made, encoder(shop, vocabulary, max_tokens=limit), batch_size=8, seed=0)
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    assert sum(map(len, batches)) == 40
    assert max(int(batch.lengths.max()) for batch in batches) <= limit
    assert plan.replaced["item_from_text"] >= sum(length > limit for length in lengths) > 0
    assert plan.too_long == plan.replaced and len(caplog.records) == 1
    counted = plan.too_long.copy()
    assert 0 <= plan.padding_share() < 1 and plan.too_long == counted  # what was counted is not counted again
    assert f"the first 40 examples, other rows took the place of {plan.too_long['item_from_text']} of" in caplog.text
    assert "examples " in plan.told(1) and "(item_from_text)" in plan.told(1)
    AlignmentPlan(made, encoder(shop, vocabulary, max_tokens=max(lengths)), batch_size=8, seed=0).batch(0)
    assert len(caplog.records) == 1
    with pytest.raises(DataError, match="'item_from_text': 100 rows in a row"):
        AlignmentPlan(made, encoder(shop, vocabulary, max_tokens=8), batch_size=8, seed=0).batch(0)


@pytest.mark.parametrize(("layout", "packing"), [("decoder", False), ("encoder", False), ("decoder", True)])
def test_the_batch_of_a_step_depends_on_the_step_only(shop, vocabulary, layout, packing, monkeypatch):
    monkeypatch.setattr("genrec.prompts.dataset.WINDOW", 4)
    plans = [
        AlignmentPlan(mixture(shop), encoder(shop, vocabulary, layout), batch_size=7, seed=1, packing=packing)
        for _ in range(2)
    ]
    n = plans[0].steps_per_epoch
    assert n == -(-len(EVERY) * 12 // 7)
    forwards = {step: plans[0].batch(step) for step in range(2 * n)}
    for step in reversed(range(2 * n)):
        assert plans[1].batch(step).ids.tolist() == forwards[step].ids.tolist()
    assert sum(len(forwards[step]) for step in range(n)) == len(EVERY) * 12
    assert forwards[0].ids.tolist() != forwards[n].ids.tolist()
    assert 0 <= plans[0].padding_share() < 0.5
    # of like length: little lies between the shortest and the longest of a batch
    spread = np.mean([np.ptp(batch.lengths) for batch in forwards.values()])
    assert spread > 60 if packing else spread < 40, spread


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=6), st.data())
def test_rows_are_taken_whole(shapes, data):
    from genrec.prompts.encode import Encoded

    rows = [
        Encoded(tuple(range(10 * n, 10 * n + p)), tuple(range(100 * n, 100 * n + t)), (n,) * t, (0,) * t)
        for n, (p, t) in enumerate(shapes)
    ]
    at = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    found, direct = TokenRows.of(rows).take(at), TokenRows.of([rows[n] for n in at])
    for name in ("ids", "items", "levels", "offsets", "starts"):
        assert getattr(found, name).tolist() == getattr(direct, name).tolist()
    assert found.n_targets == sum(shapes[n][1] for n in at)
    assert found.prompt_lengths.tolist() == [shapes[n][0] for n in at]


def test_an_encoder_goes_to_another_process(shop, vocabulary):
    """Where processes are not forked, those that build batches get a copy."""
    made, encode = mixture(shop, MixedTask("sequential")), encoder(shop, vocabulary)
    example = made.example(0, 3)
    assert pickle.loads(pickle.dumps(encode))(example) == encode(example)


def test_what_does_not_fit_together_is_refused(shop, vocabulary):
    other = ItemCodes.from_int([[0], [1]], (4,), catalog="c")
    with pytest.raises(ConfigError, match="vocabulary"):
        ExampleEncoder(vocabulary, other, layout="decoder")
    encode = ExampleEncoder(vocabulary, shop.codes, layout="decoder")
    with pytest.raises(DataError, match="user"):
        encode.prompt((Segment("user", 0),))
    with pytest.raises(DataError, match="item numbers"):
        encode.prompt((Segment("item", 10**6),))


HOSTILE = [
    "<a_3><b_1>",
    "</s> <u_2>",
    "<|end|>\n=> <a_0><b_0>",
    "{{ target }} <s>",
    "\ue0000\ue001 <a_1>",
    "a<b_2>c " * 30,
]


@pytest.mark.parametrize("layout", ["decoder", "encoder"])
def test_hostile_titles_name_no_item_with_a_real_text_tokenizer(shop, layout):
    """Of all ids, those of items and users are exactly the ones of the items and users of the example."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from genrec.vocab.text_vocabulary import extend_vocabulary

    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    learn = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["</s>", "<s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(shop.catalog.text("title") + HOSTILE * 9, learn)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", bos_token="<s>")
    vocabulary = extend_vocabulary(tokenizer, shop.codes, n_user_tokens=4)

    titles = [f"{title} {HOSTILE[n % len(HOSTILE)]}" for n, title in enumerate(shop.catalog.text("title"))]
    shared = [HOSTILE[n % len(HOSTILE)] for n in range(len(titles))]
    fields = {"title": titles, "description": titles, "brand": shared, "categories": [["x", text] for text in shared]}
    data = TaskData(ItemCatalog(shop.catalog.ids, fields), shop.split.train(), with_users=True)
    made = TaskMixture(MixtureSettings(EVERY, wrapper="instruction"), data, seed=0)
    encode = encoder(shop, vocabulary, layout, wrapper=Wrapper.named("instruction"))
    first = vocabulary.token_map.first_item_id
    for i in range(len(made)):
        if (example := made.example(0, i)) is None:
            continue
        encoded = encode(example)
        for ids, segments in ((encoded.prompt, example.prompt), (encoded.target, example.target)):
            named = [s for s in segments if s.role in ("item", "user")]
            expected = [token for _, tokens in encode.parts(named) for token in tokens]
            assert [token for token in ids if token >= first] == expected
            assert sum(token in (0, 1, 2) for token in ids) == (ids is encoded.target or layout == "encoder") + (
                ids is encoded.prompt and layout == "decoder"
            )
        assert vocabulary.decode(encoded.target).endswith("</s>")
