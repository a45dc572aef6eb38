"""The figures of identifier metrics that were measured once, by other code, on Amazon Beauty (2014)."""

import os
from pathlib import Path

import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.data.readers import ReaderSettings, read
from genrec.data.splits import EvalSet, leave_one_out
from genrec.embeddings.collaborative import PpmiSettings, ppmi
from genrec.evaluation.identifier_controls import inspect_with_controls
from genrec.evaluation.identifiers import InspectSettings
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings

NAME = "amazon-beauty-2014"


@pytest.fixture(scope="module")
def reports():
    """RQ k-means of the unit rows of 64 singular vectors of whole-history PPMI, of the items seen in training."""
    named = os.environ.get("GENREC_DATA")
    folder = (Path(named) if named else Path(__file__).parents[3] / "shared" / "data") / NAME
    if not folder.is_dir():
        pytest.skip(f"needs the data set {folder}; set GENREC_DATA to the folder that holds it")
    data = read(ReaderSettings("neutral", folder))
    split = leave_one_out(data.interactions)
    train, queries = split.train(), split.queries("valid")
    known = np.unique(train.items)
    number = np.full(split.n_items, -1, dtype=np.int32)
    number[known] = np.arange(len(known))
    queries = queries.take(number[queries.targets.items] >= 0)
    settings = PpmiSettings(dim=64, window=300, decay=1.0, value_power=1.0)
    vectors = ppmi(train, split.n_items, settings, "beauty").vectors[known]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = RqKMeans(RqKMeansSettings(collisions="shared")).fit(TokenizerSource.of_vectors(vectors), seed=0)
    return inspect_with_controls(
        codes,
        vectors=vectors,
        train=_renumbered(train, number),
        held_out=EvalSet(queries.users, _renumbered(queries.histories, number), _renumbered(queries.targets, number)),
        categories=[data.catalog.fields["categories"][item] for item in known],
        settings=InspectSettings(max_pairs=30_000, max_similarities=10**9, max_items=500),
    )


def _renumbered(histories, number):
    return Histories(histories.offsets, number[histories.items])


@pytest.mark.slow
def test_residual_kmeans_of_beauty(reports):
    found = reports["codes"].figures
    assert reports["codes"].context["n_items"] == 12_068
    assert found["collision_rate"] == pytest.approx(0.172, abs=0.02)
    assert found["collision_share"] == pytest.approx(0.228, abs=0.02)
    assert found["perplexity"][:2] == pytest.approx([212, 140], rel=0.07)
    assert found["perplexity"][2] == pytest.approx(113, rel=0.2)
    assert found["conditional_entropy"][1] == pytest.approx(4.5, abs=0.1)
    assert found["reconstruction_error"] == pytest.approx(0.183, abs=0.005)
    assert found["random_prefix_rate"][:2] == pytest.approx([0.0055, 0.0005], abs=0.0002)
    assert found["category_ami.4"][:2] == pytest.approx([0.125, 0.046], abs=0.015)
    assert found["category_purity.4"][1] == pytest.approx(0.67, abs=0.05)


@pytest.mark.slow
def test_hit_rates_of_beauty(reports):
    found = reports["codes"].figures
    raw, quantised = ([found[f"held_out.{kind}_hit_rate@{k}"] for k in (10, 50, 200)] for kind in ("raw", "quantised"))
    assert raw == pytest.approx([0.0353, 0.0869, 0.1865], abs=0.003)
    assert quantised == pytest.approx([0.0238, 0.0700, 0.1615], abs=0.004)
    assert found["held_out.hit_rate_ratio@50"] == pytest.approx(0.81, abs=0.03)


@pytest.mark.slow
def test_random_codes_of_beauty_win_usage_and_nothing_else(reports):
    good, random = reports["codes"].figures, reports["random"].figures
    assert random["collision_rate"] == pytest.approx(0.0004, abs=0.0004)
    assert random["perplexity"] == pytest.approx([254, 253, 254], abs=1)
    assert random["conditional_entropy"][1] == pytest.approx(5.4, abs=0.05)
    assert random["category_ami.4"][1] == pytest.approx(0, abs=0.003)
    assert random["category_purity.4"][1] > good["category_purity.4"][1] + 0.15  # why purity needs its shuffle
    assert random["category_purity_lift.4"][1] == pytest.approx(0, abs=0.01)
    assert random["pair_prefix_rate"][0] == pytest.approx(0.004, abs=0.001)
    rates = [random[f"held_out.quantised_hit_rate@{k}"] for k in (10, 50, 200)]
    assert rates == pytest.approx([10 / 12_067, 50 / 12_067, 200 / 12_067], rel=0.4)
    assert good["pair_prefix_lift"][0] > 25 and random["pair_prefix_lift"][0] == pytest.approx(1, abs=0.15)
