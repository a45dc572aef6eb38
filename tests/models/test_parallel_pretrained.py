"""Parallel models on the layers of a pretrained language model: what they compute, what is trained, what is kept."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from genrec import artifacts
from genrec.errors import ArtifactError, ConfigError, FingerprintMismatch
from genrec.models.adapters import LoraSettings, base_of
from genrec.models.parallel_bundle import load_parallel, save_parallel
from genrec.models.parallel_model import ParallelModel
from genrec.models.parallel_recommender import ParallelRecommender
from genrec.models.parallel_settings import ParallelSettings, preset
from genrec.models.pretrained import PretrainedSettings
from genrec.testing.parallel_cases import parallel_case
from genrec.testing.text_models import tiny_text_model
from genrec.training.parallel_training import told_settings

HISTORIES = [[3, 4, 5], [7], [], [1, 2, 3, 4, 5, 6]]
LORA = LoraSettings(r=2, alpha=4, dropout=0.0)
TEXT = "the user bought red wool scarf"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Hugging Face folder of every kind."""
    found = {}
    for kind in ("qwen2", "qwen3", "t5"):
        found[kind] = tmp_path_factory.mktemp(kind)
        model, words = tiny_text_model(kind)
        model.save_pretrained(found[kind])
        words.save_pretrained(found[kind])
    return found


def made(folder, method="setrec", scale=5.0, **changes):
    """A model on the folder and its items; what is not pretrained is scaled, so that a wrong mask shows."""
    items = parallel_case(method)[1]
    settings = preset(method, PretrainedSettings(str(folder)), **{"instruction": TEXT, **changes})
    model = ParallelModel.of(settings, items, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith("body.transformer.") or "lora_B" in name:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.02)
                weight.mul_(scale)
    return model, items


@torch.no_grad()
def states(model, items, histories, after=None, turn=None):
    tables = items.tables(model.settings)
    length = torch.tensor([len(h) for h in histories])
    grid = torch.zeros(len(histories), int(length.max()) + 2, dtype=torch.int64)
    for row, history in enumerate(histories):
        grid[row, : len(history)] = torch.tensor(history, dtype=torch.int64)
    parts = model.parts(tables, grid)
    parts = parts if turn is None else parts[:, :, turn]
    return model.states(parts, length, length[:, None] if after is None else torch.tensor(after))


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize(
    ("kind", "method"), [("qwen2", "setrec"), ("qwen3", "recgpt"), ("qwen2", "rpg"), ("t5", "setrec"), ("t5", "rpg")]
)
def test_padding_plays_no_part_and_the_instruction_does(folders, kind, method, lora):
    model, items = made(folders[kind], method, lora=lora)
    whole = states(model, items, HISTORIES)
    for row, history in enumerate(HISTORIES):
        assert torch.allclose(whole[row], states(model, items, [history])[0], atol=1e-5)
    if kind != "t5":  # one pass asks at every place what shorter histories ask
        places = states(model, items, [[3, 1, 4]], after=[[0, 1, 2, 3]])
        for place in range(4):
            alone = states(model, items, [[3, 1, 4][:place]])[0, 0]
            assert torch.allclose(places[0, place], alone, atol=1e-5), place
    other, _ = made(folders[kind], method, lora=lora, instruction="running shoes")
    assert (states(other, items, HISTORIES) - whole).abs().max() > 1e-3
    if method == "setrec":
        assert torch.allclose(states(model, items, HISTORIES, turn=[2, 0, 1]), whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_states_are_those_of_the_language_model_itself(folders, kind):
    """RPG's items are one position each, so a history is a plain causal sequence: text, start, items."""
    model, items = made(folders[kind], "rpg", lora=LORA)
    found = states(model, items, [[3, 1, 4]])
    theirs, words = tiny_text_model(kind)
    rows = theirs.get_input_embeddings().weight[words(TEXT, add_special_tokens=False)["input_ids"]]
    settings = preset("rpg", PretrainedSettings(str(folders[kind])), instruction=TEXT, lora=LORA)
    assert torch.equal(ParallelModel.of(settings, items, seed=0).body.text, rows)  # they start as the model's own
    parts = model.positions(model.parts(items.tables(model.settings), torch.tensor([3, 1, 4])))[:, 0]
    sequence = torch.cat([model.body.text, model.body.start, parts])[None]
    with torch.no_grad():
        hidden = base_of(model.body.transformer).model(inputs_embeds=sequence).last_hidden_state[:, -1:, None]
        assert torch.allclose(found, model.heads(hidden), atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "t5"])
def test_adapters_are_kept_without_the_language_model(folders, kind, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folders[kind], base)
    model, items = made(base, lora=LORA)
    before = ParallelRecommender(model, items).recommend(HISTORIES)
    save_parallel(tmp_path / "bundle", ParallelRecommender(model, items))
    kept = artifacts.load_arrays(tmp_path / "bundle" / "weights.safetensors")
    inside = {name for name in kept if name.startswith("body.transformer.")}
    assert inside and all("lora_" in name for name in inside)
    again = load_parallel(tmp_path / "bundle")
    after = again.recommend(HISTORIES)
    assert np.array_equal(before.items, after.items) and np.array_equal(before.scores, after.scores)

    base.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="not here"):
        load_parallel(tmp_path / "bundle")
    moved = load_parallel(tmp_path / "bundle", base=tmp_path / "moved").recommend(HISTORIES)
    assert np.array_equal(before.items, moved.items)
    tiny_text_model(kind, seed=1)[0].save_pretrained(tmp_path / "moved")
    with pytest.raises(FingerprintMismatch, match="not the pretrained model"):
        load_parallel(tmp_path / "bundle", base=tmp_path / "moved")


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
def test_a_model_trained_whole_needs_nothing_else(folders, kind, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folders[kind], base)
    model, items = made(base)
    before = ParallelRecommender(model, items).recommend(HISTORIES)
    save_parallel(tmp_path / "bundle", ParallelRecommender(model, items))
    shutil.rmtree(base)
    after = load_parallel(tmp_path / "bundle").recommend(HISTORIES)
    assert np.array_equal(before.items, after.items) and np.array_equal(before.scores, after.scores)


def test_bfloat16_weights_beside_adapters(folders):
    model, items = made(folders["qwen2"], lora=LORA)
    settings = dataclasses.replace(
        model.settings, backbone=PretrainedSettings(str(folders["qwen2"]), weights="bfloat16")
    )
    held = ParallelModel.of(settings, items, seed=0)
    assert held.body.held == torch.bfloat16
    trained = {name: weight.dtype for name, weight in held.named_parameters() if weight.requires_grad}
    assert set(trained.values()) == {torch.float32}
    exact = ParallelModel.of(model.settings, items, seed=0)
    one, two = states(exact, items, HISTORIES).float(), states(held, items, HISTORIES).float()
    assert (one - two).abs().max() < 0.1 * one.abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LORA}, "lora: only for a pretrained"),
        ({"instruction": TEXT}, "instruction: only for a pretrained"),
        ({"backbone": PretrainedSettings("x", weights="bfloat16")}, "backbone.weights"),
        ({"backbone": PretrainedSettings("x", random_weights=True), "lora": LORA}, "lora: only"),
        ({"backbone": PretrainedSettings("x"), "lora": LoraSettings(r=0)}, "lora.r"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        ParallelSettings(**changes)


def test_a_training_is_that_of_a_moved_model_and_of_settings_that_are_not_at_their_defaults():
    told = told_settings(preset("rpg", PretrainedSettings("here")))
    assert told == told_settings(preset("rpg", PretrainedSettings("there"))) and not {"lora", "instruction"} & set(told)
    assert told != told_settings(preset("rpg", PretrainedSettings("here"), lora=LORA))
    assert told != told_settings(preset("rpg", PretrainedSettings("here"), temperature=0.1))


def test_what_the_model_cannot_read(folders, tmp_path):
    with pytest.raises(ConfigError, match="decoder-only"):
        made(folders["t5"], "recgpt")
    silent = tmp_path / "silent"
    tiny_text_model("qwen3")[0].save_pretrained(silent)
    with pytest.raises(ConfigError, match="makes no tokens"):
        made(silent)
    assert made(silent, instruction="")[0].body.text is None
