"""Arrays of a safetensors file without reading them: numpy memory maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import ArtifactError

_DTYPES = {
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BOOL": "?",
}


def load_mapped(file: str | Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of a safetensors file as a read-only map; pages are read when touched (internal).

    The file holds an 8-byte little-endian header size, a JSON header with dtype, shape and byte range of each
    array, then the bytes. Raises ArtifactError for a header that does not fit the file.
    """
    path = Path(file)
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        return {name: _view(raw, 8 + size, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from error


def _view(raw: npt.NDArray[np.uint8], base: int, entry: dict[str, Any]) -> npt.NDArray[Any]:
    start, end = entry["data_offsets"]
    part = raw[base + start : base + end]
    if len(part) != end - start:
        raise ValueError("the file is cut short")
    return part.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
