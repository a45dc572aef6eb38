"""GAOQ against definitions written out: recursion, permutations, loops; and the figures of Amazon Beauty."""

import os
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.readers import ReaderSettings, read
from genrec.data.splits import leave_one_out
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.collaborative import PpmiSettings, ppmi
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.gaoq import Gaoq, GaoqSettings, proposed_sizes
from genrec.item_tokenizers.quantizers import anchors as anchors_module
from genrec.item_tokenizers.quantizers.anchors import align, orthogonal_anchors
from genrec.item_tokenizers.quantizers.balanced import balanced_kmeans
from genrec.metrics.codes_structure import direction_coherence
from genrec.metrics.codes_usage import entropy_bits, gini, prefix_numbers
from genrec.seeding import derive, rng
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source

SMALL = GaoqSettings(level_size=(4, 4, 6))


class TestGaoq(TokenizerContract):
    def make(self):
        return Gaoq(SMALL)


class TestUnaligned(TokenizerContract):
    def make(self):
        return Gaoq(replace(SMALL, aligned=False))


class TestProposedSizes(TokenizerContract):
    def make(self):
        return Gaoq(GaoqSettings(n_levels=2))


class TestSuffix(TokenizerContract):
    def make(self):
        return Gaoq(GaoqSettings(level_size=(3, 3, 3), collisions="suffix"))


class TestShared(TokenizerContract):
    def make(self):
        return Gaoq(GaoqSettings(level_size=(3, 3, 3), n_anchors=(5, 14), collisions="shared"))


def source_of(vectors, keys=None):
    x = np.asarray(vectors, dtype=np.float32)
    keys = np.arange(len(x), dtype=np.uint64) if keys is None else keys
    return TokenizerSource(CATALOG, keys, ItemEmbeddings(x, CATALOG, {}))


def cosine(a, b):
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b) / length if length > 1e-9 else 0.0


def named(children, centre, anchors):
    """Codes of the children of one node: every injective choice of anchors, the best sum of cosines."""
    cosines = [[cosine(child - centre, anchor) for anchor in anchors] for child in children]
    choices = permutations(range(len(anchors)), len(children))
    return max(choices, key=lambda choice: sum(row[k] for row, k in zip(cosines, choice, strict=True)))


def recursion(x, order, sizes, all_anchors, seed):
    """Codes of all items: split the items, name the children, do the same with every child's items."""
    codes = dict.fromkeys(range(len(x)), ())
    nodes = [list(order)]
    for level, size in enumerate(sizes):
        below = []
        for number, items in enumerate(nodes):
            if len(items) <= size:
                groups = [[item] for item in items]
            else:
                node_seed = derive(derive(seed, "gaoq", level), number)
                labels = balanced_kmeans(x[items], size, seed=node_seed).labels
                groups = [[item for item, label in zip(items, labels, strict=True) if label == k] for k in range(size)]
            names = range(len(groups))
            if level:
                centres = [x[group].astype(np.float64).mean(axis=0) for group in groups]
                centre = x[items].astype(np.float64).mean(axis=0)
                names = named(centres, centre, all_anchors[level - 1].astype(np.float64))
            for name, group in zip(names, groups, strict=True):
                for item in group:
                    codes[item] += (name,)
            below += groups
        nodes = below
    return [list(codes[n]) for n in range(len(x))]


@pytest.mark.parametrize(("n_items", "sizes", "n_anchors"), [(40, (3, 4, 5), (4, 5)), (23, (4, 3, 2), (5, 4))])
def test_codes_equal_a_recursion_with_all_permutations(n_items, sizes, n_anchors):
    generator = np.random.default_rng(n_items)
    x = generator.normal(size=(n_items, 6)).astype(np.float32)
    x -= x.mean(axis=0, dtype=np.float64).astype(np.float32)
    keys = generator.permutation(n_items).astype(np.uint64)
    tokenizer = Gaoq(GaoqSettings(level_size=sizes, n_anchors=n_anchors))
    codes = tokenizer.fit(source_of(x, keys), seed=5)
    assert codes.level_sizes == (sizes[0], *n_anchors)
    assert codes.as_int().tolist() == recursion(x, np.argsort(keys).tolist(), sizes, tokenizer.anchors, 5)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(4, 6))
@settings(max_examples=40, deadline=None)
def test_alignment_finds_the_best_injective_names(seed, sizes, n_anchors):
    generator = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parents = generator.normal(size=(len(sizes), 3)).astype(np.float32)
    children = generator.normal(size=(starts[-1], 3)).astype(np.float32)
    anchors = orthogonal_anchors(n_anchors, 3, generator)
    found = align(children, parents, starts, anchors)
    for parent, (start, end) in enumerate(pairwise(starts)):
        if end - start > 1:
            away = children[start:end].astype(np.float64)
            best = named(away, parents[parent].astype(np.float64), anchors.astype(np.float64))
            assert found[start:end].tolist() == list(best)
        else:
            assert found[start] == 0


def test_alignment_in_pieces_gives_the_same_names(monkeypatch):
    generator = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(generator.integers(1, 9, size=40))])
    parents = generator.normal(size=(40, 5)).astype(np.float32)
    children = generator.normal(size=(starts[-1], 5)).astype(np.float32)
    anchors = orthogonal_anchors(8, 5, generator)
    whole = align(children, parents, starts, anchors)
    monkeypatch.setattr(anchors_module, "_CHUNK_ELEMENTS", 150)
    assert align(children, parents, starts, anchors).tolist() == whole.tolist()


def test_children_without_a_direction_get_the_lowest_free_codes():
    anchors = orthogonal_anchors(4, 4, rng(0))
    centre = np.full((1, 4), 7, dtype=np.float32)
    rounded = np.nextafter(centre, 7 + anchors[3:4])  # in the same place but for rounding
    children = np.concatenate([rounded, centre + 2 * anchors[:1], centre])
    assert align(children, centre, np.array([0, 3]), anchors).tolist() == [1, 0, 2]
    assert align(centre, centre - 1, np.array([0, 1]), anchors).tolist() == [0]


@pytest.mark.parametrize(("n_anchors", "dim"), [(1, 1), (5, 5), (32, 64)])
def test_few_anchors_are_orthonormal(n_anchors, dim):
    anchors = orthogonal_anchors(n_anchors, dim, rng(0))
    np.testing.assert_allclose(anchors @ anchors.T, np.eye(n_anchors), atol=1e-6)


def test_orthonormal_anchors_have_no_preferred_direction():
    draws = np.stack([orthogonal_anchors(2, 3, rng(seed)) for seed in range(400)])
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(np.einsum("sgd,sge->de", draws, draws) / 800, np.eye(3) / 3, atol=0.05)


@pytest.mark.parametrize(
    ("n_anchors", "dim", "largest"),
    [(3, 2, -1 / 2), (6, 3, 0.0), (12, 3, 1 / np.sqrt(5)), (17, 16, -1 / 16), (128, 64, 0.1)],
    ids=["triangle", "octahedron", "icosahedron", "simplex", "many"],
)
def test_many_anchors_keep_far_apart(n_anchors, dim, largest):
    anchors = orthogonal_anchors(n_anchors, dim, rng(0)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(anchors, axis=1), 1, atol=1e-6)
    cosines = (anchors @ anchors.T)[~np.eye(n_anchors, dtype=bool)]
    assert cosines.max() < largest + 0.01


@given(st.integers(0, 10**6), st.integers(1, 70), st.tuples(*[st.integers(2, 5)] * 3))
@settings(max_examples=25, deadline=None)
def test_siblings_have_equal_sizes_and_enough_identifiers_are_unique(seed, n_items, sizes):
    x = np.random.default_rng(seed).integers(0, 4, size=(n_items, 3))  # with copies
    room = int(np.prod(sizes))
    codes = Gaoq(GaoqSettings(level_size=sizes, collisions="shared")).fit(source_of(x), seed=seed).as_int()
    counts_of = {(): n_items}
    for length in range(1, 4):
        counts = {}
        for row in codes[:, :length].tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
        for parent, total in counts_of.items():
            children = [count for prefix, count in counts.items() if prefix[:-1] == parent]
            assert len(children) == min(total, sizes[length - 1])
            assert max(children) - min(children) <= 1
        counts_of = counts
    assert (max(counts_of.values()) == 1) == (n_items <= room)


def test_too_few_identifiers_are_refused_unless_allowed():
    source = planted_source(n_items=28)
    with pytest.raises(DataError, match="28 items do not fit into 27 identifiers") as caught:
        Gaoq(GaoqSettings(level_size=(3, 3, 3))).fit(source, seed=0)
    assert "4 or more" in caught.value.hint
    assert not Gaoq(GaoqSettings(level_size=(3, 3, 4))).fit(source, seed=0).collisions()
    suffixed = Gaoq(GaoqSettings(level_size=(3, 3, 3), collisions="suffix"))
    assert suffixed.fit(source, seed=0).level_sizes == (3, 3, 3, 2)
    assert suffixed.fit(source.take(range(27)), seed=0).level_sizes == (3, 3, 3)  # nothing to number


def planted_directions(n_parents=6, n_directions=4, seed=0):
    """Six distant places; around each the same four steps, and two items at every step."""
    generator = np.random.default_rng(seed)
    places = 40 * np.linalg.qr(generator.normal(size=(16, 16)))[0][:n_parents]
    steps = 4 * np.linalg.qr(generator.normal(size=(16, 16)))[0][:n_directions]
    place = np.repeat(np.arange(n_parents), 2 * n_directions)
    step = np.tile(np.repeat(np.arange(n_directions), 2), n_parents)
    noise = 0.05 * generator.normal(size=(len(place), 16))
    return (places[place] + steps[step] + noise).astype(np.float32), step


def test_a_code_is_one_direction_below_every_parent():
    x, step = planted_directions()
    options = GaoqSettings(level_size=(6, 4, 2))
    aligned, plain = (Gaoq(replace(options, aligned=a)).fit(source_of(x), seed=0).as_int() for a in (True, False))
    assert len({(a, b) for a, b in zip(step.tolist(), aligned[:, 1].tolist(), strict=True)}) == 4  # a renaming
    assert len({(a, b) for a, b in zip(step.tolist(), plain[:, 1].tolist(), strict=True)}) > 8
    assert direction_coherence(aligned, x, 1, across_parents=True) > 0.95
    assert direction_coherence(plain, x, 1, across_parents=True) < 0.3


def test_alignment_moves_no_item():
    source = planted_source(n_items=300, dim=20)
    options = GaoqSettings(level_size=(5, 6, 11))
    aligned, plain = Gaoq(options), Gaoq(replace(options, aligned=False))
    codes, control = (tokenizer.fit(source, seed=0).as_int() for tokenizer in (aligned, plain))
    for length in range(3):
        pairs = {*zip(prefix_numbers(codes)[:, length], prefix_numbers(control)[:, length], strict=True)}
        assert len(pairs) == len(np.unique(prefix_numbers(codes)[:, length]))
    assert aligned.report["mean_square_left"] == plain.report["mean_square_left"]
    assert (codes != control).any()
    assert plain.anchors == ()


def renamed(codes, size, generator):
    """The same clusters, the children of every node of the first level with each other's names."""
    shuffled = codes.copy()
    for parent in np.unique(codes[:, 0]):
        mine = codes[:, 0] == parent
        shuffled[mine, 1] = generator.permutation(size)[codes[mine, 1]]
    return shuffled


def test_shuffling_the_names_of_children_loses_the_directions():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 16))
    tokenizer = Gaoq(GaoqSettings(level_size=(12, 10, 17)))
    codes = tokenizer.fit(source_of(x), seed=0).as_int()
    control = Gaoq(replace(tokenizer.settings, aligned=False)).fit(source_of(x), seed=0).as_int()
    several = (codes, renamed(codes, 10, generator), control)
    found, mixed, plain = (direction_coherence(c, x, 1, across_parents=True) for c in several)
    assert found > 0.035
    assert abs(mixed) < 0.01
    assert abs(plain) < 0.01


def test_the_order_of_the_catalog_is_not_seen():
    source = planted_source(n_items=120)
    order = np.random.default_rng(0).permutation(120)
    turned = source_of(source.embeddings.vectors[order], source.item_keys[order])
    plain, other = (Gaoq(GaoqSettings(level_size=(4, 5, 6))).fit(s, seed=0).codes for s in (source, turned))
    assert other.tolist() == plain[order].tolist()


def test_new_items_go_to_the_nearest_centroid_level_by_level():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(90, 5)).astype(np.float32)
    new = generator.normal(size=(60, 5)).astype(np.float32)
    tokenizer = Gaoq(GaoqSettings(level_size=(4, 4, 6)))
    codes = tokenizer.fit(source_of(x), seed=0).as_int()
    expected = []
    for row in new.astype(np.float64):
        rows = np.arange(90)
        for level in range(3):
            names = np.unique(codes[rows, level])
            centres = {k: x[rows[codes[rows, level] == k]].astype(np.float64).mean(axis=0) for k in names.tolist()}
            near = min(centres, key=lambda k: ((row - centres[k]) ** 2).sum())
            rows = rows[codes[rows, level] == near]
        expected.append(codes[rows[0]].tolist())
    assert tokenizer.encode(TokenizerSource.of_vectors(new)).as_int().tolist() == expected
    again = tokenizer.encode(TokenizerSource.of_vectors(x)).as_int()
    assert tokenizer.report["moved_by_balance"] == (again != codes).any(axis=1).mean()
    assert 0 < tokenizer.report["moved_by_balance"] < 0.8


def test_codebooks_are_mean_steps_and_errors_are_those_of_the_nodes():
    source = planted_source(n_items=130, dim=7)
    tokenizer = Gaoq(GaoqSettings(level_size=(4, 3, 6), n_anchors=(4, 8), collisions="shared"))
    codes = tokenizer.fit(source, seed=0)
    x = source.embeddings.vectors.astype(np.float64)
    before, left = np.tile(x.mean(axis=0), (130, 1)), []
    left.append(((x - before) ** 2).sum(axis=1).mean())
    for level in range(3):
        prefix = prefix_numbers(codes.as_int())[:, level]
        node = np.stack([x[prefix == number].mean(axis=0) for number in prefix])
        for code in range(codes.level_sizes[level]):
            mine = codes.as_int()[:, level] == code
            step = (node - before)[mine].mean(axis=0) if mine.any() else np.zeros(7)
            np.testing.assert_allclose(codes.codebooks[level][code], step, atol=1e-4)
        before = node
        left.append(((x - node) ** 2).sum(axis=1).mean())
    np.testing.assert_allclose(tokenizer.report["mean_square_left"], left, rtol=1e-4)


def test_anchors_survive_saving(tmp_path):
    tokenizer = Gaoq(SMALL)
    tokenizer.fit(planted_source(), seed=0)
    tokenizer.save(tmp_path / "saved")
    back = Gaoq.load(tmp_path / "saved")
    assert [a.tolist() for a in back.anchors] == [a.tolist() for a in tokenizer.anchors]
    assert [len(a) for a in back.anchors] == [4, 6]
    kept = (tmp_path / "saved" / "state.safetensors").stat().st_size
    assert kept == pytest.approx(tokenizer.report["bytes_kept"], abs=2000)


PUBLISHED = [23742, 24685, 25142, 35024, 87449, 151411, 156537, 183230, 193383, 485218]


@pytest.mark.parametrize("n_items", [1, 7, 90, 2000, *PUBLISHED, 10**6])
@pytest.mark.parametrize("n_levels", [1, 2, 3, 4])
def test_proposed_sizes_are_enough_and_in_the_published_range(n_items, n_levels):
    sizes = proposed_sizes(n_items, n_levels)
    assert len(sizes) == n_levels
    assert np.prod(sizes) >= n_items
    assert sizes[-1] == max(2, -(-n_items // int(np.prod(sizes[:-1]))))
    if n_items >= 2000 and n_levels in (2, 3):
        assert 10 <= n_items / np.prod(sizes[:-1]) <= 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"level_size": (8, 8)},
        {"level_size": (8, 8, 1)},
        {"n_anchors": (8,)},
        {"n_anchors": (8, 7), "level_size": (8, 8, 8)},
        {"collisions": "reassign"},
        {"max_iterations": 0},
        {"suffix_limit": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GaoqSettings(**wrong)


def test_too_few_anchors_for_the_proposed_sizes_are_refused():
    with pytest.raises(ConfigError, match="at least 3 at position 0, got 2"):
        Gaoq(GaoqSettings(n_anchors=(2, 200))).fit(planted_source(n_items=130), seed=0)


@pytest.mark.slow
def test_directions_of_beauty():
    """Unit rows of 64 singular vectors of whole-history PPMI: the figures of an independent implementation."""
    named_folder = os.environ.get("GENREC_DATA")
    data = Path(named_folder) if named_folder else Path(__file__).parents[3] / "shared" / "data"
    folder = data / "amazon-beauty-2014"
    if not folder.is_dir():
        pytest.skip(f"needs the data set {folder}; set GENREC_DATA to the folder that holds it")
    split = leave_one_out(read(ReaderSettings("neutral", folder)).interactions)
    train = split.train()
    x = ppmi(train, split.n_items, PpmiSettings(dim=64, window=300, decay=1.0, value_power=1.0), "beauty").vectors
    x = x[np.unique(train.items)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert len(x) == 12_068
    options = GaoqSettings(level_size=(24, 32, 17))
    codes, control = (Gaoq(replace(options, aligned=a)).fit(source_of(x), seed=0) for a in (True, False))
    assert codes.collisions() == control.collisions() == []
    for size, counts in zip((24, 32, 17), codes.level_counts(), strict=True):
        assert gini(counts) < 0.02
        assert np.log2(size) - entropy_bits(counts) < 0.05
    several = (codes.as_int(), control.as_int(), renamed(codes.as_int(), 32, np.random.default_rng(0)))
    found, plain, mixed = (direction_coherence(c, x, 1, across_parents=False) for c in several)
    assert found == pytest.approx(0.042, abs=0.004)
    assert plain == pytest.approx(0.020, abs=0.003)
    assert mixed == pytest.approx(plain, abs=0.002)
