"""Log-probabilities of candidates: those of ``score``, and with the right gradients."""

import dataclasses

import numpy as np
import pytest
import torch

from genrec.data.histories import Histories
from genrec.decoding.index import CatalogIndex
from genrec.errors import ConfigError
from genrec.models.adapters import LoraSettings, add_lora
from genrec.models.pretrained import extend_rows
from genrec.models.prompting import build_prompts, item_tokens, users_asked
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.prompts.encode import ExampleEncoder
from genrec.prompts.tasks import load_task
from genrec.prompts.wrapper import Wrapper
from genrec.testing.text_models import tiny_text_model
from genrec.testing.walks import tiny_model, walks
from genrec.training.candidates import CandidateLogProbs, check_candidates
from genrec.vocab.text_vocabulary import extend_vocabulary

HISTORIES = Histories.from_lists([[1, 2, 3], [7], [20, 4, 5, 9, 10]])
ITEMS = np.array([[4, 5, 10, -1], [0, 7, 21, 3], [14, -1, -1, -1]])  # ragged: 5, 7, 10 and 14 are short


def found(model, data, softmax, asked=None):
    if asked is not None:
        return CandidateLogProbs(data.codes, data.token_map, softmax)(model, asked(HISTORIES), ITEMS)
    users = users_asked(data.token_map, range(len(HISTORIES)), len(HISTORIES), user_ids=data.user_ids)
    layout = "encoder" if model.config.is_encoder_decoder else "decoder"
    prompts = build_prompts(layout, HISTORIES, item_tokens(data.codes, data.token_map), data.token_map, users)
    return CandidateLogProbs(data.codes, data.token_map, softmax)(model, prompts, ITEMS)


def scores(model, data, softmax, asked=None):
    index = CatalogIndex.build(data.codes)
    settings = DecodingSettings(loss=softmax)
    recommender = GenerativeRecommender(
        model, data.token_map, data.codes, index, settings, user_ids=data.user_ids, prompts=asked
    )
    return recommender.score(HISTORIES, ITEMS, range(len(HISTORIES)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["decoder", "t5"])
@pytest.mark.parametrize("softmax", ["vocab", "level", "children"])
@pytest.mark.parametrize(("ragged", "n_user_tokens"), [(False, 0), (True, 3)])
def test_their_sum_is_the_score_of_the_recommender(attention, kind, softmax, ragged, n_user_tokens):
    data = walks(ragged=ragged, n_user_tokens=n_user_tokens)
    model = tiny_model(kind, data)
    model.set_attn_implementation(attention)
    logp = found(model, data, softmax)
    assert logp.shape[2] == data.token_map.n_tokens_per_item
    expected = np.where(ITEMS >= 0, scores(model, data, softmax), 0.0)
    np.testing.assert_allclose(logp.detach().sum(2).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "t5-gated"])
def test_adapters_and_the_words_around_histories_are_seen_and_adapters_learn(kind):
    data = walks()
    model, words = tiny_text_model(kind)
    vocabulary = extend_vocabulary(words, data.codes)
    data = dataclasses.replace(data, token_map=vocabulary.token_map)
    extend_rows(model, vocabulary)
    model = add_lora(model, vocabulary.token_map, LoraSettings(r=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    layout = "encoder" if kind.startswith("t5") else "decoder"
    encoder = ExampleEncoder(vocabulary, data.codes, layout=layout, wrapper=Wrapper.named("plain"), max_tokens=256)
    asked = TemplatePrompts(load_task("sequential").template, encoder)
    logp = found(model, data, "level", asked)
    expected = np.where(ITEMS >= 0, scores(model, data, "level", asked), 0.0)
    np.testing.assert_allclose(logp.detach().sum(2).numpy(), expected, atol=2e-5)
    logp.sum().backward()
    trained = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in trained.values())


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_candidates_do_not_see_each_other(kind):
    """The gradient of one candidate beside others is that of the candidate alone."""
    data = walks()
    model = tiny_model(kind, data)

    def gradient(items, at):
        model.zero_grad()
        prompts = build_prompts(
            "encoder" if kind == "t5" else "decoder",
            HISTORIES.take([0]), item_tokens(data.codes, data.token_map), data.token_map,
        )  # fmt: skip
        logp = CandidateLogProbs(data.codes, data.token_map, "children")(model, prompts, np.array([items]))
        logp[0, at].sum().backward()
        return [weight.grad.clone() for weight in model.parameters()]

    for one, other in zip(gradient([4, 9, 22], 1), gradient([9], 0), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_attention_that_takes_no_mask_is_refused():
    model = tiny_model("decoder", walks())
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="flash_attention_2"):
        check_candidates(model)
