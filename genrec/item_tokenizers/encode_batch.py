"""Item vectors or item texts to codes, a batch of columns at a time: the step that every engine runs.

Axes: B items of a batch, L levels, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.sentence import load_embedder
from genrec.embeddings.text import SentenceSettings, sentence_embeddings
from genrec.errors import ConfigError, DataError, imported
from genrec.item_tokenizers.base import ItemTokenizer, TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.fitted import Indexing
from genrec.item_tokenizers.registry import load_tokenizer

Batch = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]


class EncodeBatch:
    """Encode batches of items with a fitted item tokenizer (experimental).

    ::

        encode = EncodeBatch("runs/demo/item_tokenizer", vector_column="vector")
        out = encode({"item_id": ids, "vector": vectors_BD})       # {"item_id": ids, "codes": int32 [B, L]}

    What it is made of are names, and the loading happens in ``__init__``, so it can be made once in every worker:
    ``dataset.map_batches(EncodeBatch, fn_constructor_kwargs={"tokenizer": "…", "vector_column": "vector"}, …)`` of
    Ray Data, or a pandas function of Spark. An item's codes depend on this item alone (texts: on the last bits, which
    other texts are in the batch decides those of a vector); they are the codes before the collision policy.

    tokenizer: folder of an ``item_tokenizer`` artifact; None = only embed. vector_column: the column with the vectors.
    text, model: instead, the parts of an item's text (:func:`~genrec.embeddings.text.item_text`) and a sentence
    embedding model (:class:`~genrec.embeddings.text.SentenceSettings`), or ``module:Class``, an object with ``encode``
    (:class:`~genrec.embeddings.sentence.Embedder`). keep_vectors: put the vectors beside the codes, column ``vector``.
    """

    def __init__(
        self,
        tokenizer: str | Path | None,
        *,
        vector_column: str | None = None,
        text: Sequence[str] = (),
        model: str | None = None,
        batch_size: int = 64,
        keep_vectors: bool = False,
    ) -> None:
        if (vector_column is None) == (not text) or bool(text) != (model is not None):
            raise ConfigError("expected either vector_column, or text and model")
        self.tokenizer: ItemTokenizer | None = None if tokenizer is None else load_tokenizer(tokenizer)
        if self.tokenizer is not None:
            check_encodes_vectors(self.tokenizer)
        self.vector_column, self.keep_vectors = vector_column, keep_vectors or tokenizer is None
        self._settings: SentenceSettings | None = None
        if model is not None:
            self._settings = SentenceSettings(model=model, text=tuple(text), batch_size=batch_size)
            self._embedder = embedder_of(model)

    def __call__(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """``item_id`` (where the batch has it), ``codes`` int32 ``[B, L]``, ``vector`` float32 ``[B, D]`` if kept."""
        vectors = self.vectors(batch)
        out: dict[str, npt.NDArray[Any]] = {"item_id": batch["item_id"]} if "item_id" in batch else {}
        if self.tokenizer is not None:
            out["codes"] = self.encode(vectors).as_int()
        if self.keep_vectors:
            out["vector"] = vectors
        return out

    def encode(self, vectors: Floats) -> ItemCodes:
        """Raw codes of vectors ``[B, D]``."""
        assert self.tokenizer is not None
        return self.tokenizer.encode(TokenizerSource.of_vectors(vectors))

    def vectors(self, batch: Batch) -> Floats:
        """The vectors of a batch, float32 ``[B, D]``; DataError for a missing column or ragged rows."""
        if self.vector_column is not None:
            return _matrix(_column(batch, self.vector_column), self.vector_column)
        assert self._settings is not None
        n = len(next(iter(batch.values())))
        fields = {name: [_plain(value) for value in batch[name]] for name in batch if name != "item_id"}
        items = ItemCatalog(tuple(map(str, range(n))), {"title": [None] * n, **fields})
        found = sentence_embeddings(items, self._settings, embedder=self._embedder, progress=False)
        return found.vectors


def check_encodes_vectors(tokenizer: ItemTokenizer) -> None:
    """Raise ConfigError for a kind whose codes do not follow from an item's vector alone (internal)."""
    kind = tokenizer.settings.kind
    if not tokenizer.can_encode_new or isinstance(tokenizer, Indexing):  # those read titles or categories
        what = "by their vectors" if tokenizer.can_encode_new else "by themselves"
        raise ConfigError(
            f"an item tokenizer of kind {kind!r} cannot encode items {what}",
            hint="take a kind whose codes follow from an item's vector, such as rqkmeans",
        )


def embedder_of(model: str) -> Any:
    """The embedder called ``model``: an object of ``module:Class``, else a sentence embedding model (internal).

    ConfigError where there is none.
    """
    if ":" not in model or model.startswith("package:"):
        return load_embedder(model).encoder
    found = imported(model, "model")()
    if not hasattr(found, "encode"):
        raise ConfigError(f"model: {model!r} has no method encode(texts, batch_size=...)")
    return found


def _column(batch: Batch, name: str) -> npt.NDArray[Any]:
    if name not in batch:
        raise DataError(f"expected a column {name!r}, got {sorted(batch)}")
    return np.asarray(batch[name])


def _matrix(values: npt.NDArray[Any], name: str) -> Floats:
    """Vectors as ``[B, D]``: some engines hand over an array of arrays."""
    if values.dtype == object:
        widths = {np.size(value) for value in values}
        if len(widths) != 1:
            raise DataError(f"column {name!r}: expected vectors of one width, got {sorted(widths)}")
        values = np.stack(list(values))
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise DataError(f"column {name!r}: expected vectors, got {values.dtype} of shape {list(values.shape)}")
    return np.ascontiguousarray(values, dtype=np.float32)


def _plain(value: Any) -> Any:
    """A cell as the catalog takes it."""
    return value.tolist() if hasattr(value, "tolist") else value
