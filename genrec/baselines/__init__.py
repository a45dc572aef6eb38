"""Reference points behind the same protocol as every other recommender: counting baselines and SASRec.

Importing this package does not import torch; SASRec is in :mod:`genrec.baselines.sasrec`.
"""

from genrec.baselines.counting import (
    ContentKnn,
    CopyLast,
    ItemKnn,
    Markov1,
    Popularity,
)
from genrec.baselines.leak_probe import LargerIdProbe, id_order

__all__ = ["ContentKnn", "CopyLast", "ItemKnn", "LargerIdProbe", "Markov1", "Popularity", "id_order"]
