"""Amazon files of three releases. All lines here are made up."""

import gzip
import json

import pytest

from genrec.data.readers import ReaderSettings, read
from genrec.errors import DataError

OLD_META = [
    "{'asin': 'P1', 'title': \"Cook's pan \\d 'x'\", 'price': 12.5, 'brand': 'Acme', "
    "'salesRank': {'Pans': 3}, 'categories': [['Home', 'Pans'], ['Sale']], 'description': 'A pan.'}",
    '{"asin": "P2", "title": "", "categories": [["Home"]]}',
]
OLD = [
    {"reviewerID": "R1", "asin": "P2", "overall": 4.0, "unixReviewTime": 200, "reviewText": "fine"},
    {"reviewerID": "R1", "asin": "P1", "overall": 2.0, "unixReviewTime": 100},
    {"reviewerID": "R2", "asin": "P1", "unixReviewTime": 100, "verified": True},
]


def write(folder, reviews=OLD, meta=OLD_META, log="reviews_Pans_5.json", catalog="meta_Pans.json"):
    for name, rows in ((log, reviews), (catalog, meta)):
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return ReaderSettings("amazon", folder)


def test_2014_with_python_literals(tmp_path):
    loaded = read(write(tmp_path))
    assert loaded.catalog.ids == ("P1", "P2")
    assert loaded.catalog.fields == {
        "title": ["Cook's pan \\d 'x'", None],
        "description": ["A pan.", None],
        "brand": ["Acme", None],
        "categories": [["Home", "Pans"], ["Home"]],
        "features": [None, None],
        "price": [12.5, None],
    }
    inter = loaded.interactions
    assert inter.user_ids == ("R1", "R2") and inter.item.tolist() == [0, 1, 0]
    assert inter.time.tolist() == [100, 200, 100]
    assert str(inter.columns["rating"].tolist()) == "[2.0, 4.0, nan]" and list(inter.columns) == ["rating"]


def test_2018_lists_prices_and_gzip(tmp_path):
    first = {
        "asin": "P1",
        "title": "t",
        "category": ["A", "B"],
        "description": ["one", "two"],
        "feature": ["f"],
    }
    prices = ["", "$1 - $2", ".a{b}", "7", True]
    more = [{"asin": f"Q{n}", "price": price, "description": []} for n, price in enumerate(prices)]
    meta = [first | {"price": "$1,234.50"}, *more]
    settings = write(tmp_path, [OLD[1]], meta, "Pans_5.json.gz", "meta_Pans.json.gz")
    fields = read(settings).catalog.fields
    assert fields["price"] == [1234.5, None, None, None, 7.0, None]
    assert (fields["description"][:2], fields["categories"][0], fields["features"][0]) == (
        ["one\ntwo", None],
        ["A", "B"],
        ["f"],
    )


def test_2023_counts_the_parent_and_milliseconds(tmp_path):
    meta = [{"parent_asin": "P", "title": "t", "store": "S", "features": ["f"], "price": 3, "average_rating": 4.9}]
    review = {"user_id": "U", "asin": "child", "parent_asin": "P", "timestamp": 1583032084430, "rating": 1.0}
    settings = write(tmp_path, [review | {"verified_purchase": True}], meta, "Pans.jsonl", "meta_Pans.jsonl")
    loaded = read(settings)
    assert loaded.interactions.time.tolist() == [1583032084430] and loaded.catalog.ids == ("P",)
    assert loaded.catalog.fields["brand"] == ["S"] and "average_rating" not in loaded.catalog.fields
    kept = read(ReaderSettings("amazon", tmp_path, context=("verified_purchase",))).interactions.columns
    assert kept["verified_purchase"].tolist() == [True]


@pytest.mark.parametrize(
    "bad, field, reason",
    [
        ("{'asin': 'P3', 'title': open('x')}", "line", "bad JSON"),
        ("{'asin': 'P3', 'title': '", "line", "bad JSON"),
        ("{'asin': 'P3', 'title'}", "line", "bad JSON"),
        ("{1: 2}", "line", "bad JSON"),
        ("['P3']", "line", "bad JSON"),
        ("(" * 5000, "line", "bad JSON"),
        ("{'title': 'no id'}", "asin", "missing field"),
        ("{'asin': 'P1'}", "asin", "duplicate item id"),
        ("{'asin': None}", "asin", "wrong type"),
        ("{'asin': 'P3', 'title': 5}", "title", "wrong type"),
        ("{'asin': 'P3', 'categories': [[1]]}", "categories", "wrong type"),
        ("{'asin': 'P3', 'description': {}}", "description", "wrong type"),
    ],
)
def test_malformed_metadata(tmp_path, bad, field, reason):
    settings = write(tmp_path, meta=[OLD_META[0], bad, OLD_META[1]])
    with pytest.raises(DataError, match=f"meta_Pans.json, line 2, field '{field}'"):
        read(settings)
    assert read(settings, "skip").rejected.counts == {(str(tmp_path / "meta_Pans.json"), reason): 1}


@pytest.mark.parametrize(
    "change, field, reason",
    [
        ({"asin": "P9"}, "asin", "item not in catalog"),
        ({"reviewerID": None}, "reviewerID", "wrong type"),
        ({"unixReviewTime": "soon"}, "unixReviewTime", "wrong type"),
        ({"unixReviewTime": True}, "unixReviewTime", "wrong type"),
        ({"unixReviewTime": 2**70}, "unixReviewTime", "time out of range"),
        ({"overall": "good"}, "rating", "wrong type"),
        ({"overall": [5]}, "rating", "wrong type"),
    ],
)
def test_malformed_reviews(tmp_path, change, field, reason):
    settings = write(tmp_path, [*OLD, OLD[0] | change])
    with pytest.raises(DataError, match=f"reviews_Pans_5.json, line 4, field '{field}'"):
        read(settings)
    assert read(settings, "skip").rejected.counts == {(str(tmp_path / "reviews_Pans_5.json"), reason): 1}


def test_a_review_without_a_key_is_named(tmp_path):
    with pytest.raises(DataError, match="line 1, field 'unixReviewTime': no unixReviewTime; keys: reviewerID, asin"):
        read(write(tmp_path, [{"reviewerID": "R", "asin": "P1"}]))


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(DataError, match="no metadata file") as caught:
        read(ReaderSettings("amazon", tmp_path))
    assert "https://" in caught.value.__notes__[0]
    write(tmp_path)
    (tmp_path / "reviews_More_5.json").write_text("{}")
    with pytest.raises(DataError, match=r"several files could be the reviews file: reviews_More_5\.json, reviews_Pans"):
        read(ReaderSettings("amazon", tmp_path))
    named = ReaderSettings("amazon", tmp_path, interactions="reviews_Pans_5.json")
    assert len(read(named).interactions) == 3


def test_real_samples(data_set):
    folder = data_set("raw-samples/amazon-2018")
    loaded = read(ReaderSettings("amazon", folder))
    assert (len(loaded.catalog), len(loaded.interactions), loaded.interactions.n_users) == (1547, 2972, 458)
    assert len(set(loaded.interactions.item.tolist())) == 148
    old = ReaderSettings("amazon", data_set("raw-samples/amazon-2014"), unknown_items="add")
    assert [r.rows_kept for r in read(old).rejected.rows.values()] == [2, 50]
    new = data_set("raw-samples/amazon-2023")
    for log, rows in (
        ("Amazon_Fashion.reviews.reserialised.sample.jsonl", 300),
        ("Subscription_Boxes.reviews.two_lines.jsonl", 2),
    ):
        loaded = read(ReaderSettings("amazon", new, interactions=log, unknown_items="add"))
        assert [r.rows_kept for r in loaded.rejected.rows.values()] == [5, rows]
