"""Files that survive a crash: flush, lock, temporary siblings. Internal: use :mod:`genrec.artifacts`.

Writers of one folder meet on advisory locks (flock): the parent folder is locked while an artifact is moved
into place, and each temporary file or folder is locked by its writer for as long as the writer lives, so
whoever sweeps can tell leftovers of killed writers from work in progress. No lock file is left behind. Where
the file system has no locks, leftovers are recognised by their age, and only one writer per artifact is safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genrec.errors import ArtifactError, ConfigError

try:
    import fcntl
except ImportError:  # no flock on this platform
    fcntl = None  # type: ignore[assignment]

MANIFEST = "genrec.json"
CONTENT = "content"  # the draft, in the temporary folder whose lock says that the writer lives
_STALE_SECONDS = 86_400.0
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.genrec-(?P<role>tmp|old)-(?P<token>[0-9a-f]{12})", re.DOTALL)


# --- durability and locks ---------------------------------------------------------------------------------


def fsync(path: Path) -> None:
    """Flush one file or folder to the disk; a folder on a system that cannot is skipped."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """``mkdir -p`` whose new entries are on the disk when it returns."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync(path.parent)


def hold(path: Path, *, wait: bool, shared: bool = False) -> int | None:
    """Lock a file or folder; returns what :func:`release` takes, None where locks do not exist.

    shared: with others who hold it so, against those who want it alone. Raises BlockingIOError when somebody else holds
    it and ``wait`` is false.
    """
    if fcntl is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:  # a network file system without flock
        os.close(fd)
        return None
    return fd


def release(fd: int | None) -> None:
    """Give back a lock of :func:`hold`."""
    if fd is not None and fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_UN)  # explicit: a forked worker may still have the descriptor open
        os.close(fd)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` during the block; waits for other holders."""
    fd = hold(folder, wait=True)
    try:
        yield
    finally:
        release(fd)


@contextlib.contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """Keep others out of ``folder`` during the block; the claim of a killed process ends with it.

    Raises ConfigError "in use by another ``what``" instead of waiting.
    """
    file = folder / ".lock"
    file.touch()
    try:
        fd = hold(file, wait=False)
    except BlockingIOError:
        raise ConfigError(f"{folder} is in use by another {what}", hint="wait for it, or use another folder") from None
    try:
        yield
    finally:
        release(fd)


# --- temporary siblings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """A temporary sibling of ``name``: ``tmp`` is being written, ``old`` was moved aside by a replacement."""

    path: Path
    name: str
    role: Literal["tmp", "old"]
    token: str

    def twin(self, role: Literal["tmp", "old"]) -> Path:
        """The sibling of the same save in the other role."""
        return sibling(self.path.parent / self.name, role, self.token)

    @property
    def content(self) -> Path:
        """The artifact folder in it."""
        return self.path / CONTENT if self.role == "tmp" else self.path

    def abandoned(self) -> bool:
        """True when its writer is dead. Call with the parent folder locked."""
        try:
            fd = hold(self.path, wait=False)
        except BlockingIOError:
            return False
        if fd is not None:
            release(fd)
            return True
        with contextlib.suppress(OSError):
            return time.time() - self.path.lstat().st_mtime > _STALE_SECONDS
        return False


def new_token() -> str:
    """A random name part for one save."""
    return secrets.token_hex(6)


def sibling(target: Path, role: Literal["tmp", "old"], token: str) -> Path:
    """Where the save ``token`` of ``target`` keeps its temporary data."""
    return target.with_name(f".{target.name}.genrec-{role}-{token}")


def leftovers(parent: Path, name: str | None = None) -> list[Leftover]:
    """Temporary siblings in ``parent``, of one target or of all, sorted by path."""
    found = []
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        match = _LEFTOVER.fullmatch(path.name)
        if match and name in (None, match["name"]):
            role: Literal["tmp", "old"] = "tmp" if match["role"] == "tmp" else "old"
            found.append(Leftover(path, match["name"], role, match["token"]))
    return found


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when the block ends without an error; else nothing is left of it.

    What a killed process leaves is a leftover like others. Raises ConfigError where ``out`` has something in it.
    """
    out = out.absolute()
    refused = ConfigError(f"{out}: exists already", hint="every version is a folder of its own: give a new name")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise refused
    make_folders(out.parent)
    wrapper = sibling(out, "tmp", new_token())
    with locked(out.parent):  # who sweeps must not meet it before it is held
        wrapper.mkdir()
        lock = hold(wrapper, wait=False)
    draft = wrapper / CONTENT
    draft.mkdir()
    try:
        yield draft
        fsync(draft)
        try:
            if out.exists():
                out.rmdir()
            draft.rename(out)
        except OSError as error:
            if not os.path.lexists(out):
                raise
            raise refused from error  # somebody else made it meanwhile
        fsync(out.parent)
    finally:
        remove(wrapper)
        release(lock)


def remove(path: Path) -> bool:
    """Delete a file or an artifact folder, its manifest first; True when nothing is left."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            (path / MANIFEST).unlink(missing_ok=True)  # a half-deleted folder must not look complete
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def atomic_write_bytes(file: str | Path, data: bytes) -> None:
    """Replace one file: after a crash it holds the old bytes or the new ones. Raises ArtifactError."""
    target = Path(os.path.realpath(file))
    try:
        make_folders(target.parent)
        with locked(target.parent):
            temporary = sibling(target, "tmp", new_token())
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            held = hold(temporary, wait=False)
        try:
            with open(fd, "wb") as handle:  # noqa: PTH123
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(target)
            fsync(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            release(held)
    except OSError as error:
        raise ArtifactError(f"cannot write {file}: {error}") from error
