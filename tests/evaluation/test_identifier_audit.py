"""What published identifiers hide, against loops; and the figures of real files, measured once by other code."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.readers import ReaderSettings, read
from genrec.data.readers.identifier_files import IdentifierFile, read_identifiers
from genrec.data.splits import leave_one_out, predefined_split
from genrec.errors import ConfigError, DataError
from genrec.evaluation.identifier_audit import as_codes, audit, codes_of_catalog, inflation, order_leaks
from genrec.evaluation.identifier_audit_text import _factor, audit_text, findings


def made(tokens, items=None, empty=()):
    items = tuple(f"i{n:03}" for n in range(len(tokens))) if items is None else tuple(items)
    return IdentifierFile(Path("some.index.json"), "index json", items, tuple(map(tuple, tokens)), tuple(empty))


def numbered(rows):
    return made([[f"<{'abcdef'[level]}_{code}>" for level, code in enumerate(row)] for row in rows])


@given(st.lists(st.lists(st.sampled_from("pqr"), min_size=1, max_size=3), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_counts_equal_loops_over_the_tokens(rows):
    found = audit(made(rows))
    keys = [tuple(row) for row in rows]
    groups = Counter(keys)
    assert found["n_items"] == len(rows) and found["distinct"] == len(groups)
    assert found["in_collision"] == sum(groups[key] > 1 for key in keys)
    assert found["largest_group"] == max(groups.values())
    assert found["prefixes_of_others"] == sum(
        any(len(other) > len(key) and other[: len(key)] == key for other in keys) for key in keys
    )
    places = {
        token: {level for key in keys for level, t in enumerate(key) if t == token} for key in keys for token in key
    }
    assert found["tokens"] == len(places)
    assert found["tokens_at_several_levels"] == sum(len(levels) > 1 for levels in places.values())
    longest = max(map(len, keys))
    assert found["lengths"] == [min(map(len, keys)), np.mean([len(key) for key in keys]), longest]
    assert found["used"] == [len({k[level] for k in keys if len(k) > level}) for level in range(longest)]
    prefixes = [len({k[: level + 1] for k in keys if len(k) > level}) for level in range(longest)]
    assert found["distinct_prefixes"] == prefixes


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=3, max_size=25), st.randoms())
@settings(max_examples=60, deadline=None)
def test_order_leaks_equal_their_definition(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    found = order_leaks(as_codes(numbered(rows)), np.array(order))
    a, b, n_groups = [], [], 0
    for parent in sorted({row[0] for row in rows}):
        here = [n for n, row in enumerate(rows) if row[0] == parent]
        if len(here) > 1:
            n_groups += 1
            for values, out in (([rows[n][1] for n in here], a), ([order[n] for n in here], b)):
                rank = rankdata(values)
                out.extend(rank - rank.mean())
    assert found["n_last"] == len(a)
    expected = np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) if a and np.dot(a, a) > 0 else np.nan
    assert found["last"] == pytest.approx(expected, nan_ok=True)
    assert found["z"] == pytest.approx(expected * np.sqrt(max(len(a) - n_groups, 0)), nan_ok=True)
    if len(set(rows)) > 1:
        place = [sorted(set(rows)).index(row) for row in rows]
        assert found["whole"] == pytest.approx(spearmanr(place, order).statistic)


def test_a_counter_that_follows_the_file_is_found_and_a_drawn_one_is_not():
    generator = np.random.default_rng(0)
    parents = generator.integers(30, size=300)
    seen = Counter()
    counted = []
    for parent in parents.tolist():
        counted.append((parent, seen[parent]))
        seen[parent] += 1
    told = findings(audit(numbered(counted)))
    assert any("the place in the file" in text and "correlation 1.00" in text for text in told)
    drawn = [(parent, int(code)) for parent, code in zip(parents, generator.integers(20, size=300), strict=True)]
    assert not any("leaks" in text for text in findings(audit(numbered(drawn))))
    # a file that is sorted by its identifiers says nothing by its order
    assert "file" not in audit(numbered(sorted(drawn)))["order"]


def test_items_numbered_one_after_the_other_are_found():
    rows = [(n // 10, n % 10) for n in range(100)]
    ids = [str(2 * n) for n in range(100)]  # by number: "10" after "2"
    shuffled = np.random.default_rng(1).permutation(100).tolist()
    tokens = [[f"<a_{rows[n][0]}>", f"<b_{rows[n][1]}>"] for n in shuffled]
    found = audit(made(tokens, [ids[n] for n in shuffled]))
    assert found["order"]["id"]["whole"] == pytest.approx(1)
    assert abs(found["order"]["file"]["whole"]) < 0.4
    assert any("numbered along the item id" in text for text in findings(found))


def test_words_have_no_order_and_a_lone_number_among_words_no_size():
    found = audit(made([["nail", "4"], ["mud", "7"], ["mud", "9"]]))
    assert found["order"] == {"file": None, "id": None} and not found["numbered"]
    assert found["level_sizes"] == found["used"] == [2, 3]
    assert not any("dead" in text for text in findings(found))


def test_the_size_of_levels():
    file = numbered([(0, 3), (2, 0), (5, 1)])
    assert audit(file)["level_sizes"] == [6, 4]
    assert audit(file, level_size=8)["dead_codes"] == [5, 5]
    assert as_codes(file).codes.as_int().tolist() == [[0, 3], [2, 0], [5, 1]]
    with pytest.raises(ConfigError, match="more than 5"):
        audit(file, level_size=5)


def test_tokens_that_read_alike_are_not_merged():
    ids = ["A", "B", "C", "D"]
    for one, other in (("1", "01"), ("<b_1>", "<b_01>"), ("7", "999999999")):
        found = as_codes(made([[one, one], [one, other], [other, one], [other, other]], ids))
        assert not found.numbered and len(np.unique(found.codes.as_int(), axis=0)) == 4
        assert found.codes.level_sizes == (2, 2)  # no billion of codes for one large name
    with pytest.raises(ConfigError, match="not numbered"):
        as_codes(made([["nail"], ["mud"]], ids[:2]), level_size=8)


def test_levels_that_add_nothing_are_named():
    told = findings(audit(numbered([(0, 7, 0), (1, 8, 1), (1, 8, 0)])))
    assert [text for text in told if "tells no two items apart" in text] == [
        "level 2 tells no two items apart that the levels before do not tell apart"
    ]


def shop():
    """Items i000..i005; i000 and i001 share an identifier, i005 has none; the file knows an item more."""
    catalog = ItemCatalog(tuple(f"i{n:03}" for n in range(6)), {"title": [f"title {n}" for n in range(6)]})
    rows = [[2, 3, 0], [3, 2, 1], [2, 4, 3], [4, 0, 5]]
    users = [f"u{u}" for u, row in enumerate(rows) for _ in row]
    log = Interactions.from_arrays(users, np.concatenate(rows), None, n_items=6, catalog=catalog.fingerprint)
    file = numbered([(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (1, 2)])
    file = made(file.tokens, [*catalog.ids[:5], "gone"])
    return catalog, leave_one_out(log), file


def test_targets_in_collisions_and_items_on_one_side():
    catalog, split, file = shop()
    found = audit(file, catalog=catalog, split=split)
    assert found["targets"] == 4 and found["targets_without_identifier"] == 1
    assert found["target_share"] == pytest.approx(2 / 3)
    assert found["inflation"] == pytest.approx(3 / (1 / 2 + 1 / 2 + 1)) and found["inflation_at_most"] == 2
    assert found["traffic_share"] == np.mean([item in (0, 1) for item in split.train().items])
    assert found["without_identifier"] == {"n": 1, "first": ["i005"]}
    assert found["without_item"] == {"n": 1, "first": ["gone"]}
    text = audit_text(found, dict(zip(catalog.ids, catalog.text("title"), strict=True)))
    for said in ("i000 'title 0'", "1.5 times", "test targets without an identifier: 1", "(gone)", "(i005)"):
        assert said in text, said
    with pytest.raises(DataError, match="catalog"):
        audit(file, split=split)


def test_inflation_is_the_ratio_of_two_recalls():
    """Every target hit on identifier level; one of its items is listed at random."""
    sizes = [1, 1, 2, 5, 1]
    assert inflation(sizes) == pytest.approx(1 / np.mean([1 / s for s in sizes]))
    assert np.isnan(inflation([]))


def test_codes_of_a_catalog_are_in_its_order():
    catalog, _, file = shop()
    with pytest.raises(DataError, match=r"1 of 6 items .* 'i005'"):
        codes_of_catalog(file, catalog)
    reversed_file = made(file.tokens[:5], catalog.ids[4::-1])
    small = ItemCatalog(catalog.ids[:5], {"title": [""] * 5})
    codes = codes_of_catalog(reversed_file, small)
    assert codes.as_int().tolist() == as_codes(reversed_file).codes.as_int()[::-1].tolist()
    assert codes.catalog == small.fingerprint


def test_a_clean_file_has_no_findings_and_control_characters_do_not_reach_the_terminal():
    generator = np.random.default_rng(3)
    clean = numbered([divmod(int(n), 5) for n in generator.permutation(25)])
    assert "nothing found" in audit_text(audit(clean))
    rude = made([["<a_1>"], ["<a_1>"]], ["x\x1b[2J", "y"])
    assert "\x1b" not in audit_text(audit(rude))


PUBLISHED = {
    "amazon-beauty-2014/letter_rqvae_index.json": (12_101, 12_088, 24, 3, [197, 256, 256, 256], [83, 249, 248, 247]),
    "amazon-beauty-2014/iba_rqvae_index.json": (12_101, 11_868, 410, 9, [185, 230, 243, 231], [147, 199, 205, 152]),
    "amazon-beauty-2014/gram_item_ids.txt": (12_101, 12_101, 0, 1, None, None),
    "amazon-beauty-2014/idgenrec_item_ids_phase0.txt": (12_101, 12_101, 0, 1, None, None),
    "amazon-games-2014-timesplit/lcrec_index.json": (17_332, 17_289, 84, 3, [248, 256, 254, 256], [226, 235, 233, 236]),
    "amazon-office-2014/unitok_index.json": (2_420, 1_006, 1_794, 39, None, [5.7, 5.2, 5.2, 170, 5.2]),
}


def published(name):
    named = os.environ.get("GENREC_DATA")
    folder, _, file = name.partition("/")
    path = (Path(named) if named else Path(__file__).parents[3] / "shared" / "data") / folder / "published" / file
    if not path.is_file():
        pytest.skip(f"needs the published file {path}; set GENREC_DATA to the folder that holds the data sets")
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_have_the_figures_that_were_measured_before(name):
    path = published(name)
    n_items, distinct, in_collision, largest, used, perplexity = PUBLISHED[name]
    found = audit(read_identifiers(path))
    empty = found["empty"]["n"]  # one item of IDGenRec's file; the earlier count took "" for an identifier
    assert (found["n_items"] + empty, found["distinct"] + empty) == (n_items, distinct)
    assert (found["in_collision"], found["largest_group"]) == (in_collision, largest)
    assert used is None or found["used"] == used
    assert perplexity is None or found["perplexity"] == pytest.approx(perplexity, abs=0.5)
    if "games" in name:
        assert found["distinct_prefixes"] == [248, 11_317, 16_628, 17_289]
    if "gram" in name:
        assert found["lengths"] == [7, pytest.approx(7.0, abs=0.05), 8]
    if "idgenrec" in name:
        assert found["empty"]["first"] == ["B001LTVF7G"] and found["lengths"][1:] == [pytest.approx(5.6, abs=0.05), 11]


@pytest.mark.slow
def test_what_a_collapsed_published_file_hides():
    path = published("amazon-office-2014/unitok_index.json")
    data = read(ReaderSettings("neutral", path.parents[1]))
    events = data.interactions
    split = predefined_split(events) if "split" in events.columns else leave_one_out(events)
    found = audit(read_identifiers(path), catalog=data.catalog, split=split)
    assert found["inflation"] > 2 and found["inflation_at_most"] == 39
    assert found["without_identifier"]["n"] == found["without_item"]["n"] == 0


def test_a_split_without_targets_says_nothing_about_recall():
    catalog, _, file = shop()
    nobody = leave_one_out(Interactions.from_arrays(["u"], np.array([0]), None, n_items=6, catalog=catalog.fingerprint))
    found = audit(file, catalog=catalog, split=nobody)
    assert found["targets"] == 0 and found["target_share"] is None and found["inflation"] is None
    assert "recall counted" not in audit_text(found)


def test_a_factor_above_one_is_never_said_to_be_one():
    assert [_factor(x) for x in (2.3333, 1.03, 1.0049, 1.0011, 1.00004)] == [
        "2.33",
        "1.03",
        "1.005",
        "1.001",
        "1.00004",
    ]


def test_a_file_of_other_items_is_refused_and_one_without_a_target_is_told():
    catalog, split, file = shop()
    with pytest.raises(DataError, match=r"none of its 6 items is in the catalog of 6: .* 'x0', .* 'i000'"):
        audit(made(file.tokens, [f"x{n}" for n in range(6)]), catalog=catalog, split=split)
    target = set(catalog.ids_of(split.queries("test").targets.items))
    bystander = next(item for item in catalog.ids if item not in target)
    found = audit(made(file.tokens, [bystander, *(f"x{n}" for n in range(5))]), catalog=catalog, split=split)
    assert found["target_share"] is None and found["targets_without_identifier"] == 4
    assert "test targets in a collision     - of 0" in audit_text(found)
