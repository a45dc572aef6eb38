"""What it costs an item to have another code than its own: asked of the item tokenizer, for new items. Internal.

Axes: M items, L levels, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.collisions import Quantized
from genrec.item_tokenizers.quantizers.kmeans import checked_rows


def quantized_of(tokenizer: Any, source: TokenizerSource) -> Quantized | None:
    """The items of ``source`` in the space in which the codes of ``tokenizer`` approximate them; None where unknown.

    A tokenizer says it by a method ``quantized(source) -> Quantized``; the kinds of this package are known here.
    """
    own = getattr(tokenizer, "quantized", None)
    if own is not None:
        found: Quantized = own(source)
        return found
    make = _BUILT_IN.get(getattr(tokenizer.settings, "kind", ""))
    return None if make is None else make(tokenizer, source)


def _rqkmeans(tokenizer: Any, source: TokenizerSource) -> Quantized:
    return Quantized(checked_rows(source.vectors()), tokenizer._codebooks, tokenizer._scaling)


def _product(tokenizer: Any, source: TokenizerSource) -> Quantized:
    return Quantized(checked_rows(source.vectors()), tokenizer._quantizer.codebooks(), tokenizer._scaling)


def _fsq(tokenizer: Any, source: TokenizerSource) -> Quantized:
    found: Quantized = tokenizer._quantized(tokenizer._scaling.apply(checked_rows(source.vectors())))
    return found


def _rqvae(tokenizer: Any, source: TokenizerSource) -> Quantized:
    latent_ND, _ = tokenizer._encode(tokenizer._scaling.apply(checked_rows(source.vectors())), source.catalog)
    books = tuple(book.detach().cpu().numpy() for book in tokenizer._model.quantizer.codebooks)
    return Quantized(latent_ND, books)


_BUILT_IN: dict[str, Callable[[Any, TokenizerSource], Quantized]] = {
    "rqkmeans": _rqkmeans,
    "product": _product,
    "fsq": _fsq,
    "rqvae": _rqvae,
}
