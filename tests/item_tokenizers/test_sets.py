from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError, NotFitted
from genrec.item_tokenizers.base import ItemTokenizer, TokenizerSource
from genrec.item_tokenizers.registry import (
    build,
    build_slots,
    load_slot_tokenizer,
    load_tokenizer,
    settings_class,
    tokenizer_class,
)
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.item_tokenizers.sets import SetRec, SetRecSettings
from genrec.item_tokenizers.sets_training import make_model
from genrec.testing.slot_contract import SlotContract, planted_slot_source
from genrec.testing.tokenizer_contract import CATALOG

SMALL = SetRecSettings(n_semantic=3, dim=8, hidden=(16, 8), epochs=3, batch_size=32, device="cpu")
CODES = replace(SMALL, level_size=8)


class TestContinuous(SlotContract):
    def make(self):
        return SetRec(SMALL)


class TestDiscrete(SlotContract):
    def make(self):
        return SetRec(CODES)


class TestSeparate(SlotContract):
    def make(self):
        return SetRec(replace(SMALL, separate=True, standardize=False))


def fitted(settings=SMALL, source=None, seed=0):
    tokenizer = SetRec(settings)
    slots = tokenizer.fit(planted_slot_source() if source is None else source, seed=seed)
    return tokenizer, slots


def test_collaborative_slot_is_the_vector_itself():
    source = planted_slot_source(width=6)
    _, slots = fitted(source=source)
    given = source.collaborative.vectors
    np.testing.assert_array_equal(slots.slot("collaborative")[:, :6], given)
    assert not slots.slot("collaborative")[:, 6:].any()
    assert fitted(source=planted_slot_source(width=8))[1].dim == 8
    with pytest.raises(DataError, match=r"width 8 \(dim\) at most, got 9"):
        fitted(source=planted_slot_source(width=9))


@pytest.mark.parametrize("separate", [False, True])
def test_semantic_slots_equal_a_plain_forward_pass(separate):
    """Layer by layer in float64: scaled vector, ReLU on hidden layers, none at the end, the output in pieces."""
    source = planted_slot_source()
    tokenizer, slots = fitted(replace(SMALL, separate=separate))
    x = source.vectors().astype(np.float64)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    arrays = {name: value.double().numpy() for name, value in tokenizer.autoencoder().state_dict().items()}
    outputs = []
    for network in range(3 if separate else 1):
        h = scaled
        for layer in range(3):
            weight, bias = (arrays[f"encoder.networks.{network}.{2 * layer}.{kind}"] for kind in ("weight", "bias"))
            h = h @ weight.T + bias
            h = np.maximum(h, 0) if layer < 2 else h
        outputs.append(h)
    pieces = np.concatenate(outputs, axis=1)
    assert pieces.shape == (90, 24)
    for k in range(3):
        np.testing.assert_allclose(slots.slot(f"semantic {k + 1}"), pieces[:, 8 * k : 8 * k + 8], atol=1e-4)


def test_reported_error_equals_the_decoder_by_hand():
    source = planted_slot_source()
    tokenizer, slots = fitted()
    x = source.vectors().astype(np.float64)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    semantic = torch.from_numpy(np.concatenate([slots.slot(f"semantic {k}") for k in (1, 2, 3)], axis=1))
    with torch.no_grad():
        found = tokenizer.autoencoder().decoders[0](semantic).numpy()
    assert tokenizer.report["reconstruction"] == pytest.approx(((found - scaled) ** 2).mean(), rel=1e-4)
    assert tokenizer.history[-1]["floor"] == pytest.approx(((scaled - scaled.mean(axis=0)) ** 2).mean(), rel=1e-4)


def test_mirrored_widths_xavier_weights_and_zero_biases():
    settings = SetRecSettings(n_semantic=4, dim=32)
    model = make_model(64, settings, seed=0)
    shapes = [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(512, 64), (256, 512), (128, 256), (128, 128), (128, 128), (256, 128), (512, 256), (64, 512)]
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            assert not layer.bias.any()
            weight = layer.weight.detach().numpy()
            assert weight.std() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.05)
            assert np.abs(weight).max() > 2.5 * weight.std()  # normal, not uniform
    separate = make_model(64, replace(settings, separate=True), seed=0)
    assert [network[-1].out_features for network in separate.encoder.networks] == [32] * 4
    assert len(separate.decoders) == 4


def test_training_reconstructs_planted_groups():
    tokenizer, slots = fitted(replace(SMALL, epochs=40, learning_rate=0.01), planted_slot_source(n_items=200))
    errors = [row["reconstruction"] for row in tokenizer.history]
    floor = tokenizer.history[-1]["floor"]
    assert errors[0] > errors[20] > errors[-1]
    assert tokenizer.report["reconstruction"] < 0.15 * floor
    assert not tokenizer.report["slots"]["semantic_alike"]
    assert slots.report() == tokenizer.report["slots"]


def test_vectors_without_information_are_told(caplog):
    source = planted_slot_source()
    noise = np.random.default_rng(0).normal(size=(90, 60)).astype(np.float32)
    noisy = replace(source, embeddings=ItemEmbeddings(noise, CATALOG, {}))
    with caplog.at_level(logging.WARNING):
        fitted(replace(SMALL, epochs=1, learning_rate=1e-6), noisy)
    assert "no better than the mean" in caplog.text


def test_parallel_slots_are_told(caplog, monkeypatch):
    tokenizer, _ = fitted()
    monkeypatch.setattr("genrec.item_tokenizers.slot_report.ALIKE", 0.0)
    with caplog.at_level(logging.WARNING):
        tokenizer.fit(planted_slot_source(), seed=0)
    assert "nearly parallel" in caplog.text


@pytest.mark.parametrize("settings", [SMALL, CODES])
def test_unknown_items_have_zero_slots(settings):
    source = planted_slot_source()
    vectors = source.vectors().copy()
    vectors[:4] = 0  # item 3 is cold as well: nothing at all is known about it
    blind = replace(source, embeddings=ItemEmbeddings(vectors, CATALOG, {}))
    tokenizer, slots = fitted(settings, blind)
    np.testing.assert_array_equal(slots.known[:, 0], source.collaborative.known)
    np.testing.assert_array_equal(slots.known[:, 1:], np.repeat(vectors.any(axis=1)[:, None], 3, axis=1))
    if slots.discrete:
        np.testing.assert_array_equal(slots.codes == 7, ~slots.known)
        assert not any(book[7].any() for book in slots.codebooks)
    without = tokenizer.encode(replace(blind, collaborative=None))
    assert not without.known[:, 0].any()
    np.testing.assert_array_equal(without.vectors[:, 1:], slots.vectors[:, 1:])


def test_items_without_vectors_do_not_train():
    source = planted_slot_source()
    vectors, beside = source.vectors(), source.collaborative_vectors()
    more = TokenizerSource(
        CATALOG,
        np.arange(95, dtype=np.uint64),
        ItemEmbeddings(np.concatenate([vectors, np.zeros((5, 12), np.float32)]), CATALOG, {}),
        collaborative=ItemEmbeddings(np.concatenate([beside, beside[:5]]), CATALOG, {}),
    )
    np.testing.assert_array_equal(fitted(CODES, more)[1].vectors[:90, 1:], fitted(CODES)[1].vectors[:, 1:])


def test_codes_are_nearest_codewords_of_each_slot_alone():
    source = planted_slot_source()
    tokenizer, slots = fitted(CODES)
    _, plain = fitted(SMALL)  # the same autoencoder without codes
    for at, name in enumerate(slots.names):
        book = slots.codebooks[at].astype(np.float64)
        assert book.shape == (8, 8)
        left = spread = 0.0
        known = plain.vectors[plain.known[:, at], at].astype(np.float64)
        for item in np.flatnonzero(plain.known[:, at]):
            distance = ((plain.vectors[item, at] - book[:7]) ** 2).sum(axis=1)
            assert distance[int(slots.codes[item, at])] == pytest.approx(distance.min(), rel=1e-5)
            left += distance.min()
            spread += ((plain.vectors[item, at] - known.mean(axis=0)) ** 2).sum()
        assert tokenizer.report["quantization"][name] == pytest.approx(left / spread, rel=1e-4)
    assert tokenizer.encode(source) == slots


def test_joint_training_goes_on_from_a_copy(tmp_path):
    source = planted_slot_source()
    tokenizer, slots = fitted()
    x = torch.from_numpy(source.vectors())
    encoder = tokenizer.encoder()
    with torch.no_grad():
        np.testing.assert_allclose(encoder(x).numpy(), slots.vectors[:, 1:], atol=1e-5)
    model = tokenizer.autoencoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = model.encoder(x).square().mean() + model.loss(x)  # gradients reach the encoder from both terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(after < before for before, after in pairwise(losses))
    assert tokenizer.encode(source) == slots
    tokenizer.save(tmp_path / "saved")
    back = SetRec.load(tmp_path / "saved").autoencoder().state_dict()
    own = tokenizer.autoencoder().state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name], back[name]) for name in own)
    with pytest.raises(NotFitted):
        SetRec(SMALL).encoder()


def test_seed_decides():
    first, other = fitted(seed=0)[1], fitted(seed=1)[1]
    assert first != other
    assert first.select(["collaborative"]) == other.select(["collaborative"])


def test_vectors_that_say_nothing_are_refused():
    source = planted_slot_source()
    zeros = ItemEmbeddings(np.zeros((90, 6), np.float32), CATALOG, {})
    with pytest.raises(DataError, match="collaborative: all"):
        fitted(source=replace(source, collaborative=zeros))
    with pytest.raises(DataError, match="embeddings: all"):
        fitted(source=replace(source, embeddings=zeros))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_semantic", 0),
        ("dim", 0),
        ("level_size", 1),
        ("level_size", -2),
        ("hidden", (8, 0)),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("max_iterations", 0),
        ("device", "tpu"),
    ],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: expected"):
        replace(SMALL, **{field: value})


def test_codes_and_slots_are_not_mixed_up(tmp_path):
    assert settings_class("setrec") is SetRecSettings
    assert tokenizer_class("setrec") is SetRec
    assert isinstance(build_slots(SMALL), SetRec)
    with pytest.raises(ConfigError, match="gives codes, got 'setrec'"):
        build(SMALL)
    with pytest.raises(ConfigError, match="gives slots, got 'rqkmeans'"):
        build_slots(RqKMeansSettings())
    assert isinstance(build(RqKMeansSettings()), ItemTokenizer)
    codes = RqKMeans(RqKMeansSettings(n_levels=1, level_size=8))
    codes.fit(planted_slot_source(), seed=0)
    codes.save(tmp_path / "codes")
    assert isinstance(load_tokenizer(tmp_path / "codes"), RqKMeans)
    with pytest.raises(ConfigError, match="gives slots, got 'rqkmeans'"):
        load_slot_tokenizer(tmp_path / "codes")
