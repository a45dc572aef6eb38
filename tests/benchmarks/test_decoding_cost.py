"""benchmarks/decoding_cost.py: small catalogs, and both plots."""

import importlib
import sys

import pytest


@pytest.fixture
def cost(bench, monkeypatch):
    names = ("decoding_select", "decoding_index", "decoding_cost")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delenv("STATIC_DECODING", raising=False)
    found = importlib.import_module("decoding_cost")
    monkeypatch.setattr(sys.modules["decoding_select"], "ROUNDS", 1)
    yield found
    for name in names:
        sys.modules.pop(name, None)


def test_costs_are_measured_and_plotted(cost, monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "MOST_STATIC", 1000)
    monkeypatch.setattr(cost, "MOST_TRIE", 500)
    rows = cost.costs((500, 2000), (2, 5))
    assert len(rows) == 2 * 2 * (3 + 2) and all(row["us_per_step"] > 0 for row in rows)
    assert {row["method"] for row in rows if row["items"] == 2000} == {"ours", "no constraint"}
    for file, along in ((tmp_path / "a.svg", "items"), (tmp_path / "b.svg", "beams")):
        cost.plot([row for row in rows if along == "items" or row["items"] == 500], along, along, file)
        drawn = file.read_text()
        assert "dictionary trie" in drawn and "<dc:date>" not in drawn
        cost.plot([row for row in rows if along == "items" or row["items"] == 500], along, along, file)
        assert file.read_text() == drawn
