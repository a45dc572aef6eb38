"""What a vLLM server elsewhere says of its model, and whether that can be the one of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec import artifacts
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.models.bundle import bundle_folder
from genrec.models.engine_weights import Held, weights_of
from genrec.serving.served_weights import EXPORT, check_adapter, check_weights
from genrec.vocab.text_vocabulary import load_tokenizer
from genrec.vocab.token_map import TokenMap

TOKENS = 256
"""Item tokens whose ids are compared, spread over all of them."""
WORDS = "Blue garden chairs, 2 pieces"
"""What is compared besides, of a model that knows text."""


@dataclass(frozen=True)
class RemoteModel:
    """A model as ``/v1/models`` lists it; equal where the server says the same (internal).

    max_len: tokens that it takes, the answer included. folder, adapter: where it was loaded from, by the server's word.
    """

    name: str
    max_len: int
    folder: Path | None
    adapter: Path | None

    @classmethod
    def of(cls, listed: Any, name: str | None) -> RemoteModel:
        """The one of this name; None = the only one there is.

        Raises ConfigError where there is none; KeyError, TypeError, ValueError or AttributeError for another answer
        than vLLM's.
        """
        known = {each["id"]: each for each in listed["data"]}
        lengths = [each["max_model_len"] for each in known.values() if each.get("max_model_len")]
        if name is None and len(known) > 1:
            raise ConfigError("--engine-model: the server has several models", hint=f"one of {sorted(known)}")
        found = name or next(iter(known), "")
        if found not in known:
            raise ConfigError(f"--engine-model: the server has no model {found!r}: {sorted(known)}")
        one, above = known[found], known.get(known[found].get("parent"))
        folder, adapter = (one, None) if above is None else (above, one)  # an adapter has no length of its own
        folders = [None if each is None or not each.get("root") else Path(each["root"]) for each in (folder, adapter)]
        return cls(found, int(one.get("max_model_len") or min(lengths, default=2**31)), folders[0], folders[1])


def check_folders(model: RemoteModel, run: Path) -> bool:
    """Whether the folders of a server on this machine are seen from here; where they are, weights are compared.

    Raises FingerprintMismatch for others than the run's (internal).
    """
    folder = model.folder
    if folder is None or not folder.is_absolute() or not folder.is_dir():
        return False
    held, manifest = Held.of(folder), artifacts.read(bundle_folder(run.resolve()), verify=False)
    check_weights(held, weights_of(manifest), run)
    check_adapter(folder, manifest.path / "model", model.adapter, held)
    return True


def check_vocabulary(ids_of: Callable[[str], Sequence[int] | None], run: Path, *, max_len: int) -> bool:
    """Whether the server says how it reads a text; where it does, the ids are compared with those of the run.

    ids_of: asks it; None = no answer. max_len: tokens that it takes. Raises FingerprintMismatch for other ids, and
    where it reads one item token but not all: it does not know them (internal).
    """
    bundle = bundle_folder(run.resolve())
    token_map = TokenMap.from_dict(artifacts.load_json(bundle / "token_map.json"))
    words = load_tokenizer(bundle / "model")
    first, size = token_map.first_item_id, token_map.vocab_size
    spread = np.unique(np.linspace(first, size - 1, min(TOKENS, max_len // 2, size - first)).astype(int))
    tokens = words.convert_ids_to_tokens(spread.tolist())
    text = " ".join([*tokens, *([] if token_map.base is None else [WORDS])])
    found = ids_of(text)
    if found is None and all(ids_of(each) is None for each in tokens[:1]):
        return False
    if found is None or [*found] != words(text, add_special_tokens=False)["input_ids"]:
        raise FingerprintMismatch(f"the model in vLLM reads item tokens as other ids than {run}", hint=EXPORT)
    return True
