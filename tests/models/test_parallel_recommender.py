"""Lists of a parallel model against scoring every item by the definition; its bundle; catalogs it never saw."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from genrec import artifacts
from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.decoding.filters import ItemFilter
from genrec.decoding.interface import Recommender, SearchOptions
from genrec.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from genrec.evaluation.run import evaluate
from genrec.evaluation.settings import EvalSettings
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.fsq import Fsq, FsqSettings
from genrec.models.parallel_bundle import load_parallel, save_parallel
from genrec.models.parallel_inputs import ParallelItems
from genrec.models.parallel_model import ParallelModel
from genrec.models.parallel_recommender import ParallelDecoding, ParallelRecommender, unseen_catalog
from genrec.models.parallel_settings import preset
from genrec.testing.parallel_cases import CASES, DECODER, N_ITEMS, parallel_model

HISTORIES = Histories.from_lists([[3, 4, 5], [7], [], [1, 2, 3, 4, 5, 6], [0, 39, 0, 8]])
FILTER = ItemFilter.of_mask(np.arange(N_ITEMS) % 3 == 0, "catalog")


def recommender(name, **settings):
    model, items = parallel_model(name, scale=3)
    return ParallelRecommender(model, items, ParallelDecoding(**settings))


@torch.no_grad()
def brute_force(found, history):
    """The score of every item, one at a time, float64 ``[N]``."""
    model, items, beta = found.model, found.items, found.settings.beta
    tables = items.tables(model.settings)
    grid, length = torch.tensor([list(history)], dtype=torch.int64).view(1, -1), torch.tensor([len(history)])
    states = model.states(model.parts(tables, grid), length, length[:, None])[0, 0]
    scores = []
    for item in range(items.n_items):
        terms = []
        for part in range(model.shape.n_parts):
            if model.settings.target == "codes":
                logits = model.code_logits(states[None])[part][0].double()
                terms.append(logits.log_softmax(0)[items.identifiers.codes[item, part]].item())
            else:
                weight = 1 - beta if part == 0 else beta
                vector = model.parts(tables, torch.tensor([item]))[0, part]
                terms.append(weight * (states[part].double() @ vector.double()).item())
        scores.append(sum(terms))
    return np.array(scores)


@pytest.mark.parametrize("name", CASES)
def test_lists_are_those_of_scoring_every_item(name):
    found = recommender(name, beta=0.3, batch_size=2)
    assert isinstance(found, Recommender) and found.history_cap == 20
    lists = found.recommend(HISTORIES, SearchOptions(top_k=7, filter=[FILTER, None, FILTER, None, FILTER]))
    every = found.recommend(HISTORIES, SearchOptions(top_k=None, exclude_seen=False))
    scores = found.score(HISTORIES)
    for row, history in enumerate(HISTORIES):
        expected = brute_force(found, history)
        assert np.allclose(scores[row], expected, atol=1e-4)
        assert sorted(every.items[row].tolist()) == list(range(N_ITEMS))
        assert np.allclose(every.scores[row], expected[every.items[row]], atol=1e-4)
        allowed = np.setdiff1d(np.flatnonzero(FILTER.mask) if row % 2 == 0 else np.arange(N_ITEMS), history)
        assert np.isin(lists.items[row], allowed).all()
        assert np.allclose(lists.scores[row], np.sort(expected[allowed])[::-1][:7], atol=1e-4)
    assert lists.certified.all() and lists.normalize == ("level" if found.model.settings.target == "codes" else None)
    assert np.allclose(found.score(HISTORIES, [5, 2]), scores[:, [5, 2]], atol=1e-5)


@pytest.mark.parametrize("name", ["setrec", "recgpt", "rpg-t5"])
def test_one_by_one_and_only_the_newest_items(name):
    found = recommender(name, max_items=3)
    lists = found.recommend(HISTORIES)
    for row, history in enumerate(HISTORIES):
        alone = found.recommend([history.tolist()])
        assert np.array_equal(alone.items[0], lists.items[row])
        assert np.allclose(alone.scores[0], lists.scores[row], atol=1e-5)
    assert np.allclose(found.score([[9, 9, 4, 5, 6]]), found.score([[4, 5, 6]]), atol=1e-6)
    assert len(found.recommend([])) == 0


def test_ends_of_beta():
    found = recommender("setrec", beta=0.5)
    queries = HISTORIES.take([0])
    collaborative, semantic = (found.with_beta(beta).score(queries)[0] for beta in (0.0, 1.0))
    assert np.allclose(found.score(queries)[0], (collaborative + semantic) / 2, atol=1e-5)
    alone = found.with_beta(0.0).recommend(queries, SearchOptions(top_k=1, exclude_seen=False)).items[0, 0]
    assert alone == collaborative.argmax() and found.settings.beta == 0.5
    with pytest.raises(ConfigError, match="beta"):
        found.with_beta(1.5)


def test_evaluates_like_any_other():
    found = recommender("recgpt")
    queries = EvalSet(np.arange(2, dtype=np.int32), HISTORIES.take([0, 3]), Histories.from_lists([[9], [11]]))
    report = evaluate(found, queries, settings=EvalSettings(ks=(10,), n_bootstrap=0), progress=False)
    scores = found.score(queries.histories)
    scores[[0] * 3, [3, 4, 5]] = scores[[1] * 6, range(1, 7)] = -np.inf
    ranks = [(s > s[t]).sum() + 1 + ((s == s[t]).sum() - 1) / 2 for s, t in zip(scores, (9, 11), strict=True)]
    assert report.mean("recall@10") == pytest.approx(np.mean([rank <= 10 for rank in ranks]))
    assert report.history_cap == 20 and report.name == "ParallelRecommender"


def test_what_is_refused():
    found = recommender("rpg")
    with pytest.raises(DataError, match=r"0\.\.39"):
        found.recommend([[40]])
    with pytest.raises(ConfigError, match="normalize"):
        found.recommend([[1]], SearchOptions(normalize="vocab"))
    with pytest.raises(ConfigError, match="name"):
        found.recommend([[1]], SearchOptions(filter="in_stock"))
    model, items = parallel_model("setrec")
    with pytest.raises(FingerprintMismatch, match="n_parts"):
        ParallelRecommender(model, ParallelItems(items.identifiers.select(["collaborative", "semantic 1"])))


@pytest.mark.parametrize("name", ["setrec-t5", "setrec-joint", "recgpt", "rpg"])
def test_bundle_gives_the_same_lists(name, tmp_path):
    found = recommender(name, max_items=5, beta=0.2)
    save_parallel(tmp_path / "bundle", found)
    again = load_parallel(tmp_path / "bundle")
    assert again.settings == found.settings and again.model.settings == found.model.settings
    one, two = found.recommend(HISTORIES), again.recommend(HISTORIES)
    assert np.array_equal(one.items, two.items) and np.array_equal(one.scores, two.scores)
    with pytest.raises(ArtifactError, match="exists"):
        save_parallel(tmp_path / "bundle", found)


def test_bundle_that_was_changed(tmp_path):
    save_parallel(tmp_path / "bundle", recommender("recgpt"))
    file = tmp_path / "bundle" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="weights"):
        load_parallel(tmp_path / "bundle")


def test_bundle_of_two_runs(tmp_path):
    """The items of another run, with a manifest made to fit."""
    save_parallel(tmp_path / "one", recommender("rpg"))
    manifest = artifacts.read(tmp_path / "one")
    other = np.roll(artifacts.load_arrays(tmp_path / "one" / "codes" / "codes.safetensors")["codes"], 1, axis=0)
    with artifacts.write(
        tmp_path / "two", kind="parallel_bundle", catalog=manifest.catalog, meta=manifest.meta
    ) as draft:
        for name in ("weights.safetensors", "decoding.json"):
            (draft.dir / name).write_bytes((tmp_path / "one" / name).read_bytes())
        dataclasses.replace(recommender("rpg").items.identifiers, codes=other).save(draft.dir / "codes")
    with pytest.raises(FingerprintMismatch, match="items"):
        load_parallel(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "decoding.json").read_text())["max_items"] == 20


def test_a_catalog_never_seen_needs_its_vectors_only():
    random = np.random.default_rng(0)
    known, new = (TokenizerSource.of_vectors(random.normal(size=(n, 12)).astype(np.float32)) for n in (30, 17))
    fsq = Fsq(FsqSettings(n_tokens=3, levels=(3, 3), dim=8, n_heads=2, hidden=8, epochs=1))
    items = ParallelItems(fsq.fit(known, seed=0, progress=False), known.vectors())
    model = ParallelModel.of(preset("recgpt", DECODER), items, seed=0)
    other = unseen_catalog(ParallelRecommender(model, items), fsq, new)
    lists = other.recommend([[0, 16], [3]], SearchOptions(top_k=20))
    assert other.n_items == 17 and lists.lengths.tolist() == [15, 16]
    direct = ParallelRecommender(model, ParallelItems(fsq.encode(new), new.vectors()))
    assert np.array_equal(direct.recommend([[0, 16], [3]], SearchOptions(top_k=20)).items, lists.items)
    foreign = Fsq(fsq.settings)
    foreign.fit(new, seed=1, progress=False)
    with pytest.raises(FingerprintMismatch, match="codebooks"):
        unseen_catalog(other, foreign, new)
