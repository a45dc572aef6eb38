import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.summary import statistics, table


def test_figures_of_a_small_set_by_hand():
    titles = ["one", "", " ", None, "two"]
    catalog = ItemCatalog(tuple("vwxyz"), {"title": titles})
    users, items, times = list("aaaabbc"), [0, 1, 0, 2, 0, 3, 0], [1, 1, 2, 7, 7, 7, 5]
    inter = Interactions.from_arrays(users, items, times, n_items=5, catalog=catalog.fingerprint)
    assert statistics(inter, catalog) == {
        "users": 3,
        "items": 5,
        "items_with_interactions": 4,
        "interactions": 7,
        "density": 6 / (3 * 5),  # user a repeats item 0
        "length_min": 1,
        "length_median": 2.0,
        "length_mean": 7 / 3,
        "length_p95": 4,
        "length_max": 4,
        "repeat_share": 1 / 7,
        "tied_share": 2 / 4,
        "time_min": 1,
        "time_max": 7,
        "titles": 2,
        "top_1_percent_share": 4 / 7,
    }


def test_no_events_are_no_division_by_zero():
    catalog = ItemCatalog((), {"title": []})
    inter = Interactions.from_arrays([], [], [], n_items=0, catalog=catalog.fingerprint)
    figures = statistics(inter, catalog)
    assert figures["interactions"] == 0 and figures["time_min"] is None
    assert "-" in table(figures)


# the "Statistics" tables of the data sets
PUBLISHED = {
    "amazon-beauty-2014": (
        *(22363, 12101, 198502, 0.0734, (5, 6, 8.88, 21, 204)),
        *(43.94, 10.5, 12101, 1023840000, 1406073600),
    ),
    "amazon-office-2014": (
        *(4905, 2420, 53258, 0.4487, (5, 7, 10.86, 29, 94)),
        *(0.0, 8.0, 2420, 0, 93),
    ),
    "amazon-games-2014-timesplit": (
        *(49156, 17332, 342329, 0.0402, (1, 5, 6.96, 16, 658)),
        *(0.0, 14.1, 17313, 0, 657),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_equal_the_published_ones(loaded_set, name):
    loaded = loaded_set(name)
    f = statistics(loaded.interactions, loaded.catalog)
    lengths = (
        f["length_min"],
        f["length_median"],
        round(f["length_mean"], 2),
        f["length_p95"],
        f["length_max"],
    )
    assert (
        f["users"],
        f["items"],
        f["interactions"],
        round(100 * f["density"], 4),
        lengths,
        round(100 * f["tied_share"], 2),
        round(100 * f["top_1_percent_share"], 1),
        f["titles"],
        f["time_min"],
        f["time_max"],
    ) == PUBLISHED[name]
    assert f["items_with_interactions"] == f["items"] and f["repeat_share"] == 0
    assert sum(r.rows_rejected for r in loaded.rejected.rows.values()) == 0


def test_the_file_order_of_beauty_is_kept(loaded_set):
    # inside ties the benchmark order is always ascending item id: the order of the file, not one of ours
    loaded = loaded_set("amazon-beauty-2014")
    inter = loaded.interactions
    tied = (inter.user[1:] == inter.user[:-1]) & (inter.time[1:] == inter.time[:-1])
    ids = np.array(loaded.catalog.ids)[inter.item]
    assert int(tied.sum()) == 77402 and bool((ids[1:][tied] > ids[:-1][tied]).all())


def test_the_table_has_one_line_per_figure():
    catalog = ItemCatalog(("a",), {"title": ["t"]})
    inter = Interactions.from_arrays(["u"], [0], [3], n_items=1, catalog=catalog.fingerprint)
    lines = table(statistics(inter, catalog)).splitlines()
    assert len(lines) == 16 and len({len(line) for line in lines}) == 1
    assert lines[4].split() == ["density", "100.0000", "%"]
