"""The manifest of an artifact, and a folder compared with it. Internal: use :mod:`genrec.artifacts`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from genrec.disk import MANIFEST
from genrec.errors import ArtifactError
from genrec.formats import from_json_bytes, to_json_bytes

FORMAT = 1  # layout of genrec.json itself; `schema` counts the layout of what lies beside it


@dataclass(frozen=True)
class Manifest:
    """What ``genrec.json`` says about the artifact at ``path``.

    ``catalog`` is the fingerprint of the catalog it belongs to, ``parents`` maps a role to the digest of the
    artifact used in it, ``files`` maps a relative path to its ``sha256`` and ``bytes``.
    """

    path: Path
    kind: str
    schema: int
    genrec: str
    created: str
    catalog: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 (64 hex characters) of the content: not of where, when or by which genrec it was written."""
        skipped = ("path", "created", "genrec")
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        return hashlib.sha256(to_json_bytes(content)).hexdigest()

    def to_bytes(self) -> bytes:
        """The bytes of ``genrec.json``: canonical JSON that ends in a checksum of itself."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "path"}
        content["format"] = FORMAT
        return to_json_bytes({**content, "sha256": hashlib.sha256(to_json_bytes(content)).hexdigest()})


def inventory(folder: Path, prefix: str = "") -> dict[str, os.stat_result]:
    """Relative path → stat of every file below ``folder``, the manifest excepted, in sorted order."""
    found: dict[str, os.stat_result] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            name = prefix + entry.name
            if entry.is_symlink():
                raise ArtifactError(f"{folder / entry.name}: an artifact may not contain symbolic links")
            if entry.is_dir(follow_symlinks=False):
                found.update(inventory(folder / entry.name, name + "/"))
            elif not entry.is_file(follow_symlinks=False):
                raise ArtifactError(f"{folder / entry.name}: an artifact holds only regular files")
            elif name != MANIFEST:
                found[name] = entry.stat(follow_symlinks=False)
    return found


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_TYPES: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "schema": int,
    "genrec": str,
    "created": str,
    "catalog": (str, type(None)),
    "recipe": dict,
    "parents": dict,
    "meta": dict,
    "files": dict,
}


def parse(raw: bytes, folder: Path) -> Manifest:
    """The manifest of ``folder`` from the bytes of its genrec.json. Raises ArtifactError unless intact."""
    file = folder / MANIFEST
    try:
        data = from_json_bytes(raw)
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged: {error}") from error
    if not isinstance(data, dict) or "format" not in data:
        raise ArtifactError(f"{file} is not a genrec manifest")
    if data["format"] != FORMAT:
        raise ArtifactError(
            f"{file} has manifest format {data['format']!r}, this genrec reads {FORMAT}",
            hint=f"it was written by genrec {data.get('genrec')}: install that version or newer",
        )
    content = {name: value for name, value in data.items() if name not in ("format", "sha256")}
    if set(content) != set(_TYPES):
        odd = sorted(set(content) ^ set(_TYPES))
        raise ArtifactError(f"{file} is damaged: fields {', '.join(odd)} are missing or unknown")
    for name, expected in _TYPES.items():
        if not isinstance(content[name], expected):
            raise ArtifactError(f"{file} is damaged: {name} is {content[name]!r}")
    for name, entry in content["files"].items():
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise ArtifactError(f"{file} is damaged: the entry of {name} is {entry!r}")
    manifest = Manifest(path=folder, **content)
    expected_bytes = manifest.to_bytes()
    if raw != expected_bytes:
        want = from_json_bytes(expected_bytes)["sha256"]
        raise ArtifactError(
            f"{file} is damaged or was edited: "
            f"it says sha256 {str(data.get('sha256'))[:16]}, its content has {want[:16]}"
        )
    return manifest


def check_files(manifest: Manifest, verify: bool) -> None:
    """Compare names and sizes of all files (with ``verify`` their sha256) with the manifest, or raise."""
    folder, found = manifest.path, inventory(manifest.path)
    for name in sorted(set(manifest.files) - set(found)):
        raise ArtifactError(f"{folder / name} is missing", hint="re-run the stage that makes it")
    for name in sorted(set(found) - set(manifest.files)):
        raise ArtifactError(f"{folder / name} is not in the manifest", hint="delete it: genrec did not write it")
    for name, status in found.items():
        want = manifest.files[name]
        if status.st_size != want["bytes"]:
            raise ArtifactError(f"{folder / name} has {status.st_size} bytes, the manifest says {want['bytes']}")
        if verify and (digest := sha256(folder / name)) != want["sha256"]:
            raise ArtifactError(
                f"{folder / name} has sha256 {digest[:16]}, the manifest says {want['sha256'][:16]}",
                hint="re-run the stage that makes it",
            )
