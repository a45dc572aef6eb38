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


@pytest.mark.parametrize(("refused", "values"), [(750, [7, 25, 1.5]), (400, [None, None, None])])
def test_what_is_no_overload_is_no_figure_of_one(bench, refused, values):
    options, suite = bench.run.Options(quick=True, data=None), bench.serving
    statuses = {"0": 3, "200": 1000 - refused - 7, "429": refused, "504": 4}
    options.cache["overload"] = {
        "overload": {"statuses": statuses, "recovered": 1.5}, "refused": refused / 1000, "times_capacity": 5.0,
        "rss_mb": {"calm": 400.0}, "largest_mb": 500.0,
    }  # fmt: skip
    figures = [each for each in suite.FIGURES if each.name.startswith("overload_")]
    assert [each.measure(options).value for each in figures] == values


def test_every_committed_figure_is_still_measured(bench):
    names = [figure.name for figure in bench.serving.FIGURES]
    assert len(names) == len(set(names)) and {*bench.run.committed("serving")} <= {*names}
