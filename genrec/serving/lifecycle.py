"""Which model answers: the one that was loaded last and works; the one before is kept for a step back."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec.errors import ArtifactError, ConfigError, DataError, GenrecError
from genrec.serving.changes import Changes, unknown_ids
from genrec.serving.digests import at
from genrec.serving.model import Answer, Query, ServedModel
from genrec.serving.patience import Patience, with_patience
from genrec.serving.problems import Problem
from genrec.serving.telemetry import Metrics

log = logging.getLogger(__name__)

WARM_UP_SECONDS = 60.0
"""How long the first search of a model in an engine may take."""
Load = Callable[..., ServedModel]
"""From a version number, and a place where it is not the usual one, to a model."""
Mark = tuple[str, int, int]
"""See :func:`mark`."""


@dataclass(eq=False)
class _Earlier:
    """The model before. model: None where it would have to be read again from its place."""

    model: ServedModel | None
    place: Path | None
    digest: str | None
    version: int


class Registry:
    """The current model, and the ways to change it or its catalog (internal).

    load: see :data:`Load`. here: digest of what is at the usual place now; None = not known. marked: what
    :func:`mark` says of that place now. changes: applied to every model that is loaded; they also say whether the
    server went back to an earlier model before it was started again. A load that fails leaves the present model where
    it is; answers under way keep the model they began with.

    Two models are held at most, the current one and the one before; while another one is loaded, the current one and
    that (a batch under way may hold one more until it is answered).
    """

    def __init__(
        self,
        load: Load,
        *,
        changes: Changes,
        metrics: Metrics,
        here: Callable[[], str | None] = lambda: None,
        marked: Callable[[], Mark | None] = lambda: None,
    ) -> None:
        self._load, self._here, self.changes, self._metrics = load, here, changes, metrics
        self._marked, self._seen = marked, marked()
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._version = 0
        self._earlier: _Earlier | None = None
        self.kept = True
        self.current = self._first()
        changes.replay(self.current.store)
        _warm(self.current)
        self._loaded_one()

    def answer(self, queries: Sequence[Query]) -> list[Any]:
        """Answers of the current model, each with the model that gave it."""
        model = self.current
        try:
            answers = model.answer(queries, self._metrics)
        except DataError as error:  # of the search of all of them: no request is at fault
            log.error("the search failed: %s", error)
            raise Problem(500, "the model has no answer", code="model_failed") from None
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

        Changes of the catalog go on meanwhile, and the new model has them too. The model before is let go first. Where
        it is the present model once more, the way back still leads to the one before.
        """
        with self._alone():
            self._seen = self._marked()  # before loading: what is put there meanwhile is another one
            self._let_go()
            try:
                with self._ready(self._load(self._version + 1)) as found, self._lock:
                    self.changes.replay(found.store)  # what was changed since
                    self.changes.go_back(None)
                    self._swap(found, same=found.digest is not None and found.digest == self.current.digest)
            except Exception as error:
                self._metrics.swaps.labels("failed").inc()
                log.error("the model was not replaced: %s", error)
                raise Problem(409, "loading failed: see the log; the present model stays", code="load_failed") from None
            self._metrics.swaps.labels("loaded").inc()
            self._say()
            return found

    def stale(self) -> bool:
        """Whether another model was put in the usual place since one was loaded from there, or failed to load."""
        found = self._marked()
        return found is not None and found != self._seen  # None: in the middle of a replacement

    def rollback(self) -> ServedModel:
        """Answer from the model before, with all changes made since. Raises Problem 409 where there is none.

        :attr:`kept` says whether a server that starts again would do so too.
        """
        with self._alone():
            earlier = self._earlier
            if earlier is None:
                raise Problem(409, "no earlier model is known", code="no_earlier_model")
            try:
                ready = nullcontext(earlier.model) if earlier.model is not None else self._ready(self._again(earlier))
                with ready as found, self._lock:
                    self.changes.replay(found.store)
                    self.kept = self._keep(earlier)
                    self._swap(found)
            except (GenrecError, OSError) as error:
                log.error("no way back: %s", error)
                message = "the earlier model is not there any more, or does not fit the changes since"
                raise Problem(409, message, code="load_failed") from None
            self._metrics.swaps.labels("rolled_back").inc()
            self._say()
            return found

    def close(self) -> None:
        """End the threads of the models."""
        for model in (self.current, None if self._earlier is None else self._earlier.model):
            if model is not None:
                model.close()

    def _first(self) -> ServedModel:
        """What is at the usual place, or the model that the server had gone back to from there."""
        back, here = self.changes.gone_back, self._here()
        if back is not None and here == back["instead_of"]:
            earlier = _Earlier(None, Path(back["place"]), back["digest"], 0)
            try:
                found = self._again(earlier)
            except (GenrecError, OSError) as error:
                log.error(
                    "the server had gone back to a model that does not load now; the newer one answers: %s", error
                )
            else:
                self._earlier = _Earlier(None, None, back["instead_of"], 0)
                return found
        elif here is not None:
            self.changes.go_back(None)  # another model was put in the place: should the one before return, it is meant
        return self._load(1)

    def _again(self, earlier: _Earlier) -> ServedModel:
        """A model from its place. Raises ArtifactError where another one is there now, and what loading raises."""
        version = earlier.version or self._version + 1
        found = self._load(version) if earlier.place is None else self._load(version, earlier.place)
        if found.digest != earlier.digest:
            found.close()
            raise ArtifactError(f"{earlier.place or 'the place of the model'}: another model is there now")
        return found

    @contextmanager
    def _ready(self, found: ServedModel) -> Iterator[ServedModel]:
        """With the changes, and after a first search; let go of where that or what is done with it fails."""
        try:
            self.changes.replay(found.store)
            _warm(found)
            yield found
        except BaseException:
            found.close()
            raise

    def _keep(self, earlier: _Earlier) -> bool:
        """Note in the journal that this model answers; whether a server that starts again can know."""
        here = self._here()
        if earlier.digest is not None and earlier.digest == here:
            self.changes.go_back(None)  # it is what lies at the usual place
            return True
        if here is None or earlier.place is None or earlier.digest is None or at(earlier.place) != earlier.digest:
            log.warning("the way back is not kept: the folder of the earlier model is not there any more")
            return False
        self.changes.go_back({"place": str(earlier.place), "digest": earlier.digest, "instead_of": here})
        return True

    def _let_go(self) -> None:
        """Free the model before; the way back to it is then by loading it, as long as it is where it was."""
        if self._earlier is not None and self._earlier.model is not None:
            self._earlier.model.close()
            self._earlier.model = None
            gc.collect()  # models and their views refer to each other
        if self._earlier is not None and self._earlier.digest is None:
            self._earlier = None  # it came from no file

    def _swap(self, found: ServedModel, *, same: bool = False) -> None:
        """same: it is the current model, read once more."""
        before = self.current
        self.current = found
        self._version = max(self._version, found.version)  # a model read again after a start may have a new one
        if not same:
            self._earlier = _Earlier(before, before.place, before.digest, before.version)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One model at a time is loaded or gone back to."""
        if not self._loading.acquire(blocking=False):
            raise Problem(409, "a model is being loaded", code="loading")
        try:
            yield
        finally:
            self._loading.release()

    def _loaded_one(self) -> None:
        self._version += 1
        self._metrics.swaps.labels("loaded").inc()
        self._say()

    def _say(self) -> None:
        self._metrics.model_version.set(self.current.version)
        self._metrics.catalog_version.set(self.current.store.snapshot.version)


def _warm(model: ServedModel) -> None:
    """A first search. Raises ConfigError where the engine that it is in has no answer, or none for a minute."""
    try:
        with with_patience(Patience(time.monotonic() + WARM_UP_SECONDS)):
            model.warm_up()
    except Problem as problem:
        hint = "start it with a larger --max-model-len" if problem.code == "prompt_too_long" else None
        raise ConfigError(f"the first search of the model failed: {problem.message}", hint=hint) from None


class Watcher:
    """Loads the model again when what is at its place has changed (internal).

    A deployment points a link at the next folder in one step. seconds: between two looks. What comes while another
    model is loaded waits for the next look; what fails to load is tried again when it changes again.
    """

    def __init__(self, registry: Registry, *, seconds: float) -> None:
        self._registry, self._seconds = registry, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genrec-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            if not self._registry.stale():
                continue
            try:
                model = self._registry.reload()
            except Problem:
                continue
            log.info("model %s: version %d answers now", model.name, model.version)


def mark(path: Path) -> Mark | None:
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
