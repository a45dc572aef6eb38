import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding.index import CatalogIndex
from genrec.decoding.mapped import load_mapped
from genrec.errors import ArtifactError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.oracles import END, ITEMS, dict_trie, items_below, walk


@st.composite
def item_codes(draw, max_items=14):
    n = draw(st.integers(1, max_items))
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    row = st.tuples(*(st.integers(0, k - 1) for k in sizes))
    rows = np.array(draw(st.lists(row, min_size=n, max_size=n)))
    if draw(st.booleans()):
        lengths = np.array(draw(st.lists(st.integers(1, len(sizes)), min_size=n, max_size=n)))
        rows = np.where(np.arange(len(sizes)) < lengths[:, None], rows, -1)
    return ItemCodes.from_int(rows, sizes, "catalog")


def keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)


def prefixes(trie, before=()):
    yield before, trie
    for code, below in trie.items():
        if code != ITEMS:
            yield from prefixes(below, (*before, code))


@settings(max_examples=60, deadline=None)
@given(item_codes())
def test_index_is_the_dict_trie(codes):
    index = CatalogIndex.build(codes, keys(codes.n_items))
    trie = dict_trie(codes.as_int(), ragged=codes.ragged)
    for prefix, below in prefixes(trie):
        node = np.zeros(1, dtype=np.int64)
        for level, code in enumerate(prefix):
            node = index.step(level, node, [index.end_code(level) if code == END else code])
        depth = len(prefix)
        if prefix and prefix[-1] == END:
            assert sorted(index.items_below(depth, int(node[0]))) == below[ITEMS]
            continue
        assert sorted(index.items_below(depth, int(node[0])).tolist()) == items_below(below)
        if depth == index.depth:
            continue
        expected = sorted(index.end_code(depth) if c == END else c for c in below)
        found = index.children(depth, node)
        assert found.codes.tolist() == expected
        every = np.arange(index.n_symbols(depth) + 2)
        stepped = index.step(depth, np.repeat(node, len(every)), every)
        assert np.flatnonzero(stepped >= 0).tolist() == expected
        assert stepped[stepped >= 0].tolist() == found.nodes.tolist()


@settings(max_examples=40, deadline=None)
@given(item_codes())
def test_paths_lead_to_the_items_and_end_edges_pass_through(codes):
    index = CatalogIndex.build(codes, keys(codes.n_items))
    assert index.depth == codes.n_levels + codes.ragged
    path_codes = index.path_codes(np.arange(codes.n_items))
    node = np.zeros(codes.n_items, dtype=np.int64)
    for level in range(index.depth):
        node = index.step(level, node, path_codes[:, level])
        assert (node == index.path[index.rank_of, level]).all()
        assert (np.diff(index.path[:, level]) >= 0).all()
    for item, row in enumerate(codes.as_int()):
        length = int((row >= 0).sum())
        assert path_codes[item, :length].tolist() == row[:length].tolist()
        rest = [index.end_code(length)] + [index.pass_code(level) for level in range(length + 1, index.depth)]
        assert path_codes[item, length:].tolist() == (rest if codes.ragged else [])
        assert item in index.items_below(index.depth, int(node[item]))
    assert index.n_identifiers == len(np.unique(codes.collision_ids()))


def test_items_that_share_an_identifier_stand_in_key_order():
    codes = ItemCodes.from_int(np.zeros((5, 2), dtype=int), (2, 2), "c")
    order = np.array([30, 10, 50, 20, 40], dtype=np.uint64)
    index = CatalogIndex.build(codes, order)
    assert index.items.tolist() == [1, 3, 0, 4, 2]
    assert index.order.tolist() == [0, 1, 2, 3, 4]


def test_left_out_items_are_gone_with_their_prefixes():
    codes = ItemCodes.from_int([[0, 1], [1, 1], [1, 2]], (2, 3), "c")
    index = CatalogIndex.build(codes, keys(3), keep=np.array([False, True, True]))
    assert index.children(0, [0]).codes.tolist() == [1]
    assert index.rank_of.tolist()[0] == -1
    with pytest.raises(DataError, match="item 0"):
        index.path_codes([1, 0])
    with pytest.raises(DataError, match="no item"):
        CatalogIndex.build(codes, keys(3), keep=np.zeros(3, dtype=bool))


@pytest.mark.parametrize("node", [-1, 2])
def test_a_node_that_does_not_exist_is_an_error_not_an_empty_set(node):
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"), keys(2))
    with pytest.raises(DataError, match="nodes of depth 1"):
        index.children(1, [node])


def test_dead_nodes_stay_dead():
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"), keys(2))
    assert index.step(1, [-1, 0, 1], [1, 1, 0]).tolist() == [-1, 0, -1]


def test_many_levels_sort_as_their_tuples():
    random = np.random.default_rng(3)
    rows = random.integers(0, 1000, (300, 9)) // random.integers(1, 900, (1, 9))
    codes = ItemCodes.from_int(rows, (1000,) * 9, "c")
    index = CatalogIndex.build(codes, keys(300))
    assert rows[index.items].tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("ragged", [False, True])
def test_saved_index_is_mapped_and_equal(tmp_path, ragged):
    rows = np.random.default_rng(0).integers(0, 300, (200, 3))
    if ragged:
        rows[::3, 2] = -1
    codes = ItemCodes.from_int(rows, (300, 300, 300), "c")
    index = CatalogIndex.build(codes, keys(200))
    index.save(tmp_path / "index")
    loaded = CatalogIndex.load(tmp_path / "index", codes=codes)
    for name, array in index._arrays().items():
        assert (loaded._arrays()[name] == array).all()
        assert loaded._arrays()[name].dtype == array.dtype
    assert isinstance(loaded.items.base, np.ndarray) and not loaded.items.flags.writeable
    assert (loaded.children(0, [0]).codes == index.children(0, [0]).codes).all()
    other = ItemCodes.from_int(np.roll(rows, 1, axis=0), (300, 300, 300), "c")
    with pytest.raises(FingerprintMismatch, match="built from codes"):
        CatalogIndex.load(tmp_path / "index", codes=other)
    elsewhere = ItemCodes.from_int(rows, (300, 300, 300), "other catalog")
    with pytest.raises(FingerprintMismatch, match="catalog"):
        CatalogIndex.load(tmp_path / "index", codes=elsewhere)


def test_corrupt_pointers_are_refused():
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"), keys(2))
    fields = {f: getattr(index, f) for f in index.__dataclass_fields__}
    with pytest.raises(DataError, match="corrupt"):
        CatalogIndex(**{**fields, "pointers": (index.pointers[0], np.array([0, 0, 2]))})


def test_mapped_file_that_is_cut_short_is_refused(tmp_path):
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"), keys(2))
    index.save(tmp_path / "index")
    file = tmp_path / "cut.safetensors"
    raw = (tmp_path / "index" / "index.safetensors").read_bytes()
    for cut in (0, 5, len(raw) - 1):
        file.write_bytes(raw[:cut])
        with pytest.raises(ArtifactError):
            load_mapped(file)


def test_bytes_per_item_of_dense_codes():
    rows = np.stack(np.unravel_index(np.arange(4096), (16, 16, 16)), axis=1)
    index = CatalogIndex.build(ItemCodes.from_int(rows, (16, 16, 16), "c"), keys(4096))
    # per item one byte of token and four of leaf, item and order each; and the upper levels
    upper = (16 + 256) + 4 * (2 + 17 + 257 + 1)
    assert index.bytes_per_item == pytest.approx(13 + upper / 4096)
    assert walk(dict_trie(rows, ragged=False), (3, 2, 1)) == {ITEMS: [3 * 256 + 2 * 16 + 1]}
