"""``genrec inspect``, and ``genrec compare`` of identifiers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.embeddings.base import ItemEmbeddings
from genrec.evaluation.identifier_controls import controls
from genrec.evaluation.identifier_inputs import load_subject
from genrec.evaluation.identifier_refit import refitted
from genrec.evaluation.identifier_remarks import remarks
from genrec.evaluation.identifier_tables import ARROWS, GROUPS, SHORT, Row, base, best, cell, inspect_table
from genrec.evaluation.identifier_tokenizers import notes_of_comparison
from genrec.evaluation.identifiers import IdentifierReport, InspectSettings, inspect_codes
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.gaoq import Gaoq, GaoqSettings
from genrec.item_tokenizers.indexing import Independent
from genrec.item_tokenizers.registry import load_tokenizer
from genrec.metrics.codes_names import METRICS

Call = Callable[..., tuple[int, str, str]]
Make = Callable[..., Path]


def line(out: str, key: str) -> list[str]:
    found = next(text for text in out.splitlines() if text.split()[:1] == [key])
    return [part for part in found.split() if part not in ("↑", "↓", "/")]


def test_the_table_has_raw_identifiers_and_controls(genrec: Call, finished: Path) -> None:
    code, out, err = genrec("inspect", finished)
    assert code == 0, err
    assert "90 items, identifiers of 9 x 9 x 4 codes, made by rqkmeans (collisions: suffix)" in out
    assert out.splitlines()[3].split() == ["collisions", "codes", "raw", "random", "shuffled"]
    # two items in ten are duplicates: at least 9 of 90 add no identifier of their own
    _, codes, raw, *_ = line(out, "collision_rate")
    assert codes == "0" and float(raw) >= 0.1
    assert "! before the collision policy" in out
    assert "held_out" not in out and "note:" not in out


def test_json_holds_the_figures_of_the_library(genrec: Call, finished: Path, tmp_path: Path) -> None:
    code, out, err = genrec("inspect", finished, "--json", tmp_path / "x.json", "--seed", 3)
    assert code == 0 and f"wrote {tmp_path / 'x.json'}" in out, err
    found = json.loads((tmp_path / "x.json").read_text())
    assert list(found["reports"]) == ["codes", "raw", "random", "shuffled", "raw_random"]
    vectors = ItemEmbeddings.load(finished / "embeddings").vectors
    catalog, train = ItemCatalog.load(finished / "catalog"), Split.load(finished / "split").train()
    settings = InspectSettings(seed=3)
    inputs = {"vectors": vectors, "train": train, "categories": catalog.fields["categories"], "settings": settings}
    codes = ItemCodes.load(finished / "codes")
    assert found["reports"]["codes"] == inspect_codes(codes, **inputs).to_json()
    # the raw codes are the identifiers without their suffix
    cut = ItemCodes(codes.codes[:, :2], codes.level_sizes[:2], codes.catalog)
    raw = inspect_codes(cut, **inputs).figures
    assert {k: found["reports"]["raw"]["figures"][k] for k in ("collision_rate", "traffic_share", "perplexity")} == {
        k: raw[k] for k in ("collision_rate", "traffic_share", "perplexity")
    }
    assert found["reports"]["raw_random"] == inspect_codes(controls(cut, 3).random, settings=settings).to_json()
    assert found["tokenizer"]["kind"] == "rqkmeans"
    assert found["metrics"]["collision_rate"]["better"] == "lower"


def test_targets_are_looked_at_only_when_asked(genrec: Call, finished: Path) -> None:
    assert "held_out" not in genrec("inspect", finished, "--all")[1]
    out = genrec("inspect", finished, "--held-out")[1]
    queries = Split.load(finished / "split").queries("test")
    raw = ItemCodes.load(finished / "codes").codes[:, :2].tolist()
    shared = np.mean([raw.count(raw[item]) > 1 for item in queries.targets.items])
    assert float(line(out, "held_out.traffic_share")[2]) == pytest.approx(shared, abs=0.001)
    assert "never choose by these" in out


def test_codes_alone_and_with_what_is_given(genrec: Call, finished: Path, tmp_path: Path) -> None:
    ItemCodes.load(finished / "codes").save(tmp_path / "mine")
    code, out, err = genrec("inspect", tmp_path / "mine")
    assert code == 0, err
    assert "reconstruction_error" not in out and "traffic_share" not in out
    assert [text for text in out.splitlines() if text.startswith("note:")] == [
        "note: no catalog: titles and categories are left out (give --catalog)",
        "note: no vectors: fidelity and hit rates are left out (give --vectors)",
        "note: no split: behaviour and traffic are left out (give --split)",
        "note: no item tokenizer beside the codes: collisions before its policy are not known",
    ]
    np.save(tmp_path / "v.npy", ItemEmbeddings.load(finished / "embeddings").vectors)
    given = ["--catalog", finished / "catalog", "--vectors", tmp_path / "v.npy", "--split", finished / "split"]
    code, out, err = genrec("inspect", tmp_path / "mine", *given)
    assert code == 0 and "reconstruction_error" in out and "traffic_share" in out, err
    inside = genrec("inspect", finished / "codes")[1]
    assert inside == genrec("inspect", finished)[1]


def test_shared_identifiers_are_their_own_raw_ones(genrec: Call, make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "shared", collisions="shared")
    out = genrec("inspect", run)[1]
    assert " raw " not in out and "note:" not in out
    assert "of the items add no identifier of their own" in out


@pytest.mark.parametrize("balance", ["none", "all"])
def test_raw_codes_are_those_that_were_fitted(make_run: Make, tmp_path: Path, balance: str) -> None:
    """Items that balance keeps from their nearest cluster get other codes when they are encoded one by one."""
    run = make_run(tmp_path / balance, balance=balance)
    subject, tokenizer = load_subject(run), load_tokenizer(run / "item_tokenizer")
    assert subject.raw is not None and subject.vectors is not None
    assert subject.raw.report() == tokenizer.report["raw"]  # type: ignore[attr-defined]
    encoded = tokenizer.encode(TokenizerSource.of_vectors(subject.vectors.vectors))
    assert np.array_equal(subject.raw.codes, encoded.codes) == (balance == "none")
    assert refitted(subject, seed=0).figures["adjusted_rand"][0] > 0.3


def test_a_tree_that_refuses_collisions_never_had_any(genrec: Call, make_run: Make, tmp_path: Path) -> None:
    run, tokenizer = make_run(tmp_path / "tree"), Gaoq()
    catalog, vectors = ItemCatalog.load(run / "catalog"), ItemEmbeddings.load(run / "embeddings")
    tokenizer.fit(TokenizerSource.of(catalog, embeddings=vectors), seed=0).save(run / "codes", overwrite=True)
    tokenizer.save(run / "item_tokenizer", overwrite=True)
    assert tokenizer.report["moved_by_balance"] > 0
    out = genrec("inspect", run)[1]
    assert "before the collision policy" not in out and "raw" not in out.splitlines()[3].split()


def test_a_collapse_of_the_only_level_is_not_hidden(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", n_levels=1, level_size=90, collisions="reassign")
    subject, tokenizer = load_subject(run), load_tokenizer(run / "item_tokenizer")
    assert subject.raw is not None and not subject.notes
    assert subject.raw.report() == tokenizer.report["raw"]  # type: ignore[attr-defined]


def test_no_collisions_are_invented_where_a_suffix_was_not_needed(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "tree")
    catalog, vectors = ItemCatalog.load(run / "catalog"), ItemEmbeddings.load(run / "embeddings")
    tokenizer = Gaoq(GaoqSettings(level_size=(3, 5, 12), collisions="suffix"))
    codes = tokenizer.fit(TokenizerSource.of(catalog, embeddings=vectors), seed=0)
    codes.save(run / "codes", overwrite=True)
    tokenizer.save(run / "item_tokenizer", overwrite=True)
    encoded = tokenizer.encode(TokenizerSource.of_vectors(vectors.vectors))
    assert codes.n_levels == 3 and encoded.collisions()  # balance keeps apart what encoding item by item does not
    assert load_subject(run).raw_is_same


def test_identifiers_that_were_dealt_out_have_no_raw_codes(genrec: Call, finished: Path, tmp_path: Path) -> None:
    for name in ("catalog", "embeddings", "split", "item_tokenizer", "recipe.json"):
        (tmp_path / name).symlink_to(finished / name)
    codes = ItemCodes.load(finished / "codes")
    codes.take(np.random.default_rng(0).permutation(len(codes))).save(tmp_path / "codes")
    out = genrec("inspect", tmp_path)[1]
    assert out.splitlines()[3].split() == ["collisions", "codes", "random", "shuffled"]
    assert "gives other codes" in out


def test_fitting_again_says_how_stable_and_how_new_items_fare(genrec: Call, finished: Path) -> None:
    subject = load_subject(finished)
    refit = refitted(subject, seed=0)
    found = refit.figures
    assert found == refitted(subject, seed=0).figures != refitted(subject, seed=1).figures
    assert refit.notes == ()
    recipe = finished / "recipe.json"
    before = recipe.read_text()
    recipe.write_text(json.dumps({**json.loads(before), "embeddings": [{"lsa": {"dim": 8}}, {"ppmi": {"dim": 8}}]}))
    (note,) = refitted(subject, seed=0).notes
    recipe.write_text(before)
    assert "hold ppmi of their own events" in note
    assert len(found["adjusted_rand"]) == 2  # raw codes: a suffix numbers items anew
    assert min(found["adjusted_rand"]) < 0.999  # the run's own seed would give the same groups
    assert found["cold_occupied"][0] == 1 and found["cold_error_ratio"] > 0.5
    assert found["append_moved"] == 0 and len(found["append_adjusted_rand"]) == 2
    out = genrec("inspect", finished, "--refit")[1]
    assert line(out, "append_moved")[1] == "0"
    assert float(line(out, "cold_error_ratio")[1]) == pytest.approx(found["cold_error_ratio"], rel=0.01)


def test_what_a_new_fit_cannot_tell_is_said(genrec: Call, make_run: Make, tmp_path: Path) -> None:
    run, tokenizer = make_run(tmp_path / "own"), Independent()
    codes = tokenizer.fit(TokenizerSource.of(ItemCatalog.load(run / "catalog")), seed=0)
    codes.save(run / "codes", overwrite=True)
    tokenizer.save(run / "item_tokenizer", overwrite=True)
    out = genrec("inspect", run, "--refit")[1]
    assert "note: new items (cold_*) are left out: the item tokenizer cannot encode new items" in out
    assert "before the collision policy" not in out  # there is none: these identifiers are unique as they are made
    assert "note: append (append_*) is left out: 4 new items, but all prefixes together have room for 0" in out


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (["nowhere"], "nowhere: no codes there", "give a run folder"),
        (["run/embeddings"], "expected codes or a run folder, got 'embeddings'", "give the run folder: "),
        (["file.json"], "a file, expected codes", "genrec audit "),
        (
            ["run", "--catalog", "other/catalog"],
            "catalog and codes are of two catalogs",
            "give what belongs to the codes",
        ),
        (
            ["run", "--vectors", "other/embeddings"],
            "vectors and codes are of two catalogs",
            "two catalogs cannot be mixed",
        ),
        (["run", "--html", "run"], "--html: ", "identifiers.html"),
        (["run", "--split", "other/split"], "split and codes are of two catalogs", "two catalogs cannot be mixed"),
        (["run", "--vectors", "nothing"], "nothing", "expected"),
    ],
)
def test_errors_say_what_to_give(
    genrec: Call, finished: Path, make_run: Make, tmp_path: Path, args: list[str], said: str, hint: str
) -> None:
    (tmp_path / "run").symlink_to(finished)
    (tmp_path / "file.json").write_text("{}")
    if any("other" in arg for arg in args):
        make_run(tmp_path / "other", prefix="another")
    code, _, err = genrec("inspect", *(arg if arg.startswith("--") else tmp_path / arg for arg in args))
    assert code == 1 and err.startswith("error: ") and said in err and "Traceback" not in err
    assert hint == "expected" or f"hint: {hint}" in err or hint in err.splitlines()[1]


def test_a_field_without_categories_is_named(genrec: Call, finished: Path) -> None:
    assert "note: no texts in" not in genrec("inspect", finished)[1]
    out = genrec("inspect", finished, "--categories", "categoris")[1]
    assert "note: no texts in the field 'categoris' of the catalog" in out and "fields: title, categories" in out


def test_help_teaches(genrec: Call) -> None:
    for verb in ("inspect", "audit", "compare"):
        code, out, _ = genrec(verb, "--help")
        assert code == 0 and "identifiers" in out


def test_every_metric_has_a_place_in_the_tables() -> None:
    placed = [name for names in GROUPS.values() for name in names]
    assert len(placed) == len(set(placed))
    assert set(placed) | {"group_sizes", "level_nmi"} == set(METRICS)
    assert set(placed) >= SHORT


def report(**figures: object) -> IdentifierReport:
    context = {"catalog": "c", "settings": {"seed": 0}}
    plain = {"collision_rate": 0.0, "largest_group": 1, "usage": [1.0], "perplexity_share": [0.9], "dead_codes": [0]}
    return IdentifierReport({**plain, "perplexity": [9.0], **figures}, context)


@pytest.mark.parametrize(
    ("figures", "chance", "key"),
    [
        ({"collision_rate": 0.06}, {}, "collision_rate"),
        ({"traffic_share": 0.06}, {}, "traffic_share"),
        ({"largest_group": 21}, {}, "largest_group"),
        ({"usage": [1.0, 0.9], "dead_codes": [0, 4]}, {}, "usage"),
        ({"perplexity_share": [0.4]}, {}, "perplexity"),
        ({"reconstruction_error": 0.9}, {}, "reconstruction_error"),
        ({"neighbours_kept@10": 0.1}, {"neighbours_kept@10": 0.09}, "neighbours_kept@10"),
        ({"hit_rate_ratio@50": 0.4}, {}, "hit_rate_ratio@50"),
        ({"pair_prefix_lift": [1.1, 9.0]}, {}, "pair_prefix_lift"),
        ({"next_item_bits": 12.0}, {"next_item_bits": 12.0}, "next_item_bits"),
        ({"category_ami.2": [0.01]}, {}, "category_ami.2"),
        ({"cold_error_ratio": 1.4}, {}, "cold_error_ratio"),
        ({"append_moved": 0.01}, {}, "append_moved"),
    ],
)
def test_remarks_name_what_is_in_the_danger_zone(
    figures: dict[str, object], chance: dict[str, object], key: str
) -> None:
    assert remarks({"codes": report(), "random": report()}) == {}
    reports = {"codes": report(**figures), "random": report(**chance)}
    assert list(remarks(reports)) == [key]
    assert f"! {remarks(reports)[key]}" in inspect_table(reports, every=True)


def test_a_long_row_is_cut_in_tables() -> None:
    assert cell([1, 2, 3, 4, 5]) == ["1 / 2 / 3 / 4", "5"]
    assert cell(list(range(33))) == ["0 / 1 / 2 / 3", "4 / 5 / 6 / 7", "and 25 more"]


def test_many_codes_for_few_items_are_noted() -> None:
    context = {"quantised": "implied", "level_sizes": [30, 40], "n_items": 100, "data": {"vectors": "v", "train": "t"}}
    few, many = report(usage=[0.5, 0.5]), report(usage=[0.5, 1.0])
    reports = {name: IdentifierReport(r.figures, context) for name, r in (("few", few), ("many", many))}
    (note,) = notes_of_comparison([], reports)
    assert "hit rates of many say little" in note
    known = {name: IdentifierReport(r.figures, context | {"quantised": "codebooks"}) for name, r in reports.items()}
    assert notes_of_comparison([], known) == []


def test_nothing_measured_is_no_remark() -> None:
    nothing = dict.fromkeys(("reconstruction_error", "hit_rate_ratio@50", "next_item_bits", "traffic_share"))
    unused = report(usage=[0.2], dead_codes=[8], perplexity_share=[0.1])
    assert list(remarks({"codes": unused})) == ["usage", "perplexity"]
    tree = IdentifierReport(unused.figures, unused.context | {"one_tree_vocabulary": True})
    assert remarks({"codes": tree}) == {}  # every place of a title has its own words
    assert remarks({"codes": report(**nothing, pair_prefix_lift=[None], category_ami=[None])}) == {}


@pytest.mark.parametrize(
    ("key", "values", "marked"),
    [
        ("collision_rate", (0.2, 0.1, 0.0), ("0.200", "0.100*", "0")),
        ("hit_rate_ratio@50", (0.2, None, 0.9), ("0.200", "-", "0.900")),
        ("hit_rate_ratio@50", (0.2, 0.2, 0.9), ("0.200", "0.200", "0.900")),
        ("conditional_entropy", ([1.0], [2.0], [3.0]), (["1"], ["2"], ["3"])),
        ("perplexity", ([8.0, 2.0], [9.0], [99.0, 99.0]), (["8", "2"], ["9*"], ["99", "99"])),
        ("raw.collision_rate", (0.2, 0.1, None), ("0.200", "0.100*", "-")),
    ],
)
def test_the_better_of_two_is_marked_and_the_control_takes_no_part(
    key: str, values: tuple[object, ...], marked: tuple[object, ...]
) -> None:
    assert best(Row(key, values), [True, True, False]) == marked
    assert base(key) in METRICS


def test_compare_puts_tokenizers_side_by_side(genrec: Call, finished: Path, make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "three", n_levels=3, collisions="reassign")
    code, out, err = genrec("compare", finished / "codes", run / "codes", "--json", tmp_path / "x.json")
    assert code == 0, err
    assert out.splitlines()[0].split() == ["collisions", "suffixed", "three", "(random)"]
    found = json.loads((tmp_path / "x.json").read_text())
    rows = {tuple(row) for row in ItemCodes.load(finished / "codes").codes[:, :2].tolist()}
    assert found["reports"]["suffixed"]["figures"]["raw.collision_rate"] == 1 - len(rows) / 90
    assert "raw.collision_rate" in found["reports"]["three"]["figures"]
    assert line(out, "raw.collision_rate")[3] == "-"
    figures = [found["reports"][name]["figures"]["reconstruction_error"] for name in ("suffixed", "three")]
    marked = line(out, "reconstruction_error")[1:3]
    assert [text.endswith("*") for text in marked] == [x == min(figures) for x in figures]
    assert "note: the level sizes differ" in out
    # run folders mean their evaluations, unless --codes says otherwise
    assert genrec("compare", finished, run)[0] == 1
    assert genrec("compare", finished, run, "--codes")[1].splitlines()[0] == out.splitlines()[0]
    assert "suffixed-1" in genrec("compare", finished, finished / "codes")[1]


def test_compare_names_what_differs(genrec: Call, finished: Path, tmp_path: Path) -> None:
    for name in ("catalog", "split", "codes", "recipe.json"):
        (tmp_path / name).symlink_to(finished / name)
    old = ItemEmbeddings.load(finished / "embeddings")
    ItemEmbeddings(old.vectors[:, ::-1] ** 2, old.catalog).save(tmp_path / "embeddings")
    out = genrec("compare", finished / "codes", tmp_path / "codes")[1]
    assert "the item vectors differ" in out and f"not known of {tmp_path.name}" in out
    out = genrec("compare", finished / "codes", tmp_path / "codes", "--vectors", finished / "embeddings")[1]
    assert "the item vectors differ" not in out


def test_compare_refuses_other_catalogs_and_options_that_do_nothing(
    genrec: Call, finished: Path, make_run: Make, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", prefix="another")
    code, _, err = genrec("compare", finished / "codes", other / "codes")
    assert code == 1 and "different catalogs" in err and "one catalog" in err
    for args in (["--average"], ["--metric", "ndcg@10"], ["--trec", "x"]):
        code, _, err = genrec("compare", finished / "codes", *args)
        assert code == 1 and "compare evaluations, got codes" in err
    for args in (["--all"], ["--held-out"], ["--json", "x"], ["--vectors", "x"]):
        code, _, err = genrec("compare", finished, *args)
        assert code == 1 and "--codes" in err


def test_the_page_of_the_documentation_has_every_metric_with_its_direction() -> None:
    text = (Path(__file__).parents[2] / "docs" / "identifiers.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_]+)` \|\s*(\S?)\s*\|", text, re.M))
    assert {name: rows.get(name) for name in METRICS} == {
        name: ARROWS[metric.better].strip() for name, metric in METRICS.items()
    }
