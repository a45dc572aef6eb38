"""bfloat16: where it is worth using, and the attention kernel that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def has_bf16() -> bool:
    """Whether the device that training would use computes in bfloat16 (stable).

    A GPU that has it, else a CPU with AVX512-BF16, AMX-BF16 or Arm's BF16 instructions.
    """
    if torch.cuda.is_available():
        try:
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        except TypeError:  # builds whose function has no such argument
            return bool(torch.cuda.is_bf16_supported())
    tell: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # newer than torch 2.11
    found = tell()
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def attention_kernel() -> AbstractContextManager[None]:
    """What to run attention in while training (internal).

    On a CPU the backward pass of torch's fused attention is slower in bfloat16 than in float32, and than its
    plain form, which is used instead under autocast.
    """
    return sdpa_kernel(SDPBackend.MATH) if torch.is_autocast_enabled("cpu") else nullcontext()
