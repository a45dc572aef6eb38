"""Who influences whom in a parallel model, on the attention that runs."""

import numpy as np
import pytest
import torch

from genrec.models.parallel_body import _relative_bias
from genrec.models.parallel_inputs import PartTables
from genrec.testing.parallel_cases import CASES, parallel_model

ATTENTION = ["sdpa", "eager"]


def states(model, items, histories, after=None, width=None, turn=None):
    """States of float64 weights; ``turn``: an order for the parts of every item."""
    model = model.double()
    tables = items.tables(model.settings)
    given = {k: v.double() if v is not None and v.is_floating_point() else v for k, v in vars(tables).items()}
    tables = PartTables(**given)
    length = torch.tensor([len(h) for h in histories])
    grid = torch.zeros(len(histories), width or int(length.max()), dtype=torch.int64)
    for row, history in enumerate(histories):
        grid[row, : len(history)] = torch.tensor(history)
    parts = model.parts(tables, grid)
    if turn is not None:
        parts = parts[:, :, turn]
    with torch.no_grad():
        return model.states(parts, length, length[:, None] if after is None else torch.tensor(after))


def use(model, attention):
    model.body.transformer.set_attn_implementation(attention)


@pytest.mark.parametrize("name", CASES)
def test_backends_agree_and_padding_changes_nothing(name):
    model, items = parallel_model(name, scale=5)
    histories = [[3, 4, 5], [7], [], [1, 2, 3, 4, 5, 6]]
    whole = states(model, items, histories)
    assert whole.abs().max() > 0.1
    for row, history in enumerate(histories):
        alone = states(model, items, [history])
        assert torch.allclose(whole[row], alone[0], atol=1e-9)
        assert torch.allclose(states(model, items, [history], width=11)[0], alone[0], atol=1e-9)
    use(model, "eager")
    assert torch.allclose(states(model, items, histories), whole, atol=1e-5)  # whose softmax is of float32


@pytest.mark.parametrize("name", ["setrec", "setrec-joint", "recgpt", "rpg", "heads"])
def test_one_pass_asks_at_every_place_what_shorter_histories_ask(name):
    """Also the leakage test: no place sees the item that it is to predict, to the last bit of what it is fed."""
    model, items = parallel_model(name, scale=5)
    history = [3, 1, 4, 1, 5]
    places = states(model, items, [history], after=[list(range(6))])
    for place in range(6):
        assert torch.allclose(places[0, place], states(model, items, [history[:place]])[0, 0], atol=1e-9), place
    changed = states(model, items, [[3, 1, 9, 1, 5]], after=[list(range(6))])
    same = (places == changed).flatten(2).all(dim=2)[0]
    assert same.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ["setrec", "setrec-t5", "setrec-joint"])
def test_order_of_slots_plays_no_part(name, attention):
    model, items = parallel_model(name, scale=15)
    use(model, attention)
    histories = [[3, 4, 5, 6], [7, 8]]
    plain = states(model, items, histories)
    turned = states(model, items, histories, turn=[2, 0, 1])
    assert (plain - turned).abs().max() < 1e-6 < plain.std()
    # a model that reads parts by their place is not so
    other, items = parallel_model("recgpt", scale=15)
    use(other, attention)
    assert (states(other, items, histories) - states(other, items, histories, turn=[2, 0, 1])).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_slot_changes_later_items_and_itself_at_every_layer(attention):
    model, _ = parallel_model("setrec", scale=5)
    use(model, attention)
    model.double()
    parts = torch.randn(1, 3, 3, 32).double()
    changed = parts.clone()
    changed[0, 1, 2] += 1
    kept = []
    for layer in model.body.transformer.get_decoder().layers:
        layer.register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    length = torch.tensor([3])
    with torch.no_grad():
        for given in (parts, changed):
            model.states(given, length, length[:, None])
    n_layers = len(kept) // 2
    for before, after in zip(kept[:n_layers], kept[n_layers:], strict=True):
        moved = (before != after).any(dim=-1).reshape(-1)
        # start, three items of three slots, three queries; slot 2 of item 1 is position 1 + 3 + 2
        assert moved.tolist() == [False] * 6 + [True] + [True] * 3 + [True] * 3


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_code_changes_its_item_and_later_ones_in_the_hybrid_mask(attention):
    model, _ = parallel_model("recgpt", scale=5)
    use(model, attention)
    model.double()
    parts = torch.randn(1, 4, 3, 32).double()
    changed = parts.clone()
    changed[0, 2, 2] += 1
    at = torch.arange(5)[None]
    with torch.no_grad():
        before, after = (model.states(given, torch.tensor([4]), at) for given in (parts, changed))
    moved = (before != after).any(dim=-1)[0]
    assert moved.tolist() == [[False] * 3] * 3 + [[True] * 3] * 2


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ["setrec", "setrec-t5", "queries-t5"])
def test_queries_do_not_see_each_other(name, attention):
    model, items = parallel_model(name, scale=5)
    use(model, attention)
    before = states(model, items, [[3, 4, 5]])
    with torch.no_grad():
        model.body.queries[0] += 1
    after = states(model, items, [[3, 4, 5]])
    assert not torch.equal(before[..., 0, :], after[..., 0, :])
    assert torch.equal(before[..., 1:, :], after[..., 1:, :])


def test_t5_reads_items_at_their_distance():
    """The bias between two positions is that of their items, whatever the number of slots between them."""
    model, _ = parallel_model("setrec-t5")
    encoder = model.body.transformer.get_encoder()
    bias = _relative_bias(encoder, torch.tensor([0, 1, 1, 2, 2]))
    plain = encoder.block[0].layer[0].SelfAttention.compute_bias(3, 3)
    at = torch.tensor([0, 1, 1, 2, 2])
    assert torch.equal(bias, plain[:, :, at][:, :, :, at])


@pytest.mark.parametrize("name", CASES)
def test_weights_come_from_the_seed(name):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two, other = (parallel_model(name, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    differs = [not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all(same) and np.mean(differs) > 0.4
