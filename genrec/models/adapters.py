"""Small parts of a large model that are trained: low-rank adapters on its layers, and the rows of the item tokens.

Hu et al. 2021, LoRA (arXiv:2106.09685), as the PEFT library has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from genrec import seeding
from genrec.errors import ConfigError
from genrec.vocab.token_map import TokenMap

ROWS = "trainable_tokens_delta"
"""In the names of the weights that are rows of item and user tokens."""
DECODER_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
T5_ATTENTION = ("q", "k", "v", "o")


@dataclass(frozen=True)
class LoraSettings:
    """What is trained of a pretrained model; everything else keeps its values.

    r: rank of the adapters; 0 = none, only the new rows are trained. alpha: an adapter's output is scaled by alpha / r.
    dropout: of its input, while training. target_modules: ``attention`` (query, key, value and output projections),
    ``all-linear`` (those of the feed-forward layers too), or names of layers. train_rows: train the rows of item and
    user tokens too, in the input table and in an output table of its own.

    Raises ConfigError for values out of range. Stability: experimental.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: Literal["attention", "all-linear"] | tuple[str, ...] = "attention"
    train_rows: bool = True

    def __post_init__(self) -> None:
        if self.r < 0:
            raise ConfigError(f"r: expected 0 or more, got {self.r}")
        if self.alpha <= 0:
            raise ConfigError(f"alpha: expected a positive number, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: expected 0 <= p < 1, got {self.dropout}")
        if not self.target_modules:
            raise ConfigError("target_modules: expected 'attention', 'all-linear' or names of layers, got none")
        if self.r == 0 and not self.train_rows:
            raise ConfigError("r: 0 without train_rows leaves nothing to train")


def add_lora(model: PreTrainedModel, token_map: TokenMap | None, settings: LoraSettings, *, seed: int = 0) -> Any:
    """The model with adapters that are trained while its own weights are frozen: a PEFT model around ``model``.

    The rows of item and user tokens belong to the adapter (``trainable_token_indices``), trained or not, so that an
    adapter and the pretrained model are all there is to keep. ``model`` is changed in place. The search, the loss and
    ``generate`` see adapters and trained rows. seed: of the adapters' start values; the global random state is left
    alone. token_map: None = the model knows no item tokens, and has adapters alone. Raises ConfigError for layers that
    do not exist, and for the embedding or output layer among them. Stability: experimental.
    """
    from peft import LoraConfig, TaskType, TrainableTokensConfig, get_peft_model

    from genrec.models.trained_rows import place_rows  # PEFT takes seconds to import

    tables = _table_names(model)
    rows = [] if token_map is None else list(range(token_map.first_item_id, token_map.vocab_size))
    task = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    if settings.r == 0:
        config: Any = TrainableTokensConfig(token_indices=rows, target_modules=tables, task_type=task)
    else:
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=_layers(model, settings, tables),
            trainable_token_indices=dict.fromkeys(tables, rows) if rows else None,
            task_type=task,
        )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.default_generator.manual_seed(seeding.derive(seed, "adapters"))
        wrapped = get_peft_model(model, config)
    place_rows(wrapped)
    if not settings.train_rows:
        freeze_rows(wrapped)
        model.config.genrec_train_rows = False  # saved with the model, for who goes on training it
    return wrapped.eval()


def freeze_rows(model: Any) -> None:
    """Keep the rows of item and user tokens as they are, in place (internal)."""
    for name, weight in model.named_parameters():
        if ROWS in name:
            weight.requires_grad_(False)


def is_adapted(model: Any) -> bool:
    """Whether the model is one of :func:`add_lora`."""
    return hasattr(model, "peft_config")


def base_of(model: Any) -> Any:
    """The Hugging Face model inside, adapters included (internal)."""
    return model.get_base_model() if is_adapted(model) else model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without what PEFT warns of and nobody here can change (internal)."""
    with warnings.catch_warnings():
        # it asks transformers for an attribute by its old name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # it does tie the rows of the two tables
        warnings.filterwarnings("ignore", message=".*no implementation exists to tie the adapters.*")
        yield


def _table_names(model: PreTrainedModel) -> list[str]:
    """Names of the input table, and of the output table where it is another one."""
    own, out = model.get_input_embeddings(), model.get_output_embeddings()
    wanted = [own] if own.weight is out.weight else [own, out]
    return [next(name for name, module in model.named_modules() if module is each) for each in wanted]


def _layers(model: PreTrainedModel, settings: LoraSettings, tables: list[str]) -> list[str]:
    """Last names of the linear layers that get an adapter."""
    output = model.get_output_embeddings()
    linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output}
    if settings.target_modules == "all-linear":
        return sorted(linear)
    asked = settings.target_modules
    if asked == "attention":
        asked = T5_ATTENTION if model.config.is_encoder_decoder else DECODER_ATTENTION
    ends = {name.rpartition(".")[2] for name in tables} | {"lm_head", "embed_tokens", "shared"}
    for name in asked:
        if name.rpartition(".")[2] in ends:
            raise ConfigError(
                f"target_modules: {name!r} is an embedding or output layer, whose item rows train_rows trains"
            )
        if name.rpartition(".")[2] not in linear:
            raise ConfigError(
                f"target_modules: the model has no linear layer {name!r}; it has {', '.join(sorted(linear))}"
            )
    return sorted(asked)


def item_rows(model: Any, token_map: TokenMap) -> list[Tensor]:
    """The trained rows of item and user tokens, ``[R, D]`` views from ``token_map.first_item_id`` on (internal).

    Of the input table, and of the output table where it is another one; of adapters only where the rows are trained.
    """
    if is_adapted(model):
        found = {id(w): w for name, w in model.named_parameters() if ROWS in name}
        return [weight.data for weight in found.values() if weight.requires_grad]
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    first, last = token_map.first_item_id, token_map.vocab_size
    return [table.data[first:last] for table in {id(table): table for table in tables}.values()]
