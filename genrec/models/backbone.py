"""Backbones from settings: a T5 or a Qwen3-type decoder with random weights over the item vocabulary.

Axes: V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from genrec import seeding
from genrec.decoding.scorer import Scorer
from genrec.errors import ConfigError
from genrec.models.decoder_scorer import DecoderScorer
from genrec.models.prompting import Layout
from genrec.models.t5_scorer import T5Scorer
from genrec.vocab.token_map import TokenMap

VOCAB_MULTIPLE = 8


@dataclass(frozen=True)
class T5Settings:
    """An encoder-decoder of the size of TIGER (Rajput et al. 2023, arXiv:2305.05065).

    d_model: width D. n_layers: of the encoder and of the decoder. d_kv: width of one head. d_ff: width of the
    feed-forward layer (ReLU). dropout: of T5 itself. embedding_std: standard deviation of new embeddings,
    which input and output share. T5's own 1.0 starts about 0.5 nat above the cross-entropy ln V of a uniform
    prediction, 0.05 starts at it; on a toy task 1.0 learned faster at every learning rate tried.

    Raises ConfigError for values out of range. Stability: stable.
    """

    kind: Literal["t5"] = "t5"
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 6
    d_kv: int = 64
    d_ff: int = 1024
    dropout: float = 0.1
    embedding_std: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "d_model", "n_layers", "n_heads", "d_kv", "d_ff", "embedding_std")
        _check_dropout(self.dropout)


@dataclass(frozen=True)
class DecoderSettings:
    """A small decoder-only transformer of Qwen3 type (pre-norm, rotary positions, SwiGLU).

    hidden_size: width D. n_heads: of hidden_size / n_heads each. d_ff: width of the gated feed-forward layer;
    8/3 of the width has the weights of an ungated one of 4 times. dropout: of embeddings, attention and
    feed-forward outputs while training (:func:`apply_training_dropout`; Qwen3 itself has none).

    Raises ConfigError for values out of range. Stability: stable.
    """

    kind: Literal["decoder"] = "decoder"
    hidden_size: int = 192
    n_layers: int = 4
    n_heads: int = 6
    d_ff: int = 512
    dropout: float = 0.3
    tie_word_embeddings: bool = True
    max_positions: int = 2048

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "n_layers", "n_heads", "d_ff", "max_positions")
        _check_dropout(self.dropout)
        if self.hidden_size % (2 * self.n_heads):
            raise ConfigError(
                f"hidden_size: expected a multiple of 2 x n_heads = {2 * self.n_heads}, got {self.hidden_size}"
            )


BackboneSettings = T5Settings | DecoderSettings


def padded_vocab_size(token_map: TokenMap) -> int:
    """Rows of the embedding: the vocabulary, rounded up to a multiple of 8; the model's config records it."""
    return -(-token_map.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def build(settings: BackboneSettings, token_map: TokenMap, *, seed: int) -> PreTrainedModel:
    """A new model with random weights, in evaluation mode; the global random state is left as it was.

    The same settings, vocabulary and seed give the same weights. The decoder is returned with its training
    dropout attached. The config names the vocabulary (``genrec_vocabulary``), to which the model is bound.
    """
    shared: dict[str, Any] = {
        "vocab_size": padded_vocab_size(token_map),
        "pad_token_id": token_map.pad_id,
        "eos_token_id": token_map.eos_id,
        "genrec_vocabulary": token_map.fingerprint,
    }
    return _build(settings, shared, token_map.bos_id, seed)


def build_body(settings: BackboneSettings, *, seed: int) -> PreTrainedModel:
    """The same without a vocabulary, for models that read and write vectors; its embeddings are frozen (internal)."""
    model = _build(settings, {"vocab_size": VOCAB_MULTIPLE, "pad_token_id": 0, "eos_token_id": 1}, 2, seed)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.requires_grad_(False)
    return model


def _build(settings: BackboneSettings, shared: dict[str, Any], bos_id: int | None, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the GPU
        torch.default_generator.manual_seed(seeding.derive(seed, "backbone", settings.kind))
        if isinstance(settings, T5Settings):
            return _build_t5(settings, shared)
        return _build_decoder(settings, {**shared, "bos_token_id": bos_id})


def _build_t5(settings: T5Settings, shared: dict[str, Any]) -> PreTrainedModel:
    config = T5Config(
        d_model=settings.d_model,
        d_kv=settings.d_kv,
        d_ff=settings.d_ff,
        num_layers=settings.n_layers,
        num_heads=settings.n_heads,
        dropout_rate=settings.dropout,
        decoder_start_token_id=shared["pad_token_id"],
        **shared,
    )
    model = T5ForConditionalGeneration(config)
    nn.init.normal_(model.shared.weight, std=settings.embedding_std)
    return model.eval()


def _build_decoder(settings: DecoderSettings, shared: dict[str, Any]) -> PreTrainedModel:
    config = Qwen3Config(
        hidden_size=settings.hidden_size,
        intermediate_size=settings.d_ff,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.n_heads,
        num_key_value_heads=settings.n_heads,
        head_dim=settings.hidden_size // settings.n_heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=settings.tie_word_embeddings,
        **shared,
    )
    model = Qwen3ForCausalLM(config)
    apply_training_dropout(model, settings.dropout)
    return model.eval()


def apply_training_dropout(model: PreTrainedModel, p: float) -> list[RemovableHandle]:
    """Drop activations of a Qwen2/Qwen3/Llama model where GPT-2 does, in training mode only.

    Forward hooks on the embedding and on every attention and feed-forward block (before the residual sum), so
    nothing of it is saved with the model and evaluation is untouched. Returns the hooks; ``remove()`` undoes.
    """
    _check_dropout(p)
    if p == 0:
        return []

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return None
        if isinstance(output, tuple):
            return (F.dropout(output[0], p), *output[1:])
        return F.dropout(output, p)

    base: Any = model.base_model
    blocks = [base.embed_tokens, *(b for layer in base.layers for b in (layer.self_attn, layer.mlp))]
    return [block.register_forward_hook(drop) for block in blocks]


def layout_of(model: PreTrainedModel) -> Layout:
    """Which prompt the model reads."""
    return "encoder" if model.config.is_encoder_decoder else "decoder"


def scorer_of(model: PreTrainedModel, token_map: TokenMap) -> Scorer:
    """The scorer that fits the model; raises ConfigError for a kind that has none."""
    return T5Scorer(model, token_map) if layout_of(model) == "encoder" else DecoderScorer(model, token_map)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for a while."""
    if not any(module.training for module in model.modules()):
        yield  # setting the mode of every module costs milliseconds, as much as a small search
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _positive(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) <= 0:
            raise ConfigError(f"{name}: expected a positive number, got {getattr(settings, name)}")


def _check_dropout(p: float) -> None:
    if not 0 <= p < 1:
        raise ConfigError(f"dropout: expected 0 <= p < 1, got {p}")
