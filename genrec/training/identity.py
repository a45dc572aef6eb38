"""What a checkpoint must have been trained on to be gone on from: model, vocabulary, histories, as digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import nn

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.data.ties import Bools
from genrec.training.dataset import TrainingData

_ADAPTER = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")


def identity_of(model: Any, data: TrainingData) -> dict[str, Any]:
    """What must be equal for a checkpoint to be gone on from, beside the settings (internal)."""
    return {
        "model": shapes_digest(model),
        "vocabulary": data.token_map.fingerprint,
        "codes": data.codes.fingerprint,
        **data_digests(data.histories, data.tied, data.valid),
        "users": _users_digest(data),
        **frozen_parts(model),
    }


def frozen_parts(model: Any) -> dict[str, Any]:
    """What a checkpoint, which holds trained weights alone, is of: adapter settings and the values that are frozen
    (internal).

    Nothing for a model that is trained whole.
    """
    found: dict[str, Any] = {}
    if not all(weight.requires_grad for weight in model.parameters()):
        found["frozen"] = weights_digest(model, frozen=True)
    if hasattr(model, "peft_config"):
        found["adapters"] = [_adapter(config) for config in model.peft_config.values()]
    return found


def _adapter(config: Any) -> dict[str, Any]:
    """The settings that decide what an adapter computes."""
    own = {name: value for name in _ADAPTER if (value := getattr(config, name, None)) is not None}
    # target_modules are a set in PEFT, whose order is that of hashes
    return {name: sorted(value) if isinstance(value, (set, list)) else value for name, value in own.items()}


def shapes_digest(model: nn.Module) -> str:
    """32 hex digits of the kind of model, and of name, shape and part in training of its weights (internal)."""
    shapes = json.dumps([(name, list(w.shape), w.requires_grad) for name, w in model.named_parameters()])
    return hashlib.sha256(f"{type(model).__name__} {shapes}".encode()).hexdigest()[:32]


def weights_digest(model: nn.Module, *, frozen: bool = False) -> str:
    """32 hex digits of the values of all weights, or of those that are not trained (internal)."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if frozen and weight.requires_grad:
            continue
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def data_digests(histories: Histories, tied: Bools | None, valid: EvalSet | None) -> dict[str, Any]:
    """What a training reads of users, for the identity of a :class:`Job` (internal)."""
    return {
        "histories": _digest(histories),
        "tied": None if tied is None else hashlib.sha256(tied.tobytes()).hexdigest()[:32],
        "valid": None if valid is None else _digest(valid.histories, valid.targets),
    }


def _digest(*parts: Histories) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part.offsets, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(part.items, dtype="<i4").tobytes())
    return digest.hexdigest()[:32]


def _users_digest(data: TrainingData) -> str | None:
    """Who the users are, where the model is told."""
    if not data.token_map.n_user_tokens:
        return None
    told = list(data.user_ids or ())
    parts: object = told
    if (index := data.user_index) is not None:
        parts = [told, index.fingerprint, *([index.share] if index.share < 1 else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
