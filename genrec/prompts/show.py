"""Examples to look at: what each piece is, and how many tokens it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from genrec.item_tokenizers.codes import ItemCodes
from genrec.prompts.encode import ExampleEncoder
from genrec.prompts.segments import Role, Segment
from genrec.prompts.tasks import TASKS, load_task
from genrec.prompts.template import Rendered
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
