"""Which model answers: the one that was loaded last and works; the one before stays ready for a step back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genrec.errors import GenrecError
from genrec.serving.changes import Changes
from genrec.serving.model import Answer, Query, ServedModel
from genrec.serving.problems import Problem
from genrec.serving.telemetry import Metrics

log = logging.getLogger(__name__)

Load = Callable[[int], ServedModel]


class Registry:
    """The current model, and the ways to change it or its catalog (internal).

    load: from a version number to a model. changes: applied to every model that is loaded. A load that fails leaves the
    present model where it is; answers under way keep the model they began with.
    """

    def __init__(self, load: Load, *, changes: Changes, metrics: Metrics) -> None:
        self._load, self.changes, self._metrics = load, changes, metrics
        self._lock = threading.Lock()
        self._version = 0
        self._before: ServedModel | None = None
        self.current = self._loaded()
        self._say()

    def answer(self, queries: Sequence[Query]) -> list[Any]:
        """Answers of the current model, each with the model that gave it."""
        model = self.current
        answers = model.answer(queries, self._metrics)
        return [(model, each) if isinstance(each, Answer) else each for each in answers]

    def change(self, change: dict[str, Any]) -> int:
        """Change the catalog in service; gives the version with the change. Raises Problem where it does not fit."""
        with self._lock:
            try:
                snapshot = self.changes.add(change, self.current.store)
            except GenrecError:
                raise Problem(
                    400, "the change does not fit the catalog; nothing was changed", code="invalid_change"
                ) from None
            except OSError as error:
                log.error("the journal cannot be written: %s", error)
                raise Problem(503, "the change cannot be kept; nothing was changed", code="not_kept") from None
            self._say()
            return snapshot.version

    def reload(self) -> ServedModel:
        """Load again what is at the place of the model. Raises Problem 409 where that fails: the present one stays."""
        with self._lock:
            try:
                found = self._loaded()
            except Exception as error:
                self._metrics.swaps.labels("failed").inc()
                log.error("the model was not replaced: %s", error)
                raise Problem(
                    409, "loading failed; the present model stays (see the log)", code="load_failed"
                ) from None
            if self._before is not None:
                self._before.close()
            self._before, self.current = self.current, found
            self._say()
            return found

    def rollback(self) -> ServedModel:
        """Answer from the model before, with all changes made since. Raises Problem 409 where there is none."""
        with self._lock:
            if self._before is None:
                raise Problem(409, "no earlier model is loaded", code="no_earlier_model")
            self.changes.replay(self._before.store)
            self.current, self._before = self._before, self.current
            self._metrics.swaps.labels("rolled_back").inc()
            self._say()
            return self.current

    def close(self) -> None:
        """End the threads of the models."""
        for model in (self.current, self._before):
            if model is not None:
                model.close()

    def _loaded(self) -> ServedModel:
        found = self._load(self._version + 1)
        self.changes.replay(found.store)
        found.warm_up()
        self._version += 1
        self._metrics.swaps.labels("loaded").inc()
        return found

    def _say(self) -> None:
        self._metrics.model_version.set(self.current.version)
        self._metrics.catalog_version.set(self.current.store.snapshot.version)


class Watcher:
    """Loads the model again when what is at its place has changed (internal).

    path: a run folder or bundle, or a link to one: a deployment points the link at the next folder in one step.
    seconds: between two looks. What fails to load is tried again when it changes again.
    """

    def __init__(self, registry: Registry, path: Path, *, seconds: float) -> None:
        self._registry, self._path, self._seconds = registry, path, seconds
        self._seen = mark(path)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genrec-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            found = mark(self._path)
            if found is None or found == self._seen:
                continue  # None: in the middle of a replacement
            self._seen = found
            try:
                model = self._registry.reload()
            except Problem:
                continue
            log.info("model %s: version %d answers now", model.name, model.version)


def mark(path: Path) -> tuple[Any, ...] | None:
    """What changes when another model is put in the place (internal); None while there is none."""
    place = path.resolve()
    for folder in (place / "bundle", place):
        try:
            stat = (folder / "genrec.json").stat()
        except OSError:
            continue
        return str(folder), stat.st_ino, stat.st_mtime_ns
    return None
