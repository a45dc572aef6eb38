"""The compiled step against the tensor operations, and what only one of them can get wrong."""

import functools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding.beam import beam_search
from genrec.decoding.deny import dead_nodes
from genrec.decoding.filters import ItemFilter, RankFilter, RowFilters
from genrec.decoding.index import CatalogIndex
from genrec.decoding.scorer import StepScores
from genrec.decoding.select import Beams, DeviceIndex
from genrec.decoding.steps import CompiledStep, Limits, TorchStep, fastest_step
from genrec.errors import DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts

pytest.importorskip("numba")
CPU = torch.device("cpu")
NORMALIZERS = ["vocab", "level", "children"]


def build(rows, sizes):
    codes = ItemCodes.from_int(np.asarray(rows), sizes, "c")
    return CatalogIndex.build(codes)


@st.composite
def indexes(draw):
    """Levels of 1 to 40 codes, full and sparse nodes, ragged or not, shared identifiers."""
    random = np.random.default_rng(draw(st.integers(0, 999)))
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 17, 40]), min_size=1, max_size=3)))
    n = draw(st.sampled_from([1, 2, 30, 300]))
    rows = np.stack([random.integers(0, size, n) for size in sizes], axis=1)
    if draw(st.booleans()):
        rows = np.where(np.arange(len(sizes)) < random.integers(1, len(sizes) + 1, n)[:, None], rows, -1)
    return build(rows, sizes)


def draw_running(data, index, level, batch):
    """Different live nodes in falling order of score, dead beams between them; nodes that have ended do not run."""
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    alive = np.arange(index.n_nodes(level))
    if level and index.ragged:
        alive = alive[index.tokens[level - 1] < index.end_code(level - 1)]
    width = data.draw(st.integers(1, max(1, min(len(alive), 6))))
    node = np.full((batch, width), -1)
    for row in node:
        row[: min(width, len(alive))] = random.permutation(alive)[:width]
        row[random.random(width) < 0.2] = -1
    score = -np.sort(random.integers(0, 4, (batch, width)) / 2).astype(np.float32)
    zeros = torch.zeros((batch, width), dtype=torch.int64)
    return Beams(
        torch.from_numpy(node), torch.from_numpy(np.where(node < 0, -np.inf, score).astype(np.float32)), zeros, zeros
    )


def draw_logits(data, shape):
    """Spread or on a grid (ties), small or far from 0, some of them -inf."""
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = random.normal(size=shape) * data.draw(st.sampled_from([1, 30]))
    if data.draw(st.booleans()):
        values = random.integers(-3, 3, shape) / 2
    values = values + data.draw(st.sampled_from([0, 200, -200]))
    return torch.from_numpy(np.where(random.random(shape) < 0.1, -np.inf, values).astype(np.float32))


def draw_limits(data, index, batch):
    """Denied items, filters, and a bar, of some rows, or of none."""
    items = st.lists(st.integers(0, index.n_items - 1), max_size=index.n_items // 2)
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    dead, filters, above = None, None, None
    if data.draw(st.booleans()):
        some = [random.random(index.n_items) < data.draw(st.sampled_from([0.05, 0.6])) for _ in range(2)]
        kept = [RankFilter.of(ItemFilter.of_mask(mask), index) for mask in some]
        filters = RowFilters.of([data.draw(st.sampled_from([None, *kept])) for _ in range(batch)])
    if data.draw(st.booleans()):
        dead = dead_nodes(index, Histories.from_lists([data.draw(items) for _ in range(batch)]), filters)
    if data.draw(st.booleans()):
        above = random.integers(-9, 3, batch).astype(np.float32) + np.float32(0.2)
    return Limits(dead, filters, above)


def assert_alike(got, wanted, *, exact):
    """Equal, except for the order of candidates whose scores differ by less than rounding explains."""
    np.testing.assert_allclose(got.score, wanted.score, rtol=1e-6, atol=1e-5)
    if exact:
        for name in ("node", "parent", "code"):
            assert (
                getattr(got, name)[got.score > -np.inf].tolist() == getattr(wanted, name)[got.score > -np.inf].tolist()
            )
    assert ((got.node < 0) == (got.score == -np.inf)).all()
    assert ((got.node < 0) == (wanted.node < 0)).all()
    for mine, theirs, score in zip(got.node, wanted.node, wanted.score, strict=True):
        clear = score[1:] < score[:-1] - 1e-4 * (1 + score[1:].abs())
        cuts = [0, *(torch.nonzero(clear).flatten() + 1).tolist()]
        for low, high in pairwise(cuts):  # the last block may hold others of a tie
            assert sorted(mine[low:high].tolist()) == sorted(theirs[low:high].tolist())


@pytest.mark.parametrize("normalize", NORMALIZERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_compiled_and_torch_steps_pick_the_same(normalize, data):
    index = data.draw(indexes())
    level, batch = data.draw(st.integers(0, index.depth - 1)), data.draw(st.integers(0, 3))
    running = draw_running(data, index, level, batch)
    values = draw_logits(data, (*running.node.shape, index.n_symbols(level)))
    total = torch.full(running.node.shape, 0.5) if normalize == "vocab" else None
    limits = draw_limits(data, index, batch)
    n = data.draw(st.integers(1, 30))
    steps = [kind(DeviceIndex(index, CPU), batch, normalize, limits) for kind in (CompiledStep, TorchStep)]
    mine, theirs = (step(level, running, StepScores(values, total), n) for step in steps)
    assert_alike(mine, theirs, exact=normalize == "vocab")
    assert not steps[1].pruned_B.isnan().any()
    np.testing.assert_allclose(steps[0].pruned_B, steps[1].pruned_B, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("normalize", NORMALIZERS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nan_and_infinity_of_live_beams_are_found_by_both(normalize, data):
    index = data.draw(indexes())
    level = data.draw(st.integers(0, index.depth - 1))
    running = draw_running(data, index, level, 3)
    values = draw_logits(data, (*running.node.shape, index.n_symbols(level)))
    total = torch.zeros(running.node.shape) if normalize == "vocab" else None
    row, beam = data.draw(st.integers(0, 2)), data.draw(st.integers(0, running.node.shape[1] - 1))
    bad = data.draw(st.sampled_from([np.nan, np.inf]))
    if total is not None and data.draw(st.booleans()):
        total[row, beam] = bad
    else:
        values[row, beam, data.draw(st.integers(0, values.shape[2] - 1))] = bad
    for kind in (CompiledStep, TorchStep):
        step = kind(DeviceIndex(index, CPU), 3, normalize, Limits())
        step(level, running, StepScores(values, total), 4)
        expected = [each == row and bool(running.node[row, beam] >= 0) for each in range(3)]
        assert step.pruned_B.isnan().tolist() == expected


class RandomLogits:
    """Logits that depend on the row of the prompt and on the step alone."""

    device = CPU

    def __init__(self, n_symbols):
        self.n_symbols = n_symbols

    def start(self, prompts, normalize):
        return {"rows": prompts.tokens_BT[:, 0].tolist(), "level": -1}

    def step(self, state, parents_BW, codes_BW):
        state["level"] += 1
        width = 1 if codes_BW is None else codes_BW.shape[1]
        shape = (width, self.n_symbols[state["level"]])
        each = [np.random.default_rng([row, state["level"]]).normal(size=shape) * 3 for row in state["rows"]]
        return StepScores(torch.from_numpy(np.array(each).reshape(-1, *shape).astype(np.float32)))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("normalize", ["level", "children"])
def test_whole_searches_agree_and_rows_stay_what_they_are_alone(normalize, ragged):
    random = np.random.default_rng(1)
    rows = random.integers(0, 300, (4000, 3))
    rows[:, 0] %= 20
    if ragged:
        rows[random.random(4000) < 0.2, 2] = -1
    index = build(rows, (20, 300, 300))  # uint8 and uint16 codes
    scorer = RandomLogits([index.n_symbols(level) for level in range(index.depth)])
    kept = RankFilter.of(ItemFilter.of_mask(random.random(4000) < 0.3), index)
    filters = [None, kept, None, kept, kept]
    deny = Histories.from_lists([random.integers(0, 4000, 500).tolist() for _ in range(5)])

    def search(which, step=None):
        limits = {"deny": deny.take(np.array(which)), "filters": RowFilters.of([filters[row] for row in which])}
        device = DeviceIndex(index, CPU)
        return beam_search(scorer, device, row_prompts(which), n_beams=30, normalize=normalize, step=step, **limits)

    together, slow = search(range(5)), search(range(5), TorchStep)
    assert fastest_step(DeviceIndex(index, CPU)) is CompiledStep
    np.testing.assert_allclose(together.scores, slow.scores, atol=1e-5)
    np.testing.assert_allclose(together.pruned, slow.pruned, atol=1e-5)
    assert (together.leaves == slow.leaves).mean() > 0.99
    for row in range(5):
        alone = search([row])
        assert alone.scores[0].tobytes() == together.scores[row].tobytes()
        assert alone.leaves[0].tolist() == together.leaves[row].tolist()
        assert alone.pruned[0] == together.pruned[row]


def test_searches_at_the_same_time_share_nothing_that_changes():
    random = np.random.default_rng(0)
    device = DeviceIndex(build(random.integers(0, 300, (4000, 3)), (300, 300, 300)), CPU)

    def search(row):
        deny = Histories.from_lists([random_items[row]])
        found = beam_search(
            RandomLogits([300] * 3), device, row_prompts([row]), n_beams=50, normalize="level", deny=deny
        )
        return found.leaves.tobytes(), found.scores.tobytes(), found.pruned.tobytes()

    random_items = random.integers(0, 4000, (40, 100)).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(search, range(40))) == [search(row) for row in range(40)]


@pytest.mark.parametrize("step", [CompiledStep, TorchStep])
def test_no_rows_no_results(step):
    index = build([[0, 1], [1, 0]], (2, 2))
    scorer = RandomLogits([2, 2])
    found = beam_search(scorer, DeviceIndex(index, CPU), row_prompts([]), n_beams=2, normalize="level", step=step)
    assert found.leaves.shape == (0, 2)


@pytest.mark.parametrize("scale", [1, 25])
@pytest.mark.parametrize("shift", [0, 80, -95, 1000, -1000])
def test_the_normaliser_is_as_good_as_in_double_precision(scale, shift):
    from genrec.decoding import kernel

    for n in (1, 2, 15, 255, 2049, 150_000):
        values = (np.random.default_rng(n).normal(size=n) * scale + shift).astype(np.float32)
        exact = np.logaddexp.reduce(values.astype(np.float64))
        assert abs(float(kernel._log_sum_exp(values, n)) - exact) <= 1e-6 * max(1, abs(exact))
    impossible = np.full(3, -np.inf, dtype=np.float32)
    assert kernel._log_sum_exp(impossible, 3) == -np.inf


def test_the_index_is_read_as_it_is_without_a_copy(tmp_path):
    index = build(np.random.default_rng(0).integers(0, 300, (500, 3)), (300, 300, 300))
    index.save(tmp_path / "index")
    mapped = DeviceIndex(CatalogIndex.load(tmp_path / "index"), CPU)
    found = beam_search(RandomLogits([300] * 3), mapped, row_prompts([1]), n_beams=5, normalize="level")
    again = beam_search(
        RandomLogits([300] * 3), DeviceIndex(index, CPU), row_prompts([1]), n_beams=5, normalize="level"
    )
    assert found.leaves.tolist() == again.leaves.tolist()
    assert not {"tokens", "pointers", "leaf_ranks"} & set(vars(mapped))
    for level, tokens in enumerate(mapped.host.tokens):
        assert mapped.arrays.levels[level].tokens == tokens.__array_interface__["data"][0]


@pytest.mark.slow
def test_indexes_with_wide_pointers():
    """Two thousand million prefixes need int64: the same numbers, wider."""
    index = build(np.random.default_rng(0).integers(0, 9, (500, 3)), (9, 9, 9))
    pointers = tuple(p.astype(np.int64) for p in index.pointers)
    wide = replace(index, pointers=pointers, shared=index.shared.astype(np.int64), extra=index.extra.astype(np.int64))
    filters = RowFilters.of([RankFilter.of(ItemFilter.of_mask(np.arange(500) % 3 == 0), index)])
    found = [
        beam_search(
            RandomLogits([9] * 3),
            DeviceIndex(each, CPU),
            row_prompts([1]),
            n_beams=9,
            normalize="level",
            filters=filters,
        )
        for each in (index, wide)
    ]
    assert found[0].leaves.tolist() == found[1].leaves.tolist()


def leaves_of_a_search(seed=0):
    index = build(np.random.default_rng(seed).integers(0, 40, (500, 3)), (40, 40, 40))
    filters = RowFilters.of([None, RankFilter.of(ItemFilter.of_mask(np.arange(500) % 3 == 0), index)])
    device, prompts = DeviceIndex(index, CPU), row_prompts([0, 1])
    return beam_search(
        RandomLogits([40] * 3), device, prompts, n_beams=9, normalize="level", filters=filters
    ).leaves.tolist()


def test_numba_is_imported_by_the_first_search_and_not_needed():
    code = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
from genrec.decoding import beam, select, steps
assert "numba" not in sys.modules
spec = spec_from_file_location("those", {__file__!r})
those = module_from_spec(spec)
spec.loader.exec_module(those)
sys.modules["numba"] = None  # not installed
assert steps.fastest_step(select.DeviceIndex(those.build([[0]], (1,)), those.CPU)) is steps.TorchStep
print(those.leaves_of_a_search())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == leaves_of_a_search()


@pytest.fixture
def compile_again(monkeypatch):
    """Call it to forget what this process has compiled; afterwards numba's cache is the folder it is given."""
    import numba

    from genrec.decoding import kernel

    compiled = kernel.compiled.__wrapped__

    def again(folder):
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
        monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
        monkeypatch.setattr(kernel, "compiled", functools.cache(compiled))

    return again


def test_without_a_folder_to_keep_compiled_code_in_it_is_compiled_and_said(compile_again, tmp_path, caplog):
    expected = leaves_of_a_search()
    (tmp_path / "file").touch()
    compile_again(tmp_path / "file" / "below")
    assert leaves_of_a_search() == expected
    (line,) = caplog.messages
    assert "compiled in this process" in line
    assert "no locator available" in line


@pytest.mark.slow  # compiles twice
def test_a_damaged_cache_is_not_used_and_said(compile_again, tmp_path, caplog):
    compile_again(tmp_path)
    expected = leaves_of_a_search()
    assert not caplog.messages
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert kept
    for file in kept:
        file.write_bytes(b"not what numba wrote")
    compile_again(tmp_path)
    assert leaves_of_a_search() == expected
    (line,) = caplog.messages
    assert "compiled in this process" in line
    assert "UnpicklingError" in line


@pytest.mark.parametrize("step", [CompiledStep, TorchStep])
def test_a_search_over_ties_of_ragged_identifiers(step):
    """Equal scores go to the earlier beam, then the lower code: so one ends at once, two of three others go on."""
    rows = [[0, -1], [0, 0], [1, -1], [1, 1], [2, 0]]
    index = build(rows, (3, 2))
    scorer = ScriptedScorer(lambda row, prefix: np.full((4, 3, 1)[len(prefix)], -1.0))
    found = beam_search(scorer, DeviceIndex(index, CPU), row_prompts([0]), n_beams=3, normalize="vocab", step=step)
    assert found.scores.tolist() == [[-2.0, -3.0, -3.0]]
    items = index.items[index.leaf_ranks[found.leaves[0]]]
    assert [rows[item] for item in items] == [[0, -1], [0, 0], [1, 1]]


@pytest.mark.parametrize("step", [CompiledStep, TorchStep])
@pytest.mark.parametrize("level", [1, 2])
def test_a_model_that_breaks_on_the_way_is_an_error_for_ragged_identifiers_too(step, level):
    index = build([[0, -1], [0, 0], [1, 1]], (2, 2))
    good = random_logp((2, 2), ragged=True, seed=0)
    scorer = ScriptedScorer(lambda row, prefix: good(row, prefix) * (np.nan if len(prefix) == level else 1))
    with pytest.raises(DataError, match="inf or NaN for 2 of 2 rows"):
        beam_search(scorer, DeviceIndex(index, CPU), row_prompts([4, 5]), n_beams=2, normalize="vocab", step=step)


def test_the_best_score_left_out_of_a_ragged_search_is_that_of_the_reference():
    random, n_compared = np.random.default_rng(0), 0
    for seed in range(60):
        rows = random.integers(0, [3, 4, 3], (40, 3))
        rows = np.where(np.arange(3) < random.integers(1, 4, 40)[:, None], rows, -1)
        device = DeviceIndex(build(rows, (3, 4, 3)), CPU)
        scorer = ScriptedScorer(random_logp((3, 4, 3), ragged=True, seed=seed))
        mine, theirs = (
            beam_search(scorer, device, row_prompts(range(5)), n_beams=1 + seed % 3, normalize="vocab", step=step)
            for step in (CompiledStep, TorchStep)
        )
        np.testing.assert_allclose(mine.pruned, theirs.pruned, rtol=1e-6)
        n_compared += int(np.isfinite(theirs.pruned).sum())
    assert n_compared > 200


def test_searches_that_ask_for_ranks_at_the_same_time_read_the_same_arrays(monkeypatch):
    index = build([[0, 0], [0, 0], [1, 1]], (2, 2))
    found = CatalogIndex.leaf_ranks.fget

    def slow(self):
        time.sleep(0.05)
        return found(self)

    monkeypatch.setattr(CatalogIndex, "leaf_ranks", property(slow))
    arrays = DeviceIndex(index, CPU).arrays
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: arrays.ranks(1), range(4)))) == 1


def test_a_broken_model_is_an_error():
    index = build([[0, 0], [1, 1]], (2, 2))
    good = random_logp((2, 2), ragged=False, seed=0)
    scorer = ScriptedScorer(lambda row, prefix: np.full(2, np.inf) if row == 5 else good(row, prefix))
    with pytest.raises(DataError, match="inf or NaN for 1 of 2 rows of the batch, first row 1"):
        beam_search(scorer, DeviceIndex(index, CPU), row_prompts([4, 5]), n_beams=2, normalize="vocab")
