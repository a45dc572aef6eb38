"""The tiny synthetic shop with codes, and a vocabulary of item tokens and whole words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split, leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.item_tokenizers.codes import ItemCodes
from genrec.prompts.data import TaskData
from genrec.vocab.token_map import TokenMap


@dataclass
class WordVocabulary:
    """Every word, and every space between two, gets the next id behind the item tokens."""

    token_map: TokenMap
    words: list[str] = field(default_factory=list)
    tokenizer: Any = None

    def encode_text(self, text: str) -> list[int]:
        found = []
        for n, word in enumerate(text.split(" ")):
            for part in ([" "] if n else []) + ([word] if word else []):
                if part not in self.words:
                    self.words.append(part)
                found.append(self.token_map.vocab_size + self.words.index(part))
        return found

    def decode(self, ids) -> str:
        return "".join(self.word(int(i)) for i in ids)

    def word(self, token: int) -> str:
        known = self.token_map.tokens()
        return known[token] if token < len(known) else self.words[token - len(known)]


@dataclass(frozen=True, eq=False)
class Shop:
    catalog: ItemCatalog
    split: Split
    codes: ItemCodes
    user_ids: list[str]

    def data(self, **changes: Any) -> TaskData:
        return TaskData(self.catalog, self.split.train(), **changes)


@pytest.fixture(scope="session")
def shop() -> Shop:
    made = make(tiny(n_users=24))
    described = [None if n % 3 else f"A fine thing, number {n}." for n in range(len(made.catalog))]
    catalog = ItemCatalog(made.catalog.ids, made.catalog.fields | {"description": described})
    numbers = np.arange(len(catalog))
    codes = ItemCodes(
        np.stack([numbers // 8, numbers % 8], axis=1).astype(np.uint8), (8, 8), catalog=catalog.fingerprint
    )
    return Shop(catalog, leave_one_out(made.interactions), codes, list(made.interactions.user_ids))


@pytest.fixture
def vocabulary(shop: Shop) -> WordVocabulary:
    return WordVocabulary(TokenMap.of(shop.codes, n_user_tokens=16))
