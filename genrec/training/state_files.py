"""The state of optimiser, schedule and random streams in a checkpoint, as safetensors and JSON.

::

    optimizer.safetensors   a tensor ``NUMBER.NAME`` for each kept value of each trained weight, in their order
    optimizer.json          the groups of weights with their settings, and the state of the schedule
    random-RANK.json        Python's, numpy's and torch's generators of one process, bytes as hex digits
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from genrec import artifacts
from genrec.errors import ArtifactError

TENSORS, GROUPS = "optimizer.safetensors", "optimizer.json"


def save_optimizer(optimizer: dict[str, Any], schedule: dict[str, Any], folder: Path) -> None:
    """Write the ``state_dict`` of both (internal)."""
    state = {
        f"{number}.{name}": torch.as_tensor(value).detach().contiguous()
        for number, values in optimizer["state"].items()
        for name, value in values.items()
    }
    save_file(state, folder / TENSORS)
    artifacts.save_json(folder / GROUPS, {"groups": optimizer["param_groups"], "schedule": schedule})


def load_optimizer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What :func:`save_optimizer` wrote, tensors on the CPU (internal).

    Raises ArtifactError, naming the file, for one that is missing or cannot be read.
    """
    told = artifacts.load_json(folder / GROUPS)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / TENSORS}: cannot be read ({error})", hint="delete this checkpoint") from error
    state: dict[int, dict[str, Any]] = {}
    try:
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        groups = [{**group, "betas": tuple(group["betas"])} for group in told["groups"]]
        schedule = dict(told["schedule"])
    except (KeyError, TypeError, ValueError) as error:
        file = folder / GROUPS
        raise ArtifactError(
            f"{file}: not the state of an optimiser ({error})", hint="delete this checkpoint"
        ) from error
    return {"state": state, "param_groups": groups}, schedule


def random_file(rank: int) -> str:
    """Name of the file of one process (internal)."""
    return f"random-{rank}.json"


def random_state() -> dict[str, Any]:
    """The global generators of this process, as JSON (internal)."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state()  # type: ignore[misc]  # noqa: NPY002
    found = {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys, "<u4").tobytes().hex(), int(place), int(has_gauss), float(cached)],
        "torch": _hex(torch.random.get_rng_state()),
    }
    if torch.cuda.is_available():
        found["cuda"] = _hex(torch.cuda.get_rng_state())
    return found


def set_random_state(found: dict[str, Any], file: Path) -> None:
    """Put the generators back (internal). Raises ArtifactError, naming ``file``, for what is none."""
    try:
        version, words, gauss = found["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, *rest = found["numpy"]
        np.random.set_state((name, np.frombuffer(bytes.fromhex(keys), "<u4"), *rest))  # noqa: NPY002
        torch.random.set_rng_state(_bytes(found["torch"]))
        if torch.cuda.is_available() and "cuda" in found:
            torch.cuda.set_rng_state(_bytes(found["cuda"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{file}: not a random state ({error})", hint="delete this checkpoint") from error


def _hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _bytes(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
