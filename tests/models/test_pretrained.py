import json

import numpy as np
import pytest
import torch

from genrec import recipes
from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.pretrained import PretrainedSettings, extend_rows, hub_commit, load_pretrained, tables_of
from genrec.testing.text_models import tiny_text_model
from genrec.vocab.new_rows import codebook_rows, drawn_rows, text_rows
from genrec.vocab.text_vocabulary import extend_vocabulary

KINDS = ["qwen3", "qwen2", "llama", "t5", "t5-gated"]
CODES = ItemCodes.from_int([[0, 1], [3, 2], [1, 0], [3, 0]], (4, 3), "c")
TEXTS = ["red wool", "blue shoes", "", "red hat"]


def with_books(codes, *books):
    return ItemCodes(codes.codes, codes.level_sizes, codes.catalog, codebooks=tuple(books))


def extended(kind, items=CODES, spare_rows=3, **options):
    model, words = tiny_text_model(kind, spare_rows=spare_rows)
    vocabulary = extend_vocabulary(words, items, n_user_tokens=2)
    before = [table.detach().clone() for table in tables_of(model)]
    extend_rows(model, vocabulary, **{"codes": items, **options})
    return model, vocabulary, before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spare_rows", [0, 3, 9, 200])
def test_tables_grow_once_and_old_rows_stay(kind, spare_rows):
    model, vocabulary, before = extended(kind, spare_rows=spare_rows)
    tokens, first = vocabulary.token_map, vocabulary.token_map.first_item_id
    had = first + spare_rows
    rows = had if spare_rows >= 9 else -(-tokens.vocab_size // 64) * 64
    after = tables_of(model)
    assert len(after) == len(before) == (1 if kind in ("qwen3", "t5", "t5-gated") else 2)
    assert model.config.vocab_size == rows and {len(table) for table in after} == {rows}
    assert model.config.genrec_vocabulary == tokens.fingerprint and model.config.genrec_rows_multiple == 64
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:first], old[:first])
        assert torch.equal(new[tokens.vocab_size : had], old[tokens.vocab_size : had])
        assert (
            not torch.equal(new[first : min(had, tokens.vocab_size)], old[first : tokens.vocab_size]) or not spare_rows
        )
        for row in new[max(had, tokens.vocab_size) :]:
            torch.testing.assert_close(row, old[:first].mean(0))
    again = [table.clone() for table in after]
    extend_rows(model, vocabulary, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(again, tables_of(model), strict=True))
    other, *_ = extended(kind, spare_rows=spare_rows, seed=1)
    assert not torch.equal(tables_of(other)[0], after[0])


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_rows_that_stand_for_nothing_are_recorded_and_never_written(kind, tmp_path):
    model, vocabulary, _ = extended(kind)
    size, rows = vocabulary.token_map.vocab_size, len(tables_of(model)[-1])
    assert rows > size
    with torch.no_grad():  # a step of training may leave them anywhere: nothing says what they are
        tables_of(model)[-1][size:] = 50 * tables_of(model)[-1][:size].abs().max()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.genrec_vocab_size == size and again.config.vocab_size == rows
    prompt = torch.arange(4, 12)[None]
    for beams in (1, 3):
        written = again.generate(prompt, max_new_tokens=6, do_sample=False, num_beams=beams)
        assert written.max() < size
    again.generation_config.suppress_tokens = None
    assert again.generate(prompt, max_new_tokens=6, do_sample=False).max() >= size  # the test can fail


def test_another_commit_of_a_model_of_the_hub_is_another_model(tmp_path, monkeypatch):
    assert hub_commit(PretrainedSettings(str(tmp_path))) == {} == hub_commit(PretrainedSettings("nobody/nothing"))
    commits = ["a" * 40, "b" * 40]
    folder = tmp_path / "models--some--model"
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    for commit in commits:
        (folder / "refs" / "main").write_text(commit)
        assert hub_commit(PretrainedSettings("some/model")) == {"commit": commit}


@pytest.mark.parametrize("few", [False, True])
def test_drawn_rows_have_the_mean_and_the_covariance_of_the_old_ones(few):
    random = np.random.default_rng(0)
    mix = random.normal(size=(6, 6))
    old = random.normal(size=(4 if few else 2_000, 6)) @ mix + 3
    drawn = drawn_rows(torch.from_numpy(old).float(), 10_000, seed=0).numpy().astype(float)
    want = np.cov(old.T)
    np.testing.assert_allclose(drawn.mean(0), old.mean(0), atol=4 * np.sqrt(np.diag(want).max() / 10_000))
    np.testing.assert_allclose(np.cov(drawn.T), want, atol=0.06 * np.abs(want).max())
    if few:  # nothing outside of what the old rows span
        assert np.linalg.matrix_rank(drawn - old.mean(0), tol=1e-3) == 3


@pytest.mark.parametrize(("size", "width"), [(40, 5), (40, 12), (4, 9)])
def test_codebook_rows_are_a_linear_map_with_the_moments_of_the_old_rows(size, width):
    random = np.random.default_rng(0)
    old = random.normal(size=(300, 8)) @ random.normal(size=(8, 8)) + 1
    book = random.normal(size=(size, width)).astype(np.float32)
    rows = codebook_rows(torch.from_numpy(old).float(), book).numpy().astype(float)
    np.testing.assert_allclose(rows.mean(0), old.mean(0), atol=1e-4)
    # linear: predicted from the codebook without error
    inputs = np.c_[book, np.ones(size)]
    fitted = inputs @ np.linalg.lstsq(inputs, rows, rcond=None)[0]
    np.testing.assert_allclose(fitted, rows, atol=1e-3)
    # the covariance is the best one of its rank
    rank = min(8, width, size - 1)
    values, vectors = np.linalg.eigh(np.cov(old.T))
    want = vectors[:, -rank:] @ np.diag(values[-rank:]) @ vectors[:, -rank:].T
    np.testing.assert_allclose(np.cov(rows.T), want, atol=1e-3 * values.max())


@pytest.mark.parametrize("book", [np.zeros((5, 3)), np.ones((1, 3))])
def test_a_codebook_that_says_nothing_gives_the_mean(book):
    old = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    rows = codebook_rows(old, book.astype(np.float32))
    torch.testing.assert_close(rows, old.mean(0).expand(len(book), -1))


def test_text_rows_are_means_over_the_tokens_of_the_items():
    old = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    texts = [[1, 2, 2], [3], [], [19, 0]]
    rows, known = text_rows(old, np.array([0, 2, 1, 0]), 4, texts)
    assert known.tolist() == [True, False, True, False]
    torch.testing.assert_close(rows[0], torch.stack([old[i] for i in (1, 2, 2, 19, 0)]).mean(0))
    torch.testing.assert_close(rows[2], old[3])
    rows, known = text_rows(old, np.array([-1, 2, 1, 0]), 4, texts)
    torch.testing.assert_close(rows[0], old[[19, 0]].mean(0))


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "t5"])
def test_every_start_reaches_both_tables(kind):
    books = [np.random.default_rng(n).normal(size=(k, 5)).astype(np.float32) for n, k in enumerate((4, 3))]
    drawn, vocabulary, before = extended(kind)
    by_book, *_ = extended(kind, init="codebooks", items=with_books(CODES, books[0]))
    by_text, *_ = extended(kind, init="text", texts=TEXTS)
    tokens = vocabulary.token_map
    (a, b), first = tokens.level_offset, tokens.first_item_id
    for old, d, k, t in zip(before, *map(tables_of, (drawn, by_book, by_text)), strict=True):
        torch.testing.assert_close(k[a : a + 4], codebook_rows(old[:first], books[0]))
        assert torch.equal(k[b:], d[b:])  # no codebook: drawn, like the users
        words = [vocabulary.encode_text(text) for text in TEXTS]
        torch.testing.assert_close(t[a + 3], old[words[1] + words[3]].mean(0))
        torch.testing.assert_close(t[b], old[words[2] + words[3]].mean(0))
        for code in (1, 2):  # an item without text, and a code without items
            assert torch.equal(t[a + code], d[a + code])
        assert torch.equal(t[tokens.user_offset :], d[tokens.user_offset :])


def test_levels_that_share_tokens_start_from_all_their_items():
    codes = ItemCodes(np.array([[0, 1], [1, 2]]), (3, 3), "c", shared_vocabulary=True)
    model, vocabulary, before = extended("qwen3", codes, init="text", texts=["red", "blue"])
    words = [vocabulary.encode_text(text) for text in ("red", "blue")]
    row = tables_of(model)[0][vocabulary.token_map.first_item_id + 1]
    torch.testing.assert_close(row, before[0][words[0] + words[1]].mean(0))


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "t5"])
def test_pieces_of_titles_start_as_the_rows_of_the_text_tokenizers_own_pieces(kind):
    _, words = tiny_text_model(kind)
    own = sorted(set(words.tokenize("red wool scarf")))
    pieces = (*own, "\u2581zebra", "</s>", "<|im_end|>")  # not in the vocabulary; more than text in one of both
    rows = [[at, (at + 1) % len(pieces)] for at in range(len(pieces))]
    codes = ItemCodes.from_int(rows, (len(pieces),) * 2, "c", shared_vocabulary=True, pieces=pieces)
    model, vocabulary, before = extended(kind, codes, init="text", spare_rows=200)
    first = vocabulary.token_map.first_item_id
    for old, new in zip(before, tables_of(model), strict=True):
        for at, piece in enumerate(own):
            torch.testing.assert_close(new[first + at], old[words.convert_tokens_to_ids(piece)])
        for at, text in enumerate((" zebra", "</s>", "<|im_end|>"), len(own)):
            torch.testing.assert_close(new[first + at], old[vocabulary.encode_text(text)].mean(0))


def test_starts_without_what_they_need_are_refused():
    for options, error, said in (
        ({"init": "none"}, ConfigError, "init: expected"),
        ({"init": "codebooks", "codes": None}, ConfigError, "needs codes"),
        ({"init": "text"}, ConfigError, "codes and texts"),
        ({"init": "text", "texts": ["x"]}, DataError, "one for each of 4"),
    ):
        with pytest.raises(error, match=said):
            extended("qwen3", **options)


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
def test_folders_load_as_they_are_or_as_a_plan_for_random_weights(tmp_path, kind):
    model, words = tiny_text_model(kind)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    found = load_pretrained(PretrainedSettings(str(tmp_path)))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))
    assert not found.training and found.dtype == torch.float32
    before = torch.get_rng_state()
    drawn, same, other = (
        load_pretrained(PretrainedSettings(str(tmp_path), random_weights=True), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    one, two, three, had = (m.get_input_embeddings().weight for m in (drawn, same, other, found))
    assert torch.equal(one, two) and not torch.equal(one, three) and not torch.equal(one, had)


def test_other_models_are_refused(tmp_path):
    from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

    size = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    size |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "max_position_embeddings": 16}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=20, **size))
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16))
    for name, model, said in (("bart", bart, "expected T5, got 'bart'"), ("gpt", gpt, "got 'gpt2'")):
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match=said):
            load_pretrained(PretrainedSettings(str(tmp_path / name)))
    with pytest.raises(ArtifactError, match="not a loadable"):
        load_pretrained(PretrainedSettings(str(tmp_path)))
    with pytest.raises(ConfigError, match="path"):
        PretrainedSettings("")


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    for each in tiny_text_model("qwen3"):
        each.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "own.py").write_text("raise SystemExit('run')\n")
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": own}))
    assert type(load_pretrained(PretrainedSettings(str(tmp_path)))).__name__ == "Qwen3ForCausalLM"
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": own, "model_type": "own"}))
    with pytest.raises(ArtifactError, match="not a loadable"):
        load_pretrained(PretrainedSettings(str(tmp_path)))
    with pytest.raises(ConfigError, match="trust_remote_code"):
        recipes.validate({"path": str(tmp_path), "trust_remote_code": True}, PretrainedSettings)
