"""The rule of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrec.decoding.interface import Normalize, SearchOptions
from genrec.errors import ConfigError
from genrec.metrics.ranking import KS


@dataclass(frozen=True)
class EvalSettings:
    """The rule of an evaluation: one rule for all models that are compared.

    ks: list lengths. exclude_seen: items of the history are taken out of the ranking; a target that is itself
    in the history is then a miss. history_cap: the model sees only the last so many events (None = all);
    exclusion always uses the entire history. batch_size: queries at a time. method: "dense" ranks by
    ``score_all``, "list" by ``recommend`` (everything found); "auto" = dense where the model can. In a pipeline "dense"
    scores the whole catalog with the generative model instead of searching it.
    n_beams, normalize: for models that search. n_bootstrap: resamples for the intervals, 0 = none.
    seed: of the resamples. Raises ConfigError. Stability: stable.
    """

    ks: tuple[int, ...] = KS
    exclude_seen: bool = True
    history_cap: int | None = None
    batch_size: int = 256
    method: Literal["auto", "dense", "list"] = "auto"
    n_beams: int = 50
    normalize: Normalize | None = None
    n_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) != len(self.ks):
            raise ConfigError(f"ks: expected distinct positive list lengths, got {self.ks}")
        if self.history_cap is not None and self.history_cap < 1:
            raise ConfigError(f"history_cap: expected a positive integer or None, got {self.history_cap}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected a positive integer, got {self.batch_size}")
        if self.method not in ("auto", "dense", "list"):
            raise ConfigError(f"method: expected 'auto', 'dense' or 'list', got {self.method!r}")
        if self.n_bootstrap < 0:
            raise ConfigError(f"n_bootstrap: expected 0 or more, got {self.n_bootstrap}")
        self.search_options()  # checks n_beams and normalize

    def search_options(self) -> SearchOptions:
        """What a searching model is asked: everything its beams find."""
        return SearchOptions(top_k=None, n_beams=self.n_beams, exclude_seen=self.exclude_seen, normalize=self.normalize)
