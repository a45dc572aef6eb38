"""The HTML page of an identifier report: safe with any title, without other files, and drawn from the right numbers."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.decomposition import PCA

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.splits import leave_one_out
from genrec.embeddings.base import ItemEmbeddings
from genrec.evaluation import identifier_plots as plots
from genrec.evaluation.identifier_inputs import Subject, inspect_subject
from genrec.evaluation.identifier_page import alone_by_depth, group_shares, identifier_page
from genrec.evaluation.identifiers import InspectSettings, inspect_codes
from genrec.item_tokenizers.codes import ItemCodes

N = 60
RUDE = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> & \x1b[2J\u202e"
VOID = {"meta", "br"}


def subject(rude=False):
    generator = np.random.default_rng(0)
    rows = np.column_stack([np.arange(N) // 10, generator.integers(5, size=N), generator.integers(3, size=N)])
    titles = [RUDE if rude else f"thing {n}" for n in range(N)]
    catalog = ItemCatalog(
        tuple(f"i{n}" for n in range(N)), {"title": titles, "categories": [[RUDE if rude else "all"]] * N}
    )
    codes = ItemCodes(rows, (7, 5, 3), catalog.fingerprint)
    vectors = ItemEmbeddings(generator.normal(size=(N, 4)).astype(np.float32) + rows[:, :1], catalog.fingerprint)
    users = [f"u{u}" for u in range(20) for _ in range(5)]
    log = Interactions.from_arrays(users, generator.integers(N, size=100), None, n_items=N, catalog=catalog.fingerprint)
    name = RUDE if rude else "shop"
    return Subject(name, codes, None, catalog, vectors, leave_one_out(log), {"kind": name}, (name,))


@pytest.fixture(scope="module")
def pages():
    settings = InspectSettings(neighbours_at=(5,), hits_at=(5,))
    return {rude: identifier_page(made := subject(rude), inspect_subject(made, settings)) for rude in (False, True)}


class Tags(HTMLParser):
    """Every tag, its attributes, and whether tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes = [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        # <li> lines, table rows and so on are all closed explicitly
        assert self.open.pop() == tag


@pytest.mark.parametrize("rude", [False, True])
def test_the_page_is_well_formed_and_asks_for_nothing_else(pages, rude):
    tags = Tags(pages[rude])
    assert not tags.seen & {"script", "img", "link", "iframe", "object", "form", "a", "image", "use", "foreignobject"}
    for tag, name, value in tags.attributes:
        assert not name.startswith("on") and name not in ("src", "href", "xlink:href"), (tag, name, value)
    assert "url(" not in pages[rude] and "@import" not in pages[rude]
    assert "default-src 'none'" in pages[rude]
    for picture in re.findall(r"<svg.*?</svg>", pages[rude], re.S):
        ET.fromstring(picture)


def test_rude_titles_are_text(pages):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[True]
    assert "\x1b" not in pages[True] and "\u202e" not in pages[True]
    assert pages[True].count("<svg") == pages[False].count("<svg") == 8


def test_the_page_is_the_same_every_time_and_reads_in_light_dark_and_print(pages):
    made = subject()
    settings = InspectSettings(neighbours_at=(5,), hits_at=(5,))
    assert identifier_page(made, inspect_subject(made, settings)) == pages[False]
    assert "prefers-color-scheme: dark" in pages[False] and "@media print" in pages[False]
    defined = set(re.findall(r"(--[a-z]+):", pages[False]))
    assert set(re.findall(r"var\((--[a-z]+)\)", pages[False])) <= defined


def test_a_page_of_codes_alone(pages):
    made = Subject("alone", subject().codes)
    page = identifier_page(made, inspect_subject(made, InspectSettings()))
    Tags(page)
    assert page.count("<svg") == 5 and "Examples" not in page


def test_the_usage_map_tells_the_items_of_every_code():
    codes = subject().codes
    told = re.findall(r"<title>level (\d), code (\d+): (\d+) items</title>", plots.usage_map(codes))
    expected = [(lv + 1, k, int(n)) for lv, counts in enumerate(codes.level_counts()) for k, n in enumerate(counts)]
    assert [tuple(map(int, found)) for found in told] == expected
    assert plots.usage_map(codes).count('class="dead"') == sum(n == 0 for *_, n in expected) > 0
    wide = ItemCodes(np.arange(1000)[:, None] % 700, (1024,), "")
    told = re.findall(r"codes (\d+) to (\d+): (\d+) items", plots.usage_map(wide))
    assert len(told) == 256 and sum(int(n) for *_, n in told) == 1000
    assert [int(low) for low, *_ in told[1:]] == [int(high) + 1 for _, high, _ in told[:-1]]


def test_the_tree_divides_every_first_code():
    codes = subject().codes
    picture = plots.tree(codes, None, rows=3)
    assert re.findall(r"&lt;(\d)&gt;</text>", picture) == ["0", "1", "2"]
    sizes = [int(x) for x in re.findall(r"<title>(?:code \d+, )?(\d+) (?:items|codes of one item each)", picture)]
    assert sum(sizes) == 3 * 10 * 2  # the items of three codes, divided by the second code and by the third


def test_groups_and_lone_items_are_counted():
    codes = ItemCodes(np.array([[0, 0], [0, 0], [0, 1], [1, 0], [2, 0], [2, 0], [2, 0]]), (3, 2), "")
    assert group_shares(inspect_codes(codes)) == [2 / 7, 2 / 7, 3 / 7, 0, 0, 0, 0]
    assert alone_by_depth(codes) == [1 / 7, 2 / 7]
    crowd = ItemCodes(np.zeros((25, 1), dtype=int), (1,), "")
    assert group_shares(inspect_codes(crowd)) == [0, 0, 0, 0, 0, 0, 1]


def test_the_plane_is_that_of_principal_component_analysis():
    vectors = np.random.default_rng(0).normal(size=(40, 6)) * np.array([9, 4, 2, 1, 1, 1])
    fitted, rows = np.arange(30), np.arange(10, 40)
    xy, share = plots.principal_plane(vectors, fitted, rows)
    oracle = PCA(2).fit(vectors[fitted])
    np.testing.assert_allclose(np.abs(xy), np.abs(oracle.transform(vectors[rows])), atol=1e-9)
    assert share == pytest.approx(oracle.explained_variance_ratio_.sum())
    flat, whole = plots.principal_plane(np.arange(5.0)[:, None], np.arange(5), np.arange(5))
    assert flat.shape == (5, 2) and not flat[:, 1].any() and whole == pytest.approx(1)


def test_bars_are_as_tall_as_their_values():
    picture = plots.bars(["a", "b"], {"codes": [0.5, None], "random": [0.25, 1.0]}, "x")
    heights = [
        float(h) for h in re.findall(r'height="([\d.]+)" style="fill:var\(--(?:codes|random)\)"><title>', picture)
    ]
    assert heights == pytest.approx([148 / 2, 148 / 4, 148])


def test_words_are_named_and_not_dead_and_of_many_levels_the_first_are_drawn():
    lengths = np.array([11, 2, 3], np.uint8)
    rows = np.where(np.arange(11) < lengths[:, None], np.arange(3)[:, None], 0)
    words = ItemCodes(rows, (4,) * 11, "c" * 32, lengths, True, pieces=("\u2581Oil", "<b>", "Soap", "x"))
    picture = plots.usage_map(words)
    assert 'class="dead"' not in picture and "1 not used" in picture
    assert "level 8" in picture and "level 9," not in picture and "levels 9 to 11 are not drawn" in picture
    assert "level 9" not in plots.load_curves(words)
    assert "Soap" in plots.tree(words, None) and "&lt;b&gt;" in plots.tree(words, None)
    assert plots.name_of(words, 0) == "Oil" and plots.name_of(replace(words, pieces=()), 2) == "<2>"
