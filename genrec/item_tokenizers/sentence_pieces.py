"""Pieces of identifiers learned by SentencePiece: runs of codes that are used often become one row of a table.

Axes: N items, L levels, K codes of a level, A symbols, V pieces.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError, require
from genrec.item_tokenizers.base import check_at_least
from genrec.item_tokenizers.codes import ItemCodes, row_numbers
from genrec.item_tokenizers.piece_tables import LearnedOn, PieceFeatures, PieceTable

log = logging.getLogger(__name__)
MODELS = ("bpe", "unigram")
# the two private planes of Unicode: code points that mean nothing to anybody, so nothing normalises or splits them
_PLANES = (0xF0000, 0x100000)
_PLANE_SIZE = 0xFFFE


@dataclass(frozen=True)
class SentencePieceSettings:
    """Settings of :class:`SentencePieces`; ConfigError for values out of range (experimental).

    model: bpe (merges the pair of neighbours that is used most, again and again) or unigram (prunes a large set of
    pieces to the one under which what users did is most likely; slower). n_longer: pieces of two codes or more to
    learn, beside one piece for every code. max_length: codes of a piece at most (None = whole identifiers).
    """

    kind: Literal["sentencepiece"] = "sentencepiece"
    model: Literal["bpe", "unigram"] = "bpe"
    n_longer: int = 4096
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ConfigError(f"model: expected one of {', '.join(MODELS)}, got {self.model!r}")
        check_at_least(self, {"n_longer": 1, "max_length": 2})


class SentencePieces:
    """Pieces of unequal length, learned from identifiers as often as their items are used (experimental).

    An identifier is written with one symbol per code (each level has symbols of its own, unless the codes share a
    vocabulary) and SentencePiece learns pieces of such sentences: items that are used often become one piece or few
    (memorisation), rare ones stay single codes (generalisation). One table, one row for each piece; every code of
    every level has a row, so a new item never has an unknown symbol. Needs the extra ``pieces``.

    Singh et al., "Better Generalization with Semantic IDs" (2023, 2306.08121), which gives no recipe. Ours: weights are
    the uses of the training part, items that nobody used teach nothing, equal identifiers count together. Every symbol
    is also shown once by itself: SentencePiece has no row for a symbol that it never saw, and its unigram trainer
    drops those that longer pieces make superfluous, counts their uses for its first symbol, and from then on prunes
    popular identifiers before rare ones (0.2.2).
    """

    def __init__(self, settings: SentencePieceSettings, learned_on: LearnedOn, model: bytes) -> None:
        self.settings, self.learned_on, self.model = settings, learned_on, model
        self._processor = _package().SentencePieceProcessor(model_proto=model)
        n_pieces = int(self._processor.get_piece_size()) - 1  # without <unk>, which SentencePiece must have
        self.tables = (PieceTable(0, len(learned_on.level_sizes), 0, n_pieces, False),)
        self.piece_symbols = self._symbols_of_pieces()

    @classmethod
    def learn(
        cls, codes: ItemCodes, settings: SentencePieceSettings, counts: npt.NDArray[np.int64] | None
    ) -> SentencePieces:
        """Learn pieces; counts: int64 ``[N]``, how often each item is used in training (None = once each)."""
        alphabet = _alphabet(codes)
        lines = _lines(codes, checked_counts(counts, len(codes)), alphabet)
        model = _train(lines, settings, codes.n_levels, len(alphabet))
        made = cls(settings, LearnedOn.of(codes), model)
        check_learned(made.n_longer, settings, codes.n_levels, str(_package().__version__))
        return made

    @property
    def n_rows(self) -> int:
        """Number of pieces V."""
        return self.tables[0].size

    @property
    def n_longer(self) -> int:
        """How many pieces have two codes or more."""
        return int((self.piece_symbols.lengths > 1).sum())

    def encode(self, codes: ItemCodes) -> PieceFeatures:
        """The pieces of any items, in the order of their codes; DataError for codes with other levels."""
        self.learned_on.check(codes)
        found = self._processor.encode(_sentences(codes), out_type=int, num_threads=1)
        offsets = np.zeros(len(codes) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, found), np.int64, len(codes)), out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(found), np.int32, int(offsets[-1]))
        assert len(ids) == 0 or ids.min() > 0, "a symbol is unknown to the pieces"
        return PieceFeatures(offsets, ids - 1, self.n_rows, codes.catalog)

    def decode(self, features: PieceFeatures) -> npt.NDArray[np.int32]:
        """The codes that the pieces stand for, int32 ``[N, L]``, -1 beyond the length of short identifiers."""
        symbols = self.piece_symbols.take(features.rows)
        identifiers = Histories(symbols.offsets[features.offsets], symbols.items)
        codes_NL = identifiers.padded(max_len=len(self.learned_on.level_sizes), pad=-1, side="right")
        return np.where(codes_NL < 0, -1, codes_NL - _level_offsets(self.learned_on)).astype(np.int32)

    def details(self, codes: ItemCodes, features: PieceFeatures) -> dict[str, Any]:
        """How many pieces are longer than a code, and how many of these items are one piece (internal)."""
        return {"n_longer": self.n_longer, "items_of_one_piece": int((features.lengths == 1).sum())}

    def _symbols_of_pieces(self) -> Histories:
        """The symbols of every piece, V ragged rows."""
        texts = self._processor.id_to_piece(list(range(1, self.tables[0].size + 1)))
        points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4").astype(np.int64)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
        return Histories(offsets, _symbols(points))


def checked_counts(counts: npt.ArrayLike | None, n_items: int) -> npt.NDArray[np.int64]:
    """How often each item is used, int64 ``[N]``; None = once each. DataError for anything else (internal)."""
    if counts is None:
        return np.ones(n_items, dtype=np.int64)
    given = np.asarray(counts)
    if given.shape != (n_items,) or given.dtype.kind not in "iu" or (given < 0).any():
        raise DataError(f"counts: expected {n_items} integers from 0 on, one per item, got {given.dtype} {given.shape}")
    return given.astype(np.int64)


def check_learned(n_longer: int, settings: SentencePieceSettings, n_levels: int, version: str) -> None:
    """Say so when fewer pieces were learned than asked for; ConfigError when unigram learned none (internal)."""
    if n_longer == 0 and n_levels > 1 and settings.model == "unigram":
        raise ConfigError(
            f"model: unigram of sentencepiece {version} learned no piece of two codes or more: every item is as many "
            "pieces as it has codes",
            hint="from 0.2.3 on it finds none in symbols that are not ASCII: pip install 'genrec[pieces]', or take "
            "bpe; with another version, no run of codes is used twice",
        )
    if n_longer < settings.n_longer:
        log.warning(
            "sentencepiece learned %d pieces of two codes or more, not the %d asked for: nothing is left to join",
            n_longer,
            settings.n_longer,
        )


def _package() -> Any:
    return require("sentencepiece", "pieces")


def _level_offsets(learned_on: LearnedOn) -> npt.NDArray[np.int64]:
    """The symbol of code 0 of each level, int64 ``[L]``."""
    sizes = np.array(learned_on.level_sizes, dtype=np.int64)
    return np.zeros_like(sizes) if learned_on.shared_vocabulary else np.cumsum(sizes) - sizes


def _points(symbols: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Code points of symbols."""
    return (np.array(_PLANES)[symbols // _PLANE_SIZE] + symbols % _PLANE_SIZE).astype(np.uint32)


def _symbols(points: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Symbols of code points."""
    second = points >= _PLANES[1]
    return np.where(second, points - _PLANES[1] + _PLANE_SIZE, points - _PLANES[0]).astype(np.int32)


def _sentences(codes: ItemCodes) -> list[str]:
    """Each identifier as a text of one symbol per code."""
    given = codes.as_int().astype(np.int64)
    points = np.where(given < 0, 0, _points(np.maximum(given, 0) + _level_offsets(LearnedOn.of(codes))))
    texts = np.ascontiguousarray(points, dtype=np.uint32).view(f"U{codes.n_levels}")  # zeros at the end are dropped
    return texts[:, 0].tolist() if len(codes) else []


def _lines(codes: ItemCodes, counts: npt.NDArray[np.int64], alphabet: str) -> list[str]:
    """What is learned from: different identifiers in the order of their codes, never of the items, with their uses."""
    ids = row_numbers(codes.as_int())
    first = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.int64)
    first[ids] = np.arange(len(ids))
    uses = np.zeros(len(first), dtype=np.int64)
    np.add.at(uses, ids, counts)
    first, uses = first[uses > 0], uses[uses > 0]
    if not len(uses):
        raise DataError("counts: expected an item that is used in training, got none")
    lines = [f"{text}\t{n}" for text, n in zip(_sentences(codes.take(first)), uses.tolist(), strict=True)]
    return [*lines, *(f"{symbol}\t1" for symbol in alphabet)]


def _alphabet(codes: ItemCodes) -> str:
    """The symbol of every code of every level; ConfigError when Unicode has too few."""
    sizes = codes.level_sizes
    n_symbols = sizes[0] if codes.shared_vocabulary else sum(sizes)
    most = len(_PLANES) * _PLANE_SIZE
    if n_symbols > most:
        raise ConfigError(
            f"level_sizes: expected at most {most:,} different codes for sentencepiece, got {n_symbols:,}"
        )
    return "".join(map(chr, _points(np.arange(n_symbols)).tolist()))


def _train(lines: list[str], settings: SentencePieceSettings, n_levels: int, n_symbols: int) -> bytes:
    """The model of SentencePiece, in its own format."""
    written = io.BytesIO()
    _package().SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type=settings.model,
        input_format="tsv",
        vocab_size=1 + n_symbols + settings.n_longer,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        split_by_number=False,
        split_by_unicode_script=False,
        max_sentencepiece_length=min(settings.max_length or n_levels, n_levels),
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,  # sums of floats depend on it
        minloglevel=2,
    )
    return written.getvalue()
