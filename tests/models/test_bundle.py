import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.decoding.index import CatalogIndex
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ArtifactError, ConfigError, FingerprintMismatch, MissingExtra
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.recommender import DecodingSettings, GenerativeRecommender

WITHOUT_GENREC = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "genrec":
            raise ImportError("genrec is blocked")
sys.meta_path.insert(0, Blocked())
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
for folder, auto in zip(sys.argv[1:], (AutoModelForSeq2SeqLM, AutoModelForCausalLM)):
    model, words = auto.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = words(["<a_3> <b_2> <c_1>"], return_tensors="pt")
    out = model.generate(**inputs, min_new_tokens=2, max_new_tokens=2, do_sample=False)
    print(words.padding_side, inputs["input_ids"].tolist(), tuple(out.shape), "genrec" in sys.modules)
"""


@pytest.fixture
def catalog():
    return ItemCatalog(tuple(f"item-{n}" for n in range(40)), {"title": [f"Title {n}" for n in range(40)]})


@pytest.fixture
def recommender(case, catalog):
    codes = replace(case.codes, catalog=catalog.fingerprint)
    index = CatalogIndex.build(codes)
    settings = DecodingSettings(n_beams=12, loss="level", max_items=5, batch_size=3)
    return GenerativeRecommender(case.model, case.token_map, codes, index, settings)


def test_round_trip_gives_the_same_lists(tmp_path, case, recommender, catalog):
    save_bundle(tmp_path / "bundle", recommender, catalog=catalog)
    expected = recommender.recommend(case.histories, top_k=6)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.recommender.settings == recommender.settings
    got = loaded.recommender.recommend(case.histories, top_k=6)
    assert got.items.tolist() == expected.items.tolist()
    np.testing.assert_array_equal(got.scores, expected.scores)
    assert loaded.catalog is not None and loaded.catalog.ids_of([3]) == ["item-3"]
    assert loaded.catalog.text("title")[3] == "Title 3"
    again = GenerativeRecommender.from_pretrained(tmp_path / "bundle").recommend(case.histories, top_k=6)
    assert again.items.tolist() == expected.items.tolist()


def test_an_adapter_is_refused_before_anything_is_written(tmp_path, fixed_case):
    recommender = fixed_case.recommender()
    recommender.model = deepcopy(fixed_case.model)
    recommender.model.peft_config = {"default": None}
    with pytest.raises(ConfigError, match="adapter") as caught:
        save_bundle(tmp_path / "bundle", recommender)
    assert "merge_and_unload" in caught.value.hint
    assert not (tmp_path / "bundle").exists()


def test_bundle_with_a_catalog_works_without_pyarrow(tmp_path, recommender, catalog, monkeypatch):
    save_bundle(tmp_path / "bundle", recommender, catalog=catalog)
    for name in [m for m in sys.modules if m.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.recommender.recommend([[1, 2]], top_k=3).items.shape == (1, 3)
    with pytest.raises(MissingExtra, match="pyarrow"):
        _ = bundle.catalog


def test_same_bundle_same_bytes(tmp_path, recommender):
    for name in ("a", "b"):
        save_bundle(tmp_path / name, recommender)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    for file in files:
        if file.name != "genrec.json":  # holds the time
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert load_bundle(tmp_path / "a").catalog is None


def test_model_folders_load_without_genrec(tmp_path, both_kinds):
    for name, case in both_kinds.items():
        save_bundle(tmp_path / name, case.recommender())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GENREC, *(str(tmp_path / name / "model") for name in both_kinds)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    levels = both_kinds["t5"].token_map.level_offset
    tokens = [[levels[0] + 3, levels[1] + 2, levels[2] + 1]]
    assert done.stdout.splitlines() == [
        f"right {tokens} (1, 3) False",  # the start token and two more
        f"left {tokens} (1, 5) False",
    ]


def test_a_damaged_bundle_is_refused(tmp_path, recommender):
    path = tmp_path / "bundle"
    save_bundle(path, recommender)
    with pytest.raises(ArtifactError, match="exists"):
        save_bundle(path, recommender)
    weights = path / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_bundle(path)
    weights.write_bytes(bytes(raw[:-1]))
    with pytest.raises(ArtifactError, match="bytes, the manifest says") as caught:
        load_bundle(path)
    assert caught.value.hint is None  # it is a bundle: no advice to give one


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("nowhere", "does not exist, or is not a folder", "give a run folder or a bundle"),
        ("file", "does not exist, or is not a folder", "give a run folder or a bundle"),
        ("empty", "not an artifact", "give a run folder or a bundle"),
        ("run/catalog", "holds 'catalog', expected 'bundle'", "give a run folder or a bundle"),
        ("run", "no trained model yet", "`genrec run PIPELINE.yaml --out "),
    ],
)
def test_what_is_no_bundle_is_told_with_what_to_give(tmp_path, catalog, name, said, hint):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    catalog.save(tmp_path / "run" / "catalog")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    with pytest.raises(ArtifactError, match=said) as caught:
        load_bundle(tmp_path / name)
    assert caught.value.hint.startswith(hint)


def test_the_catalog_of_a_bundle_can_be_asked_for_after_the_model_has_another(tmp_path, recommender, catalog):
    save_bundle(tmp_path / "bundle", recommender, catalog=catalog)
    model = GenerativeRecommender.from_pretrained(tmp_path / "bundle")
    snapshot = CatalogSnapshot.of(model.codes)
    codes = snapshot.grown_codes(model.codes.as_int()[:1], "a fingerprint alone")
    model.swap(snapshot.growing(codes, snapshot.index.grown(codes), fields={}, new={}))
    assert model.n_items == len(catalog) + 1 and model.catalog.ids == catalog.ids


def test_parts_of_different_bundles_are_refused(tmp_path, recommender, catalog):
    other = ItemCatalog(tuple(f"other-{n}" for n in range(40)), {"title": [""] * 40})
    with pytest.raises(FingerprintMismatch, match="catalog"):
        save_bundle(tmp_path / "bundle", recommender, catalog=other)
    save_bundle(tmp_path / "bundle", recommender)
    stored = json.loads((tmp_path / "bundle" / "decoding.json").read_text())
    assert stored == {"n_beams": 12, "normalize": None, "loss": "level", "max_items": 5, "batch_size": 3}
    rolled = ItemCodes.from_int(
        np.roll(recommender.codes.as_int(), 1, axis=0), recommender.codes.level_sizes, catalog.fingerprint
    )
    with pytest.raises(FingerprintMismatch, match="built from codes"):
        CatalogIndex.load(tmp_path / "bundle" / "index", codes=rolled)
