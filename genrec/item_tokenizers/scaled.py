"""What item tokenizers over scaled item vectors share: settings, report, history, save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from genrec import recipes
from genrec.errors import NotFitted
from genrec.item_tokenizers.base import Scaling, TokenizerState, load_state, save_state

Arrays = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]


class ScaledVectors:
    """Base of item tokenizers that centre and scale the item vectors first (internal).

    A subclass sets ``Settings`` and writes ``fit`` (which sets ``_scaling`` and ``_catalog``), ``encode``,
    ``_arrays`` (what it learned beside the scaling) and ``_restore`` (its inverse). One whose codes approximate
    vectors also has ``quantized(source)``, which prices the codes of an item (:mod:`genrec.item_tokenizers.life`).
    """

    Settings: ClassVar[type[Any]]
    can_encode_new: ClassVar[bool] = True

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings if settings is not None else self.Settings()
        self.report: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self._catalog = ""
        self._scaling: Scaling | None = None

    @property
    def scaling(self) -> Scaling:
        """How vectors are scaled first; NotFitted before ``fit`` (internal)."""
        if self._scaling is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")
        return self._scaling

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact, with its history if there is one; NotFitted before ``fit``."""
        arrays = {"mean": self.scaling.mean, "scale": self.scaling.scale, **self._arrays()}
        state = TokenizerState(recipes.to_json(self.settings), self._catalog, arrays, self.report, self.history)
        save_state(path, state, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read an ``item_tokenizer`` artifact of this kind; a network is put on the CPU."""
        state = load_state(path, kind=cls.Settings.kind, catalog=catalog)
        tokenizer = cls(recipes.from_dict(cls.Settings, state.settings))
        tokenizer._catalog, tokenizer.report, tokenizer.history = state.catalog, state.meta, state.history
        tokenizer._scaling = Scaling(state.arrays["mean"], state.arrays["scale"])
        tokenizer._restore(state.arrays)
        return tokenizer

    def _arrays(self) -> Arrays:
        raise NotImplementedError

    def _restore(self, arrays: Arrays) -> None:
        raise NotImplementedError


def numbered(prefix: str, tables: tuple[Floats, ...]) -> Arrays:
    """Tables under the names ``prefix.0``, ``prefix.1``, … (internal)."""
    return {f"{prefix}.{number}": table for number, table in enumerate(tables)}


def of_numbers(prefix: str, arrays: Arrays) -> tuple[Floats, ...]:
    """The tables that :func:`numbered` named (internal)."""
    count = sum(name.startswith(f"{prefix}.") for name in arrays)
    return tuple(arrays[f"{prefix}.{number}"] for number in range(count))
