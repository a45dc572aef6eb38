"""genrec: LLM-based generative recommendation.

A model writes the identifier of the next item, token by token; constrained beam search makes sure that the
identifier exists. ``import genrec`` is cheap: torch is imported when a name that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_LAZY = {
    "CatalogIndex": "genrec.decoding.index:CatalogIndex",
    "Histories": "genrec.data.histories:Histories",
    "Interactions": "genrec.data.interactions:Interactions",
    "ItemCatalog": "genrec.data.catalog:ItemCatalog",
    "ItemCodes": "genrec.item_tokenizers.codes:ItemCodes",
    "ItemEmbeddings": "genrec.embeddings.base:ItemEmbeddings",
    "Recommender": "genrec.models.recommender:GenerativeRecommender",
    "SearchOptions": "genrec.decoding.interface:SearchOptions",
    "Split": "genrec.data.splits:Split",
    "TokenMap": "genrec.vocab.token_map:TokenMap",
    "evaluate": "genrec.evaluation.run:evaluate",
    "finetune": "genrec.training.finetune:finetune",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'genrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_LAZY])
