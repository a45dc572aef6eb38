"""The alignment tasks: each a template in prompts/ and a small function that draws its inputs.

LC-Rec (Zheng et al. 2023, arXiv 2311.09049) has six families of them; search by generated queries follows DSI-QG
(Zhuang et al. 2022, arXiv 2206.10128), user tokens ULMRec (2024, arXiv 2412.05543). The wordings are ours.

A function gets the data, a row and a generator, and returns the inputs that the template's header names. None for an
input: this row has none. None for all: this row has nothing to say. It is called again with a shorter history where
an example is too long, so it must be a pure function of its arguments.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from genrec import workbench
from genrec.errors import ConfigError, imported
from genrec.prompts.data import Row, TaskData
from genrec.prompts.queries import query_of
from genrec.prompts.template import PromptTemplate

Inputs = Mapping[str, Any]
Draw = Callable[[TaskData, Row, np.random.Generator], Inputs | None]


@dataclass(frozen=True, eq=False)
class Task:
    """A template and the function that draws its inputs (experimental)."""

    name: str
    template: PromptTemplate
    draw: Draw


def sequential(data: TaskData, row: Row, random: np.random.Generator) -> Inputs:
    """A history → the next item (experimental)."""
    return {"history": row.history, "target": row.item, "user": data.user(row)}


def item_from_text(data: TaskData, row: Row, random: np.random.Generator) -> Inputs:
    """Title, description or other fields → the item (experimental)."""
    return {"item": row.item, **_texts(data, row.item)}


def text_from_item(data: TaskData, row: Row, random: np.random.Generator) -> Inputs:
    """The item → its title, description or category (experimental)."""
    return {"item": row.item, **_texts(data, row.item)}


def fused(data: TaskData, row: Row, random: np.random.Generator) -> Inputs:
    """Titles of a history → the next item, and items of a history → the next title (experimental)."""
    assert row.item is not None
    titles = [data.title(item) for item in row.history]
    return {"history": row.history, "titles": titles, "target": row.item, "title": data.title(row.item)}


def asymmetric(data: TaskData, row: Row, random: np.random.Generator) -> Inputs:
    """Items of a history → description, category or brand of the next (experimental)."""
    return {"history": row.history, **_texts(data, row.item)}


def search(data: TaskData, row: Row, random: np.random.Generator) -> Inputs | None:
    """A query → an item that it fits (experimental)."""
    query = query_of(data, row.item, random)
    return {"query": query, "item": row.item} if query else None


def search_with_history(data: TaskData, row: Row, random: np.random.Generator) -> Inputs | None:
    """A history and a query → the next item, which the query fits (experimental)."""
    query = query_of(data, row.item, random)
    return {"history": row.history, "query": query, "target": row.item, "user": data.user(row)} if query else None


def preference(data: TaskData, row: Row, random: np.random.Generator) -> Inputs | None:
    """A history → its chief category, brand and latest category, by counting (experimental)."""
    category = _most(data.category(item) for item in row.history)
    recent = next((c for item in reversed(row.history) if (c := data.category(item))), "")
    if len(row.history) < 2 or not category:
        return None
    brand = _most((data.brand(item) for item in row.history), at_least=2)
    return {"history": row.history, "category": category, "brand": brand, "recent": recent, "user": data.user(row)}


def explanation(data: TaskData, row: Row, random: np.random.Generator) -> Inputs | None:
    """A history and the next item → what of the history shares its category or brand (experimental)."""
    assert row.item is not None
    brand, category = data.brand(row.item), data.category(row.item)
    of_brand = [item for item in row.history if brand and data.brand(item) == brand][-3:]
    of_category = [item for item in row.history if category and data.category(item) == category][-3:]
    if not of_brand and not of_category:
        return None
    return {
        "history": row.history, "item": row.item, "brand": brand, "category": category,
        "same_brand": of_brand, "same_category": of_category,
    }  # fmt: skip


def personal(data: TaskData, row: Row, random: np.random.Generator) -> Inputs | None:
    """The user's tokens and a history → the next item; every wording names the user (experimental)."""
    return None if data.user(row) is None else sequential(data, row, random)


def user_history(data: TaskData, row: Row, random: np.random.Generator) -> Inputs | None:
    """The user's tokens → what the user had, and back to the chief category (experimental)."""
    if data.user(row) is None:
        return None
    category = _most(data.category(item) for item in row.history)
    return {"user": data.user(row), "items": row.history[-3:], "category": category}


TASKS: dict[str, Draw] = {
    function.__name__: function
    for function in (
        sequential, item_from_text, text_from_item, fused, asymmetric, search, search_with_history, preference,
        explanation, personal, user_history,
    )
}  # fmt: skip
"""The built-in tasks."""


def load_task(name: str, template: str | Path | None = None) -> Task:
    """A built-in task, or ``"module:function"`` (experimental).

    template: its file. By default that of the workbench, and for a function of yours the file
    ``<function>.jinja`` beside its module. Raises ConfigError for a task or template that is not there.
    """
    if name in TASKS:
        file = workbench.find(f"prompts/{name}.jinja") if template is None else Path(template)
        return Task(name, PromptTemplate.load(file), TASKS[name])
    draw = _imported(name)
    beside = Path(inspect.getfile(draw)).parent / f"{name.partition(':')[2]}.jinja"
    return Task(name, PromptTemplate.load(beside if template is None else template), draw)


def _imported(name: str) -> Draw:
    if ":" not in name:
        near = get_close_matches(name, TASKS, n=1)
        raise ConfigError(
            f"task: expected one of {', '.join(TASKS)} or 'module:function', got {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )
    found = imported(name, "task")
    if not inspect.isfunction(found):
        raise ConfigError(f"task: {name!r} is no function")
    return found


def _texts(data: TaskData, item: int | None) -> dict[str, str]:
    assert item is not None
    return {
        "title": data.title(item), "description": data.description(item),
        "brand": data.brand(item), "category": data.category(item),
    }  # fmt: skip


def _most(values: Any, at_least: int = 1) -> str:
    """The most frequent value that is not blank, of equal ones the latest; "" below ``at_least``."""
    seen: Sequence[str] = [value for value in values if value]
    counts = Counter(reversed(seen))  # equal counts keep the order of first meeting
    best = counts.most_common(1)
    return best[0][0] if best and best[0][1] >= at_least else ""
