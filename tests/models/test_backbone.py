import math
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from genrec.errors import ConfigError
from genrec.models.backbone import (
    DecoderSettings,
    T5Settings,
    apply_training_dropout,
    build,
    evaluating,
    padded_vocab_size,
)
from genrec.vocab.token_map import TokenMap

TOKENS = TokenMap((32, 32, 32))
SMALL = {
    "t5": T5Settings(d_model=64, n_layers=2, n_heads=2, d_kv=16, d_ff=64),
    "decoder": DecoderSettings(hidden_size=32, n_layers=2, n_heads=2, d_ff=48, dropout=0.5),
}


@pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)
def test_same_seed_same_weights_and_the_global_random_state_is_left_alone(settings):
    before = torch.get_rng_state()
    first, second, other = (build(settings, TOKENS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    values = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, other)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    torch.manual_seed(5)
    assert torch.equal(torch.cat([p.flatten() for p in build(settings, TOKENS, seed=1).parameters()]), values[0])


@pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)
def test_vocabulary_is_padded_and_recorded(settings):
    model = build(settings, TOKENS, seed=0)
    assert TOKENS.vocab_size == 99 and padded_vocab_size(TOKENS) == 104
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 104
    assert model.config.genrec_vocabulary == TOKENS.fingerprint
    assert (model.config.pad_token_id, model.config.eos_token_id) == (TOKENS.pad_id, TOKENS.eos_id)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not model.training


@pytest.mark.parametrize(
    ("settings", "margin"),
    [
        (SMALL["t5"], 0.8),
        (T5Settings(d_model=64, n_layers=2, n_heads=2, d_kv=16, d_ff=64, embedding_std=0.05), 0.05),
        (SMALL["decoder"], 0.1),
    ],
    ids=["t5", "t5 small embeddings", "decoder"],
)
def test_new_weights_predict_about_uniformly(settings, margin):
    model = build(settings, TOKENS, seed=0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 99, (64, 12), generator=generator)
    labels = torch.randint(3, 99, (64, 3), generator=generator)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(input_ids=tokens, labels=labels).logits
        else:
            logits, labels = model(input_ids=tokens).logits[:, :-1], tokens[:, 1:]
    cross_entropy = float(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert abs(cross_entropy - math.log(model.config.vocab_size)) < margin


def test_decoder_dropout_acts_in_training_only_and_is_not_saved():
    model = build(SMALL["decoder"], TOKENS, seed=0)
    plain = build(DecoderSettings(hidden_size=32, n_layers=2, n_heads=2, d_ff=48, dropout=0), TOKENS, seed=0)
    tokens = torch.arange(3, 13)[None]
    with torch.no_grad():
        expected = plain(input_ids=tokens).logits
        assert torch.equal(model(input_ids=tokens).logits, expected)
        model.train()
        torch.manual_seed(0)
        dropped = model(input_ids=tokens).logits
        assert not torch.allclose(dropped, expected, atol=1e-3)
        assert not torch.allclose(model(input_ids=tokens).logits, dropped, atol=1e-3)
        with evaluating(model):
            assert torch.equal(model(input_ids=tokens).logits, expected)
        assert model.training
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.config.to_dict() == plain.config.to_dict()


def test_dropout_reaches_embedding_attention_and_feed_forward_and_keeps_the_mean():
    model = build(DecoderSettings(hidden_size=32, n_layers=1, n_heads=2, d_ff=48, dropout=0), TOKENS, seed=0)
    layer = model.model.layers[0]
    hooks = apply_training_dropout(model, 0.4)
    seen = {}
    for name, module in {
        "embedding": model.model.embed_tokens,
        "ff": layer.mlp,
        "attention": layer.self_attn,
    }.items():
        module.register_forward_hook(lambda m, i, o, n=name: seen.__setitem__(n, o[0] if isinstance(o, tuple) else o))
    model.train()
    torch.manual_seed(0)
    model(input_ids=torch.arange(3, 99).repeat(10, 1))
    for output in seen.values():
        assert float((output == 0).float().mean()) == pytest.approx(0.4, abs=0.02)
    for hook in hooks:
        hook.remove()
    model(input_ids=torch.arange(3, 99)[None])
    assert all((output != 0).float().mean() > 0.99 for output in seen.values())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: T5Settings(d_model=0), "d_model"),
        (lambda: T5Settings(dropout=1.0), "dropout"),
        (lambda: DecoderSettings(hidden_size=50, n_heads=6), "hidden_size"),
        (lambda: DecoderSettings(n_layers=-1), "n_layers"),
    ],
)
def test_impossible_settings_are_refused(make, field):
    with pytest.raises(ConfigError, match=f"{field}: expected"):
        make()


def test_a_model_is_in_evaluation_mode_for_a_while(both_kinds):
    model = deepcopy(both_kinds["t5"].model)
    inner = model.encoder.block[0]
    for outer, within in ((False, False), (True, True), (False, True)):
        model.train(outer)
        inner.train(within)
        with evaluating(model):
            assert not any(module.training for module in model.modules())
        assert all(module.training == outer for module in model.modules())
