import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.batching import length_batches, padding_share


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 30), max_size=80).map(lambda x: np.array(x, dtype=np.int64)),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_every_row_once_and_only_one_short_batch(lengths, size, epoch):
    batches = length_batches(lengths, size, seed=1, epoch=epoch)
    rows = np.concatenate(batches) if batches else np.zeros(0, np.int64)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert sum(len(b) < size for b in batches) <= 1
    again = length_batches(lengths, size, seed=1, epoch=epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    filled, cells = 0, 0
    for batch in batches:
        for row in batch:
            filled += int(lengths[row])
            cells += int(max(lengths[r] for r in batch))
    assert padding_share(lengths, batches) == (1 - filled / cells if cells else 0)


def test_epochs_differ_and_like_lengths_meet():
    lengths = np.random.default_rng(0).integers(1, 20, 2000)
    first, second = (length_batches(lengths, 32, seed=1, epoch=e) for e in (0, 1))
    assert not np.array_equal(first[0], second[0])
    in_order = [np.arange(s, min(s + 32, 2000)) for s in range(0, 2000, 32)]
    assert padding_share(lengths, first) < 0.02 < 0.3 < padding_share(lengths, in_order)
    means = [lengths[b].mean() for b in first]
    assert means != sorted(means)
