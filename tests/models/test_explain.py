"""The way to a listed item, against a whole softmax of the Hugging Face model at every step and sets of items."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from genrec.decoding.filters import ItemFilter
from genrec.decoding.interface import SearchOptions
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import DataError
from genrec.models.backbone import layout_of
from genrec.models.explain import END, FATES, explain
from genrec.models.prompting import build_prompts, item_tokens

N = 40


def probabilities(case, before, known):
    """Of the next token over the whole vocabulary, by one forward of the model with ``before`` behind the prompt."""
    if before in known:
        return known[before]
    tokens = case.token_map
    prompts = build_prompts(layout_of(case.model), case.histories.take([2]), item_tokens(case.codes, tokens), tokens)
    ids = torch.from_numpy(prompts.tokens_BT)
    with torch.no_grad():
        if layout_of(case.model) == "encoder":
            out = case.model(input_ids=ids, decoder_input_ids=torch.tensor([[0, *before]]))
        else:
            out = case.model(input_ids=torch.cat([ids, torch.tensor([before]).long()], 1))
    known[before] = out.logits[0, -1].double().softmax(-1).numpy()
    return known[before]


@dataclass
class Rules:
    gone: np.ndarray
    may: np.ndarray
    seen: set


def fate_of(items, rules):
    """What becomes of a token with these items below it: the first rule that leaves none."""
    if not items:
        return "no_identifier"
    for fate, rule in (("retired", lambda n: ~rules.gone[n]), ("filtered", lambda n: rules.may[n])):
        items = {n for n in items if rule(n)}
        if not items:
            return fate
    return "allowed" if items - rules.seen else "seen"


def expected_path(case, item, normalize, rules, known):
    """Token by token; what is ruled out is counted over the token rows of the items."""
    tokens = case.token_map
    rows = [[t for t in ids if t != tokens.pad_id] for ids in tokens.token_ids(case.codes.as_int()).tolist()]
    path, score = [], 0.0
    for level, token in enumerate(rows[item]):
        before = rows[item][:level]
        p = probabilities(case, tuple(before), known)
        first, size = (tokens.level_offset[level], tokens.level_sizes[level]) if level < tokens.n_levels else (0, 0)
        of_level = [*range(first, first + size), *([tokens.eos_id] if tokens.ragged else [])]
        if normalize != "vocab":
            p = np.where(np.isin(np.arange(len(p)), of_level), p, 0)
            p /= p.sum()
        below = {}
        for number, ids in enumerate(rows):
            if ids[:level] == before and len(ids) > level:
                below.setdefault(ids[level], set()).add(number)
        mass, n_children = dict.fromkeys(FATES, 0.0), 0
        for t in range(len(p)):
            fate = fate_of(below.get(t, set()), rules)
            mass[fate] += p[t]
            n_children += fate == "allowed"
        logp = np.log(p[token] / (sum(p[t] for t in below) if normalize == "children" else 1))
        score += logp
        code = token - first if first <= token < first + size and token != tokens.eos_id else size
        name = END if token == tokens.eos_id else tokens.token(level, code)
        path.append((level, name, code, logp, score, n_children, mass))
    return path


@pytest.mark.parametrize("normalize", ["vocab", "level", "children"])
def test_every_step_equals_a_whole_softmax(case, normalize):
    recommender = case.recommender(n_beams=N, loss=normalize)
    rows = case.codes.as_int()
    gone = (rows[:, :2] == rows[2, :2]).all(axis=1) | (np.arange(N) % 9 == 0)
    may = ~((rows[:, :2] == rows[6, :2]).all(axis=1) | (np.arange(N) % 7 == 0))
    none = CatalogSnapshot.of(case.codes, retired=np.zeros(N, bool))
    recommender.swap(none.retiring(np.flatnonzero(gone)))  # the index still has them
    allowed, known = ItemFilter.of_mask(may), {}
    for exclude_seen in (True, False):
        options = SearchOptions(top_k=N, filter=allowed, exclude_seen=exclude_seen)
        lists = recommender.recommend(case.histories.take([2]), options)
        history, items = case.histories[2].tolist(), [int(item) for item in lists.items[0] if item >= 0]
        paths = explain(recommender, history, items, normalize=normalize, allowed=allowed, exclude_seen=exclude_seen)
        assert len(paths) == len(items)
        rules = Rules(gone, may, set(history) if exclude_seen else set())
        for item, path in list(zip(items, paths, strict=True))[:: len(items) // 2]:
            wanted = expected_path(case, item, normalize, rules, known)
            assert len(path) == len(wanted)
            for step, (level, name, code, logp, total, n_children, mass) in zip(path, wanted, strict=True):
                assert (step.level, step.token, step.code, step.n_children) == (level, name, code, n_children)
                assert step.logp == pytest.approx(logp, abs=1e-4) and step.score == pytest.approx(total, abs=3e-4)
                assert step.mass == pytest.approx(mass, abs=1e-5)
        scores = [path[-1].score for path in paths]
        np.testing.assert_allclose(scores, lists.scores[0][: len(items)], atol=1e-4)
        steps = [step for path in paths for step in path]
        assert all(sum(step.mass.values()) == pytest.approx(1, abs=1e-5) for step in steps)
        happened = {fate for fate in FATES if any(step.mass[fate] > 1e-6 for step in steps)}
        assert happened >= {"allowed", "retired", "filtered"} and ("seen" in happened) == exclude_seen
        assert "no_identifier" in happened or normalize != "vocab"


def test_items_that_share_an_identifier_have_one_way_and_others_none(fixed_case):
    recommender = fixed_case.recommender(n_beams=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = explain(recommender, [1, 2], [7, 3, 7], normalize="vocab")
    assert twice[0] == twice[2] != twice[1]
    assert explain(recommender, [1, 2], [], normalize="vocab") == []
    with pytest.raises(DataError, match="not in the index"):
        explain(recommender, [1, 2], [N], normalize="vocab")
