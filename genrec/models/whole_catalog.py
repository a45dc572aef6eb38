"""A generative model as a scorer of every item: no search, so no search error.

Axes: U users, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.decoding.interface import Normalize
from genrec.models.recommender import GenerativeRecommender


@dataclass(frozen=True, eq=False)
class WholeCatalog:
    """The log-probability of every item: a :class:`~genrec.decoding.interface.DenseRecommender`.

    Evaluated beside the recommender itself it separates the two errors: what this one misses is the model's error, and
    what only the recommender misses is its search's::

        evaluate(WholeCatalog(model), queries)   # the model
        evaluate(model, queries)                 # the model and its beams

    The cost is one prefix of the model for every prefix of the catalog and user (1,024 for 12,101 items of two codes),
    see :func:`genrec.decoding.exact.score_items`. normalize: None = the recommender's own. Stability: experimental.
    """

    recommender: GenerativeRecommender
    normalize: Normalize | None = None

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return self.recommender.n_items

    @property
    def history_cap(self) -> int:
        """How many events of a history enter the prompt."""
        return self.recommender.history_cap

    def score_all(self, histories: Histories, users: npt.NDArray[np.int32] | None = None) -> npt.NDArray[np.float32]:
        """Log-probabilities float32 ``[U, N]``, -inf for items that are retired or not in the index."""
        return self.recommender.score(histories, None, users, normalize=self.normalize)
