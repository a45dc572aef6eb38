"""A pretrained model's text vocabulary with item tokens behind it.

Axes: M tokens of an item, T tokens of a text. transformers and tokenizers are imported where they are needed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import ArtifactError, ConfigError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.vocab.token_map import TextBase, TokenMap


@dataclass(frozen=True, eq=False)
class TextVocabulary:
    """A text tokenizer that knows the item tokens, and where they are.

    tokenizer: a Hugging Face fast tokenizer; a string such as ``<a_3><b_1>`` inside a text becomes one id per token.
    token_map: ids of the item and user tokens. Treat both as immutable.

    What users and catalogs wrote goes through :meth:`encode_text`, never through ``tokenizer``: it cannot name an item.
    Stability: experimental.
    """

    tokenizer: Any
    token_map: TokenMap

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text, without any token that stands for more than text, whatever it holds.

        ``<a_3>``, ``</s>`` or ``<|im_end|>`` in it are read as the characters they consist of; no start or end is
        added. Where the text model itself knows such a string as one piece, a space is put into it. The unknown token
        may occur, for characters that the text tokenizer does not know.
        """
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode_text` of many texts at once."""
        # lone surrogates are no text
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        found = self._text_only.encode_batch(clean, add_special_tokens=False)
        return [self._checked(text, encoding) for text, encoding in zip(clean, found, strict=True)]

    def encode_pieces(self, pieces: Sequence[str]) -> list[list[int]]:
        """Ids of the pieces of text identifiers: a token of the text tokenizer is itself, others are text (internal).

        ``▁`` stands for the space before a word, as in SentencePiece.
        """
        known, allowed = self.tokenizer.get_vocab(), self.token_map.first_item_id
        texts = self.encode_texts([piece.replace("▁", " ") for piece in pieces])
        own = [known.get(piece, allowed) for piece in pieces]
        return [[i] if i < allowed and i not in self._forbidden else text for i, text in zip(own, texts, strict=True)]

    def item_ids(self, codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Token ids of identifiers, int64 ``[..., M]``; see :meth:`TokenMap.token_ids`."""
        return self.token_map.token_ids(codes)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, item and special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer as Hugging Face stores it; ``AutoTokenizer`` reads it without genrec.

        The token map is kept apart, see :meth:`TokenMap.to_dict`.
        """
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path, token_map: TokenMap) -> TextVocabulary:
        """Read what :meth:`save` wrote.

        Raises ArtifactError where there is no tokenizer, FingerprintMismatch for one that ``token_map`` does not fit.
        """
        found = load_tokenizer(folder)
        base = token_map.base
        if base is None or fingerprint_of(found, base.first_item_id) != base.tokenizer:
            raise FingerprintMismatch(f"{folder}: the token map was made for another text tokenizer")
        ids = found.convert_tokens_to_ids(token_map.new_tokens())
        if ids != list(range(base.first_item_id, token_map.vocab_size)):
            raise FingerprintMismatch(f"{folder}: the item tokens of the tokenizer are not those of the token map")
        return cls(found, token_map)

    @cached_property
    def _text_only(self) -> Any:
        """The tokenizer without its added tokens: what it makes of plain characters."""
        from tokenizers import Tokenizer

        spec = json.loads(self.tokenizer.backend_tokenizer.to_str())
        spec |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        return Tokenizer.from_str(json.dumps(spec))

    @cached_property
    def _forbidden(self) -> frozenset[int | None]:
        """Ids that no text may yield. The unknown token is none of them, unless it means something else too."""
        words, base = self.tokenizer, self.token_map.base
        ids = {*words.added_tokens_decoder, *words.all_special_ids} - {words.unk_token_id}
        return frozenset(ids if base is None else ids | {base.pad_id, base.eos_id, base.bos_id})

    def _checked(self, text: str, encoding: Any) -> list[int]:
        """The ids, once no special piece of the model's own vocabulary is among them."""
        while bad := [span for i, span in zip(encoding.ids, encoding.offsets, strict=True) if i in self._forbidden]:
            for start, end in reversed(bad):
                # a piece of one character cannot be split: it goes
                split = f"{text[start]} {text[start + 1 : end]}" if end - start > 1 else " "
                text = text[:start] + split + text[end:]
            encoding = self._text_only.encode(text, add_special_tokens=False)
        return list(encoding.ids)


def extend_vocabulary(
    tokenizer: Any,
    codes: ItemCodes | Sequence[int],
    *,
    n_user_tokens: int = 0,
    user_levels: tuple[int, ...] = (),
) -> TextVocabulary:
    """Add a token for every (level, code), and for users, to a text tokenizer.

    The new ids follow the largest one in use, as in Hugging Face: a model that has spare rows behind its tokens (T5,
    Qwen) uses them up first. ``tokenizer`` itself is left as it was. Without a padding token the end token pads.

    codes: identifiers, or the number of codes of each level (fixed length). n_user_tokens, user_levels: see
    :class:`TokenMap`. Raises ConfigError for a tokenizer that is
    not a fast one, has no end token, or knows one of the new tokens already. Stability: experimental.
    """
    from tokenizers import AddedToken

    check_tokenizer(tokenizer)
    extended = copy.deepcopy(tokenizer)
    if extended.pad_token_id is None:
        extended.pad_token = extended.eos_token
    vocabulary = extended.get_vocab()
    first = max(vocabulary.values()) + 1
    base = TextBase(
        first_item_id=first,
        pad_id=extended.pad_token_id,
        eos_id=extended.eos_token_id,
        bos_id=extended.bos_token_id,
        tokenizer=fingerprint_of(extended, first),
    )
    if isinstance(codes, ItemCodes):
        token_map = TokenMap.of(codes, n_user_tokens=n_user_tokens, base=base, user_levels=user_levels)
    else:
        token_map = TokenMap(tuple(codes), n_user_tokens=n_user_tokens, base=base, user_levels=user_levels)
    new = token_map.new_tokens()
    if known := [token for token in new if token in vocabulary]:
        raise ConfigError(
            f"tokenizer: it has {len(known)} of the item tokens already, such as {known[0]}",
            hint="give the tokenizer of the pretrained model, not one that was extended before",
        )
    # not normalised: exactly these characters; not special: decoding keeps them where it skips special tokens
    extended.add_tokens([AddedToken(each, normalized=False, lstrip=False, rstrip=False, special=False) for each in new])
    ids = extended.convert_tokens_to_ids(new)
    if ids != list(range(first, token_map.vocab_size)):
        raise ConfigError(
            f"tokenizer: expected the new tokens to get the ids {first} .. {token_map.vocab_size - 1}, "
            f"they got {ids[0]} .. {ids[-1]}: the ids of this tokenizer have gaps"
        )
    return TextVocabulary(extended, token_map)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise ConfigError for a text tokenizer that cannot take item tokens (internal)."""
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"tokenizer: expected a fast Hugging Face tokenizer, got {type(tokenizer).__name__}",
            hint="models with a tokenizer.json have one; one of sentencepiece's can be converted by transformers",
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError("tokenizer: expected one with an end token", hint="set tokenizer.eos_token")


def load_tokenizer(name: str | Path) -> Any:
    """The text tokenizer of a folder, or of a model on the hub where there is no such folder.

    Raises ArtifactError where it cannot be read. Stability: experimental.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=Path(name).is_dir())
    except Exception as error:  # the tokenizers library has no narrower one for a file that it cannot read
        raise ArtifactError(f"{name}: not a loadable Hugging Face tokenizer ({error})") from error


def fingerprint_of(tokenizer: Any, n_ids: int) -> str:
    """32 hex digits of the tokens with ids below ``n_ids``: the same before and after item tokens were added.

    Stability: internal.
    """
    known = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i < n_ids)
    return hashlib.sha256(json.dumps(known, separators=(",", ":")).encode()).hexdigest()[:32]
