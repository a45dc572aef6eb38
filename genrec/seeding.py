"""One seed, many independent named streams.

Asking for ``rng(seed, "split")`` and ``rng(seed, "init")`` gives generators that do not influence each
other, so adding a random step to one stage never changes another. Nothing here touches global state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and every name, the same in every process and on every machine.

    Stability: stable.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called ``names`` (stable)."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))


def torch_rng(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the stream called ``names`` (stable)."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


def id_hash(ids: Iterable[str], seed: int = 0) -> npt.NDArray[np.uint64]:
    """Seeded hash of each item id, uint64 ``[N]``: an order of items that carries no information (stable).

    Used wherever items must be put in *some* order (ties, suffix codes): the order of a catalog file often
    follows time or id, and an order that reaches a ranking leaks it.
    """
    key = seed.to_bytes(8, "little", signed=True)
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def number_hash(numbers: npt.NDArray[np.integer], seed: int = 0) -> npt.NDArray[np.uint64]:
    """Seeded hash of item numbers, uint64 of their shape: an order computed where it is needed, never stored (stable).

    An item's number is fixed for ever, and its hash says nothing of the place in a file. The finaliser of SplitMix64
    (Steele, Lea, Flood 2014) is a bijection, so no two numbers share a hash.
    """
    x = np.atleast_1d(numbers).astype(np.uint64) + np.uint64(derive(seed, "item numbers"))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).reshape(np.shape(numbers))
