"""Text tokenizers and language models of a few kilobytes, trained or drawn in memory: what tests fine-tune.

Importing this module needs tokenizers and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "red wool scarf for winter",
    "blue cotton scarf, light and soft",
    "a green wool hat that keeps you warm",
    "running shoes for the rain",
    "leather shoes in brown, size 42",
    "What will this user buy next? The user bought:",
    "naïve café — 12,50 €",
)
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level_tokenizer(corpus: Sequence[str] = CORPUS, vocab_size: int = 320, *, bos: bool = False) -> Any:
    """Byte-level BPE as Qwen has it (no start token, ``<|endoftext|>`` pads), or with ``bos`` as Llama 3 has it."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet))
    special: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    extra = [CHATML[1]]
    if bos:
        special, extra = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, ["<|eot_id|>"]
    made = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False, **special)
    made.add_special_tokens({"additional_special_tokens": extra})
    return made


def unigram_tokenizer(corpus: Sequence[str] = CORPUS, vocab_size: int = 120) -> Any:
    """A unigram tokenizer as T5 has it: ``<pad>`` 0, ``</s>`` 1 behind every text, ``<unk>`` 2, sentinels last."""
    words = Tokenizer(models.Unigram())
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    words.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    words.train_from_iterator(
        corpus,
        trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    made.add_special_tokens({"additional_special_tokens": ["<extra_id_1>", "<extra_id_0>"]})
    return made
