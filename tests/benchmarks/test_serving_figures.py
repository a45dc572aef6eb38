"""The serving suite in small: what it counts as wrong is found, and the endpoint does none of it."""

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")


def test_the_counts_of_the_endpoint(bench):
    suite, options = bench.serving, bench.run.Options(quick=True, data=None)
    found = suite.validity(options, n_items=300)
    assert found["items"] >= 300 and found["invalid"] == found["disallowed"] == found["short"] == 0
    odd = suite.malformed(options, n_requests=60)
    assert odd.value == 0 and {"200", "400"} <= set(odd.spread)
    found = suite.swaps(options, n_swaps=10)
    assert found["answers"] > 0 and found["failed"] == found["mixed"] == 0
    rush = suite.overload(options, n_requests=100)
    assert sum(rush["statuses"].values()) == 100 and rush["rss_mb"][1] > 0
    assert suite.overload_5xx(options).value == 0


def test_every_committed_figure_is_still_measured(bench):
    names = [figure.name for figure in bench.serving.FIGURES]
    assert len(names) == len(set(names)) and {*bench.run.committed("serving")} <= {*names}
