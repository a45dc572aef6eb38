"""FAMAE against its definition in loops, and on catalogs whose answer is known."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.data.splits import leave_one_out
from genrec.data.synthetic import make, tiny
from genrec.embeddings.famae import FamaeSettings, famae, train_famae
from genrec.embeddings.famae_fields import MISSING, OTHER, learn_fields
from genrec.embeddings.famae_training import (
    FamaeNetwork,
    batch_loss,
    cut_windows,
    draw_masks,
    field_loss,
    metrics,
)
from genrec.errors import ConfigError, DataError
from genrec.seeding import torch_rng

TINY = FamaeSettings(dim=16, n_layers=1, n_heads=2, inner=32, dropout=0.0, epochs=3, batch_size=32, max_items=6)
ITEMS = ItemCatalog(
    tuple("abcdefg"),
    {
        "title": ["t"] * 7,
        "brand": ["X", "X", "Y", None, "", "X", "Y"],
        "path": [["All", "P"], ["All", "P", "Face"], ["All", "Q", "Face"], None, ["All"], ["All", "P", "Face"], []],
    },
)


def network_of(sizes=(40, 5, 3), options=TINY, seed=0):
    generator = np.random.default_rng(seed)
    values = np.column_stack([np.arange(sizes[0]), *(generator.integers(0, k, size=sizes[0]) for k in sizes[1:])])
    torch.manual_seed(seed)
    return FamaeNetwork(values.astype(np.int32), sizes, options)


def history_tensor(rows, width):
    return torch.tensor([[-1] * (width - len(row)) + row for row in rows])


# ---- fields


def test_fields_are_read_level_by_level():
    brand, first, second, third = learn_fields(ITEMS, ("brand", "path"), path_levels=3, min_items=1)
    assert [(f.name, f.depth) for f in (brand, first, second, third)] == [
        ("brand", 0),
        ("path", 1),
        ("path", 2),
        ("path", 3),
    ]
    assert brand.encode(ITEMS).tolist() == [2, 2, 3, MISSING, MISSING, 2, 3]
    assert first.encode(ITEMS).tolist() == [2, 2, 2, MISSING, 2, 2, MISSING]
    assert second.encode(ITEMS).tolist() == [2, 2, 3, MISSING, MISSING, 2, MISSING]
    faces = third.encode(ITEMS)
    assert faces[1] == faces[5] != faces[2]  # equal names below different parents


def test_rare_and_unknown_values_are_other_and_constant_fields_are_left_out():
    fields = learn_fields(ITEMS, ("brand", "path", "title"), path_levels=3, min_items=3)
    assert [(f.name, f.depth) for f in fields] == [("brand", 0), ("path", 1), ("path", 2), ("path", 3)]
    assert fields[0].encode(ITEMS).tolist() == [2, 2, OTHER, MISSING, MISSING, 2, OTHER]
    assert fields[3].values == {}
    new = ItemCatalog(("z",), {"title": ["t"], "path": [["All", "P", "Face"]]})
    assert [int(f.encode(new)[0]) for f in fields] == [MISSING, 2, 2, OTHER]


def test_fields_that_are_not_there_or_say_nothing_are_refused():
    with pytest.raises(DataError, match="'store' is not in the catalog; fields: title, brand, path"):
        learn_fields(ITEMS, ("store",), path_levels=3, min_items=1)
    with pytest.raises(DataError, match="no column tells items apart"):
        learn_fields(ITEMS, ("title",), path_levels=3, min_items=1)


# ---- windows and masks


@given(st.lists(st.lists(st.integers(0, 30), max_size=9), min_size=1, max_size=12), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_item_but_the_first_is_a_target_once(rows, valid_users):
    windows, held = cut_windows(Histories.from_lists(rows), replace(TINY, max_items=4, valid_users=valid_users))
    found = [windows.items[a:b].tolist() for a, b in zip(windows.starts, windows.ends, strict=True)]
    out = [held.items[a:b].tolist() for a, b in zip(held.starts, held.ends, strict=True)]
    expected = Counter(tuple(row[max(0, end - 4) : end]) for row in rows for end in range(2, len(row) + 1))
    assert Counter(map(tuple, found + out)) == expected
    long = [row for row in rows if len(row) >= 3]
    assert len(out) == min(valid_users, len(long) // 5)
    assert not Counter(map(tuple, out)) - Counter(tuple(row[-4:]) for row in long)
    if found:
        batch = windows.batch(np.arange(len(windows)))
        assert [[v for v in row if v != -1] for row in batch.tolist()] == found
        assert batch[:, -1].tolist() == [row[-1] for row in found]


def test_masks_have_every_size_and_every_subset_alike():
    masks = draw_masks(12_000, 3, torch_rng(0)).numpy()
    shares = Counter(map(tuple, masks.astype(int).tolist()))
    expected = {m: 1 / 3 / math.comb(3, sum(m)) for m in np.ndindex(2, 2, 2) if sum(m)}
    assert set(shares) == set(expected)
    for mask, share in expected.items():
        assert shares[mask] / 12_000 == pytest.approx(share, abs=0.015)


# ---- the network


def test_forward_is_the_written_out_sum_and_attention():
    """One head, one layer, by hand: position + sum of fields, mask vectors at the target only."""
    options = replace(TINY, n_heads=1, max_items=5)
    network = network_of(options=options).eval()
    items = [3, 17, 8]
    masked = [False, True, True]
    x = []
    for place, item in enumerate(items):
        values = network.values_NJ[item].tolist()
        parts = [network.tables[at].weight[value] for at, value in enumerate(values)]
        if place == 2:
            parts = [network.masks[at] if masked[at] else part for at, part in enumerate(parts)]
        x.append(sum(parts) + network.positions.weight[2 - place])
    x = torch.stack(x)
    layer = network.layers[0]
    normed = layer.norm1(x)
    q, k, v = (normed @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=1)
    weights = torch.softmax(q @ k.T / 16**0.5, dim=1)
    x = x + layer.self_attn.out_proj(weights @ v)
    x = x + layer.linear2(torch.relu(layer.linear1(layer.norm2(x))))
    expected = network.norm(x[-1])
    found = network(torch.tensor([items]), torch.tensor([masked]))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing():
    network = network_of().eval()
    masked = torch.tensor([[True, False, True], [False, True, False]])
    together = network(history_tensor([[5, 6], [7, 8, 9, 4]], 6), masked)
    alone = torch.cat([network(torch.tensor([[5, 6]]), masked[:1]), network(torch.tensor([[7, 8, 9, 4]]), masked[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def weighted(x):
    """Some function of a normalised output with a gradient: its plain sum is always zero."""
    return (x * torch.linspace(-1, 2, x.numel()).view_as(x)).sum()


def test_hidden_fields_are_not_seen_and_history_is_never_hidden():
    network = network_of()
    everything = torch.ones(1, 3, dtype=torch.bool)
    first, second = (network(torch.tensor([[5, 6, target]]), everything) for target in (7, 30))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, network(torch.tensor([[5, 9, 7]]), everything))
    items = torch.tensor([[5, 6, 7]])
    weighted(network(items, torch.tensor([[False, True, False]]))).backward()
    assert network.masks.grad[1].any()
    assert not network.masks.grad[[0, 2]].any()  # neither for open fields nor at the places of the history
    network.zero_grad()
    weighted(network(items, everything)).backward()
    used = network.tables[0].weight.grad.any(dim=1).nonzero()[:, 0].tolist()
    assert used == [5, 6]  # not the target
    assert network.masks.grad.any(dim=1).all()  # mask vectors, not zeros


# ---- the loss


def loop_loss(network, items, masked):
    """Mean over windows of the sum over masked fields, with scores as cosines one by one."""
    h_BD = network(items, masked).detach().double().numpy()
    total = 0.0
    for h, target, hidden in zip(h_BD, items[:, -1].tolist(), masked.tolist(), strict=True):
        for at, table in enumerate(network.tables):
            if hidden[at]:
                weights = table.weight.detach().double().numpy()
                scores = [4 * (h @ w) / np.linalg.norm(h) / np.linalg.norm(w) for w in weights]  # sqrt(16) = 4
                true = scores[int(network.values_NJ[target, at])]
                total += math.log(sum(math.exp(s) for s in scores)) - true
    return total / len(items)


def test_loss_is_the_written_out_softmax_of_scaled_cosines():
    network = network_of()
    items = history_tensor([[5, 6], [7, 8, 9, 4], [1, 2, 3]], 4)
    masked = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    found = batch_loss(network, items, masked, TINY, torch_rng(0)).detach()
    assert found.item() == pytest.approx(loop_loss(network, items, masked), rel=1e-5)


def test_loss_starts_at_the_logarithm_of_the_number_of_values():
    options = replace(TINY, dim=64, n_heads=2)
    network = network_of((5000, 300), options)
    items = torch.randint(5000, (256, 6), generator=torch_rng(0))
    everything = torch.ones(256, 2, dtype=torch.bool)
    h_BD = network(items, everything)
    for at, n_values in enumerate((5000, 300)):
        true = network.values_NJ[items[:, -1], at]
        loss = float(field_loss(network, h_BD, true, at, None).detach()) / 256
        # sqrt(D) cos of random directions is standard normal, and log E exp(normal) = 1/2
        assert loss == pytest.approx(math.log(n_values) + 0.5, abs=0.25)


def test_sampled_softmax_estimates_the_whole_one():
    network = network_of((3000, 5), replace(TINY, dim=32))
    h_BD = network(torch.randint(3000, (50, 4), generator=torch_rng(1)), torch.ones(50, 2, dtype=torch.bool)).detach()
    true = torch.randint(3000, (50,), generator=torch_rng(2))
    whole = float(field_loss(network, h_BD, true, 0, None).detach())
    draws = torch_rng(3)
    sampled = [
        float(field_loss(network, h_BD, true, 0, torch.randint(3000, (128,), generator=draws)).detach())
        for _ in range(30)
    ]
    assert np.mean(sampled) == pytest.approx(whole, rel=0.01)


def test_a_sample_of_all_values_is_the_whole_softmax():
    network = network_of()
    h_BD = network(torch.tensor([[5, 6, 7], [1, 2, 3]]), torch.ones(2, 3, dtype=torch.bool))
    true = torch.tensor([7, 3])
    whole = field_loss(network, h_BD, true, 0, None)
    torch.testing.assert_close(field_loss(network, h_BD, true, 0, torch.arange(40)), whole)  # the true value once


def test_a_row_whose_negatives_are_all_its_true_value_is_no_trouble():
    network = network_of()
    h_BD = network(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool))
    loss = field_loss(network, h_BD, torch.tensor([7]), 0, torch.tensor([7, 7]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(network.tables[0].weight.grad).all()


def test_large_vocabularies_are_trained_on_a_sample():
    network = network_of()
    items, everything = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    few = replace(TINY, full_softmax=10, n_negatives=4)
    batch_loss(network, items, everything, few, torch_rng(0)).backward()
    assert 2 < int(network.tables[0].weight.grad.any(dim=1).sum()) <= 2 + 1 + 4  # history, true value, negatives
    assert network.tables[1].weight.grad.any(dim=1).all()


# ---- training


def planted(n_items=60, n_users=100, seed=0):
    """Brand and shelf nearly identify an item (two share them); the next item is the next one of a fixed cycle."""
    brands = [f"brand {n // 2 % 6}" for n in range(n_items)]
    shelves = [["Shop", f"shelf {n // 12}"] for n in range(n_items)]
    items = ItemCatalog(
        tuple(f"i{n}" for n in range(n_items)), {"title": [""] * n_items, "brand": brands, "categories": shelves}
    )
    generator = np.random.default_rng(seed)
    cycle = generator.permutation(n_items)
    starts, lengths = generator.integers(n_items, size=n_users), generator.integers(3, 9, size=n_users)
    rows = [[int(cycle[(a + t) % n_items]) for t in range(m)] for a, m in zip(starts, lengths, strict=True)]
    return Histories.from_lists(rows), items


def test_a_hundred_users_are_learned_by_heart():
    train, items = planted()
    long = replace(TINY, dim=32, inner=64, epochs=40, batch_size=128)
    options = replace(long, learning_rate=2e-2, warmup_steps=10, valid_users=0)
    found = train_famae(train, items, options)
    assert [f.name for f in found.fields] == ["brand", "categories"]
    assert found.log[0]["loss"] > 5
    assert found.log[-1]["loss"] < 0.6
    assert found.best == found.log[-1]


def test_fields_say_more_than_the_history():
    train, items = planted()
    random = np.random.default_rng(0)  # without order there is nothing to learn from a history
    rows = Histories.from_lists([random.permutation(60)[:8].tolist() for _ in range(150)])
    fast = replace(TINY, batch_size=64, learning_rate=2e-2, warmup_steps=10)
    options = replace(fast, epochs=8, valid_users=30, patience=0)
    found = train_famae(rows, items, options)
    assert found.best["metric_2"] > 0.8
    assert found.best["metric_1"] < 0.4
    assert found.best["metric_1"] + found.best["metric_2"] == max(r["metric_1"] + r["metric_2"] for r in found.log)
    ordered = train_famae(train, items, replace(options, valid_users=20))
    assert ordered.best["metric_1"] > 0.7  # the cycle is learned, and not by heart: these windows were held out


def test_metrics_equal_counted_ranks():
    train, items = planted()
    windows = cut_windows(train, replace(TINY, valid_users=20))[1]
    values = np.column_stack([np.arange(60), np.arange(60) // 2 % 6])
    torch.manual_seed(0)
    network = FamaeNetwork(values.astype(np.int32), (60, 6), TINY).eval()
    hits = {"metric_1": 0, "metric_2": 0}
    for row in range(len(windows)):
        batch = windows.batch(np.array([row]))
        for name, hidden in (("metric_1", [True, True]), ("metric_2", [True, False])):
            h = network(batch, torch.tensor([hidden]))
            scores = torch.cosine_similarity(h, network.tables[0].weight)
            hits[name] += int((scores > scores[batch[0, -1]]).sum() < 10)
    assert metrics(network, windows, batch_size=7) == {name: n / len(windows) for name, n in hits.items()}
    assert len(items) == 60
    assert hits["metric_1"] != hits["metric_2"]


def test_training_is_deterministic_and_leaves_the_global_state_alone():
    train, items = planted(n_users=30)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    options = replace(TINY, dropout=0.1, full_softmax=20, n_negatives=8)
    first, second = (famae(train, items, options) for _ in range(2))
    assert first.vectors.tobytes() == second.vectors.tobytes()
    assert first.recipe == second.recipe
    assert first.catalog == items.fingerprint
    assert torch.equal(torch.get_rng_state(), before)
    assert famae(train, items, replace(options, seed=1)).vectors.tobytes() != first.vectors.tobytes()


def test_early_stopping_keeps_the_best_tables(monkeypatch):
    from genrec.embeddings import famae_training

    quality = iter([0.1, 0.5, 0.3, 0.2, 0.9])
    tables = []

    def scripted(network, windows):
        tables.append(network.tables[0].weight.detach().numpy().copy())
        return {"metric_1": 0.0, "metric_2": next(quality)}

    monkeypatch.setattr(famae_training, "metrics", scripted)
    train, items = planted(n_users=40)
    found = train_famae(train, items, replace(TINY, epochs=9, patience=2))
    assert [row["metric_2"] for row in found.log] == [0.1, 0.5, 0.3, 0.2]
    assert found.best["epoch"] == 2
    assert np.array_equal(found.tables[0], tables[1])


# ---- item vectors


@pytest.fixture(scope="module")
def trained():
    train, items = planted()
    kept = [[i for i in row if i not in (4, 5, 31)] for row in train.to_lists()]  # three items are never bought
    return train_famae(Histories.from_lists(kept), items, TINY), items


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_vectors_are_unit_field_vectors_side_by_side(trained):
    found, items = trained
    vectors = found.vectors()
    assert vectors.shape == (60, 3 * 16)
    assert vectors.dtype == np.float32
    for item in (0, 17, 59):
        brand = found.fields[0].values[items.fields["brand"][item]]
        shelf = found.fields[1].values["\x1f".join(items.fields["categories"][item])]
        parts = [found.tables[0][item], found.tables[1][brand], found.tables[2][shelf]]
        np.testing.assert_allclose(vectors[item], np.concatenate([unit(part) for part in parts]), atol=1e-6)
    raw = replace(found, normalize=False).vectors()
    np.testing.assert_array_equal(raw[17, :16], found.tables[0][17])


def test_items_without_events_get_the_mean_vector_of_their_category(trained):
    found, _ = trained
    vectors = found.vectors()
    neighbours = [n for n in range(12) if n not in (4, 5)]  # the shelf of items 4 and 5
    expected = unit(found.tables[0][neighbours]).mean(axis=0)
    np.testing.assert_allclose(vectors[4, :16], expected, atol=1e-5)
    np.testing.assert_array_equal(vectors[4], vectors[5])  # nothing tells them apart


def test_new_items_are_described_by_their_fields(trained):
    found, _ = trained
    new = ItemCatalog(
        ("n0", "n1", "n2", "n3"),
        {
            "title": [""] * 4,
            "brand": ["brand 3", "brand 3", "no such brand", "no such brand"],
            "categories": [["Shop", "shelf 2"], ["Shop", "no such shelf"], ["Shop", "shelf 2"], None],
        },
    )
    vectors = found.vectors_of_new(new)
    own = unit(found.tables[0])
    shelf, brand = range(24, 36), [n for n in range(60) if n // 2 % 6 == 3 and n != 31]
    seen = [n for n in range(60) if n not in (4, 5, 31)]
    for row, members in enumerate([[n for n in shelf if n != 31], brand, [n for n in shelf if n != 31], seen]):
        np.testing.assert_allclose(vectors[row, :16], own[members].mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(vectors[0, 16:], found.vectors()[30, 16:])  # brand 3 on shelf 2
    assert not vectors[2, 16:32].any()  # no item of the catalog had another brand: nothing is known
    assert not vectors[3, 16:].any()
    values = found.values_NJ.copy()
    values[:9, 1:] = [OTHER, MISSING]  # no category: what is missing or rare has nothing in common
    np.testing.assert_array_equal(replace(found, values_NJ=values).vectors_of_new(new)[3, :16], vectors[3, :16])


# ---- limits


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 6},
        {"max_items": 1},
        {"dropout": 1.0},
        {"learning_rate": 0.0},
        {"fields": ()},
        {"device": "tpu"},
        {"n_negatives": 0},
        {"patience": -1},
        {"weight_decay": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FamaeSettings(**wrong)


def test_unusable_histories_are_refused():
    items = planted()[1]
    with pytest.raises(DataError, match="two items"):
        train_famae(Histories.from_lists([[1], []]), items, TINY)
    with pytest.raises(DataError, match=r"0\.\.59, got 60"):
        train_famae(Histories.from_lists([[1, 60]]), items, TINY)


def test_the_synthetic_shop_goes_through():
    data = make(tiny())
    train = leave_one_out(data.interactions).train()
    made = famae(train, data.catalog, replace(TINY, valid_users=10))
    assert made.vectors.shape[0] == 60
    assert made.recipe["kind"] == "famae"
    assert set(made.recipe["best"]) == {"epoch", "loss", "metric_1", "metric_2"}
