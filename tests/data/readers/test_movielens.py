"""MovieLens files. All lines here are made up."""

import pytest

from genrec.data.readers import ReaderSettings, read
from genrec.errors import DataError

FLAGS = "|".join(["0"] * 19)


def item(movie, title, *genres):
    flags = ["1" if n in genres else "0" for n in range(19)]
    return f"{movie}|{title}|01-Jan-1990||http://x|{'|'.join(flags)}".encode("latin-1")


def write(folder, movies_name, movies, ratings_name, ratings):
    for name, lines in ((movies_name, movies), (ratings_name, ratings)):
        (folder / name).write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return ReaderSettings("movielens", folder)


def test_100k_in_latin1(tmp_path):
    settings = write(
        tmp_path,
        "u.item",
        [item(7, "Café (1990)", 1, 18), item(9, "B")],
        "u.data",
        ["3\t9\t5\t20", "3\t7\t1\t10"],
    )
    loaded = read(settings)
    assert loaded.catalog.fields == {
        "title": ["Café (1990)", "B"],
        "release_date": ["01-Jan-1990"] * 2,
        "categories": [["Action", "Western"], []],
    }
    assert loaded.catalog.ids == ("7", "9") and loaded.interactions.item.tolist() == [0, 1]
    assert loaded.interactions.columns["rating"].tolist() == [1.0, 5.0]


def test_1m_with_utf8_and_latin1_lines_and_colons_in_titles(tmp_path):
    movies = [
        "1::Élan::Drama|War".encode(),
        "2::Éclair::(no genres listed)".encode("latin-1"),
        "3::A::B::Comedy",
    ]
    settings = write(tmp_path, "movies.dat", movies, "ratings.dat", ["1::3::2.5::5", "1::2::4::6"])
    loaded = read(settings)
    assert loaded.catalog.text("title") == ["Élan", "Éclair", "A::B"]
    assert loaded.catalog.fields["categories"] == [["Drama", "War"], [], ["Comedy"]]
    assert loaded.interactions.columns["rating"].tolist() == [2.5, 4.0]
    strict = ReaderSettings("movielens", tmp_path, encoding="utf-8")
    with pytest.raises(DataError, match=r"movies.dat, line 2, field 'line': not utf-8: byte 0xc9 at byte 4"):
        read(strict)


def test_latest_csv(tmp_path):
    settings = write(
        tmp_path,
        "movies.csv",
        ["movieId,title,genres", '1,"One, two",Drama|War'],
        "ratings.csv",
        ["userId,movieId,rating,timestamp", "5,1,0.5,99"],
    )
    loaded = read(settings)
    assert loaded.catalog.text("title") == ["One, two"] and loaded.interactions.time.tolist() == [99]


@pytest.mark.parametrize(
    "movies, ratings, file",
    [
        ("movieId,title,genres", "movieId,userId,rating,timestamp", "ratings.csv"),
        ("movieId,title,genres", "5,1,0.5,98", "ratings.csv"),  # no header: the first row would be lost
        ("movieId,genres,title", "userId,movieId,rating,timestamp", "movies.csv"),
    ],
)
def test_columns_in_another_order_are_refused(tmp_path, movies, ratings, file):
    settings = write(tmp_path, "movies.csv", [movies, "1,One,War"], "ratings.csv", [ratings, "5,1,0.5,99"])
    with pytest.raises(DataError, match=f"{file}, line 1, field 'header': expected "):
        read(settings, "skip")


@pytest.mark.parametrize(
    "bad, field, reason",
    [
        ("8|no flags", "line", "ragged row"),
        (f"8|t|||u|{FLAGS}".replace("0|0", "0|2", 1), "genre", "wrong type"),
        (item(7, "again"), "movie id", "duplicate item id"),
        (item("", "none"), "movie id", "empty id"),
        (item(8, "a\0"), "line", "NUL"),
    ],
)
def test_malformed_movies(tmp_path, bad, field, reason):
    settings = write(tmp_path, "u.item", [item(7, "A"), bad], "u.data", ["3\t7\t5\t20"])
    with pytest.raises(DataError, match=f"u.item, line 2, field '{field}'"):
        read(settings)
    assert read(settings, "skip").rejected.counts == {(str(tmp_path / "u.item"), reason): 1}


@pytest.mark.parametrize(
    "bad, field, reason",
    [
        ("3\t8\t5\t20", "movie id", "item not in catalog"),
        ("3 7 5 20", "line", "ragged row"),
        ("3\t7\tx\t20", "rating", "wrong type"),
        ("3\t7\t5\t", "timestamp", "wrong type"),
        ("\t7\t5\t1", "user id", "empty id"),
    ],
)
def test_malformed_ratings(tmp_path, bad, field, reason):
    settings = write(tmp_path, "u.item", [item(7, "A")], "u.data", ["3\t7\t5\t20", bad])
    with pytest.raises(DataError, match=f"u.data, line 2, field '{field}'"):
        read(settings)
    assert read(settings, "skip").rejected.counts == {(str(tmp_path / "u.data"), reason): 1}


def test_missing_files_name_the_source(tmp_path):
    with pytest.raises(DataError, match="no movies file") as caught:
        read(ReaderSettings("movielens", tmp_path))
    assert "grouplens.org" in caught.value.__notes__[0]


def test_real_samples(data_set):
    small = data_set("raw-samples/movielens-100k")
    loaded = read(ReaderSettings("movielens", small))
    assert (len(loaded.catalog), len(loaded.interactions)) == (1682, 500)
    accents = read(ReaderSettings("movielens", small, items="u.item.latin1-lines", unknown_items="add"))
    assert any("\u00e9" in title for title in accents.catalog.text("title"))
    for name, rows in (("movielens-1m", [400, 5]), ("movielens-10m", [300, 500])):
        loaded = read(ReaderSettings("movielens", data_set(f"raw-samples/{name}"), unknown_items="add"))
        assert [r.rows_kept for r in loaded.rejected.rows.values()] == rows
