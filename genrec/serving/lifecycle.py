"""Which model answers: the one that was loaded last and works; the one before stays ready for a step back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genrec.errors import GenrecError
from genrec.serving.changes import Changes, unknown_ids
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
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._version = 0
        self._before: ServedModel | None = None
        self.current = load(1)
        changes.replay(self.current.store)
        self.current.warm_up()
        self._loaded_one()

    def answer(self, queries: Sequence[Query]) -> list[Any]:
        """Answers of the current model, each with the model that gave it."""
        model = self.current
        answers = model.answer(queries, self._metrics)
        return [(model, each) if isinstance(each, Answer) else each for each in answers]

    def change(self, change: dict[str, Any]) -> dict[str, int]:
        """Change the catalog in service; gives its version with the change, and how many ids it does not know.

        Raises Problem where it does not fit.
        """
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
            assert snapshot.catalog is not None, "a served snapshot has its catalog"
            return {"catalog_version": snapshot.version, "unknown_items": unknown_ids(change, snapshot.catalog)}

    def reload(self) -> ServedModel:
        """Load again what is at the place of the model. Raises Problem 409 where that fails: the present one stays.

        Changes of the catalog go on meanwhile, and the new model has them too.
        """
        if not self._loading.acquire(blocking=False):
            raise Problem(409, "a model is being loaded", code="loading")
        try:
            found = self._load(self._version + 1)
            self.changes.replay(found.store)
            found.warm_up()
        except Exception as error:
            self._metrics.swaps.labels("failed").inc()
            log.error("the model was not replaced: %s", error)
            raise Problem(409, "loading failed: see the log; the present model stays", code="load_failed") from None
        else:
            with self._lock:
                self.changes.replay(found.store)  # what was changed since
                if self._before is not None:
                    self._before.close()
                self._before, self.current = self.current, found
                self._loaded_one()
            return found
        finally:
            self._loading.release()

    def rollback(self) -> ServedModel:
        """Answer from the model before, with all changes made since. Raises Problem 409 where there is none."""
        with self._lock:
            if self._before is None:
                raise Problem(409, "no earlier model is loaded", code="no_earlier_model")
            try:
                self.changes.replay(self._before.store)
            except GenrecError as error:
                log.error("no way back: %s", error)
                raise Problem(409, "the changes since do not fit the earlier model", code="load_failed") from None
            self.current, self._before = self._before, self.current
            self._metrics.swaps.labels("rolled_back").inc()
            self._say()
            return self.current

    def close(self) -> None:
        """End the threads of the models."""
        for model in (self.current, self._before):
            if model is not None:
                model.close()

    def _loaded_one(self) -> None:
        self._version += 1
        self._metrics.swaps.labels("loaded").inc()
        self._say()

    def _say(self) -> None:
        self._metrics.model_version.set(self.current.version)
        self._metrics.catalog_version.set(self.current.store.snapshot.version)


class Watcher:
    """Loads the model again when what is at its place has changed (internal).

    path: a run folder or bundle, or a link to one: a deployment points the link at the next folder in one step.
    seconds: between two looks. seen: what :func:`mark` said before the present model was loaded. What fails to load is
    tried again when it changes again.
    """

    def __init__(self, registry: Registry, path: Path, *, seconds: float, seen: tuple[Any, ...] | None) -> None:
        self._registry, self._path, self._seconds = registry, path, seconds
        self._seen = seen
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
    try:
        place = path.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return None
    for folder in (place / "bundle", place):
        try:
            stat = (folder / "genrec.json").stat()
        except OSError:
            continue
        return str(folder), stat.st_ino, stat.st_mtime_ns
    return None
