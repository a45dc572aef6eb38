import json
import logging
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.errors import ConfigError, DataError
from genrec.evaluation.identifier_controls import compare_code_tables, controls, inspect_cold, inspect_with_controls
from genrec.evaluation.identifier_inputs import Subject
from genrec.evaluation.identifier_remarks import remarks
from genrec.evaluation.identifier_tokenizers import CONTROL, tokenizer_reports
from genrec.evaluation.identifier_vectors import quantise
from genrec.evaluation.identifiers import InspectSettings, _target_pairs, inspect_codes
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.metrics.codes_names import METRICS, metric_of
from genrec.testing import code_oracles as slow
from genrec.testing.tokenizer_contract import CATALOG

N = 240
SETTINGS = InspectSettings(neighbours_at=(5,), hits_at=(5, 20), max_items=60, max_pairs=400)


def shop(seed=0):
    """Items of six groups of forty; who did an item of group g next does one of g or g + 1."""
    generator = np.random.default_rng(seed)
    group = np.arange(N) // 40
    vectors = (4 * np.eye(6, 8)[group] + generator.normal(size=(N, 8))).astype(np.float32)
    rows = []
    for _ in range(300):
        at = [int(generator.integers(N))]
        for _ in range(6):
            at.append(int((at[-1] // 40 + generator.integers(2)) % 6 * 40 + generator.integers(40)))
        rows.append(at)
    queries = EvalSet(
        np.arange(300, dtype=np.int32),
        Histories.from_lists([r[:-1] for r in rows]),
        Histories.from_lists([r[-1:] for r in rows]),
    )
    categories = [("all", f"group {g}") if n % 9 else None for n, g in enumerate(group)]
    return vectors, Histories.from_lists([r[:-1] for r in rows]), categories, queries


def residual_kmeans(vectors, **options):
    tokenizer = RqKMeans(RqKMeansSettings(**{"n_levels": 2, "level_size": 6, "collisions": "shared", **options}))
    return tokenizer, tokenizer.fit(TokenizerSource.of_vectors(vectors), seed=0)


@pytest.fixture(scope="module")
def reports():
    vectors, train, categories, held_out = shop()
    _, codes = residual_kmeans(vectors)
    inputs = {"train": train, "categories": categories, "held_out": held_out}
    return codes, inspect_with_controls(codes, vectors=vectors, settings=SETTINGS, **inputs)


def test_every_figure_has_a_name_and_every_name_a_figure(reports):
    codes, found = reports
    for report in found.values():
        for key in report.figures:
            assert metric_of(key).meaning
            if metric_of(key).per_level:
                assert len(report.figures[key]) == codes.n_levels
        assert report.figures.keys() == found["codes"].figures.keys()
    apart = {"cold_occupied", "cold_new_identifier", "cold_warm_collision", "cold_collision", "cold_error"}
    apart |= {"cold_error_ratio", "adjusted_rand", "pairs_kept"}
    apart |= {"append_moved", "append_adjusted_rand", "append_pairs_kept", "append_occupied"}
    seen = {key.partition("@")[0].partition(".")[0] for key in found["codes"].figures}
    assert METRICS.keys() - seen - {"held_out"} == apart


def test_reports_are_json_and_deterministic(reports):
    codes, found = reports
    vectors, train, categories, held_out = shop()
    again = inspect_codes(
        codes, vectors=vectors, train=train, categories=categories, held_out=held_out, settings=SETTINGS
    )
    text = json.dumps(again.to_json(), allow_nan=False)
    assert text == json.dumps(found["codes"].to_json(), allow_nan=False)
    assert again.context["quantised"] == "codebooks" and again.context["n_items"] == N


def test_good_codes_beat_controls_and_controls_are_at_chance(reports):
    _, found = reports
    good, random, shuffled = (found[name].figures for name in ("codes", "random", "shuffled"))
    for key in ("hit_rate_ratio@20", "neighbours_kept@5", "reconstruction_cosine"):
        assert good[key] > max(random[key], shuffled[key]) + 0.2, key
    for key in ("pair_prefix_lift", "neighbour_prefix_lift"):
        assert good[key][0] > 2
        assert shuffled[key][0] == pytest.approx(1, abs=0.4), key
    assert shuffled["pair_prefix_lift"][0] == pytest.approx(1, abs=0.15)
    assert good["category_ami.2"][0] > 0.7
    assert shuffled["category_ami.2"][0] == pytest.approx(0, abs=0.03)
    assert random["category_ami.2"][0] == pytest.approx(0, abs=0.03)
    assert shuffled["category_purity_lift.2"][1] == pytest.approx(0, abs=0.1)
    assert shuffled["quantised_hit_rate@20"] == pytest.approx(20 / (N - 1), abs=0.05)
    assert good["next_item_bits"] < min(random["next_item_bits"], shuffled["next_item_bits"]) - 0.3
    assert good["held_out.next_item_bits"] < shuffled["held_out.next_item_bits"] - 0.3
    assert good["reconstruction_error"] < 0.5 < shuffled["reconstruction_error"]
    for key in ("collision_rate", "perplexity", "conditional_entropy", "gini", "trie_nodes", "level_nmi"):
        assert good[key] == shuffled[key]
    assert random["collision_rate"] <= good["collision_rate"]  # usage alone rewards chance


def test_constant_category_depths_are_left_out(reports):
    figures = reports[1]["codes"].figures
    assert "category_ami.1" not in figures and "category_ami.3" not in figures


def test_figures_equal_their_oracles():
    vectors, train, _, held_out = shop()
    _, codes = residual_kmeans(vectors, level_size=16)
    train = Histories(train.offsets, np.minimum(train.items, 200))
    figures = inspect_codes(codes, train=train, held_out=held_out).figures
    rows = codes.as_int().tolist()
    crowded = [rows.count(row) > 1 for row in rows]
    assert 0.1 < np.mean(crowded) < 0.9
    assert figures["traffic_share"] == pytest.approx(np.mean([crowded[i] for i in train.items]))
    assert figures["held_out.traffic_share"] == pytest.approx(np.mean([crowded[i] for i in held_out.targets.items]))
    pairs = [(a, b) for h in train.to_lists() for a, b in pairwise(h) if a != b]
    asked = [
        (h[-1], t[0])
        for h, t in zip(held_out.histories.to_lists(), held_out.targets.to_lists(), strict=True)
        if h[-1] != t[0]
    ]
    for depth in (1, 2):
        assert figures["pair_prefix_rate"][depth - 1] == pytest.approx(slow.pair_rate(rows, pairs, depth))
        expected = slow.pair_rate(rows, asked, depth)
        assert figures["held_out.pair_prefix_rate"][depth - 1] == pytest.approx(expected)
    popular = np.bincount(train.items, minlength=N).tolist()
    weighted = [slow.conditional_entropy(rows, level, popular) for level in (0, 1)]
    assert figures["conditional_entropy_weighted"] == pytest.approx(weighted)
    assert "hit_rate_ratio@50" not in figures and "category_ami.2" not in figures


def test_predictability_never_asks_what_it_counted():
    """With every user alone in having a pair, knowing the previous item can save nothing."""
    codes = ItemCodes(np.arange(N)[:, None], (N,), CATALOG)
    train = Histories.from_lists([[2 * u, 2 * u + 1] for u in range(N // 2)])
    assert inspect_codes(codes, train=train).figures["next_code_information"] == [0.0]
    repeated = Histories.from_lists([[2 * (u % 6), 2 * (u % 6) + 1] for u in range(N // 2)])
    assert inspect_codes(codes, train=repeated).figures["next_code_information"][0] > 0.1


def test_ragged_identifiers_and_few_inputs():
    codes = ItemCodes.from_int(np.array([[0, -1], [1, 0], [1, 1], [1, 1]]), (3, 2), CATALOG)
    figures = inspect_codes(codes).figures
    assert (figures["mean_length"], figures["max_length"], figures["collision_rate"]) == (7 / 4, 2, 1 / 4)
    found = controls(codes, seed=0)
    assert found.random.lengths.tolist() == codes.lengths.tolist()
    reports = inspect_with_controls(codes, vectors=np.eye(4, dtype=np.float32))
    assert reports["random"].context["quantised"] == "implied"
    one = inspect_codes(codes.take([0]), vectors=np.ones((1, 2), np.float32), train=Histories.from_lists([[0]]))
    json.dumps(one.to_json(), allow_nan=False)
    assert one.figures["hit_rate_ratio@50"] is None and one.figures["neighbours_kept@10"] is None


def test_controls_depend_on_the_seed_only():
    codes = ItemCodes(np.random.default_rng(0).integers(8, size=(2000, 2)), (8, 16), CATALOG)
    found, again, other = controls(codes, 3), controls(codes, 3), controls(codes, 4)
    assert found.random.fingerprint == again.random.fingerprint != other.random.fingerprint
    assert found.shuffled.fingerprint == again.shuffled.fingerprint != other.shuffled.fingerprint
    assert found.random.level_sizes == (8, 16) and found.random.codes[:, 1].max() == 15
    counts = found.random.level_counts()[1]
    assert abs(counts - 125).max() < 5 * math.sqrt(125)
    np.testing.assert_array_equal(found.shuffled.codes, codes.codes[found.order])
    assert sorted(found.order.tolist()) == list(range(2000))


def test_where_the_quantised_vectors_come_from(caplog):
    vectors, *_ = shop()
    _, codes = residual_kmeans(vectors)
    own = quantise(codes, vectors, how="auto")
    assert own.how == "codebooks"
    lookup = [sum(book[c] for book, c in zip(codes.codebooks, row, strict=True)) for row in codes.codes]
    np.testing.assert_allclose(own.vectors_ND - vectors.mean(axis=0), lookup, atol=1e-4)
    np.testing.assert_allclose(own.apply(codes), own.vectors_ND)
    assert quantise(codes, vectors, vectors, how="auto").how == "given"
    narrow = replace(codes, codebooks=tuple(book[:, :3] for book in codes.codebooks))
    assert quantise(narrow, vectors, how="auto").how == "implied"
    with pytest.raises(DataError, match="width 8"):
        quantise(narrow, vectors, how="codebooks")
    with pytest.raises(DataError, match="reconstruction"):
        quantise(codes, vectors, vectors[:, :3], how="auto")
    _, scaled = residual_kmeans(vectors * np.float32(0.1), standardize=True)
    assert quantise(scaled, vectors * np.float32(0.1), how="auto").how == "codebooks"
    longer = replace(codes, codebooks=tuple(10 * book for book in codes.codebooks))
    with caplog.at_level(logging.WARNING):
        assert quantise(longer, vectors, how="auto").how == "implied"
    assert "another space" in caplog.text


def test_given_reconstruction_leaves_the_random_control_without():
    vectors, *_ = shop()
    _, codes = residual_kmeans(vectors)
    found = inspect_with_controls(codes, vectors=vectors, reconstruction=vectors, settings=SETTINGS)
    assert found["codes"].figures["reconstruction_error"] == 0
    assert found["shuffled"].figures["reconstruction_error"] > 1
    assert "reconstruction_error" not in found["random"].figures


def test_cold_items_of_a_fitted_tokenizer():
    vectors, *_ = shop()
    order = np.random.default_rng(0).permutation(N)
    warm, cold = vectors[order[24:]], vectors[order[:24]]
    tokenizer, codes = residual_kmeans(warm)
    new = tokenizer.encode(TokenizerSource.of_vectors(cold))
    found = inspect_cold(codes, new, vectors=(warm, cold))
    assert found["cold_occupied"][0] == 1.0
    assert found["cold_new_identifier"] + found["cold_warm_collision"] == pytest.approx(1)
    assert 0.7 < found["cold_error_ratio"] < 1.5
    decoded = quantise(codes, warm, how="auto").apply(new)
    expected = ((cold - decoded) ** 2).sum() / ((cold - warm.mean(axis=0)) ** 2).sum()
    assert found["cold_error"] == pytest.approx(expected, rel=1e-5)
    far = replace(new, codes=np.zeros_like(new.codes))
    assert inspect_cold(codes, far, vectors=(warm, cold))["cold_error_ratio"] > 2
    given = inspect_cold(codes, new, vectors=(warm, cold), reconstruction=(0.5 * warm, cold))
    assert (given["cold_error"], given["cold_error_ratio"]) == (0, 0)
    with pytest.raises(DataError, match="level sizes"):
        inspect_cold(codes, replace(new, level_sizes=(6, 7), codebooks=()))


def test_tables_of_two_seeds_and_of_an_appended_catalog():
    vectors, *_ = shop()
    tokenizer, codes = residual_kmeans(vectors)
    other = RqKMeans(tokenizer.settings).fit(TokenizerSource.of_vectors(vectors), seed=5)
    assert compare_code_tables(codes, codes) == {"adjusted_rand": [1, 1], "pairs_kept": [1, 1]}
    assert compare_code_tables(codes, other)["adjusted_rand"][0] > 0.5
    assert compare_code_tables(codes, controls(codes, 0).shuffled)["adjusted_rand"][0] == pytest.approx(0, abs=0.03)
    assert compare_code_tables(codes.take(np.arange(100)), codes)["pairs_kept"] == [1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_items": 0},
        {"hits_at": ()},
        {"held_out_users": 1.0},
        {"smoothing": 0},
        {"category_depth": -1},
        {"quantised": "x"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        InspectSettings(**wrong)


def test_inputs_of_another_catalog_are_refused():
    vectors, train, categories, held_out = shop()
    _, codes = residual_kmeans(vectors)
    fewer = codes.take(np.arange(100))
    for name, value in {"vectors": vectors, "train": train, "categories": categories, "held_out": held_out}.items():
        with pytest.raises(DataError, match=name):
            inspect_codes(fewer, **{name: value})


def test_queries_without_a_history_have_no_pair():
    nobody = EvalSet(
        np.arange(3, dtype=np.int32), Histories.from_lists([[], [4, 5], []]), Histories.from_lists([[1], [2], [3]])
    )
    assert _target_pairs(nobody).tolist() == [[5, 2]]


def test_vectors_that_are_not_finite_are_named_and_no_items_have_no_remarks():
    codes = ItemCodes.from_int(np.arange(6)[:, None], (6,), "")
    vectors = np.ones((6, 4), np.float32)
    vectors[2, 1] = np.nan
    with pytest.raises(DataError, match="vectors: row 2 has a number that is not finite"):
        inspect_codes(codes, vectors=vectors)
    assert "collision_rate" not in remarks({"codes": inspect_codes(codes.take([]))})


def test_names_are_told_apart_by_numbers_that_make_no_other_name():
    codes = ItemCodes.from_int(np.arange(6)[:, None], (6,), "")
    subjects = [Subject(name, codes, raw_is_same=True) for name in ("demo", "demo", "demo-2", "other")]
    found = tokenizer_reports(subjects, InspectSettings())
    assert list(found) == ["demo-1", "demo-3", "demo-2", "other", CONTROL]
