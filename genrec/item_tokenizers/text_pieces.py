"""Texts as identifiers: splitting them into pieces, and numbers written as digits.

Axes: N items, L pieces of the longest identifier. Texts are looked at one by one; everything else is arrays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes

Ints = npt.NDArray[np.int64]
Splitter = Callable[[str], list[str]]
SPACE = "\u2581"  # stands for the white space before a word, as in SentencePiece
_WORD = re.compile(r"[^\W\d_]+|\S")


def split_words(text: str) -> list[str]:
    """Words, single digits and single signs; a piece that begins a word carries the mark of a space (stable).

    >>> split_words("Nail Polish, 50ml")
    ['▁Nail', '▁Polish', ',', '▁5', '0', 'ml']
    """
    words = text.replace(SPACE, " ").split()
    return [SPACE * (at == 0) + piece for word in words for at, piece in enumerate(_WORD.findall(word))]


def spell(piece: str) -> list[str]:
    """A piece as single characters; the mark of a space stays with the first (internal)."""
    start = len(SPACE) if piece.startswith(SPACE) else 0
    return [piece[: start + 1], *piece[start + 1 :]]


def pretrained_splitter(name: str) -> Splitter:
    """Pieces as the text tokenizer of a language model writes them, without special tokens (stable).

    name: a folder, or a name on the Hugging Face hub. Raises ConfigError when it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        text_tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"text_tokenizer: cannot load {name!r} ({str(error).splitlines()[0]})",
            hint="name a folder that save_pretrained wrote, or a model on the Hugging Face hub",
        ) from error
    return lambda text: list(text_tokenizer.tokenize(text))


def frequent_or_spelled(rows: Iterable[Sequence[str]], min_count: int) -> list[list[str]]:
    """The rows with every piece that occurs fewer than ``min_count`` times spelled out (internal)."""
    rows = list(rows)
    counts = Counter(piece for row in rows for piece in row)
    return [[part for p in row for part in ([p] if counts[p] >= min_count else spell(p))] for row in rows]


def padded(rows: Sequence[Sequence[int]]) -> Ints:
    """Rows of unequal length as one matrix, int64 ``[N, L]``, -1 behind short ones (internal)."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    out = np.full((len(rows), int(lengths.max(initial=0))), -1, dtype=np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = [code for row in rows for code in row]
    return out


def widened(codes_NL: Ints, n_levels: int) -> Ints:
    """The same rows cut to, or filled with -1 up to, ``n_levels`` columns (internal)."""
    missing = max(n_levels - codes_NL.shape[1], 0)
    return np.pad(codes_NL[:, :n_levels], ((0, 0), (0, missing)), constant_values=-1)


def number_codes(numbers_N: Ints, base: int, text_tokenizer: str | None, catalog: str) -> ItemCodes:
    """Numbers of 0 and more written as codes, the most significant digit first, no leading zeros (internal).

    Written in base 10 the digits are pieces of text, or what ``text_tokenizer`` makes of the number. Raises
    DataError when that text tokenizer writes two numbers alike.
    """
    if text_tokenizer is None:
        digits_NL = digits(numbers_N, base)
        pieces = tuple("0123456789") if base == 10 else ()
        return ItemCodes.from_int(
            digits_NL, (base,) * digits_NL.shape[1], catalog, shared_vocabulary=True, pieces=pieces
        )
    split = pretrained_splitter(text_tokenizer)
    rows = [split(str(number)) for number in numbers_N.tolist()]
    pieces = tuple(sorted({piece for row in rows for piece in row}))
    code = {piece: at for at, piece in enumerate(pieces)}
    codes_NL = padded([[code[piece] for piece in row] for row in rows])
    sizes = (len(pieces),) * codes_NL.shape[1]
    codes = ItemCodes.from_int(codes_NL, sizes, catalog, shared_vocabulary=True, pieces=pieces)
    if codes.collisions():
        same = [int(numbers_N[n]) for n in codes.collisions()[0][:2]]
        raise DataError(f"text_tokenizer: {text_tokenizer!r} writes the numbers {same[0]} and {same[1]} alike")
    return codes


def digits(numbers_N: Ints, base: int) -> Ints:
    """Digits of each number, int64 ``[N, L]``, the most significant first, -1 behind short numbers (internal)."""
    n_digits, most = 1, int(numbers_N.max(initial=0))
    while most >= base:
        n_digits, most = n_digits + 1, most // base
    places = base ** np.arange(n_digits - 1, -1, -1, dtype=np.int64)
    all_NL = numbers_N[:, None] // places % base
    length_N = np.maximum((numbers_N[:, None] >= places).sum(axis=1), 1)
    column = np.arange(n_digits) + n_digits - length_N[:, None]
    return np.where(column < n_digits, np.take_along_axis(all_NL, np.minimum(column, n_digits - 1), axis=1), -1)


def check_number_options(first_number: int, base: int, text_tokenizer: str | None) -> None:
    """ConfigError unless the options describe how to write numbers (internal)."""
    if first_number < 0:
        raise ConfigError(f"first_number: expected 0 or more, got {first_number}")
    if not 2 <= base <= 1 << 16:
        raise ConfigError(f"base: expected 2 to 65536, got {base}")
    if text_tokenizer is not None and base != 10:
        raise ConfigError(f"text_tokenizer: expected null unless base is 10, got {text_tokenizer!r} with base {base}")
