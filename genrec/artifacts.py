"""Write and read artifacts: folders with a manifest that are either complete and unchanged, or refused.

A save goes into a hidden sibling folder, every file is flushed, the manifest ``genrec.json`` is written last,
and the folder is renamed into place. A replacement moves the old artifact aside, the new one in, and deletes
the old one. A process killed at any moment loses nothing acknowledged: whoever next finds the artifact
missing between the two renames finishes the replacement, and the next save removes what a dead writer left.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from genrec.disk import (
    CONTENT,
    MANIFEST,
    atomic_write_bytes,
    fsync,
    hold,
    leftovers,
    locked,
    make_folders,
    new_token,
    release,
    remove,
    sibling,
)
from genrec.errors import ArtifactError
from genrec.formats import (
    from_json_bytes,
    load_arrays,
    load_json,
    load_table,
    save_arrays,
    save_json,
    save_table,
    to_json_bytes,
)
from genrec.manifest import Manifest, check_files, inventory, parse, sha256

__all__ = [
    "Draft",
    "Manifest",
    "atomic_write_bytes",
    "exists",
    "load",
    "load_arrays",
    "load_json",
    "load_table",
    "read",
    "save_arrays",
    "save_json",
    "save_table",
    "sweep",
    "write",
]

_RETRIES = 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class Draft:
    """An artifact being written: put files into ``dir``; ``meta`` may be filled until the block ends."""

    dir: Path
    meta: dict[str, Any]


# --- writing -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def write(
    path: str | Path,
    *,
    kind: str,
    schema: int = 1,
    recipe: Mapping[str, Any] | None = None,
    catalog: str | None = None,
    parents: Mapping[str, str] | None = None,
    meta: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Iterator[Draft]:
    """Write an artifact; when the block ends without an error it is complete at ``path`` and on the disk.

    Any error in the block leaves ``path`` as it was. Without ``overwrite`` an existing artifact is refused;
    with it, an artifact of the same kind is replaced, and anything else is still refused. Concurrent writers
    of one path: the last to finish wins. Raises ArtifactError.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "codes"
    >>> with write(folder, kind="codes", meta={"n": 3}) as draft:
    ...     save_json(draft.dir / "sizes.json", [256, 256])
    >>> read(folder, kind="codes").meta
    {'n': 3}
    """
    target = _absolute(path)
    header = {"recipe": dict(recipe or {}), "parents": dict(parents or {}), "meta": dict(meta or {})}
    plain = {name: _plain(value, f"{name} of {path}") for name, value in header.items()}
    with _explained(f"cannot write {path}"):
        folder, token, lock = _begin(target, kind, overwrite)
    try:
        draft = Draft(folder, plain["meta"])
        yield draft
        plain["meta"] = _plain(draft.meta, f"meta of {path}")
        with _explained(f"cannot write {path}"):
            _write_manifest(folder, kind=kind, schema=schema, catalog=catalog, **plain)
            _publish(target, token, kind, overwrite)
    except BaseException:
        _discard(target, token)
        raise
    finally:
        release(lock)


def _absolute(path: str | Path) -> Path:
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link to the artifact
    if not target.name:
        raise ArtifactError(f"{path} cannot be an artifact")
    return target


def _plain(value: dict[str, Any], what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = from_json_bytes(to_json_bytes(value))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{what} must be JSON: {error}") from error
    return found


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"{what}: {error}", hint="check free space and permissions") from error


def _begin(target: Path, kind: str, overwrite: bool) -> tuple[Path, str, int | None]:
    """Folder to write into, token of this save, and the lock that says that its writer lives."""
    make_folders(target.parent)
    token = new_token()
    wrapper = sibling(target, "tmp", token)
    content = wrapper / CONTENT
    with locked(target.parent):
        _recover(target)
        _check_replaceable(target, kind, overwrite)
        _sweep(target.parent, target.name)
        wrapper.mkdir(mode=0o700)
        lock = hold(wrapper, wait=False)
    content.mkdir()  # not the locked folder itself: an artifact saved inside the draft locks its parent
    return content, token, lock


def _check_replaceable(target: Path, kind: str, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        what = "a symbolic link" if target.is_symlink() else "a file"
        raise ArtifactError(f"{target} is {what}, expected a folder or nothing", hint="give another path")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ArtifactError(f"{target} exists already", hint="give another path, or overwrite=True (--overwrite)")
    advice = "give another path, or delete the folder yourself"
    try:
        found = parse((target / MANIFEST).read_bytes(), target)
    except (OSError, ArtifactError) as error:
        raise ArtifactError(f"will not replace {target}: no readable artifact ({error})", hint=advice) from error
    if found.kind != kind:
        raise ArtifactError(f"will not replace the {found.kind!r} in {target} by {kind!r}", hint=advice)
    foreign = sorted(set(inventory(target)) - set(found.files))
    if foreign:
        raise ArtifactError(f"will not replace {target}: genrec did not write {foreign[0]}", hint=advice)


def _write_manifest(folder: Path, **header: Any) -> None:
    from genrec import __version__

    if (folder / MANIFEST).exists():
        raise ArtifactError(f"{MANIFEST} is written by genrec: give your file another name")
    readable = stat.S_IMODE(folder.stat().st_mode)  # what the umask allows
    files = {}
    for name, status in inventory(folder).items():
        file = folder / name
        file.chmod(stat.S_IMODE(status.st_mode) | (readable & 0o666))  # safetensors files come out as 0600
        fsync(file)
        files[name] = {"sha256": sha256(file), "bytes": status.st_size}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest = Manifest(path=folder, genrec=__version__, created=now, files=files, **header)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    fsync(folder / MANIFEST)
    for parent, _, _ in os.walk(folder, topdown=False):
        fsync(Path(parent))
    fsync(folder.parent)


def _publish(target: Path, token: str, kind: str, overwrite: bool) -> None:
    wrapper, old = sibling(target, "tmp", token), sibling(target, "old", token)
    with locked(target.parent):
        _recover(target)
        _check_replaceable(target, kind, overwrite)
        fsync(target.parent)  # the new one must be there after a crash that shows `target` moved aside
        if target.exists():
            target.rename(old)
        (wrapper / CONTENT).rename(target)
        fsync(target.parent)
    remove(old)
    remove(wrapper)


def _discard(target: Path, token: str) -> None:
    """Undo a save that failed."""
    wrapper, old = sibling(target, "tmp", token), sibling(target, "old", token)
    with contextlib.suppress(OSError), locked(target.parent):
        if old.exists() and not os.path.lexists(target):
            old.rename(target)
    remove(wrapper)


# --- leftovers ---------------------------------------------------------------------------------------------


def _recover(target: Path) -> None:
    """Finish a replacement whose writer died between its two renames. The parent folder is locked.

    Only the pair (old moved aside, new not yet in) says so: a lone leftover is no reason to bring back
    something that the user may have deleted.
    """
    if os.path.lexists(target):
        return
    for aside in leftovers(target.parent, target.name):
        new = aside.twin("tmp") / CONTENT
        if aside.role == "old" and new.exists():
            for candidate in (new, aside.path):
                if _complete(candidate):
                    candidate.rename(target)
                    fsync(target.parent)
                    return


def _complete(folder: Path) -> bool:
    try:
        check_files(parse((folder / MANIFEST).read_bytes(), folder), verify=False)
    except OSError:  # ArtifactError included
        return False
    return True


def _sweep(parent: Path, name: str | None = None) -> list[Path]:
    removed = []
    for left in leftovers(parent, name):
        if left.role == "tmp":
            gone = left.abandoned() and remove(left.path)
        else:  # the last copy is never deleted
            gone = (os.path.lexists(parent / left.name) or not _complete(left.path)) and remove(left.path)
        if gone:
            removed.append(left.path)
    return removed


def sweep(parent: str | Path) -> list[Path]:
    """Remove what killed writers left directly in ``parent``; returns the removed paths.

    Interrupted replacements are finished first; saves in progress are not touched.
    """
    folder = Path(parent)
    if not folder.is_dir():
        return []
    with _explained(f"cannot sweep {parent}"), locked(folder):
        for name in sorted({left.name for left in leftovers(folder)}):
            _recover(folder / name)
        return _sweep(folder)


# --- reading -----------------------------------------------------------------------------------------------


def read(path: str | Path, *, kind: str | None = None, schema: int | None = None, verify: bool = True) -> Manifest:
    """Check an artifact and return its manifest.

    Names and sizes of all files are always compared with the manifest; ``verify`` compares their sha256 too
    (turn it off for files too big to read twice). Raises ArtifactError, naming the file, for anything that is
    missing, changed, added, linked, or of another kind or schema.
    """
    folder = Path(path)
    for _ in range(_RETRIES):
        manifest = _read_manifest(folder)
        _check_header(manifest, kind, schema)
        try:
            with _explained(f"cannot read {folder}"):
                check_files(manifest, verify)
        except ArtifactError:
            if _current(manifest):
                raise
        else:
            if _current(manifest):
                return manifest
    raise ArtifactError(f"{path} is replaced faster than it can be read")


def load(
    path: str | Path,
    loader: Callable[[Manifest], _T],
    *,
    kind: str | None = None,
    schema: int | None = None,
    verify: bool = True,
) -> _T:
    """``loader(manifest)`` on one version of an artifact that other processes may be replacing.

    The loader is called again when the artifact was replaced meanwhile, so it never mixes two versions.
    Raises ArtifactError, and what the loader raises.
    """
    for _ in range(_RETRIES):
        manifest = read(path, kind=kind, schema=schema, verify=verify)
        try:
            value = loader(manifest)
        except Exception:
            if _current(manifest):
                raise
        else:
            if _current(manifest):
                return value
    raise ArtifactError(f"{path} is replaced faster than it can be read")


def exists(path: str | Path, kind: str | None = None) -> bool:
    """True when a complete artifact (of that kind) is at ``path``; digests are not compared."""
    try:
        read(path, kind=kind, verify=False)
    except ArtifactError:
        return False
    return True


def _current(manifest: Manifest) -> bool:
    """True when the artifact on the disk is still the one that ``manifest`` describes."""
    try:
        return (manifest.path / MANIFEST).read_bytes() == manifest.to_bytes()
    except OSError:
        return False


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        return parse(_manifest_bytes(folder), folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_dir():
            raise ArtifactError(f"{folder} has no {MANIFEST}: not an artifact, or an interrupted write") from error
        target = _absolute(folder)
        copies = [left.content for left in leftovers(target.parent, target.name) if _complete(left.content)]
        hint = f"a complete copy is in {copies[0]}: rename it if you want it back" if copies else None
        raise ArtifactError(f"{folder} does not exist, or is not a folder", hint=hint) from error
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error}") from error


def _manifest_bytes(folder: Path) -> bytes:
    file, target = folder / MANIFEST, _absolute(folder)
    if file.is_symlink():
        raise ArtifactError(f"{file}: an artifact may not contain symbolic links")
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    if not target.parent.is_dir():
        return file.read_bytes()
    with locked(target.parent):  # a writer may be between its renames, or may have died there
        _recover(target)
        return file.read_bytes()


def _check_header(manifest: Manifest, kind: str | None, schema: int | None) -> None:
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{manifest.path} holds {manifest.kind!r}, expected {kind!r}")
    if schema is not None and manifest.schema != schema:
        newer = manifest.schema > schema
        advice = "install that genrec or a newer one" if newer else "re-run the stage that makes it"
        raise ArtifactError(
            f"{manifest.path} has schema {manifest.schema} of {manifest.kind!r}, this genrec reads schema {schema}",
            hint=f"it was written by genrec {manifest.genrec}: {advice}",
        )
