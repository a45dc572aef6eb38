import numpy as np
import pytest
import torch

from genrec.decoding.index import CatalogIndex
from genrec.item_tokenizers.codes import ItemCodes
from genrec.training.losses import CodeLoss, level_symbols, parent_nodes
from genrec.vocab.token_map import TokenMap

FIXED = [[0, 1, 2], [0, 1, 0], [0, 3, 1], [4, 0, 2], [4, 0, 2], [2, 2, 2]]
RAGGED = [[0, -1, -1], [0, 1, -1], [0, 1, 2], [3, -1, -1], [4, 2, 1], [4, 2, -1]]
SIZES = (5, 4, 3)


def make(rows, softmax, eps=0.0, shared=False):
    sizes = (5, 5, 5) if shared else SIZES
    codes = ItemCodes.from_int(np.array(rows), sizes, "c", shared_vocabulary=shared)
    token_map = TokenMap.of(codes, n_user_tokens=2)
    return codes, token_map, CodeLoss(token_map, softmax, eps, codes)


def positions(codes, items):
    """(level, item, symbol) of every loss-carrying position, sorted by level; symbols count the end."""
    out = []
    for item in items:
        row = [int(c) for c in codes.as_int()[item] if c >= 0]
        out += [(level, item, symbol) for level, symbol in enumerate(row)]
        if codes.ragged:
            out.append((len(row), item, codes.level_sizes[len(row)] if len(row) < codes.n_levels else 0))
    return sorted(out, key=lambda x: x[0])


def inputs(codes, token_map, items, width=7):
    places = positions(codes, items)
    index = CatalogIndex.build(codes)
    nodes = parent_nodes(index)
    torch.manual_seed(0)
    hidden = torch.randn(len(places), width, requires_grad=True)
    weight = torch.randn(token_map.vocab_size + 3, width, requires_grad=True)
    target = torch.tensor([s for _, _, s in places])
    node = torch.tensor([nodes[item, level] for level, item, _ in places])
    counts = [sum(p[0] == level for p in places) for level in range(index.depth)]
    return places, hidden, weight, target, node, counts


def slow_loss(codes, token_map, softmax, eps, places, hidden, weight):
    """Obvious loop over positions and symbols, with tokens named by the token map."""
    total = 0.0
    rows = [[int(c) for c in row if c >= 0] for row in codes.as_int()]
    for (level, item, _), h in zip(places, hidden, strict=True):
        own = [int(t) for t in token_map.token_ids(codes.as_int()[item])]
        target = own[level]
        if softmax == "vocab":
            support = list(range(len(weight)))
        elif softmax == "level":
            first = token_map.level_offset[level] if level < codes.n_levels else 0
            support = list(range(first, first + codes.level_sizes[level])) if level < codes.n_levels else []
            support += [token_map.eos_id] if codes.ragged else []
        else:
            below = [n for n in range(len(rows)) if rows[n][:level] == rows[item][:level]]
            support = sorted({int(token_map.token_ids(codes.as_int()[n])[level]) for n in below})
        logp = torch.log_softmax(weight[support] @ h, 0)
        want = [(1 - eps) * (t == target) + eps / len(support) for t in support]
        assert target in support
        total = total - (torch.tensor(want) * logp).sum()
    return total


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("softmax", ["vocab", "level", "children"])
@pytest.mark.parametrize(("rows", "shared"), [(FIXED, False), (RAGGED, False), (FIXED, True), (RAGGED, True)])
def test_loss_and_gradients_equal_a_slow_loop(rows, shared, softmax, eps):
    codes, token_map, loss = make(rows, softmax, eps, shared)
    places, hidden, weight, target, node, counts = inputs(codes, token_map, [2, 0, 5, 1, 4, 4, 3])
    got = loss(hidden, weight, target, node, counts)
    want = slow_loss(codes, token_map, softmax, eps, places, hidden, weight)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, (hidden, weight)), torch.autograd.grad(want, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        assert torch.isfinite(a).all()


def test_an_only_child_costs_nothing_and_gets_no_gradient():
    codes, token_map, loss = make([[0, 1, 2], [1, 0, 0]], "children")
    _, hidden, weight, target, node, counts = inputs(codes, token_map, [0, 1])
    value = loss(hidden, weight, target, node, counts)
    gradient = torch.autograd.grad(value, hidden)[0]
    assert (gradient[:2] != 0).any() and torch.allclose(gradient[2:], torch.zeros_like(gradient[2:]), atol=1e-7)


def test_extreme_logits_give_finite_loss_and_gradients():
    for softmax in ("vocab", "level", "children"):
        codes, token_map, loss = make(RAGGED, softmax, 0.1)
        _, hidden, weight, target, node, counts = inputs(codes, token_map, range(6))
        scaled = hidden * 1e4
        value = loss(scaled, weight, target, node, counts)
        gradients = torch.autograd.grad(value, (hidden, weight))
        assert torch.isfinite(value) and all(torch.isfinite(g).all() for g in gradients)


def test_level_symbols_are_what_the_search_scores():
    for rows in (FIXED, RAGGED):
        codes = ItemCodes.from_int(np.array(rows), SIZES, "c")
        index = CatalogIndex.build(codes)
        token_map = TokenMap.of(codes)
        symbols = level_symbols(token_map)
        assert [len(s) for s in symbols] == [index.n_symbols(level) for level in range(index.depth)]
        for level, found in enumerate(symbols):
            if codes.ragged:
                assert int(found[index.end_code(level)]) == token_map.eos_id
