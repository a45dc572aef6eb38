"""What a training on new items reads: the version, the split of its run, and logs with the new items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec import artifacts
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories, concatenate
from genrec.data.interactions import Interactions
from genrec.data.splits import EvalSet, Split
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from genrec.models.recommender import GenerativeRecommender
from genrec.pipeline.continual_logs import log_rows
from genrec.pipeline.new_vectors import Origin
from genrec.training.continual import Grown
from genrec.training.dataset import TrainingData


@dataclass(frozen=True)
class ContinualPaths:
    """Where everything is (experimental).

    version: a folder of `genrec append` with a bundle. run: the run folder whose split the model was trained on. out:
    where results go. log: events with new items, to learn from. ask: other such events, to measure by: of each user the
    last on a new item is asked for. Users of the run go by the same ids there. base: the pretrained model of an
    adapter, where it has moved.
    """

    version: Path
    run: Path
    out: Path
    log: Path | None = None
    ask: Path | None = None
    base: Path | None = None

    @classmethod
    def of(
        cls,
        version: Path,
        *,
        run: Path | None = None,
        out: Path | None = None,
        log: Path | None = None,
        ask: Path | None = None,
        base: Path | None = None,
    ) -> ContinualPaths:
        """The usual places: the run that the version comes from, results in ``continual`` inside the version.

        Raises ArtifactError for a folder that is no version with a bundle, and where there is no split.
        """
        if not artifacts.exists(version / "embeddings") or not artifacts.exists(version / "bundle", "bundle"):
            hint = "`genrec append RUN --items new.jsonl --out VERSION` makes one of a run with a trained model"
            raise ArtifactError(f"{version}: not a version of a run with a bundle", hint=hint)
        found = run or Origin.of(version, 0).run
        if not artifacts.exists(found / "split", "split"):
            raise ArtifactError(f"{found}: no split, which has the histories to learn from", hint="--run FOLDER")
        return cls(version, found, out or version / "continual", log, ask, base)


@dataclass(frozen=True, eq=False)
class ContinualInputs:
    """All that is read; users of the run, of the log and of those who are asked stand below each other (internal)."""

    cut: Split
    grown: Grown
    data: TrainingData
    user_ids: tuple[str, ...] | None
    asked: dict[str, EvalSet]


def read_inputs(paths: ContinualPaths, found: GenerativeRecommender) -> ContinualInputs:
    """Everything for the model of the version's bundle (internal).

    Raises ConfigError for a version without new items, FingerprintMismatch for the split of another catalog, DataError
    where nobody can be asked.
    """
    cut = Split.load(paths.run / "split")
    catalog = ItemCatalog.load(paths.version / "catalog")
    if not catalog.extends(cut.catalog, cut.n_items):
        raise FingerprintMismatch(
            f"{paths.run}: its split is of catalog {cut.catalog[:8]}, with which {paths.version} does not begin",
            hint="--run FOLDER names the run that the version was made from",
        )
    n_old = int(getattr(found.model.config, "genrec_n_items", len(catalog)))
    grown = Grown(catalog, n_old, ItemEmbeddings.load(paths.version / "embeddings").check(catalog).vectors, cut.n_users)
    if not grown.new_N.any():
        raise ConfigError(
            f"{paths.version}: no items that its model was not trained on", hint="`genrec append` adds some"
        )
    logged, asked = read_log(paths.log, catalog), read_log(paths.ask, catalog)
    named = found.token_map.n_user_tokens or logged is not None or asked is not None
    known = Interactions.load(paths.run / "interactions").user_ids if named else ()
    learn, ask = log_rows(cut, known, logged, asked, grown.new_N)
    histories = concatenate([cut.train(), learn.histories])
    user_ids = (*known, *learn.users, *ask.users) if found.token_map.n_user_tokens else None
    data = TrainingData(
        histories,
        found.codes,
        found.token_map,
        user_ids=None if user_ids is None else user_ids[: len(histories)],
        user_index=found.user_index,
    )
    queries = {"valid": cut.queries("valid"), "old": cut.queries("test")}
    if asked is not None:
        queries["new"] = new_queries(ask.histories, grown, len(histories))
    for name, each in queries.items():
        if not len(each):
            raise DataError(f"{name}: nobody is asked for an item", hint="the decision needs validation users")
    return ContinualInputs(cut, grown, data, user_ids, queries)


def read_log(file: Path | None, catalog: ItemCatalog) -> Interactions | None:
    """Events in the neutral format (``user_id,item_id,timestamp``) on items of a version; None without a file.

    Raises DataError naming line and field for what is wrong with one, an item that the version lacks included.
    Stability: experimental.
    """
    if file is None:
        return None
    from genrec.data.readers.base import ReaderSettings, Rejected
    from genrec.data.readers.build import CONTEXT, ItemRows
    from genrec.data.readers.tables import Columns, read_events

    if not file.is_file():
        raise ConfigError(f"no file {file}")
    items = ItemRows()
    items.row_of = {item: n for n, item in enumerate(catalog.ids)}
    settings = ReaderSettings("neutral", file.parent, interactions=file.name)
    columns = Columns("user_id", "item_id", "timestamp", optional=CONTEXT, known_only=True)
    return read_events(file, settings, "fail", Rejected(), items, columns).interactions(catalog)


def new_queries(histories: Histories, grown: Grown, first_user: int = 0) -> EvalSet:
    """Of each history the last event on a new item that has something before it, asked after that (experimental).

    first_user: number of the first row's user.
    """
    at, rows = np.arange(len(histories.items)), histories.rows()
    fine = grown.new_N[histories.items] & (at > histories.offsets[:-1][rows])
    last = np.full(len(histories), -1)
    np.maximum.at(last, rows[fine], at[fine])
    asked = np.flatnonzero(last >= 0)
    return EvalSet(
        (first_user + asked).astype(np.int32),
        Histories.from_slices(histories.items, histories.offsets[:-1][asked], last[asked]),
        Histories(np.arange(len(asked) + 1), histories.items[last[asked]]),
    )
