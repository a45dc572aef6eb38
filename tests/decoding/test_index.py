import dataclasses
import importlib.util
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decoding import csr
from genrec.decoding.index import CatalogIndex
from genrec.decoding.listing import list_items
from genrec.decoding.mapped import load_mapped
from genrec.decoding.namespaces import Namespace, join_codes
from genrec.errors import ArtifactError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.seeding import number_hash
from genrec.testing.oracles import END, ITEMS, dict_trie, items_below, walk

GOLDEN = Path(__file__).parent.parent / "golden"


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


def prefixes(trie, before=()):
    yield before, trie
    for code, below in trie.items():
        if code != ITEMS:
            yield from prefixes(below, (*before, code))


@settings(max_examples=60, deadline=None)
@given(item_codes())
def test_index_is_the_dict_trie(codes):
    index = CatalogIndex.build(codes)
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
    index = CatalogIndex.build(codes)
    assert index.depth == codes.n_levels + codes.ragged
    path_codes = index.path_codes(np.arange(codes.n_items))
    node = np.zeros(codes.n_items, dtype=np.int64)
    for level in range(index.depth):
        node = index.step(level, node, path_codes[:, level])
        assert (node == index.nodes_of(index.rank_of)[:, level]).all()
        assert (np.diff(index.nodes_of(np.arange(len(index.items)))[:, level]) >= 0).all()
    for item, row in enumerate(codes.as_int()):
        length = int((row >= 0).sum())
        assert path_codes[item, :length].tolist() == row[:length].tolist()
        rest = [index.end_code(length)] + [index.pass_code(level) for level in range(length + 1, index.depth)]
        assert path_codes[item, length:].tolist() == (rest if codes.ragged else [])
        assert item in index.items_below(index.depth, int(node[item]))
    assert index.n_identifiers == len(np.unique(codes.collision_ids()))


def test_items_that_share_an_identifier_stand_in_the_order_of_their_hash():
    rows = np.array([[1, 1], [0, 0]])[np.arange(40) % 2]
    index = CatalogIndex.build(ItemCodes.from_int(rows, (2, 2), "c"))
    by_hash = np.argsort(number_hash(np.arange(40)))
    assert index.items.tolist() == [*by_hash[by_hash % 2 == 1], *by_hash[by_hash % 2 == 0]]
    assert index.items.tolist() != sorted(index.items.tolist())


@settings(max_examples=40, deadline=None)
@given(item_codes())
def test_ranks_of_leaves_are_counted(codes):
    index = CatalogIndex.build(codes)
    below = [index.items_below(index.depth, leaf) for leaf in range(index.n_identifiers)]
    firsts = np.cumsum([0, *map(len, below)])
    assert index.leaf_ranks.tolist() == firsts.tolist()
    assert index.first_rank(np.arange(len(below) + 1)).tolist() == firsts.tolist()
    assert index.nodes_of(np.arange(len(index.items)))[:, -1].tolist() == [n for n, b in enumerate(below) for _ in b]
    assert np.concatenate(below).tolist() == index.items.tolist()
    for each in below:
        assert each.tolist() == sorted(each.tolist(), key=lambda item: number_hash(np.array(item)))


def by_definition(rows, sizes):
    """Items in the order of their codes, the end of a short identifier above all codes of its level."""
    return sorted(
        range(len(rows)), key=lambda item: [c if c >= 0 else k for c, k in zip(rows[item], sizes, strict=True)]
    )


def assert_same(found, expected):
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
        assert found.arrays()[name].dtype == array.dtype
    for name in ("branching", "n_items", "level_sizes", "ragged", "catalog", "codes", "namespaces"):
        assert getattr(found, name) == getattr(expected, name), name


@settings(max_examples=100, deadline=None)
@given(item_codes(max_items=30), st.data())
def test_sorted_rows_build_the_same_index(codes, data):
    built, order = CatalogIndex.build(codes), by_definition(codes.as_int().tolist(), codes.level_sizes)
    lengths = np.full(len(codes), codes.n_levels) if codes.lengths is None else codes.lengths
    rows = codes.codes.astype(np.uint16)
    stated = lengths[order] if codes.ragged or data.draw(st.booleans()) else None
    options = {"items": np.array(order), "catalog": "catalog", "codes": codes.fingerprint}
    with mock.patch.object(csr, "BLOCK", data.draw(st.integers(1, 7))):
        assert_same(CatalogIndex.from_sorted(rows[order], codes.level_sizes, lengths=stated, **options), built)
        if built.n_identifiers > 1:
            back = order[::-1]
            with pytest.raises(DataError, match="out of order"):
                CatalogIndex.from_sorted(
                    rows[back], codes.level_sizes, lengths=None if stated is None else lengths[back]
                )


def test_sorted_rows_of_several_domains():
    rows = [[0, 1], [1, 0], [1, -1]]
    joined = join_codes({name: ItemCodes.from_int(rows, (2, 2), name) for name in ("x", "y")})
    codes = joined.codes
    found = CatalogIndex.from_sorted(
        codes.codes, codes.level_sizes, lengths=codes.lengths, catalog=codes.catalog, codes=codes.fingerprint
    )
    assert_same(
        dataclasses.replace(found, namespaces=joined.namespaces),
        CatalogIndex.build(codes, namespaces=joined.namespaces),
    )


@settings(max_examples=100, deadline=None)
@given(item_codes(max_items=20), st.data())
def test_a_grown_index_is_that_of_all_items(codes, data):
    flags = st.lists(st.booleans(), min_size=len(codes), max_size=len(codes)).map(np.array).filter(np.any)
    n = data.draw(st.integers(1, len(codes)))
    head = ItemCodes.from_int(codes.as_int()[:n], codes.level_sizes, "before")
    namespaces = (Namespace("first", 0, 1),)
    before = CatalogIndex.build(head, keep=data.draw(flags)[:n] | (np.arange(n) == 0), namespaces=namespaces)
    keep = data.draw(flags | st.none())
    with mock.patch.object(csr, "BLOCK", data.draw(st.integers(1, 7))):
        found = before.grown(codes, keep=keep)
    assert_same(found, CatalogIndex.build(codes, keep=keep, namespaces=namespaces))


def test_an_index_grows_into_codes_of_its_own_alone():
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1], [1, 0]], (2, 2), "c"))
    for rows, message in (([[1, 1], [0, 1], [1, 0], [0, 0]], "out of order"), ([[0, 1], [1, 1]], "it has 3 items")):
        with pytest.raises(DataError, match=message):
            index.grown(ItemCodes.from_int(rows, (2, 2), "d"))
    with pytest.raises(DataError, match="3 keep flags"):
        index.grown(ItemCodes.from_int([[0, 1], [1, 1], [1, 0]], (2, 2), "c"), keep=np.ones(2, dtype=bool))


def test_sorted_rows_are_read_from_a_file(tmp_path):
    rows = np.unique(np.random.default_rng(0).integers(0, 50, (2000, 3)).astype(np.uint8), axis=0)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype=np.uint8, mode="r", shape=rows.shape)
    found = CatalogIndex.from_sorted(mapped, (50, 50, 50), n_items=len(rows) + 5)
    assert found.items.tolist() == list(range(len(rows))) and found.rank_of[-5:].tolist() == [-1] * 5
    assert (found.path_codes(np.arange(len(rows))) == rows).all()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[0, 1], [0, 0]], {}, "rows 0 and 1 are out of order at level 1"),
        ([[0, 1], [1, 2]], {}, "row 1: a code of level 1 is not in 0..1"),
        ([[0, 1, 0]], {}, "expected unsigned"),
        ([[0, 1], [1, 1]], {"items": [3, 3]}, "1 of 2 rows repeat"),
        ([[0, 1], [1, 1]], {"items": [0]}, "one item number for each of 2 rows"),
        ([[0, 1], [1, 1]], {"items": [0, 2], "n_items": 2}, "numbers 0..1"),
        ([[0, 1], [1, 1]], {"n_items": 1}, "numbers 0..0"),
        ([[0, 0], [0, 1]], {"lengths": [1, 2]}, "rows 0 and 1 are out of order at level 1"),
        ([[0, 1], [1, 0], [1, 1]], {"lengths": [2, 1, 2]}, "rows 1 and 2 are out of order at level 1"),
        ([[0, 1], [0, 0]], {"lengths": [2, 0]}, r"row 1: expected a length of 1\.\.2, got 0"),
        ([[0, 1], [0, 0]], {"lengths": [3, 1]}, r"row 0: expected a length of 1\.\.2, got 3"),
        ([[0, 1], [0, 2], [0, 0]], {"lengths": [2, 2, 1]}, r"row 1: a code of level 1 is not in 0\.\.1"),
        ([[0, 1], [0, 2]], {"lengths": [2, 1]}, "row 1: expected 0 behind its 1 codes, got 2"),
        ([[0, 1], [0, 0]], {"lengths": [2]}, r"lengths: expected integers \[2\]"),
        ([[0, 1], [0, 0]], {"lengths": [2.0, 1.0]}, r"lengths: expected integers \[2\], got float64"),
    ],
)
def test_sorted_rows_are_checked(rows, options, message):
    if "lengths" in options:
        options = {**options, "lengths": np.array(options["lengths"])}
    with pytest.raises(DataError, match=message), mock.patch.object(csr, "BLOCK", 1):
        CatalogIndex.from_sorted(np.array(rows, dtype=np.uint8), (2, 2), **options)


@pytest.mark.parametrize("version", [1, 2])
def test_an_index_of_every_schema_loads(version):
    spec = importlib.util.spec_from_file_location("make_index", GOLDEN / "make_index.py")
    make_index = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_index)
    codes = make_index.codes()
    found, built = CatalogIndex.load(GOLDEN / f"index_v{version}", codes=codes), CatalogIndex.build(codes)
    for name, array in built.arrays().items():
        if name != "items":  # schema 1 had another order within a leaf
            np.testing.assert_array_equal(found.arrays()[name], array)
    for leaf in range(built.n_identifiers):
        assert sorted(found.items_below(3, leaf)) == sorted(built.items_below(3, leaf))
    leaves, scores = np.array([[1, 0, 2]]), np.array([[-1.0, -1.0, -2.0]], dtype=np.float32)
    listed = [list_items(each, leaves, scores, top_k=6, normalize="level").items.tolist() for each in (found, built)]
    assert listed[0] == listed[1]


def test_left_out_items_are_gone_with_their_prefixes():
    codes = ItemCodes.from_int([[0, 1], [1, 1], [1, 2]], (2, 3), "c")
    index = CatalogIndex.build(codes, keep=np.array([False, True, True]))
    assert index.children(0, [0]).codes.tolist() == [1]
    assert index.rank_of.tolist()[0] == -1
    with pytest.raises(DataError, match="item 0"):
        index.path_codes([1, 0])
    with pytest.raises(DataError, match="no item"):
        CatalogIndex.build(codes, keep=np.zeros(3, dtype=bool))


@pytest.mark.parametrize("node", [-1, 2])
def test_a_node_that_does_not_exist_is_an_error_not_an_empty_set(node):
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"))
    with pytest.raises(DataError, match="nodes of depth 1"):
        index.children(1, [node])


def test_dead_nodes_stay_dead():
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"))
    assert index.step(1, [-1, 0, 1], [1, 1, 0]).tolist() == [-1, 0, -1]


def test_many_levels_sort_as_their_tuples():
    random = np.random.default_rng(3)
    rows = random.integers(0, 1000, (300, 9)) // random.integers(1, 900, (1, 9))
    codes = ItemCodes.from_int(rows, (1000,) * 9, "c")
    index = CatalogIndex.build(codes)
    assert rows[index.items].tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("ragged", [False, True])
def test_saved_index_is_mapped_and_equal(tmp_path, ragged):
    rows = np.random.default_rng(0).integers(0, 300, (200, 3))
    if ragged:
        rows[::3, 2] = -1
    codes = ItemCodes.from_int(rows, (300, 300, 300), "c")
    index = CatalogIndex.build(codes)
    index.save(tmp_path / "index")
    loaded = CatalogIndex.load(tmp_path / "index", codes=codes)
    for name, array in index.arrays().items():
        assert (loaded.arrays()[name] == array).all()
        assert loaded.arrays()[name].dtype == array.dtype
    assert isinstance(loaded.items.base, np.ndarray) and not loaded.items.flags.writeable
    assert (loaded.children(0, [0]).codes == index.children(0, [0]).codes).all()
    other = ItemCodes.from_int(np.roll(rows, 1, axis=0), (300, 300, 300), "c")
    with pytest.raises(FingerprintMismatch, match="built from codes"):
        CatalogIndex.load(tmp_path / "index", codes=other)
    elsewhere = ItemCodes.from_int(rows, (300, 300, 300), "other catalog")
    with pytest.raises(FingerprintMismatch, match="catalog"):
        CatalogIndex.load(tmp_path / "index", codes=elsewhere)


def test_corrupt_pointers_are_refused():
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"))
    fields = {f.name: getattr(index, f.name) for f in dataclasses.fields(index) if f.init}
    assert CatalogIndex(**fields).branching == (2, 1)
    for wrong in (
        {"pointers": (index.pointers[0], np.array([0, 0, 2]))},
        {"pointers": (index.pointers[0], np.array([0, 2]))},
        {"items": np.arange(3, dtype=np.int32)},
        {"shared": np.array([0]), "extra": np.array([0, 1])},
        {"shared": np.array([2]), "extra": np.array([0, 1]), "items": np.arange(3, dtype=np.int32)},
    ):
        with pytest.raises(DataError, match="corrupt"):
            CatalogIndex(**{**fields, **wrong})


def test_mapped_file_that_is_cut_short_is_refused(tmp_path):
    index = CatalogIndex.build(ItemCodes.from_int([[0, 1], [1, 1]], (2, 2), "c"))
    index.save(tmp_path / "index")
    file = tmp_path / "cut.safetensors"
    raw = (tmp_path / "index" / "index.safetensors").read_bytes()
    for cut in (0, 5, len(raw) - 1):
        file.write_bytes(raw[:cut])
        with pytest.raises(ArtifactError):
            load_mapped(file)


def test_bytes_per_item_of_dense_codes():
    rows = np.stack(np.unravel_index(np.arange(4096), (16, 16, 16)), axis=1)
    index = CatalogIndex.build(ItemCodes.from_int(rows, (16, 16, 16), "c"))
    # per item one byte of token and four of item; and the upper levels, and where no leaf is shared
    upper = (16 + 256) + 4 * (2 + 17 + 257) + 4
    assert index.bytes_per_item == pytest.approx(5 + upper / 4096)
    assert walk(dict_trie(rows, ragged=False), (3, 2, 1)) == {ITEMS: [3 * 256 + 2 * 16 + 1]}


def test_an_index_that_is_replaced_while_it_is_read_is_never_mixed(tmp_path, monkeypatch):
    from genrec.decoding import index_files

    first, second = (ItemCodes.from_int(rows, (3, 3), "c") for rows in ([[0, 1], [2, 0]], [[1, 1], [2, 2]]))
    CatalogIndex.build(first).save(tmp_path / "index")
    mapped = index_files.load_mapped

    def meanwhile(file):
        monkeypatch.setattr(index_files, "load_mapped", mapped)
        CatalogIndex.build(second).save(tmp_path / "index", overwrite=True)
        return mapped(file)

    monkeypatch.setattr(index_files, "load_mapped", meanwhile)
    found = CatalogIndex.load(tmp_path / "index")
    assert found.codes == second.fingerprint
    assert found.path_codes([0, 1]).tolist() == [[1, 1], [2, 2]]
