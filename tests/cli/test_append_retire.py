"""``genrec append`` and ``genrec retire``: new versions of a run, complete or not there, in which nothing moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genrec import artifacts
from genrec.cli import cmd_append
from genrec.data.catalog import ItemCatalog
from genrec.decoding.index import CatalogIndex
from genrec.embeddings import text
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.fold_in import lsa_fold_in
from genrec.embeddings.fuse import fuse
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import DecoderSettings, build
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.recommender import GenerativeRecommender
from genrec.pipeline import catalog_life
from genrec.vocab.token_map import TokenMap

PIPELINE = """
name: tiny
data:
  synthetic: {n_items: 60, n_users: 80, n_departments: 2, n_subcategories: 3, n_brands: 6, n_tastes: 3,
    max_length: 12, mean_length: 8}
embeddings:
  - lsa: {dim: 8}
    dim: 6
  - ppmi: {dim: 5}
    unit_rows: true
    weight: 0.5
tokenizer: {kind: rqkmeans, n_levels: 2, level_size: 12, collisions: reassign}
baselines: [popularity]
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its identifiers, with a bundle around an untrained model."""
    from genrec.pipeline import recipe_files, runner, stages

    folder = tmp_path_factory.mktemp("life")
    (folder / "tiny.yaml").write_text(PIPELINE)
    resolved = recipe_files.load_recipe(folder / "tiny.yaml")
    todo = stages.stages_until(stages.stages(resolved.value, folder / "run"), "tokenize")
    runner.run(folder / "run", todo, lambda *_: None, recipe=resolved.as_dict())
    codes, catalog = ItemCodes.load(folder / "run" / "codes"), ItemCatalog.load(folder / "run" / "catalog")
    token_map = TokenMap.of(codes)
    model = build(DecoderSettings(hidden_size=16, n_layers=1, n_heads=2, d_ff=32), token_map, seed=0)
    model.config.genrec_codes = codes.fingerprint
    index = CatalogIndex.load(folder / "run" / "index", codes=codes)
    save_bundle(folder / "run" / "bundle", GenerativeRecommender(model, token_map, codes, index), catalog=catalog)
    return folder / "run"


@pytest.fixture
def new_items(tmp_path: Path, run: Path) -> Path:
    """Five new items: three twins of published ones, and two in words nobody used."""
    old = ItemCatalog.load(run / "catalog")
    rows = [{"item_id": f"twin-{n}", **{k: v[n] for k, v in old.fields.items() if v[n] is not None}} for n in (0, 7, 7)]
    rows[2]["item_id"] = "twin-7b"
    rows += [
        {"item_id": "odd", "title": "qqq zzz"},
        {"item_id": "odd2", "title": old.fields["title"][3], "colour": "red"},
    ]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "new.jsonl"


def test_append_makes_a_complete_version_and_moves_nothing(genrec: Call, run: Path, new_items: Path, tmp_path: Path):
    code, out, err = genrec("append", run, "--items", new_items, "--out", tmp_path / "v2")
    assert code == 0, err
    assert "moved       0 of 60 (100.00 % kept)" in out and "5 new items, encoded" in out
    new, old = tmp_path / "v2", ItemCodes.load(run / "codes")
    catalog = ItemCatalog.load(new / "catalog")
    codes = ItemCodes.load(new / "codes", catalog=catalog.fingerprint)
    assert codes.codes[:60].tobytes() == old.codes.tobytes() and codes.collisions() == []
    assert catalog.parent == old.catalog and catalog.ids[60:] == ("twin-0", "twin-7", "twin-7b", "odd", "odd2")
    assert catalog.fields["colour"] == [None] * 64 + ["red"]
    vectors, before = ItemEmbeddings.load(new / "embeddings").check(catalog), ItemEmbeddings.load(run / "embeddings")
    assert vectors.vectors[:60].tobytes() == before.vectors.tobytes()
    assert vectors.vectors[60, :6] == pytest.approx(before.vectors[0, :6], abs=1e-5)  # equal texts
    assert vectors.vectors[61].tolist() == vectors.vectors[62].tolist() and vectors.vectors[60, 6:].any()
    assert not vectors.vectors[63].any()
    index = CatalogIndex.load(new / "index", codes=codes)
    assert sorted(index.items.tolist()) == list(range(65))
    manifest = artifacts.read(new / "codes")
    assert manifest.parents["codes"] == artifacts.read(run / "codes").digest
    told = json.loads((new / "version.json").read_text())
    assert told["drift"]["n_moved"] == 0 and told["drift"]["new"] == list(catalog.ids[60:]) and told["n_new"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.jsonl", "v2"]  # nothing half-written is left


def test_the_bundle_goes_along_and_knows_what_its_model_was_trained_on(
    genrec: Call, run: Path, new_items: Path, tmp_path: Path
):
    assert genrec("append", run, "--items", new_items, "--out", tmp_path / "v2")[0] == 0
    code, _, err = genrec("retire", tmp_path / "v2", "--ids", "twin-7", "--out", tmp_path / "v3")
    assert code == 0, err
    old, catalog = ItemCodes.load(run / "codes"), ItemCatalog.load(tmp_path / "v2" / "catalog")
    for version, left in (("v2", 65), ("v3", 64)):
        bundle = tmp_path / version / "bundle"
        manifest = artifacts.read(bundle, kind="bundle")
        codes = ItemCodes.load(bundle / "codes", catalog=catalog.fingerprint)
        assert manifest.meta["codes"] == codes.fingerprint != old.fingerprint
        assert len(CatalogIndex.load(bundle / "index", codes=codes).items) == left
        config = json.loads((bundle / "model" / "config.json").read_text())
        assert config["genrec_codes"] == old.fingerprint
        assert (config["genrec_n_items"], config["genrec_catalog"]) == (60, old.catalog)
        loaded = load_bundle(bundle)  # a model of the first version writes the identifiers of this one
        assert loaded.catalog is not None and len(loaded.catalog) == 65
        lists = loaded.recommender.recommend([[0, 1]], top_k=None).items
        assert set(lists[lists >= 0].tolist()) <= set(range(65))
        weights = "model.safetensors"
        assert (bundle / "model" / weights).read_bytes() == (run / "bundle" / "model" / weights).read_bytes()


def test_versions_follow_each_other(genrec: Call, run: Path, new_items: Path, tmp_path: Path):
    assert genrec("append", run, "--items", new_items, "--out", tmp_path / "v2")[0] == 0
    code, out, err = genrec("retire", tmp_path / "v2", "--ids", "twin-0,odd", "--out", tmp_path / "deep" / "v3")
    assert code == 0, err
    assert "2 items retired, 63 left" in out
    (tmp_path / "more.csv").write_text("item_id,title\nlast,qqq\n")
    code, out, err = genrec(
        "append", tmp_path / "deep" / "v3", "--items", tmp_path / "more.csv", "--out", tmp_path / "v4", "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["drift"]["new"] == ["last"] and told["drift"]["n_moved"] == 0
    catalog, second = ItemCatalog.load(tmp_path / "v4" / "catalog"), ItemCodes.load(tmp_path / "v2" / "codes")
    codes = ItemCodes.load(tmp_path / "v4" / "codes")
    assert codes.codes[:65].tobytes() == second.codes.tobytes() and codes.collisions() == []
    told = genrec("inspect", tmp_path / "v4")[
        1
    ]  # with the codes before the policy, by the tokenizer of the first version
    assert "raw" in told.splitlines()[3].split() and "are not known" not in told
    gone = catalog.numbers(["twin-0", "odd"])
    assert np.flatnonzero(catalog.retired).tolist() == sorted(gone.tolist())
    index = CatalogIndex.load(tmp_path / "v4" / "index", codes=codes)
    assert sorted(index.items.tolist()) == [n for n in range(66) if n not in gone]
    again = genrec("retire", tmp_path / "v4", "--ids", "odd", "--out", tmp_path / "v5")
    assert again[0] == 1 and "retired already" in again[2] and not (tmp_path / "v5").exists()


def test_vectors_of_a_file_are_taken_as_they_are(genrec: Call, run: Path, new_items: Path, tmp_path: Path):
    width = ItemEmbeddings.load(run / "embeddings").dim
    given = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32)
    np.save(tmp_path / "v.npy", given)
    (tmp_path / "cwd").mkdir()
    code, _, err = genrec(
        "append", run, "--items", new_items, "--vectors", tmp_path / "v.npy", "--out", tmp_path / "v2"
    )
    assert code == 0, err
    assert ItemEmbeddings.load(tmp_path / "v2" / "embeddings").vectors[60:].tolist() == given.tolist()
    np.save(tmp_path / "wide.npy", given[:, :-1])
    code, _, err = genrec(
        "append", run, "--items", new_items, "--vectors", tmp_path / "wide.npy", "--out", tmp_path / "v3"
    )
    assert code == 1 and f"expected width {width}" in err and not (tmp_path / "v3").exists()


def test_neighbours_instead_of_the_encoder(genrec: Call, run: Path, new_items: Path, tmp_path: Path):
    code, out, err = genrec("append", run, "--items", new_items, "--by", "neighbour", "--out", tmp_path / "v2")
    assert code == 0, err
    assert "placed beside the published item most like them" in out and "1 of which nothing is known" in out


def test_a_version_is_there_completely_or_not_at_all(
    genrec: Call, run: Path, new_items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog_life, "_finished", stop)
    assert genrec("append", run, "--items", new_items, "--out", tmp_path / "v2")[0] == 130
    assert [p.name for p in tmp_path.iterdir()] == ["new.jsonl"]
    monkeypatch.undo()
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / "mine").touch()
    code, _, err = genrec("append", run, "--items", new_items, "--out", tmp_path / "v2")
    assert code == 1 and "exists already" in err and (tmp_path / "v2" / "mine").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"item_id": "a"}\n', "line 1, field 'title'"),
        ('{"item_id": "a", "title": "x"}\n{"item_id": "a", "title": "y"}\n', "line 2, field 'item_id'"),
        ("", "no rows in the file"),
        ('{"item_id": "KNOWN", "title": "x"}\n', "already in the catalog"),
    ],
)
def test_bad_items_are_named(genrec: Call, run: Path, tmp_path: Path, content: str, said: str):
    known = ItemCatalog.load(run / "catalog").ids[0]
    (tmp_path / "bad.jsonl").write_text(content.replace("KNOWN", known))
    code, _, err = genrec("append", run, "--items", tmp_path / "bad.jsonl", "--out", tmp_path / "v2")
    assert code == 1 and said in err and not (tmp_path / "v2").exists()


def test_what_append_cannot_do(genrec: Call, run: Path, new_items: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    recipe = json.loads((broken / "recipe.json").read_text())
    for change, said in (
        ({"shuffle_identifiers": True}, "dealt out at random"),
        ({"embeddings": [recipe["embeddings"][1]]}, "interactions alone"),
        (
            {"embeddings": [{**recipe["embeddings"][0], "weight": 2.0}, recipe["embeddings"][1]]},
            "differ from those stored",
        ),
    ):
        (broken / "recipe.json").write_text(json.dumps({**recipe, **change}))
        code, _, err = genrec("append", broken, "--items", new_items, "--out", tmp_path / "v2")
        assert code == 1 and said in err, err
    code, _, err = genrec("append", run / "codes", "--items", new_items, "--out", tmp_path / "v2")
    assert code == 1 and "not a run folder" in err
    for options in ((), ("--ids", "a", "--ids-file", "b")):
        code, _, err = genrec("retire", run, *options, "--out", tmp_path / "v2")
        assert code == 1 and "either --ids or --ids-file" in err
    code, _, err = genrec("retire", run, "--ids", "nobody", "--out", tmp_path / "v2")
    assert code == 1 and "not in the catalog" in err


def test_fields_place_new_items_where_famae_made_the_vectors(genrec: Call, tmp_path: Path):
    """Without a language model: the pipeline of ReSID."""
    small = "famae: {dim: 4, n_heads: 2, inner: 8, epochs: 2, batch_size: 64, warmup_steps: 4}"
    start, rest = PIPELINE.split("embeddings:")[0], "tokenizer: {kind: gaoq, level_size: [4, 5, 4]}\nbaselines: []\n"
    (tmp_path / "resid.yaml").write_text(f"{start}embeddings:\n  - {small}\n{rest}")
    run = tmp_path / "run"
    code, _, err = genrec("run", tmp_path / "resid.yaml", "--out", run, "--until", "tokenize")
    assert code == 0, err
    catalog, before = ItemCatalog.load(run / "catalog"), ItemEmbeddings.load(run / "embeddings").vectors
    fields = {name: values[7] for name, values in catalog.fields.items()}
    (tmp_path / "new.jsonl").write_text(json.dumps({"item_id": "twin", **fields}) + "\n")
    code, out, err = genrec("append", run, "--items", tmp_path / "new.jsonl", "--out", tmp_path / "v2")
    assert code == 0 and "moved       0 of 60" in out, err
    after = ItemEmbeddings.load(tmp_path / "v2" / "embeddings").vectors
    assert after[:60].tobytes() == before.tobytes()
    assert after[60, 4:] == pytest.approx(before[7, 4:])  # the parts of equal fields; its own part is a mean of others
    assert after[60, :4].any() and not np.allclose(after[60, :4], before[7, :4])


def test_numbers_of_a_csv_file_become_numbers(tmp_path: Path):
    (tmp_path / "n.csv").write_text("item_id,title,price,stock\na,A,3.5,2\nb,B,,\n")
    items = cmd_append.read_new_items(tmp_path / "n.csv")
    old = ItemCatalog(("z",), {"title": ["Z"], "price": [1.0], "stock": [4]})
    assert catalog_life._like("price", old, items.fields["price"]) == [3.5, None]
    assert catalog_life._like("stock", old, items.fields["stock"]) == [2, None]
    assert catalog_life._like("title", old, items.fields["title"]) == ["A", "B"]
    with pytest.raises(DataError, match="field 'price', new item 0"):
        catalog_life._like("price", old, ["cheap"])


# --- the space of the vectors -----------------------------------------------------------------------------------


def test_later_texts_are_folded_into_the_space_of_the_first(run: Path):
    catalog, settings = ItemCatalog.load(run / "catalog"), text.LsaSettings(dim=8)
    known = text.lsa(catalog, settings).vectors
    strange = ItemCatalog(("x",), {"title": ["qqq"]})
    assert lsa_fold_in(catalog, catalog, settings) == pytest.approx(known, abs=1e-5)
    assert not lsa_fold_in(catalog, strange, settings).any()
    unit = text.LsaSettings(dim=8, normalize=True)
    assert lsa_fold_in(catalog, catalog, unit) == pytest.approx(text.lsa(catalog, unit).vectors, abs=1e-5)


@pytest.mark.parametrize("dims", [[None, None], [3, 2]])
def test_fused_blocks_learn_from_the_first_rows_only(dims: list[int | None]):
    generator = np.random.default_rng(1)
    content = generator.normal(size=(40, 6)).astype(np.float32)
    events = (content[:, :4] @ generator.normal(size=(4, 4))).astype(np.float32)
    events[[3, 17, *range(30, 40)]] = 0  # nobody bought them
    parts = [ItemEmbeddings(x, "c") for x in (content, events)]
    first = [ItemEmbeddings(x[:30], "c") for x in (content, events)]
    alone = fuse(first, dims, [1.0, 0.5], predict_unknown=True).vectors
    both = fuse(parts, dims, [1.0, 0.5], predict_unknown=True, n_fit=30).vectors
    assert both[:30].tobytes() == alone.tobytes()
    assert both[30:].any(axis=1).all()
    # an item equal to a published one lands where that one is, however many others come
    twin = [ItemEmbeddings(np.concatenate([x.vectors, x.vectors[[3, 5]]]), "c") for x in parts]
    found = fuse(twin, dims, [1.0, 0.5], predict_unknown=True, n_fit=30).vectors
    assert found[40:] == pytest.approx(both[[3, 5]], abs=1e-5)
