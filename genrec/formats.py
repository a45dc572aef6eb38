"""The file formats of an artifact: safetensors, parquet, JSON. Internal: use :mod:`genrec.artifacts`.

Nothing here can run code from a file (no pickle), and equal input gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from genrec.errors import ArtifactError, MissingExtra

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_T = TypeVar("_T")


def save_arrays(file: str | Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named numeric arrays as safetensors; equal arrays give equal bytes.

    Raises ArtifactError for a dtype the format does not have (text, objects, dates).
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # not ascontiguousarray: it turns a scalar into a vector
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    try:
        save_file(ordered, file)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        dtypes = ", ".join(f"{name}: {array.dtype}" for name, array in ordered.items())
        raise ArtifactError(f"cannot write {file}: {error} (arrays: {dtypes})") from error


def load_arrays(file: str | Path) -> dict[str, npt.NDArray[Any]]:
    """Read what :func:`save_arrays` wrote. Raises ArtifactError when it is missing or no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    def load() -> dict[str, npt.NDArray[Any]]:
        found: dict[str, npt.NDArray[np.generic]] = load_file(file)
        return found

    return _reading(file, load, SafetensorError, KeyError, ValueError, TypeError)


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra(f"tables need pyarrow ({error})", hint="pip install pyarrow") from error
    return parquet


def save_table(file: str | Path, table: pa.Table) -> None:
    """Write a pyarrow table as parquet with a checksum on every page. Raises ArtifactError."""
    parquet = _parquet()
    import pyarrow

    try:
        parquet.write_table(table, str(file), compression="zstd", write_page_checksum=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ArtifactError(f"cannot write {file}: {error}") from error


def load_table(file: str | Path) -> pa.Table:
    """Read a parquet file and check its page checksums. Raises ArtifactError when missing or damaged."""
    parquet = _parquet()
    import pyarrow

    def load() -> pa.Table:
        # not read_table: it would make columns of folder names like "fold=1"
        with parquet.ParquetFile(str(file), page_checksum_verification=True) as opened:
            return opened.read()

    return _reading(file, load, pyarrow.ArrowException, ValueError, TypeError)


def to_json_bytes(obj: Any) -> bytes:
    """Canonical JSON: sorted keys, two spaces, ASCII; arrays, dataclasses and paths are accepted.

    Raises TypeError or ValueError for what has no JSON form, NaN and infinities included.
    """
    text = json.dumps(obj, indent=2, sort_keys=True, allow_nan=False, default=_json_default)
    return (text + "\n").encode("ascii")


def _json_default(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json_bytes(data: bytes) -> Any:
    """Parse strict JSON. Raises ValueError for NaN, duplicate keys, bad UTF-8 or too deep nesting."""

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"key {key!r} appears twice")
            found[key] = value
        return found

    try:
        return json.loads(data.decode("utf-8"), parse_constant=no_constant, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def save_json(file: str | Path, obj: Any) -> None:
    """Write canonical JSON (sorted keys; NaN refused). Raises ArtifactError."""
    try:
        Path(file).write_bytes(to_json_bytes(obj))
    except (TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"cannot write {file}: {error}") from error


def load_json(file: str | Path) -> Any:
    """Read strict JSON. Raises ArtifactError when it is missing or not JSON."""
    return _reading(file, lambda: from_json_bytes(Path(file).read_bytes()), ValueError)


def _reading(file: str | Path, load: Callable[[], _T], *errors: type[Exception]) -> _T:
    try:
        return load()
    except Exception as error:
        if isinstance(error, ArtifactError) or not isinstance(error, (OSError, *errors)):
            raise
        raise ArtifactError(f"cannot read {file}: {type(error).__name__}: {error}") from error
