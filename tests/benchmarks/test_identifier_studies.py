"""The table of item tokenizers and the study of metrics: what they make of rows that are given."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import metric_study
    import tokenizer_table

    yield metric_study, tokenizer_table
    for name in ("metric_study", "tokenizer_table", "real_data", "run"):
        sys.modules.pop(name, None)


def _rows(study, n=12, seed=3):
    """Runs whose recall follows `trie_nodes` downwards and the primary metric not at all."""
    generator = np.random.default_rng(seed)
    rows = []
    for name in ("beauty", "office"):
        for number in range(n):
            metrics = dict.fromkeys(study.METRICS, None)
            recall = generator.random()
            metrics |= {"trie_nodes": 1000 - 100 * recall**3, study.PRIMARY: generator.random(), "mean_length": 3.0}
            variant = f"random {number}" if number < 2 else f"variant {number}"
            rows.append({"set": name, "variant": variant, "seed": 0, "recall@10": recall, "metrics": metrics})
    return rows


def test_correlations_are_scipys_and_ignore_what_does_not_vary(modules):
    study, _ = modules
    rows = _rows(study)
    found = study.correlations(rows, draws=200)
    for name in ("beauty", "office"):
        own = [row for row in rows if row["set"] == name]
        expected = spearmanr([r["metrics"][study.PRIMARY] for r in own], [r["recall@10"] for r in own]).statistic
        assert found[study.PRIMARY]["by_set"][name] == pytest.approx(expected)
    assert found["trie_nodes"]["mean"] == pytest.approx(-1)
    low, high = found[study.PRIMARY]["interval"]
    assert low < found[study.PRIMARY]["mean"] < high
    assert np.isnan(found["mean_length"]["mean"]) and np.isnan(found["usage/mean"]["mean"])


def test_what_many_metrics_reach_by_chance(modules, monkeypatch):
    study, _ = modules
    rows = _rows(study)
    monkeypatch.setattr(study, "METRICS", ("trie_nodes",))
    one, random, found = study.largest_by_chance(rows, draws=300), np.random.default_rng(0), []
    by_set = [sorted((r for r in rows if r["set"] == s), key=lambda r: r["variant"]) for s in ("beauty", "office")]
    for _ in range(300):
        order = random.permutation(12)
        both = [
            spearmanr([r["metrics"]["trie_nodes"] for r in own], [own[n]["recall@10"] for n in order]).statistic
            for own in by_set
        ]
        found.append(abs(np.mean(both)))
    assert one == pytest.approx(np.quantile(found, 0.95)) and 0.3 < one < 0.7


def test_random_codes_can_be_left_out(modules):
    study, _ = modules
    rows = _rows(study)
    assert study.correlations(rows, draws=10)["trie_nodes"]["variants"] == 12
    assert study.correlations(rows, draws=10, with_random=False)["trie_nodes"]["variants"] == 10


def test_a_variant_that_lacks_a_set_is_left_out_of_both(modules):
    study, _ = modules
    rows = _rows(study)[:-1]
    assert study.correlations(rows, draws=10)["trie_nodes"]["variants"] == 11


def test_ties_get_mean_ranks(modules):
    study, _ = modules
    a, b = np.array([1.0, 1, 2, 3, 3, np.nan]), np.array([5.0, 4, 4, 9, 1, 0])
    assert study._spearman(a, b) == pytest.approx(spearmanr(a[:-1], b[:-1]).statistic)


def test_the_page_shows_every_row_and_says_what_is_left_out(modules):
    _, table = modules
    figures = dict.fromkeys(table.KEPT, None) | {"collision_rate": 0.125, "perplexity": [3.4, 2.0], "largest_group": 7}
    row = {"set": "office", "level_sizes": [4, 4], "fit_cpu_seconds": 1.234, "encode_items_per_cpu_second": None,
           "fit_peak_mib": 12, "machine": "a machine", "figures": figures, "tokenizer": "mine"}  # fmt: skip
    text = table.page([row, {"set": "office", "tokenizer": "yours", "left_out": "no field"}])
    assert "| mine | 2 x 4 | 1.23 | - | 12 | 12.5 % | - | 7 | - | 3, 2 |" in text
    assert "Left out: yours (no field)." in text and "## Beauty" not in text
