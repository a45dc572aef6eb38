"""What stands around every prompt."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec import workbench
from genrec.errors import ConfigError
from genrec.prompts.sandbox import compile_text, run
from genrec.prompts.segments import OPEN, Piece, Segment, Slots
from genrec.prompts.template import read_template

DATE = datetime.datetime(2024, 7, 26)
"""What chat formats are told that ask for today's date; those of Llama 3 name it where they are told none."""
_TODAY = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")


@dataclass(frozen=True)
class Wrapper:
    """What stands around every prompt, such as an instruction format (experimental)."""

    before: Piece = ()
    after: Piece = ()

    @classmethod
    def load(cls, path: str | Path) -> Wrapper:
        """Read a file of plain words around ``{{ prompt }}``."""
        return cls.parse(read_template(path), str(path))

    @classmethod
    def named(cls, name: str, tokenizer: Any = None) -> Wrapper:
        """``chat``, or a name in prompts/wrappers, or a file. ``tokenizer``: the text tokenizer, asked for ``chat``."""
        if name == "chat":
            return cls.of_chat(tokenizer)
        known = f"prompts/wrappers/{name}.jinja"
        return cls.load(workbench.find(known) if known in workbench.files() else name)

    @classmethod
    def parse(cls, text: str, where: str = "wrapper") -> Wrapper:
        """The wrapper with this text. Raises ConfigError unless it prints ``{{ prompt }}`` exactly once."""
        slots, hole = Slots(), Segment("text", "")
        found = run(compile_text(text, {"prompt"}, where).template, {"prompt": slots.one(hole)}, slots, where)
        if found.count(hole) != 1:
            raise ConfigError(f"{where}: expected {{{{ prompt }}}} once, found it {found.count(hole)} times")
        place = found.index(hole)
        return cls(found[:place], found[place + 1 :])

    @classmethod
    def of_chat(cls, tokenizer: Any) -> Wrapper:
        """The chat format of a Hugging Face text tokenizer: the prompt is what the user says, the target the answer.

        A format that tells the date tells the same one always (:data:`DATE`): a model is asked with the words that it
        was trained with, and a training goes on the next day. Raises ConfigError for a tokenizer without one.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the text tokenizer has no chat template", hint="use a wrapper of the folder prompts/wrappers"
            )
        turn = [{"role": "user", "content": OPEN}]
        dated = _with_date(tokenizer.chat_template)
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **dated)
        before, mark, after = text.partition(OPEN)
        if not mark or OPEN in after:
            raise ConfigError("the chat template of the text tokenizer does not print what the user says exactly once")
        return cls(*((Segment("chat", part),) if part else () for part in (before, after)))


def _with_date(template: Any) -> dict[str, str]:
    """The chat format with the date in the place of today's, where it asks for that; else nothing."""
    if not isinstance(template, str) or "strftime_now" not in template:
        return {}
    return {"chat_template": _TODAY.sub(lambda asked: repr(DATE.strftime(asked[2])), template)}
