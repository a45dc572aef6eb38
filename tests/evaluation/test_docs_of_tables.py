"""docs/evaluation.md explains every label of the results and data tables."""

import re
from pathlib import Path

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.summary import statistics
from genrec.metrics.beyond_accuracy import DEFINITIONS as OF_LISTS
from genrec.metrics.ranking import RANKING

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"`([^`]+)`", PAGE))


@pytest.mark.parametrize("name", [*RANKING, *OF_LISTS, "warm", "cold", "exposed_targets", "p (t)", "p (rand)", "diff"])
def test_columns_of_results_are_explained(name):
    assert name in WORDS


def test_labels_of_the_data_table_are_explained():
    catalog = ItemCatalog(("a",), {"title": ["x"]})
    log = Interactions.from_arrays(["u"], np.zeros(1, int), None, n_items=1, catalog=catalog.fingerprint)
    plain = {"users", "items", "interactions"}
    for label in (name.replace("_", " ") for name in statistics(log, catalog)):
        assert label in plain | WORDS or (label.startswith("length ") and label.removeprefix("length ") in WORDS), label
