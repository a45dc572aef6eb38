"""The stages of a pipeline: what each depends on, and that they connect the parts rightly."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec import artifacts, recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.readers import ReaderSettings
from genrec.data.splits import Split
from genrec.data.synthetic import tiny
from genrec.embeddings.aligned import AlignSettings
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.collaborative import PpmiSettings, SvdSettings
from genrec.embeddings.famae import FamaeSettings
from genrec.embeddings.fold_in import lsa_fold_in
from genrec.embeddings.graph import GraphSettings
from genrec.embeddings.text import LsaSettings, SentenceSettings
from genrec.errors import ConfigError, DataError, MissingExtra, TrainingPaused
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.rqkmeans import RqKMeans
from genrec.models.backbone import DecoderSettings
from genrec.models.bundle import load_bundle
from genrec.pipeline import baseline_stages, codes_text, data_stages, model_stages, report_stage, runner
from genrec.pipeline.new_vectors import Origin, vectors_of_new
from genrec.pipeline.recipe import Block, DataSettings, PipelineRecipe, SplitSettings
from genrec.pipeline.recipe_files import described, load_recipe
from genrec.pipeline.replacement import replaced
from genrec.pipeline.stages import stages, stages_until
from genrec.training.dataset import TrainingData
from genrec.training.settings import TrainSettings
from genrec.vocab.user_index import UserSettings

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "train" / "pipelines").glob("*.yaml"))

SMALL_GRAPH = GraphSettings(dim=4, inner=8, epochs=2)
RECIPE = PipelineRecipe(
    data=DataSettings(synthetic=tiny()),
    embeddings=(Block(lsa=LsaSettings(dim=8)),),
    tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 8, "collisions": "reassign"},
    model=DecoderSettings(hidden_size=16, n_layers=1, n_heads=2, d_ff=32, dropout=0.0),
    train=TrainSettings(epochs=2, batch_size=32, warmup_steps=2, eval_every=0, save_every=1),
    baselines=("popularity",),
)
OF_USERS = UserSettings(tokenizer={"kind": "rqkmeans", "n_levels": 2, "level_size": 4, "collisions": "suffix"})


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    for stage in (data_stages.prepare, data_stages.split, data_stages.embed, data_stages.tokenize):
        stage(tmp_path, RECIPE)
    return tmp_path


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.name)
def test_ready_pipelines_are_valid_and_named_after_their_file(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path).value
    own = path.stem.startswith("own")  # the user's: named after what is in it
    assert recipe.name == (path.stem.replace("own", "shop") if own else path.stem)
    if recipe.data.reader is not None:
        with pytest.raises(DataError, match="no such folder") as error:
            stages(recipe, tmp_path)
        assert ("your own files" if own else "https://") in str(error.value.hint)  # where to get them
        recipe = load_recipe(path, [f"data.reader.path={tmp_path}"]).value
    assert len(stages(recipe, tmp_path)) >= 8
    assert path.read_text().startswith("# genrec ")


def test_a_wrong_tokenizer_option_is_found_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="level_sizes"):
        load_recipe(PIPELINES[0], ["tokenizer.level_sizes=3"])
    with pytest.raises(ConfigError, match="n_levels: unknown key") as error:
        load_recipe(PIPELINES[0], ["tokenizer.kind=fsq"])
    assert "--set tokenizer=tokenizers/fsq.yaml" in error.value.hint


def test_a_tokenizer_recipe_is_named_in_place_of_its_lines(tmp_path: Path) -> None:
    fsq = ROOT / "tokenizers" / "fsq.yaml"
    other = load_recipe(ROOT / "train/pipelines/own.yaml", [f"tokenizer={fsq}", "tokenizer.epochs=3"]).value
    assert other.tokenizer["kind"] == "fsq" and other.tokenizer["epochs"] == 3 and other.tokenizer["dim"] == 64
    with pytest.raises(ConfigError, match="expected settings, or the file of a recipe, got 'fsq'"):
        load_recipe(PIPELINES[0], ["tokenizer=fsq"])
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{synthetic: {{}}}}\ntokenizer: {fsq}\n")
    named = load_recipe(path, ["tokenizer.epochs=3"])
    assert named.value.tokenizer == other.tokenizer == recipes.from_dict(type(other), named.as_dict()).tokenizer
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*fsqs\.yaml") as error:
        load_recipe(path, [f"tokenizer={fsq.with_stem('fsqs')}"])
    assert "fsq.yaml" in error.value.hint


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        ({"seed": 1}, {"split", "embed", "tokenize", "evaluate popularity", "train", "evaluate"}),
        ({"name": "other"}, set()),
        ({"tokenizer": {"kind": "rqkmeans", "level_size": 16}}, {"tokenize"}),
        ({"shuffle_identifiers": True}, {"tokenize"}),
        ({"n_user_tokens": 10}, {"train"}),
        ({"users": replace(OF_USERS, decay=0.5)}, {"users"}),
        ({"token_init": "random"}, {"train"}),
        ({"train": replace(RECIPE.train, epochs=3)}, {"train"}),
        ({"train": replace(RECIPE.train, max_seconds=5.0)}, set()),
        ({"split": SplitSettings(ties="file")}, {"split", "evaluate popularity", "evaluate"}),
        ({"evaluate": replace(RECIPE.evaluate, exclude_seen=False)}, {"evaluate popularity", "evaluate"}),
        ({"evaluate": replace(RECIPE.evaluate, n_beams=7)}, {"evaluate"}),
    ],
)
def test_what_a_change_touches(change: dict, affected: set[str]) -> None:
    """Stages whose own key changes; what is downstream of them follows their output."""
    recipe = replace(RECIPE, users=OF_USERS) if "users" in change else RECIPE
    before = {s.name: s.recipe for s in stages(recipe, Path("x"))}
    after = {s.name: s.recipe for s in stages(replace(RECIPE, **change), Path("x"))}
    changed = {name for name in before if before[name] != after[name]}
    assert changed - {"report"} == affected  # the report names the whole recipe


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda part: part["embeddings"][0].pop("unit_rows"), "done"),  # at its default in the recipe
        (lambda part: part["embeddings"][0]["lsa"].pop("dim"), "changed"),  # given
        (lambda part: part["embeddings"][0].update(gone=1), "changed"),
        (lambda part: part["embeddings"][0].update(unit_rows=True), "changed"),
    ],
)
def test_an_option_that_an_older_version_did_not_know_changes_nothing_at_its_default(change, status, tmp_path) -> None:
    """The ledger as that version wrote it: another recipe, and its key."""
    chain = stages_until(stages(RECIPE, tmp_path), "embed")
    ledger = runner.run(tmp_path, chain, lambda *_: None)
    older = copy.deepcopy(chain[-1].recipe)
    change(older)
    done = {name: ledger[name]["outputs"] for name in chain[-1].needs}
    ledger["embed"] |= {"recipe": older, "key": runner.key_of(replace(chain[-1], recipe=older), done)}
    (tmp_path / "ledger.json").write_text(json.dumps(ledger))
    assert [each.status for each in runner.plan(tmp_path, chain)] == ["done", "done", status]


def test_a_training_behind_an_older_ledger_is_not_said_to_be_replaced(tmp_path: Path) -> None:
    recipe = replace(RECIPE, baselines=())
    chain = stages_until(stages(recipe, tmp_path), "train")
    ledger = runner.run(tmp_path, chain, lambda *_: None)
    embed = next(stage for stage in chain if stage.name == "embed")
    done = {name: ledger[name]["outputs"] for name in embed.needs}
    for unit_rows, expected in ((None, 0), (True, 1)):
        older = copy.deepcopy(embed.recipe)
        older["embeddings"][0] = {k: v for k, v in older["embeddings"][0].items() if k != "unit_rows"}
        older["embeddings"][0] |= {} if unit_rows is None else {"unit_rows": unit_rows}
        ledger["embed"] |= {"recipe": older, "key": runner.key_of(replace(embed, recipe=older), done)}
        (tmp_path / "ledger.json").write_text(json.dumps(ledger))
        assert len(replaced(tmp_path, recipe, chain)) == expected


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_a_whole_block_that_an_older_version_did_not_know_is_at_its_default(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, [] if path.stem == "demo" else [f"data.reader.path={tmp_path}"]).value
    for stage in stages(recipe, tmp_path):
        filled = stage.with_defaults(stage.recipe)
        assert {**filled, "tokenizer": 0} == {**stage.recipe, "tokenizer": 0}, stage.name
        older = {name: value for name, value in stage.recipe.items() if (name, value) != ("token_init", "codebooks")}
        assert stage.with_defaults(older) == filled, stage.name
        if "tokenizer" in stage.recipe:  # an option of it given at its default changes nothing
            said = {**stage.recipe["tokenizer"], **filled["tokenizer"]}
            assert stage.with_defaults({**stage.recipe, "tokenizer": said}) == filled


def test_needs_name_earlier_stages(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "train" / "pipelines" / "games.yaml", [f"data.reader.path={tmp_path}"]).value
    seen: set[str] = set()
    for stage in stages(recipe, tmp_path):
        assert set(stage.needs) <= seen, stage.name
        seen.add(stage.name)


def test_rows_of_the_split_point_into_the_stored_log(tmp_path: Path) -> None:
    day = PipelineRecipe(
        data=DataSettings(reader=ReaderSettings(format="tabular", path=tmp_path, interactions="log.csv")),
        split=SplitSettings(ties="neutral"),
    )
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{u},i{i},{i // 4}" for u in range(6) for i in range(8)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    reader = replace(
        day.data.reader, user_column="user_id", item_column="item_id", time_column="timestamp", unknown_items="add"
    )
    recipe = replace(day, data=DataSettings(reader=reader))
    data_stages.prepare(tmp_path, recipe)
    data_stages.split(tmp_path, recipe)
    log, split = Interactions.load(tmp_path / "interactions"), Split.load(tmp_path / "split")
    assert split.rows is not None
    assert np.array_equal(log.item[split.rows], split.items)
    assert not np.array_equal(split.rows, np.arange(len(log)))  # ties were permuted


def test_shuffled_identifiers_are_the_same_identifiers_on_other_items(prepared: Path) -> None:
    plain = ItemCodes.load(prepared / "codes").as_int()
    data_stages.tokenize(prepared, replace(RECIPE, shuffle_identifiers=True))
    dealt = ItemCodes.load(prepared / "codes").as_int()
    assert not np.array_equal(plain, dealt)
    assert sorted(map(tuple, plain.tolist())) == sorted(map(tuple, dealt.tolist()))


def test_paused_training_goes_on_and_another_recipe_starts_anew(prepared: Path) -> None:
    hurried = replace(RECIPE, train=replace(RECIPE.train, max_seconds=1e-6))
    with pytest.raises(TrainingPaused, match="step 1"):
        model_stages.train(prepared, hurried)
    assert not artifacts.exists(prepared / "bundle")
    model_stages.train(prepared, RECIPE)
    n_steps = artifacts.read(prepared / "training").meta["steps"]
    model_stages.train(prepared, replace(RECIPE, train=replace(RECIPE.train, epochs=1)))
    assert artifacts.read(prepared / "training").meta["steps"] == n_steps / 2
    assert len(list((prepared / "checkpoints").iterdir())) == 1


def test_identifiers_are_told_with_their_perplexity(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    codes = np.array([[n % 4, n % 2] for n in range(8)], np.uint8)
    fine = ItemCodes(codes, (4, 2), "c" * 32)
    assert "4 x 2 codes, in use 100 %, 100 %, perplexity 4, 2; 50.0 % distinct" in codes_text.describe_codes(fine)
    assert codes_text.oversized(fine) == [] and not caplog.messages
    wide = ItemCodes(codes, (9, 5), "c" * 32)
    first, second, third = codes_text.oversized(wide)
    assert first == "the first level has 9 codes for 8 items"
    assert second == "level 1 uses 44 % of its 9 codes" and third == "level 2 uses 40 % of its 5 codes"
    words = ItemCodes(codes, (9, 9), "c" * 32, np.array([1] + [2] * 7, np.uint8), True, pieces=tuple("abcdefghi"))
    assert codes_text.oversized(words) == []  # nobody chose how many words there are
    tree = replace(words, pieces=())
    assert codes_text.oversized(tree) == ["the first level has 9 codes for 8 items"]
    long = ItemCodes(np.repeat(codes[:, :1], 7, axis=1), (4,) * 7, "c" * 32)
    assert "identifiers: 7 levels of 4 codes, least and most in use 100 %, 100 %" in codes_text.describe_codes(long)
    raw = replace(fine, codes=codes // 2).report()
    told = "largest group 2; before the collision policy 25.0 %, 100.00 % of the items in a collision, largest group 4"
    assert codes_text.describe_codes(fine, raw).endswith(told)
    assert "before" not in codes_text.describe_codes(fine, {**raw, "largest_group": 1})
    data_stages.tokenize(prepared, replace(RECIPE, tokenizer={**RECIPE.tokenizer, "level_size": 200}))
    assert "level 2 uses" in caplog.text and "take a smaller tokenizer.level_size" in caplog.text


def test_what_fit_gives_is_checked_before_anything_is_written(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.read_bytes() for file in prepared.rglob("*") if file.is_file()}
    short = ItemCodes.load(prepared / "codes").take([0, 1])
    for wrong, said in ((np.zeros((3, 2)), "got ndarray"), (short, "got those of 2 of another catalog")):
        monkeypatch.setattr(RqKMeans, "fit", lambda self, source, *, seed, wrong=wrong: wrong)
        with pytest.raises(ConfigError, match=f"rqkmeans: fit: .*{said}"):
            data_stages.tokenize(prepared, RECIPE)
    assert {file: file.read_bytes() for file in prepared.rglob("*") if file.is_file()} == before


def test_user_tokens_reach_the_prompt(prepared: Path) -> None:
    recipe = replace(RECIPE, n_user_tokens=7, train=replace(RECIPE.train, epochs=1))
    model_stages.train(prepared, recipe)
    model_stages.evaluate_model(prepared, recipe)
    baseline_stages.evaluate_baseline(prepared, recipe, "popularity")
    report_stage.report(prepared, recipe)
    text, raw = (prepared / "report" / "report.md").read_text(), codes_text.raw_report(prepared)
    assert "is offered" in text and raw is not None and raw["largest_group"] > 1
    assert f"before the collision policy {100 * raw['distinct_share']:.1f} %" in text
    assert json.loads((prepared / "report" / "results.json").read_text())["codes"]["raw"] == raw


def test_a_user_index_goes_from_the_training_part_into_the_bundle(prepared: Path) -> None:
    """It is made by its stage, known after a change of it to be another one, and answers by user."""
    recipe = replace(RECIPE, users=OF_USERS, train=replace(RECIPE.train, epochs=1))
    data_stages.users(prepared, recipe)
    model_stages.train(prepared, recipe)
    model_stages.evaluate_model(prepared, recipe)
    report_stage.report(prepared, replace(recipe, baselines=()))
    model, cut = load_bundle(prepared / "bundle").recommender, Split.load(prepared / "split")
    ids = Interactions.load(prepared / "interactions").user_ids
    assert model.user_index.ids == tuple(ids[u] for u in np.flatnonzero(cut.train().lengths > 0))
    history = [[1, 2, 3]] * 3
    scores = model.recommend(history, users=[model.user_index.ids[0], "nobody", ""]).scores.tolist()
    assert scores[0] != scores[1] == scores[2]
    key = model_stages.training_key(prepared, recipe)
    data_stages.users(prepared, replace(recipe, users=replace(OF_USERS, decay=0.5)))
    assert model_stages.training_key(prepared, recipe) != key


def test_what_a_user_index_cannot_be_made_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        replace(RECIPE, users=OF_USERS, n_user_tokens=3)
    with pytest.raises(ConfigError, match="needs a block collaborative"):
        replace(RECIPE, users=replace(OF_USERS, vectors="collaborative"))
    with pytest.raises(ConfigError, match="decay"):
        replace(OF_USERS, decay=1.5)
    bad = replace(RECIPE, users=replace(OF_USERS, tokenizer={"kind": "rqkmeans", "n_level": 2}))
    check = next(stage.check for stage in stages(bad, tmp_path) if stage.name == "users")
    with pytest.raises(ConfigError, match=r"users\.tokenizer"):
        check()


def test_another_split_trains_anew_although_the_identifiers_are_the_same(prepared: Path) -> None:
    model_stages.train(prepared, RECIPE)
    first = artifacts.read(prepared / "bundle").parents["training"]
    other = replace(RECIPE, split=SplitSettings(kind="time", valid_fraction=0.2, test_fraction=0.2))
    data_stages.split(prepared, other)
    model_stages.train(prepared, other)
    assert artifacts.read(prepared / "bundle").parents["training"] != first


def test_a_bundle_from_another_machine_is_kept(prepared: Path) -> None:
    model_stages.train(prepared, RECIPE)
    shutil.rmtree(prepared / "checkpoints")
    before = artifacts.read(prepared / "bundle").created
    model_stages.train(prepared, RECIPE)
    assert artifacts.read(prepared / "bundle").created == before
    assert not (prepared / "checkpoints").exists()


def test_seeds_inside_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.seed"):
        replace(RECIPE, train=replace(RECIPE.train, seed=3))
    with pytest.raises(ConfigError, match=r"embeddings\.0\.seed"):
        replace(RECIPE, embeddings=(Block(lsa=LsaSettings(dim=8, seed=3)),))


def test_content_baselines_need_content() -> None:
    with pytest.raises(ConfigError, match="content_knn"):
        PipelineRecipe(data=RECIPE.data, embeddings=(Block(sasrec=True),), baselines=("content_knn",))
    with pytest.raises(ConfigError, match="oracle"):
        PipelineRecipe(data=DataSettings(reader=ReaderSettings(format="neutral", path="x")), baselines=("oracle",))
    with pytest.raises(ConfigError, match="exactly one"):
        Block(lsa=LsaSettings(), sasrec=True)


def test_data_that_are_gone_do_not_undo_what_was_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "log.csv").write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n")
    columns = {"user_column": "user_id", "item_column": "item_id", "time_column": "timestamp"}
    reader = ReaderSettings(format="tabular", path=data, interactions="log.csv", unknown_items="add", **columns)
    recipe = PipelineRecipe(data=DataSettings(reader=reader))
    first = stages_until(stages(recipe, tmp_path), "prepare")
    runner.run(tmp_path, first, lambda *_: None)
    shutil.rmtree(data)
    again = stages_until(stages(recipe, tmp_path), "prepare")
    assert [p.status for p in runner.plan(tmp_path, again)] == ["done"]


def test_until_runs_only_what_is_needed() -> None:
    recipe = replace(RECIPE, baselines=("popularity", "sasrec", "item_knn"))
    names = [stage.name for stage in stages_until(stages(recipe, Path("x")), "tokenize")]
    assert names == ["prepare", "split", "embed", "tokenize"]
    assert [s.name for s in stages_until(stages(recipe, Path("x")), "evaluate item_knn")] == [
        "prepare", "split", "evaluate item_knn",
    ]  # fmt: skip


def test_unit_rows_and_unknown_items(prepared: Path) -> None:
    recipe = replace(RECIPE, embeddings=(Block(ppmi=PpmiSettings(dim=4), unit_rows=True),))
    data_stages.embed(prepared, recipe)
    vectors = ItemEmbeddings.load(prepared / "embeddings").vectors
    length = np.linalg.norm(vectors, axis=1)
    seen = np.isin(np.arange(len(vectors)), Split.load(prepared / "split").train().items)
    assert np.allclose(length[seen & (length > 0)], 1, atol=1e-6)
    assert (length[~seen] == 0).all()


def test_a_single_block_can_be_whitened(prepared: Path) -> None:
    for whiten in (False, True):
        recipe = replace(RECIPE, embeddings=(Block(lsa=LsaSettings(dim=4), whiten=whiten),))
        data_stages.embed(prepared, recipe)
        variance = ItemEmbeddings.load(prepared / "embeddings").vectors.astype(np.float64).var(axis=0)
        assert np.allclose(variance, 1 / 4, atol=1e-5) is whiten
    data_stages.collaborative(prepared, replace(RECIPE, collaborative=Block(ppmi=PpmiSettings(dim=4), whiten=True)))
    found = ItemEmbeddings.load(prepared / "collaborative")
    assert np.allclose((found.vectors[found.known].astype(np.float64) ** 2).mean(axis=0), 1 / 4, atol=1e-5)


def test_keywords_move_the_vectors_of_text(prepared: Path) -> None:
    """Vectors of LSA are linear in the weights of terms: those of one word lie along its row."""
    block = Block(lsa=LsaSettings(dim=4), keywords="brand")
    data_stages.embed(prepared, replace(RECIPE, embeddings=(replace(block, keywords=None),)))
    plain = ItemEmbeddings.load(prepared / "embeddings")
    data_stages.embed(prepared, replace(RECIPE, embeddings=(block,)))
    moved = ItemEmbeddings.load(prepared / "embeddings").vectors
    catalog = ItemCatalog.load(prepared / "catalog")
    brands = ItemCatalog(catalog.ids, {"title": catalog.fields["brand"]})
    words = lsa_fold_in(catalog, brands, LsaSettings(dim=4), ("{title}",))
    np.testing.assert_allclose(moved, (plain.vectors + words) / 2, atol=1e-5)
    with pytest.raises(ConfigError, match="keywords: expected an lsa or sentence block"):
        Block(ppmi=PpmiSettings(), keywords="brand")


@pytest.mark.parametrize(
    "options",
    [
        {"keywords": "brand"},
        {"keywords": "brand", "dim": 3, "whiten": True},
        {"align": AlignSettings(epochs=1), "unit_rows": True},
        {"align": AlignSettings(epochs=1), "dim": 4},
    ],
)
def test_a_new_item_like_an_old_one_gets_its_vector(options, prepared: Path) -> None:
    recipe = replace(RECIPE, embeddings=(Block(lsa=LsaSettings(dim=6), **options),))
    data_stages.embed(prepared, recipe)
    stored, catalog = ItemEmbeddings.load(prepared / "embeddings"), ItemCatalog.load(prepared / "catalog")
    child = catalog.append(["new"], {name: values[5:6] for name, values in catalog.fields.items()})
    found = vectors_of_new(Origin.of(prepared, len(catalog)), recipe, child, stored)
    np.testing.assert_array_equal(found.vectors[:-1], stored.vectors)
    np.testing.assert_allclose(found.vectors[-1], stored.vectors[5], atol=1e-4)


def test_a_new_item_has_no_neighbours_yet(prepared: Path) -> None:
    plain = Block(lsa=LsaSettings(dim=4))
    data_stages.embed(prepared, replace(RECIPE, embeddings=(plain,)))
    own = ItemEmbeddings.load(prepared / "embeddings").vectors
    recipe = replace(RECIPE, embeddings=(replace(plain, neighbours=2),))
    data_stages.embed(prepared, recipe)
    stored, catalog = ItemEmbeddings.load(prepared / "embeddings"), ItemCatalog.load(prepared / "catalog")
    child = catalog.append(["new"], {name: values[5:6] for name, values in catalog.fields.items()})
    found = vectors_of_new(Origin.of(prepared, len(catalog)), recipe, child, stored)
    np.testing.assert_array_equal(found.vectors[:-1], stored.vectors)
    np.testing.assert_allclose(found.vectors[-1], own[5], atol=1e-4)


def test_a_new_item_goes_through_the_graph_by_its_content(prepared: Path) -> None:
    recipe = replace(RECIPE, embeddings=(Block(lsa=LsaSettings(dim=4), graph=SMALL_GRAPH),))
    data_stages.embed(prepared, recipe)
    stored, catalog = ItemEmbeddings.load(prepared / "embeddings"), ItemCatalog.load(prepared / "catalog")
    assert stored.dim == SMALL_GRAPH.dim
    train = Split.load(prepared / "split").train()
    item = int(np.flatnonzero(np.bincount(train.items, minlength=len(catalog)) == 0)[0])  # nobody has it either
    fields = {name: [values[item]] for name, values in catalog.fields.items()}
    found = vectors_of_new(Origin.of(prepared, len(catalog)), recipe, catalog.append(["new"], fields), stored)
    np.testing.assert_array_equal(found.vectors[:-1], stored.vectors)
    np.testing.assert_allclose(found.vectors[-1], stored.vectors[item], atol=1e-4)


def test_behaviour_shapes_the_vectors_of_text_but_not_of_the_content_baseline(prepared: Path) -> None:
    plain = replace(RECIPE, embeddings=(Block(lsa=LsaSettings(dim=4)),), baselines=("content_knn",))
    data_stages.embed(prepared, plain)
    before = ItemEmbeddings.load(prepared / "embeddings").vectors
    train = Split.load(prepared / "split").train()
    for options in ({"align": AlignSettings(epochs=1)}, {"neighbours": 2}, {"graph": SMALL_GRAPH}):
        shaped = replace(plain, embeddings=(replace(plain.embeddings[0], **options),))
        data_stages.embed(prepared, shaped)
        data_stages.content(prepared, shaped)
        assert (ItemEmbeddings.load(prepared / "text_embeddings").vectors == before).all()
        found = ItemEmbeddings.load(prepared / "embeddings").vectors
        assert (found != before).any(axis=1)[np.unique(train.items)].mean() > 0.9
    for wrong in ({"align": AlignSettings(seed=3)}, {"neighbours": -1}, {"graph": GraphSettings(seed=3)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            replace(plain, embeddings=(replace(plain.embeddings[0], **wrong),))
    with pytest.raises(ConfigError, match="align: expected an lsa, sentence or file block"):
        Block(ppmi=PpmiSettings(), align=AlignSettings())
    with pytest.raises(ConfigError, match="graph: expected an lsa, sentence or file block"):
        Block(svd=SvdSettings(), graph=GraphSettings())


def test_set_identifiers_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="gives sets of vectors"):
        load_recipe(PIPELINES[0], ["tokenizer={kind: setrec}"])


def test_vectors_of_fields_and_behaviour(prepared: Path) -> None:
    small = FamaeSettings(dim=8, n_heads=2, inner=16, epochs=1, valid_users=0, n_negatives=8, full_softmax=0)
    data_stages.embed(prepared, replace(RECIPE, embeddings=(Block(famae=small),)))
    made = ItemEmbeddings.load(prepared / "embeddings")
    assert made.vectors.shape[1] % 8 == 0
    assert made.vectors.std(axis=0).max() > 0
    with pytest.raises(ConfigError, match=r"embeddings.0.seed"):
        replace(RECIPE, embeddings=(Block(famae=replace(small, seed=3)),))


def test_a_split_without_test_targets_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"u{n},i{n % 3},{n}\n" for n in range(9)))
    source = ReaderSettings(format="tabular", path=tmp_path, interactions="log.csv", unknown_items="add")
    recipe = PipelineRecipe(data=DataSettings(reader=source))
    data_stages.prepare(tmp_path / "run", recipe)
    with pytest.raises(DataError, match="no user has both a history and a test target"):
        data_stages.split(tmp_path / "run", recipe)
    assert not (tmp_path / "run" / "split").exists()


@pytest.mark.parametrize(
    ("block", "error", "match"),
    [
        (Block(file="nowhere.npy"), ConfigError, r"embeddings\.1\.file: no file 'nowhere.npy'"),
        (Block(sentence=SentenceSettings(model="./nowhere")), ConfigError, "nowhere"),
        (Block(sentence=SentenceSettings(model="package:no-such-encoder")), MissingExtra, "no-such-encoder"),
    ],
)
def test_what_this_machine_lacks_is_said_before_anything_runs(
    block: Block, error: type[Exception], match: str, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, embeddings=(*RECIPE.embeddings, block), baselines=("sasrec",))
    every = stages(recipe, tmp_path / "run")
    with pytest.raises(error, match=match):
        runner.run(tmp_path / "run", every, print)
    told = [p for p in runner.plan(tmp_path / "run", every) if "it will fail" in p.reason]
    assert [p.stage.name for p in told] == ["embed"] and re.search(match, told[0].reason)
    assert not (tmp_path / "run").exists()
    runner.plan(tmp_path / "run", stages_until(every, "evaluate sasrec"))  # which needs no vectors


def test_item_vectors_come_before_sasrec_unless_they_are_made_of_it() -> None:
    def order(**change: object) -> list[str]:
        names = [stage.name for stage in stages(replace(RECIPE, **change), Path("x"))]
        return [name for name in names if name in ("embed", "tokenize", "sasrec")]

    assert order() == ["embed", "tokenize"]
    assert order(baselines=("sasrec",)) == ["embed", "tokenize", "sasrec"]
    assert order(embeddings=(Block(sasrec=True),)) == ["sasrec", "embed", "tokenize"]
    assert order(collaborative=Block(sasrec=True)) == ["sasrec", "embed", "tokenize"]


def test_collaborative_vectors_reach_the_item_tokenizer(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, collaborative=Block(ppmi=PpmiSettings(dim=6), dim=4))
    every = {stage.name: stage for stage in stages(recipe, prepared)}
    assert every["collaborative"].needs == ("prepare", "split")
    assert every["tokenize"].needs == ("prepare", "split", "embed", "collaborative")
    assert every["embed"].recipe == {s.name: s for s in stages(RECIPE, prepared)}["embed"].recipe
    data_stages.collaborative(prepared, recipe)
    seen = []
    fit = RqKMeans.fit

    def spy(self: RqKMeans, source: TokenizerSource, *, seed: int) -> ItemCodes:
        seen.append(source)
        return fit(self, source, seed=seed)

    monkeypatch.setattr(RqKMeans, "fit", spy)
    data_stages.tokenize(prepared, recipe)
    assert seen[0].collaborative_vectors().shape == (seen[0].n_items, 4)
    assert len(seen[0].fields()) == seen[0].n_items
    with pytest.raises(ConfigError, match="vectors of text"):
        replace(RECIPE, collaborative=Block(lsa=RECIPE.embeddings[0].lsa))


TINY = """
data: {synthetic: {}}
split: {kind: leave_one_out}
"""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], []),
        (["split.kind=time", "split.test_fraction=0.2"], []),
        (["split.test_fraction=0.2"], ["split.test_fraction: no effect, because split.kind is leave_one_out"]),
        (["split.column=part"], ["split.column"]),
        (["split.cold_fraction=0.1"], ["split.cold_fraction"]),
        (["split.kind=held_out_items", "split.cold_fraction=0.1"], []),
        (["sasrec.dim=8", "sasrec.epochs=2"], ["sasrec.dim, sasrec.epochs: no effect"]),
        (["sasrec.dim=8", "baselines=[sasrec]"], []),
        (["train.eval_every=0", "train.patience=2"], ["train.patience"]),
        (["train.patience=2"], []),
    ],
)
def test_options_without_effect_are_named(changes: list[str], expected: list[str], tmp_path: Path, caplog) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    load_recipe(tmp_path / "tiny.yaml", changes)
    assert len(caplog.messages) == len(expected)
    assert all(words in line for words, line in zip(expected, caplog.messages, strict=True))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.name)
def test_ready_pipelines_have_no_idle_option_and_no_item_knn_without_the_leak_probe(path: Path, caplog) -> None:
    named = load_recipe(path).value.baselines
    assert not caplog.messages
    for baselines in (named, PipelineRecipe(data=RECIPE.data).baselines):
        assert "item_knn" in baselines and "item_knn_larger_id" in baselines


def test_every_setting_is_told_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    rows = {row.path: row[1:] for row in described(load_recipe(tmp_path / "tiny.yaml", ["seed=4"]))}
    assert rows["seed"] == (4, "given")
    assert rows["train.seed"] == rows["embeddings.0.lsa.seed"] == (4, "derived")
    assert rows["train.epochs"] == (TrainSettings().epochs, "default")
    assert rows["tokenizer.max_iterations"][1] == "default"  # of the tokenizer's own settings
    assert not [path for path in rows if path.startswith("sasrec.")]  # without effect


def test_ties_in_what_test_users_did_are_noted(prepared: Path) -> None:
    cut = Split.load(prepared / "split")
    none, last = np.zeros(len(cut.items), np.bool_), np.zeros(len(cut.items), np.bool_)
    last[cut.valid_end[0]] = True  # the first test target
    seen = last.copy()
    seen[cut.valid_end[0] - 1] = True
    for tied, expected in ((None, None), (none, False), (last, True), (seen, True)):
        assert baseline_stages.context(RECIPE, replace(cut, tied=tied))["has_ties"] is expected


def test_training_draws_ties_anew(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the marks the order of simultaneous events stays that of the split, and recall falls."""
    cut = Split.load(prepared / "split")
    tied = np.zeros(len(cut.items), dtype=bool)
    tied[1::3] = True
    tied[cut.offsets[:-1]] = False  # nobody is before the first
    replace(cut, tied=tied).save(prepared / "split", overwrite=True)
    expected = Split.load(prepared / "split").train_ties()
    assert expected is not None and expected.any()
    given = []

    def stop(model: object, data: TrainingData, *_: object) -> None:
        given.append(data.tied)
        raise DataError("far enough")

    monkeypatch.setattr(model_stages, "finetune", stop)
    with pytest.raises(DataError, match="far enough"):
        model_stages.train(prepared, RECIPE)
    assert np.array_equal(given[0], expected)


def test_tokens_start_from_the_codebooks_where_there_are_some(prepared: Path, tmp_path_factory) -> None:
    """One step at this learning rate moves nothing, so the start shows. Only codes and split are needed."""
    slow = replace(RECIPE.train, epochs=1, max_steps=1, learning_rate=1e-9, weight_decay=0.0)
    codes = ItemCodes.load(prepared / "codes")
    rows, keys = {}, set()
    for name in ("codebooks", "random", "none"):
        folder = tmp_path_factory.mktemp(name)
        for needed in ("split", "codes", "index"):
            shutil.copytree(prepared / needed, folder / needed)
        if name == "none":
            replace(codes, codebooks=()).save(folder / "codes", overwrite=True)
        recipe = replace(RECIPE, train=slow, token_init="random" if name == "random" else "codebooks")
        model_stages.train(folder, recipe)
        keys.add(model_stages.training_key(folder, recipe))
        rows[name] = load_bundle(folder / "bundle").recommender.model.get_input_embeddings().weight.detach()
        if name == "codebooks":  # a bundle made from these folders elsewhere is taken at home
            for made in ("training", "bundle"):
                shutil.copytree(folder / made, prepared / made)
            assert model_stages.trained(prepared, recipe)
    (book, _) = codes.codebooks
    first = rows["codebooks"][3 : 3 + len(book)].numpy()
    centred = book - book.mean(axis=0)
    assert np.corrcoef((centred @ centred.T).ravel(), (first @ first.T).ravel())[0, 1] > 0.6
    torch.testing.assert_close(rows["random"], rows["none"], atol=1e-6, rtol=0)
    assert not torch.allclose(rows["random"], rows["codebooks"], atol=1e-3)
    assert len(keys) == 3


def test_a_further_baseline_runs_nothing_but_itself(tmp_path: Path) -> None:
    few = stages_until(stages(RECIPE, tmp_path), "tokenize")
    runner.run(tmp_path, few, lambda *_: None)
    more = stages(replace(RECIPE, baselines=("popularity", "content_knn")), tmp_path)
    wanted = [s for name in ("tokenize", "evaluate content_knn") for s in stages_until(more, name)]
    unique = list({stage.name: stage for stage in more if stage in wanted}.values())
    found = {each.stage.name: each.status for each in runner.plan(tmp_path, unique)}
    assert found == {"prepare": "done", "split": "done", "embed": "done", "tokenize": "done"} | {
        "content": "run",
        "evaluate content_knn": "run",
    }


def test_a_log_of_another_training_beside_the_model_is_no_finished_training(prepared: Path) -> None:
    """As after a kill between the two writes of another recipe's training."""
    model_stages.train(prepared, RECIPE)
    assert model_stages.trained(prepared, RECIPE)
    shutil.copytree(prepared / "bundle", prepared / "kept")
    model_stages.train(prepared, replace(RECIPE, train=replace(RECIPE.train, epochs=1)))
    shutil.rmtree(prepared / "bundle")
    (prepared / "kept").rename(prepared / "bundle")
    assert not model_stages.trained(prepared, RECIPE)


def test_a_plan_says_where_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    runner.run(tmp_path, stages_until(stages(RECIPE, tmp_path), "tokenize"), lambda *_: None)

    def why(recipe: PipelineRecipe) -> str:
        planned = runner.plan(tmp_path, stages_until(stages(recipe, tmp_path), "train"))
        return {each.stage.name: each.reason for each in planned}["train"]

    assert why(RECIPE) == "not done yet"
    stopped = replace(RECIPE, train=replace(RECIPE.train, max_seconds=1e-9))
    with pytest.raises(TrainingPaused):
        model_stages.train(tmp_path, stopped)
    assert why(RECIPE) == "not done yet; goes on from step 1"
    assert why(replace(RECIPE, train=replace(RECIPE.train, epochs=3))) == "not done yet"


def test_a_text_of_columns_that_are_not_there_is_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,colour\nx,X,red\n")
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\n")
    reader = ReaderSettings("tabular", tmp_path, interactions="log.csv", items="items.csv")
    recipe = replace(RECIPE, data=DataSettings(reader=reader))

    def check(*text: str) -> None:
        named = replace(recipe, embeddings=(Block(lsa=LsaSettings(text=text)),))
        stages_until(stages(named, tmp_path / "run"), "embed")[-1].check()

    check("{title}", "{colour}", "Brand: {brand}")  # a default part may be missing
    with pytest.raises(ConfigError, match=r"^embeddings.0.text: part '\{color\}' .* title, colour\n") as error:
        check("{color}")
    assert error.value.hint == "did you mean 'colour'?"


def test_times_in_two_units_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\nx,X\ny,Y\n")
    reader = ReaderSettings("tabular", tmp_path, interactions="log.csv", items="items.csv", time_column="ts")
    recipe = replace(RECIPE, data=DataSettings(reader=reader))
    for last, said in ((1_600_000_009, False), (1_600_000_009_000, True)):
        rows = [f"a,{item},{1_600_000_000 + n}" for n, item in enumerate("xyxy")]
        (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,ts", *rows, f"b,x,{last}", ""]))
        caplog.clear()
        data_stages.prepare(tmp_path / "run", recipe)
        assert ("1 of 5 may be in another unit" in caplog.text) is said
