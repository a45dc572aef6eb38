from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from genrec import recipes
from genrec.errors import ConfigError
from genrec.item_tokenizers.base import ItemTokenizer
from genrec.item_tokenizers.registry import (
    KINDS,
    build,
    build_segmenter,
    build_slots,
    gives,
    load_tokenizer,
    settings_class,
    tokenizer_class,
)
from genrec.testing.tokenizer_contract import planted_source

FOLDER = Path(__file__).parents[2] / "tokenizers"
RECIPES = sorted(FOLDER.glob("*.yaml"))  # kind.yaml: the defaults; kind-variant.yaml: a published setting of it
DEFAULTS = [path for path in RECIPES if "-" not in path.stem]

THIRD_PARTY = """
from dataclasses import dataclass
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings

@dataclass(frozen=True)
class Settings(RqKMeansSettings):
    kind: str = "shop_tokenizer:ShopTokenizer"

class ShopTokenizer(RqKMeans):
    Settings = Settings
"""


def test_every_kind_has_a_recipe():
    assert {path.stem for path in DEFAULTS} == set(KINDS)
    assert {recipes.kind_of(path) for path in RECIPES} == set(KINDS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_and_class_name_each_other(path):
    kind = recipes.kind_of(path)
    found = tokenizer_class(kind)
    assert path.stem.split("-")[0] == kind
    assert path.read_text().splitlines()[0] == f"# {found.__module__}:{found.__qualname__}"
    assert f"``tokenizers/{path.name}``" in found.__doc__


@pytest.mark.parametrize("path", DEFAULTS, ids=lambda path: path.stem)
def test_recipe_is_the_defaults_with_every_option_explained(path):
    settings = settings_class(recipes.kind_of(path))
    resolved = recipes.load(path, settings)
    assert resolved.value == settings()
    assert resolved.given == {field.name for field in fields(settings)}
    make = {"codes": build, "slots": build_slots, "tokens": build_segmenter}[gives(resolved.value.kind)]
    built = make(resolved.value)
    assert isinstance(built, ItemTokenizer)
    assert built.settings == resolved.value
    for field in fields(settings):
        assert field.name == "kind" or field.name in settings.__doc__


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_with_a_typing_error_is_refused(path):
    settings = settings_class(recipes.kind_of(path))
    recipes.load(path, settings)
    with pytest.raises(ConfigError, match="levelsize"):
        recipes.load(path.read_text() + "\nlevelsize: 3\n", settings)
    if "collisions" in {field.name for field in fields(settings)}:
        with pytest.raises(ConfigError, match="collisions"):
            recipes.load(path, settings, ["collisions=sufix"])


def test_the_folder_is_no_package():
    assert not (FOLDER / "__init__.py").exists()


def test_a_wrong_class_name_is_told_the_right_one(tmp_path, monkeypatch):
    (tmp_path / "shop_tokenizer.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop_tokenizer", raising=False)
    with pytest.raises(ConfigError, match="the module is there, but has no 'MyTokenizer'") as error:
        tokenizer_class("shop_tokenizer:MyTokenizer")
    assert error.value.hint == "item tokenizers in it: shop_tokenizer:ShopTokenizer"
    with pytest.raises(ConfigError) as error:
        tokenizer_class("no_such_module:MyTokenizer")
    assert "Python path" in error.value.hint


def test_third_party_kind_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "shop_tokenizer.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop_tokenizer", raising=False)
    kind = "shop_tokenizer:ShopTokenizer"
    tokenizer = build(settings_class(kind)(n_levels=2, level_size=8))
    codes = tokenizer.fit(planted_source(), seed=0)
    tokenizer.save(tmp_path / "saved")
    back = load_tokenizer(tmp_path / "saved", catalog=codes.catalog)
    assert type(back).__name__ == "ShopTokenizer"
    assert back.settings == tokenizer.settings


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rqvea", "rqkmeans, .*rqvae"),
        ("no_such_module:Class", "cannot import"),
        ("json:NoSuchClass", "cannot import"),
        ("json:JSONDecoder", "no item tokenizer"),
    ],
)
def test_unknown_kinds_are_refused(kind, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tokenizer_class(kind)
    if kind == "rqvea":
        assert "rqvae" in caught.value.hint


def test_a_module_that_cannot_be_read_is_named_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("class Half:\n    def fit(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot import 'halfway:Half' \(.*halfway\.py, line 2"):
        tokenizer_class("halfway:Half")


def test_artifact_of_another_kind_is_refused(tmp_path):
    tokenizer = build(settings_class("rqkmeans")(n_levels=1, level_size=8))
    tokenizer.fit(planted_source(), seed=0)
    tokenizer.save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="expected an item tokenizer of kind 'rqvae', got 'rqkmeans'"):
        tokenizer_class("rqvae").load(tmp_path / "saved")
