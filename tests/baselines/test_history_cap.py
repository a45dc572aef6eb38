"""A model says how much of a history it sees, and sees no more."""

import numpy as np

from genrec.baselines.sasrec import SasRec, SasRecSettings
from genrec.data.histories import Histories


def test_sasrec_names_its_limit():
    train = Histories.from_lists([[0, 1, 2, 3], [3, 2, 1, 0]])
    settings = SasRecSettings(dim=4, n_heads=1, n_layers=1, max_items=2, epochs=1)
    model = SasRec.fit(train, 4, settings)
    cap = model.history_cap
    assert cap == 2
    scores = model.score_all(Histories.from_lists([[0, 1, 2, 3], [1, 0, 2, 3][-cap:], [3]]))
    assert np.allclose(scores[0], scores[1], atol=1e-6) and not np.allclose(scores[0], scores[2], atol=1e-6)
