"""Write tests/golden/artifact_v1: one file of each format, manifest format 1. It must load for ever."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from genrec import artifacts


def make(folder: Path) -> None:
    """Write the artifact."""
    header = {"catalog": "0" * 32, "parents": {"catalog": "ab" * 32}, "recipe": {"kind": "golden", "dim": 2}}
    with artifacts.write(folder, kind="golden", schema=1, meta={"title": "Größe"}, **header) as draft:
        arrays = {"codes": np.arange(6, dtype=np.uint8).reshape(3, 2), "scale": np.asarray(0.5)}
        artifacts.save_arrays(draft.dir / "arrays.safetensors", arrays)
        artifacts.save_table(draft.dir / "items.parquet", pa.table({"id": ["a", "b", None], "n": [1, 2, 3]}))
        (draft.dir / "model").mkdir()
        artifacts.save_json(draft.dir / "model" / "config.json", {"layers": 2, "names": ["x", "ü"]})


if __name__ == "__main__":
    make(Path(__file__).parent / "artifact_v1")
