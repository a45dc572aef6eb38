"""Text tokenizers and language models of a few kilobytes, trained or drawn in memory: what tests fine-tune.

Importing this module needs tokenizers and transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

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
    """A unigram tokenizer as T5 has it: ``<pad>`` 0, ``</s>`` 1 behind every text, ``<unk>`` 2, sentinels last.

    The same in every call of a process; the trainer itself orders pieces of equal score at random.
    """
    return copy.deepcopy(_unigram(tuple(corpus), vocab_size))


@cache
def _unigram(corpus: tuple[str, ...], vocab_size: int) -> Any:
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


DECODERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True, "head_dim": 8}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
}


def tiny_text_model(kind: str, *, seed: int = 0, spare_rows: int = 9) -> tuple[Any, Any]:
    """A language model of two layers with random weights, and its text tokenizer.

    kind: ``t5``, ``t5-gated``, ``qwen3`` (tied tables), ``qwen2`` or ``llama`` (an output table of its own). The tables
    have ``spare_rows`` more rows than there are tokens, as published models do.
    """
    words = unigram_tokenizer() if kind.startswith("t5") else byte_level_tokenizer(bos=kind == "llama")
    rows = len(words) + spare_rows
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if kind.startswith("t5"):
            model = _tiny_t5(rows, gated=kind == "t5-gated")
        else:
            model = _tiny_decoder(kind, rows, words)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases and norms that are told apart from their absence
                torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
    return model.eval(), words


def _tiny_t5(rows: int, *, gated: bool) -> Any:
    config = T5Config(
        vocab_size=rows, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu" if gated else "relu", dropout_rate=0.1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def _tiny_decoder(kind: str, rows: int, words: Any) -> Any:
    make_config, make, own = DECODERS[kind]
    config = make_config(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.2, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id, **own,
    )  # fmt: skip
    return make(config)
