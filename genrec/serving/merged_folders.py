"""``RUN.merged-0123456789ab`` beside a run: its model with the adapter merged, for vLLM, named by the weights.

It is made once and used by every server of these weights. A server that starts with others removes it, unless a server
still uses it: each holds a shared lock on its folder for as long as it lives.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from genrec.disk import hold, new_token, release, remove, sibling
from genrec.errors import ArtifactError, ConfigError
from genrec.models.engine_weights import Held

log = logging.getLogger(__name__)

DIGITS = 12


def merged_folder(run: Path, weights: str, *, base: str | None = None) -> Path:
    """The folder of these weights of a run, made where there is none (internal).

    Raises ConfigError where the folder has other ones, and what :func:`genrec.models.export.export_merged` raises.
    """
    from genrec.models.export import export_merged

    folder = run.parent / f"{run.name}.merged-{weights[:DIGITS]}"
    if not os.path.lexists(folder):
        try:
            export_merged(run, folder, base=base)
        except ConfigError:
            if not folder.is_dir():  # else another process made it meanwhile
                raise
    if _weights_in(folder) != weights:
        raise ConfigError(
            f"{folder} is not the model of {run} with its adapter merged", hint="move it away, or remove it"
        )
    return folder


def use(folder: Path) -> bool:
    """Keep a folder from being removed while this process lives, also as what it becomes by exec (internal).

    False where it is gone already.
    """
    held = hold(folder, wait=True, shared=True)
    if held is None:  # no such folder, or no locks here: then nobody removes any
        return folder.is_dir()
    try:
        same = os.path.samestat(os.fstat(held), folder.stat())
    except OSError:
        same = False
    if not same:
        release(held)
        return False
    os.set_inheritable(held, True)
    return True


def remove_stale(run: Path, *, keep: Path) -> list[Path]:
    """Remove the merged folders of other weights of this run that no server uses; gives those it removed (internal).

    Only folders with the name and the weights that :func:`merged_folder` gives them. Where there are no locks, none.
    """
    named = re.compile(re.escape(f"{run.name}.merged-") + f"([0-9a-f]{{{DIGITS}}})")
    removed = []
    for folder in sorted(run.parent.iterdir()):
        match = named.fullmatch(folder.name)
        if match is None or folder.name == keep.name or not (_weights_in(folder) or "").startswith(match[1]):
            continue
        try:
            held = hold(folder, wait=False)
        except BlockingIOError:  # a server uses it
            continue
        if held is None:
            continue
        try:
            aside = folder.rename(sibling(folder, "tmp", new_token()))  # half of a folder must not look like a whole
            remove(aside)
        except OSError as error:
            log.warning("%s cannot be removed: %s", folder, error)
        else:
            log.warning("%s is removed: the run has other weights now", folder)
            removed.append(folder)
        finally:
            release(held)
    return removed


def _weights_in(folder: Path) -> str | None:
    """The name of the weights that an export wrote into a folder; None where it is no whole exported model."""
    if folder.is_symlink() or not folder.is_dir():
        return None
    try:
        held = Held.of(folder)
    except ArtifactError:
        return None
    return None if held.needs_adapter else held.name
