import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder():
    """Real data sets, which are never part of the repository: a folder named by GENREC_DATA, or a sibling."""
    named = os.environ.get("GENREC_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set GENREC_DATA to a folder that has them")
    return folder


@pytest.fixture
def data_set(data_folder):
    """Path of a data set below the data folder, or a skip that says what is missing."""

    def find(name):
        if not (data_folder / name).exists():
            pytest.skip(f"{data_folder} has no {name}")
        return data_folder / name

    return find


@pytest.fixture(scope="session")
def loaded_set(data_folder):
    """A data set in the neutral format, read once for all tests."""
    from genrec.data.readers import ReaderSettings, read

    cache = {}

    def load(name):
        if not (data_folder / name).exists():
            pytest.skip(f"{data_folder} has no {name}")
        if name not in cache:
            cache[name] = read(ReaderSettings("neutral", data_folder / name))
        return cache[name]

    return load
