from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.data.ties import redraw
from genrec.errors import DataError, FingerprintMismatch
from genrec.testing.walks import walk_codes, walks
from genrec.training import dataset
from genrec.training.collate import Collator
from genrec.training.dataset import Plan, Samples, TrainingData, prefix_samples, window_samples
from genrec.training.settings import TrainSettings
from genrec.vocab.token_map import TextBase, TokenMap

rows = st.lists(st.lists(st.integers(0, 23), max_size=12), min_size=1, max_size=12)


def listed(histories, samples):
    parts = zip(samples.rows, samples.starts, samples.ends, strict=True)
    return [(int(r), histories.items[s:e].tolist()) for r, s, e in parts]


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(1, 5))
def test_prefix_samples_are_all_prefixes(lists, max_items):
    histories = Histories.from_lists(lists)
    want = [(user, row[max(0, t - max_items) : t + 1]) for user, row in enumerate(lists) for t in range(1, len(row))]
    assert listed(histories, prefix_samples(histories, max_items)) == want


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(1, 5))
def test_windows_cover_each_history_from_its_newest_item(lists, max_items):
    histories = Histories.from_lists(lists)
    want = []
    for user, row in enumerate(lists):
        rest = row
        while len(rest) >= 2:
            want.append((user, rest[-(max_items + 1) :]))
            rest = rest[: -(max_items + 1)]
    assert listed(histories, window_samples(histories, max_items)) == want


def test_dropped_prefixes_keep_two_items_and_depend_on_seed_epoch_and_row_only():
    samples = Samples(np.zeros(5000, np.int64), np.tile(np.arange(2, 12), 500), np.arange(5000), np.zeros(12, np.int32))
    dropped = samples.drop_prefixes(0.5, seed=3, epoch=1)
    assert (dropped.ends - dropped.starts >= 2).all() and np.array_equal(dropped.ends, samples.ends)
    long = samples.ends > 2
    assert 0.45 < (dropped.starts[long] > 0).mean() < 0.55
    assert set(dropped.starts[samples.ends == 11]) == set(range(10))
    assert np.array_equal(dropped.starts, samples.drop_prefixes(0.5, seed=3, epoch=1).starts)
    for seed, epoch in ((3, 2), (4, 1)):
        assert not np.array_equal(dropped.starts, samples.drop_prefixes(0.5, seed=seed, epoch=epoch).starts)
    assert samples.drop_prefixes(0.0, 3, 1) is samples


@pytest.mark.parametrize("layout", ["encoder", "decoder"])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_plan_is_a_function_of_the_step_and_pads_little(layout, ragged):
    data = walks(ragged, n_users=300)
    collator = Collator(data, layout)
    cut = prefix_samples if layout == "encoder" else window_samples
    samples = cut(data.histories, 5)
    rule = TrainSettings(batch_size=16, prefix_drop=0.3, seed=7)

    def fresh():
        return Plan(samples, collator.item_lengths_N, rule, target_apart=layout == "encoder")

    plan, n = fresh(), fresh().steps_per_epoch
    batches = [plan.batch(step) for step in range(2 * n)]
    for step in (2 * n - 1, 0, n, n - 1):
        again = fresh().batch(step)
        assert np.array_equal(again.starts, batches[step].starts)
        assert np.array_equal(again.ends, batches[step].ends)
    for epoch in (0, 1):
        seen = np.concatenate([b.ends for b in batches[epoch * n : (epoch + 1) * n]])
        assert sorted(seen) == sorted(samples.ends)
    assert plan.padding_share() <= 0.1
    cells = real = 0
    for batch in batches[:n]:
        body = collator(batch)["input_ids"].numpy()
        cells, real = cells + body.size, real + (body != 0).sum()
    assert plan.padding_share() == pytest.approx(1 - real / cells, abs=0.03) and 1 - real / cells <= 0.1


@pytest.mark.parametrize("layout", ["encoder", "decoder"])
@pytest.mark.parametrize("ragged", [False, True])
def test_ties_come_in_another_order_every_epoch(layout, ragged):
    """The samples keep their places; each epoch shows them the order drawn for it, in inputs and targets."""
    data = walks(ragged, n_users=40)
    first = np.isin(np.arange(len(data.histories.items)), data.histories.offsets)
    tied = ~first & (np.arange(len(first)) % 3 > 0)
    collator = Collator(data, layout)
    cut = prefix_samples if layout == "encoder" else window_samples
    samples = cut(data.histories, 5)
    rule = TrainSettings(batch_size=16, seed=7)
    plan = Plan(samples, collator.item_lengths_N, rule, tied=tied, target_apart=layout == "encoder")
    seen = []
    for step in range(2 * plan.steps_per_epoch):
        epoch = step // plan.steps_per_epoch
        batch = plan.batch(step)
        want = redraw(data.histories.items, tied, seed=7, epoch=epoch)
        assert np.array_equal(batch.items, want)
        drawn = replace(data, histories=replace(data.histories, items=want))
        given, fixed = collator(batch), Collator(drawn, layout)(replace(batch, items=want))
        assert all(np.array_equal(given[name], fixed[name]) for name in given)
        seen.append(want)
    assert not np.array_equal(seen[0], seen[-1]) and not np.array_equal(seen[0], data.histories.items)
    with pytest.raises(DataError, match="one per event"):
        replace(data, tied=tied[1:])


def test_the_padding_of_the_first_epoch_is_known_without_drawing_it_again(monkeypatch):
    data, drawn = walks(ragged=True, n_users=40, tied=True), []

    def watch(items, tied, *, seed, epoch):
        drawn.append(epoch)
        return redraw(items, tied, seed=seed, epoch=epoch)

    monkeypatch.setattr(dataset, "redraw", watch)
    samples, lengths = window_samples(data.histories, 5), Collator(data, "decoder").item_lengths_N
    plan, fresh = (Plan(samples, lengths, TrainSettings(batch_size=16), tied=data.tied) for _ in range(2))
    for step in (0, plan.steps_per_epoch):
        plan.batch(step)
    assert plan.padding_share() > 0 and drawn == [0, 1]
    assert fresh.padding_share() == plan.padding_share()  # as after going on in a later epoch


BASES = [None, TextBase(9, 3, 3, None, "t"), TextBase(9, 3, 4, 5, "t")]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("n_user_tokens", [0, 5])
@pytest.mark.parametrize("base", BASES)
def test_decoder_batches_spell_out_the_items(ragged, n_user_tokens, base):
    data = walks(ragged, n_user_tokens)
    data = replace(data, token_map=replace(data.token_map, base=base))
    tokens, codes = data.token_map, data.codes.as_int()
    samples = window_samples(data.histories, 4)
    batch = Collator(data, "decoder")(samples)
    width = batch["input_ids"].shape[1]
    predicted = {}
    level_of = np.repeat(np.arange(len(batch["level_counts"])), batch["level_counts"])
    symbols = zip(batch["positions"].tolist(), level_of, batch["targets"].tolist(), strict=True)
    for position, level, symbol in symbols:
        end = not ragged or level == data.codes.n_levels or symbol < data.codes.level_sizes[level]
        is_end = ragged and (level == data.codes.n_levels or symbol == data.codes.level_sizes[level])
        assert end or is_end
        predicted[divmod(position, width)] = tokens.eos_id if is_end else tokens.level_offset[level] + symbol
    total = 0
    for b, (user, items) in enumerate(listed(data.histories, samples)):
        want = [] if tokens.bos_id is None else [tokens.bos_id]
        if n_user_tokens:
            want += tokens.user_tokens([f"user {user}"]).tolist()
        header = max(len(want), 1)  # nothing predicts the first token of a sequence
        lengths = (codes >= 0).sum(1) + ragged
        want += [int(t) for item in items for t in tokens.token_ids(codes[item])[: lengths[item]]]
        row = batch["input_ids"][b].tolist()
        assert row[: len(want) - 1] == want[:-1] or row[: len(want)] == want
        assert all(t in (0, tokens.pad_id) for t in row[len(want) :])
        for place in range(header, len(want)):
            assert predicted[b, place - 1] == want[place]
        total += len(want) - header
    assert len(predicted) == total == Collator(data, "decoder").n_targets(samples)


@pytest.mark.parametrize("ragged", [False, True])
def test_encoder_batches_ask_for_the_last_item(ragged):
    data = walks(ragged)
    tokens, codes = data.token_map, data.codes.as_int()
    samples = prefix_samples(data.histories, 3)
    collator = Collator(data, "encoder", decoder_start=0)
    batch = collator(samples)
    assert sum(batch["level_counts"]) == collator.n_targets(samples) == len(batch["targets"])
    for b, (_, items) in enumerate(listed(data.histories, samples)):
        *known, target = items
        want = [int(t) for item in known for t in tokens.token_ids(codes[item]) if t != tokens.pad_id]
        want.append(tokens.eos_id)
        mask = batch["attention_mask"][b].bool()
        assert batch["input_ids"][b][mask].tolist() == want
        spelled = tokens.token_ids(codes[target]).tolist()
        assert batch["decoder_input_ids"][b].tolist() == [0, *spelled[:-1]]


def test_a_history_of_one_item_is_no_sample_and_none_at_all_is_an_error():
    codes = walk_codes()
    data = TrainingData(Histories.from_lists([[1], []]), codes, TokenMap.of(codes))
    samples = window_samples(data.histories, 5)
    assert len(samples) == len(prefix_samples(data.histories, 5)) == 0
    with pytest.raises(DataError, match="two items"):
        Plan(samples, Collator(data, "decoder").item_lengths_N, TrainSettings())


def test_parts_that_do_not_fit_are_refused():
    codes = walk_codes()
    histories = Histories.from_lists([[1, 2], [30, 1]])
    with pytest.raises(DataError, match=r"0\.\.23"):
        TrainingData(histories, codes, TokenMap.of(codes))
    with pytest.raises(DataError, match="level sizes"):
        TrainingData(histories.take([0]), codes, TokenMap((2, 2, 2)))
    with pytest.raises(DataError, match="user_ids"):
        TrainingData(histories.take([0]), codes, TokenMap.of(codes, n_user_tokens=3))
    with pytest.raises(FingerprintMismatch, match="codes belong to catalog walks, got catalog others"):
        TrainingData(histories.take([0]), codes, TokenMap.of(codes), catalog="others")
