"""docs/recipes.md names every key of a pipeline recipe, with the default that it really has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from genrec import recipes
from genrec.item_tokenizers.registry import KINDS
from genrec.pipeline.recipe import BASELINES, PipelineRecipe
from genrec.recipe_text import parse_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
TABLES = dict(re.findall(r"^<!-- (\w+) -->\n((?:\|.*\n)+)", PAGE, re.M))


def settings_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and is_dataclass(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from settings_in(inner)


def reachable() -> list[type]:
    """Every settings class that a pipeline recipe can hold."""
    found, todo = [], [PipelineRecipe]
    while todo:
        cls = todo.pop(0)
        if cls not in found:
            found.append(cls)
            todo += [inner for hint in get_type_hints(cls).values() for inner in settings_in(hint)]
    return found


def literals(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {word for inner in get_args(annotation) for word in literals(inner)}


def rows(cls: type) -> dict[str, tuple[str, str]]:
    """Default and meaning, as written, of every key in the table of ``cls``."""
    lines = TABLES[cls.__name__].splitlines()
    assert lines[0] == "| key | default | meaning |"
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    names = [row[0].strip("`") for row in cells]
    assert len(names) == len(set(names)), f"{cls.__name__}: a key stands there twice"
    return {name: (row[1], row[2].rstrip("|").strip()) for name, row in zip(names, cells, strict=True)}


@pytest.mark.parametrize("cls", reachable(), ids=lambda cls: cls.__name__)
def test_every_key_and_its_default(cls: type) -> None:
    hints, written = get_type_hints(cls), rows(cls)
    assert list(written) == [f.name for f in fields(cls)]
    for f in fields(cls):
        default, meaning = written[f.name]
        if f.default is MISSING and f.default_factory is MISSING:
            assert default == "required", f.name
        else:
            actual = f.default if f.default_factory is MISSING else f.default_factory()
            one = make_dataclass("One", [("value", hints[f.name], field(default=None))], frozen=True)
            value = parse_text(default.strip("`"), f.name).data if default != '`""`' else ""
            assert recipes.validate({"value": value}, one).value == actual, f.name
        missing = {word for word in literals(hints[f.name]) if f"`{word}`" not in default + meaning}
        assert not missing, f"{cls.__name__}.{f.name}: {missing} not named"


def test_no_table_is_about_something_else() -> None:
    assert set(TABLES) == {cls.__name__ for cls in reachable()}


def test_every_baseline_is_named() -> None:
    default, meaning = rows(PipelineRecipe)["baselines"]
    assert set(BASELINES) <= set(re.findall(r"\w+", default + meaning))


def test_every_item_tokenizer_has_the_recipe_that_the_page_promises() -> None:
    assert all((ROOT / "tokenizers" / f"{kind}.yaml").exists() for kind in KINDS)


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


PAGES = [ROOT / "README.md", ROOT / "tokenizers" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_to_headings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\(([\w./]*)#([^)]+)\)", text):
        there = (page.parent / target).read_text(encoding="utf-8") if target else text
        assert heading in headings(there), f"{page.name} links to {target}#{heading}"
