"""Examples to look at: what each piece is, and how many tokens it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genrec import artifacts, recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.prompts.data import TaskData
from genrec.prompts.encode import ExampleEncoder
from genrec.prompts.mixture import MixedTask, MixtureSettings, TaskMixture
from genrec.prompts.segments import Role, Segment
from genrec.prompts.tasks import TASKS, load_task
from genrec.prompts.template import Rendered
from genrec.prompts.wrapper import Wrapper
from genrec.vocab.token_map import TokenMap

ROLES: dict[Role, str] = {
    "template": "the template's words",
    "text": "text of the catalog",
    "item": "item tokens",
    "user": "user tokens",
    "chat": "marks of the chat format",
}
"""What a role means, in words."""


@dataclass(frozen=True)
class Shown:
    """One piece of an example (internal). n_tokens: None without a text vocabulary, for words."""

    text: str
    role: Role
    n_tokens: int | None


def pieces(segments: Iterable[Segment], codes: ItemCodes, encoder: ExampleEncoder | None = None) -> list[Shown]:
    """Segments as they are shown: items as their tokens, users as ``<user 7>`` (internal)."""
    token_map, rows = TokenMap.of(codes), codes.as_int()
    found = []
    for segment in segments:
        text, count = str(segment.value), None
        if segment.role == "item":
            row = rows[int(segment.value)]
            text, count = token_map.text(row, sep=""), int((row >= 0).sum())
        elif segment.role == "user":
            text = f"<user {segment.value}>"
        if encoder is not None:
            count = sum(len(ids) for _, ids in encoder.parts([segment]))
        found.append(Shown(text, segment.role, count))
    return found


def plain(shown: Sequence[Shown]) -> str:
    """Pieces as text without colours: data of the catalog between ‹ and › (internal)."""
    return "".join(f"‹{one.text}›" if one.role == "text" else one.text for one in shown)


def counts(example: Rendered, codes: ItemCodes, encoder: ExampleEncoder | None) -> str:
    """How many tokens prompt and target have; without a text vocabulary, words instead (internal)."""
    if encoder is not None:
        encoded = encoder(example)
        return f"{len(encoded.prompt)} tokens -> {len(encoded.target)} tokens, all of the target with a loss"
    parts = []
    for segments in (example.prompt, example.target):
        shown = pieces(segments, codes)
        n_items = sum(one.n_tokens or 0 for one in shown)
        n_words = sum(len(one.text.split()) for one in shown if one.role in ("template", "text"))
        parts.append(f"{n_items} item tokens and {n_words} words")
    return " -> ".join(parts)


def listing() -> list[dict[str, Any]]:
    """The built-in tasks as ``genrec prompts list`` prints them (internal)."""
    found = []
    for name in TASKS:
        template = load_task(name).template
        header = template.header
        found.append(
            {
                "task": name, "version": header.version, "wordings": len(template.wordings), "rows": header.rows,
                "inputs": header.inputs, "about": header.about, "fingerprint": template.fingerprint,
            }
        )  # fmt: skip
    return found


@dataclass(frozen=True, eq=False)
class Inputs:
    """What examples are drawn from (internal)."""

    data: TaskData
    codes: ItemCodes


@dataclass(frozen=True)
class Options:
    """What ``genrec prompts show`` may be asked (internal)."""

    n: int = 3
    seed: int = 0
    template: Path | None = None
    recipe: Path | None = None
    tokenizer: Path | None = None
    users: bool = False


@dataclass(frozen=True)
class ShownExample:
    """An example to print (internal)."""

    title: str
    prompt: list[Shown]
    target: list[Shown]
    counts: str


def demo_inputs() -> Inputs:
    """A made-up shop of 60 items with identifiers from their texts (internal)."""
    from genrec.data.splits import leave_one_out
    from genrec.data.synthetic import make, tiny
    from genrec.embeddings.text import LsaSettings, lsa
    from genrec.item_tokenizers.base import TokenizerSource
    from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings

    shop = make(tiny())
    vectors = lsa(shop.catalog, LsaSettings(dim=8))
    tokenizer = RqKMeans(RqKMeansSettings(n_levels=3, level_size=8))
    codes = tokenizer.fit(TokenizerSource.of(shop.catalog, embeddings=vectors, seed=0), seed=0)
    return Inputs(TaskData(shop.catalog, leave_one_out(shop.interactions).train()), codes)


def run_inputs(folder: Path) -> Inputs:
    """Catalog, training part and identifiers of a run folder (internal). Raises ConfigError where they are missing."""
    for name in ("catalog", "split", "codes"):
        if not artifacts.exists(folder / name):
            hint = "give a run folder that has got as far as `tokenize`"
            raise ConfigError(f"{folder}: no {name} there", hint=hint)
    catalog = ItemCatalog.load(folder / "catalog")
    codes = ItemCodes.load(folder / "codes", catalog=catalog.fingerprint)
    return Inputs(TaskData(catalog, Split.load(folder / "split").train()), codes)


def examples(task: str, inputs: Inputs, options: Options) -> list[ShownExample]:
    """The first examples of a task, as a training with this seed would have them (internal)."""
    base = None if options.recipe is None else recipes.load(options.recipe, MixtureSettings).value
    mixed = MixedTask(task, samples=options.n, template=options.template)
    settings = MixtureSettings((mixed,)) if base is None else replace(base, tasks=(mixed,), samples_per_epoch=None)
    header = load_task(task, options.template).template.header
    data = replace(inputs.data, with_users=options.users or "user" in header.inputs.values())
    mixture = TaskMixture(settings, data, seed=options.seed)
    encoder = None if options.tokenizer is None else _encoder(options.tokenizer, inputs, settings)
    if encoder is not None:
        wrapper = encoder.wrapper
    else:  # the chat format is the text tokenizer's
        wrapper = Wrapper() if settings.wrapper == "chat" else Wrapper.named(settings.wrapper)
    found = []
    for i in range(options.n):
        example = _first(mixture, i)
        title = f"{example.task}, version {header.version}, wording {example.wording + 1}"
        wrapped = (*wrapper.before, *example.prompt, *wrapper.after)
        prompt, target = (pieces(part, inputs.codes, encoder) for part in (wrapped, example.target))
        found.append(ShownExample(title, prompt, target, counts(example, inputs.codes, encoder)))
    return found


def _first(mixture: TaskMixture, i: int) -> Rendered:
    for attempt in range(1000):
        if (example := mixture.example(0, i, attempt=attempt)) is not None:
            return example
    raise DataError(f"task {mixture.tasks[0].name!r}: 1000 rows had nothing to say")


def _encoder(tokenizer: Path, inputs: Inputs, settings: MixtureSettings) -> ExampleEncoder:
    """Of a decoder-only model with this text tokenizer; every user is one token."""
    from genrec.vocab.text_vocabulary import extend_vocabulary, load_tokenizer

    vocabulary = extend_vocabulary(load_tokenizer(tokenizer), inputs.codes, n_user_tokens=1)
    users = np.full((len(inputs.data.histories), 1), vocabulary.token_map.user_offset, np.int64)
    wrapper = Wrapper.named(settings.wrapper, vocabulary.tokenizer)
    return ExampleEncoder(vocabulary, inputs.codes, layout="decoder", wrapper=wrapper, users_UM=users)
