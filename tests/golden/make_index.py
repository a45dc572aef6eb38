"""Write tests/golden/index_v1 and index_v2: one small index of each schema version. Both must load for ever."""

from pathlib import Path

import numpy as np

from genrec import artifacts
from genrec.decoding.index import CatalogIndex
from genrec.decoding.namespaces import Namespace
from genrec.item_tokenizers.codes import ItemCodes

# items 1 and 4 share an identifier, and so do 0, 2 and 5; item 3 has one code only
ROWS = [[1, 0], [0, 2], [1, 0], [1, -1], [0, 2], [1, 0]]


def codes() -> ItemCodes:
    """What both were built from."""
    return ItemCodes.from_int(ROWS, (2, 3), "0" * 32)


def make_v1(folder: Path) -> None:
    """Schema 1 as it was written: the first rank of every leaf, and the items' places in the order of their keys."""
    arrays = {
        "tokens.0": np.array([0, 1], np.uint8),
        "tokens.1": np.array([2, 0, 3], np.uint8),
        "tokens.2": np.array([0, 0, 1], np.uint8),
        "pointers.0": np.array([0, 2], np.int32),
        "pointers.1": np.array([0, 1, 3], np.int32),
        "pointers.2": np.array([0, 1, 2, 3], np.int32),
        "leaf_ranks": np.array([0, 2, 5, 6], np.int32),
        "items": np.array([4, 1, 5, 0, 2, 3], np.int32),
        "order": np.array([0, 4, 1, 2, 5, 3], np.int32),
    }
    meta = {"level_sizes": [2, 3], "ragged": True, "n_items": 6, "codes": codes().fingerprint, "bytes_per_item": 15.0}
    with artifacts.write(folder, kind="index", schema=1, catalog="0" * 32, meta=meta) as draft:
        artifacts.save_arrays(draft.dir / "index.safetensors", arrays)


def make_v2(folder: Path) -> None:
    """Schema 2."""
    CatalogIndex.build(codes(), namespaces=(Namespace("a", 0, 1), Namespace("b", 1, 1))).save(folder)


if __name__ == "__main__":
    make_v1(Path(__file__).parent / "index_v1")
    make_v2(Path(__file__).parent / "index_v2")
