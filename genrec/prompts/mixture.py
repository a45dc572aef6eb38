"""Several tasks as one stream of examples: sample i of epoch e is a pure function of the data, the seed, e and i."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from genrec.errors import ConfigError, DataError
from genrec.prompts.data import UNKNOWN_USER, Fields, Int64, TaskData
from genrec.prompts.queries import load_queries
from genrec.prompts.tasks import Task, load_task
from genrec.prompts.template import Rendered
from genrec.seeding import rng


@dataclass(frozen=True)
class MixedTask:
    """One task of a mixture, and how much of it an epoch has (experimental).

    task: a built-in name or ``"module:function"``. At most one of: share, of its rows per epoch (1.0 = each once; 0.1 =
    every epoch another tenth; 2.0 = each twice, in other words); samples, per epoch; weight, its part of the mixture's
    ``samples_per_epoch``. None of them: each row once. template: another file than the task's own.
    """

    task: str
    share: float | None = None
    samples: int | None = None
    weight: float | None = None
    template: Path | None = None

    def __post_init__(self) -> None:
        given = {name: value for name in ("share", "samples", "weight") if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            raise ConfigError(f"task {self.task!r}: expected one of share, samples, weight, got {', '.join(given)}")
        for name, value in given.items():
            if value <= 0:
                raise ConfigError(f"task {self.task!r}: {name}: expected a positive number, got {value}")


@dataclass(frozen=True)
class AskSettings:
    """What a trained model is asked with, in validation and in service (experimental).

    task: one of the mixture whose prompts need nothing but a history (and the user). wording: which one of its
    template, from 0.
    """

    task: str = "sequential"
    wording: int = 0

    def __post_init__(self) -> None:
        if self.wording < 0:
            raise ConfigError(f"ask.wording: expected 0 or more, got {self.wording}")


@dataclass(frozen=True)
class MixtureSettings:
    """A recipe of alignment examples: prompts/alignment.yaml (experimental).

    tasks: what is mixed. ask: the prompt of recommendation. samples_per_epoch: then every task has a weight. wrapper: a
    name in prompts/wrappers, a file, or ``chat`` for the text tokenizer's own format. max_items: items of a history.
    max_tokens: of an example (encoder-decoder: of each side). max_text: characters of a text. queries: a file of
    :func:`genrec.prompts.queries.write_queries`; without it, queries are made from the fields.
    """

    tasks: tuple[MixedTask, ...]
    ask: AskSettings = field(default_factory=AskSettings)
    samples_per_epoch: int | None = None
    wrapper: str = "plain"
    max_items: int = 20
    max_tokens: int = 512
    max_text: int = 400
    queries: Path | None = None
    fields: Fields = field(default_factory=Fields)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks: expected at least one")
        names = [each.task for each in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"tasks: expected every task once, got {', '.join(twice)} more than once",
                hint="put all wordings into one template; share, samples or weight say how often a task comes",
            )
        for name, least in {"samples_per_epoch": 1, "max_items": 1, "max_tokens": 8, "max_text": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: expected {least} or more, got {value}")
        weighted = [each.task for each in self.tasks if each.weight is not None]
        if self.samples_per_epoch is None and weighted:
            raise ConfigError(f"task {weighted[0]!r}: a weight needs samples_per_epoch")
        if self.samples_per_epoch is not None and len(weighted) < len(self.tasks):
            raise ConfigError("samples_per_epoch: expected a weight for every task")


class TaskMixture:
    """The examples of a training, task by task (experimental).

    Each task goes through its rows in a random order, and through all of them before any row comes again, over as
    many epochs as that takes. Words, queries and the like are drawn anew every time. user_drop: chance that an example
    with a history does not tell its user; examples about the user alone always do.
    Raises DataError for a task without rows (no description in the catalog, no user tokens, …).
    """

    def __init__(self, settings: MixtureSettings, data: TaskData, *, seed: int, user_drop: float = 0.0) -> None:
        data = _as_set(settings, data)
        self.settings, self.data, self.seed, self._user_drop = settings, data, seed, user_drop
        self.tasks = [load_task(each.task, each.template) for each in settings.tasks]
        self._rows = [self._usable(task) for task in self.tasks]
        self.counts = _counts(settings, [len(rows) for rows in self._rows])
        self._ends = np.cumsum(self.counts)
        self._epoch, self._of_epoch = -1, data
        self._orders: dict[tuple[int, int], Int64] = {}

    def __len__(self) -> int:
        """Samples of an epoch."""
        return int(self._ends[-1])

    def describe(self) -> dict[str, dict[str, int | str]]:
        """For each task: version and fingerprint of its template, rows there are, samples of an epoch."""
        return {
            task.name: {
                "version": task.template.header.version,
                "template": task.template.fingerprint,
                "rows": len(rows),
                "samples": int(count),
            }
            for task, rows, count in zip(self.tasks, self._rows, self.counts, strict=True)
        }

    def task_of(self, i: int) -> int:
        """Which of the tasks sample ``i`` is of."""
        return int(np.searchsorted(self._ends, i, side="right"))

    def example(self, epoch: int, i: int, *, attempt: int = 0, max_items: int | None = None) -> Rendered | None:
        """Sample ``i`` of an epoch; None if its row has nothing to say.

        attempt: another row for the same place, for examples that cannot be used. max_items: with a history of at most
        that many items.
        """
        n = self.task_of(i)
        task, place = self.tasks[n], i - int(self._ends[n] - self.counts[n])
        random = rng(self.seed, "alignment", n, epoch, place, attempt)
        row = self._data(epoch).row(task.template.header.rows, self._row(n, epoch, place, attempt, random))
        if max_items is not None:
            row = row.last(max_items)
        droppable = self._user_drop and row.user is not None and "history" in task.template.header.inputs
        if droppable and rng(self.seed, "user_drop", n, epoch, place, attempt).random() < self._user_drop:
            row = replace(row, user=UNKNOWN_USER)
        word = random.random()
        inputs = task.draw(self._of_epoch, row, random)
        fitting = [] if inputs is None else task.template.fitting(inputs)
        if inputs is None or not fitting:
            return None
        return task.template.render(inputs, fitting[int(word * len(fitting))], max_text=self.settings.max_text)

    def _row(self, n: int, epoch: int, place: int, attempt: int, random: np.random.Generator) -> int:
        rows = self._rows[n]
        if attempt:
            return int(rows[random.integers(len(rows))])
        turn, within = divmod(epoch * int(self.counts[n]) + place, len(rows))
        if (n, turn) not in self._orders:  # an epoch may end in another turn than it begins
            self._orders = {key: order for key, order in self._orders.items() if key[0] != n or key[1] == turn - 1}
            self._orders[n, turn] = rng(self.seed, "order of rows", n, turn).permutation(len(rows))
        return int(rows[self._orders[n, turn][within]])

    def _data(self, epoch: int) -> TaskData:
        if epoch != self._epoch:
            self._epoch, self._of_epoch = epoch, self.data.at_epoch(self.seed, epoch)
        return self._of_epoch

    def _usable(self, task: Task) -> Int64:
        """Rows to draw from: of items, those that have what a wording needs; the others are tried when drawn."""
        kind = task.template.header.rows
        rows = np.arange(self.data.n_rows(kind), dtype=np.int64)
        random = rng(self.seed, "usable")
        if kind == "items":
            rows = rows[[self._speaks(task, int(place), random) for place in rows]]
        elif not any(self._speaks(task, int(place), random) for place in random.permutation(rows)[:1000]):
            rows = rows[:0]
        if not len(rows):
            raise DataError(
                f"task {task.name!r}: no row of {kind!r} has what its template needs",
                hint="leave the task out, or name the fields of the catalog under fields",
            )
        return rows

    def _speaks(self, task: Task, place: int, random: np.random.Generator) -> bool:
        row = self.data.row(task.template.header.rows, place)
        inputs = task.draw(self.data, row, random)
        return inputs is not None and bool(task.template.fitting(inputs))


def _as_set(settings: MixtureSettings, data: TaskData) -> TaskData:
    """``data`` with the fields, the history length and the queries of the recipe."""
    queries = data.queries if settings.queries is None else load_queries(settings.queries, data.catalog)
    return replace(data, fields=settings.fields, max_items=settings.max_items, queries=queries)


def _counts(settings: MixtureSettings, n_rows: list[int]) -> Int64:
    """Samples of an epoch for each task; weights by largest remainder."""
    if settings.samples_per_epoch is None:
        pairs = zip(settings.tasks, n_rows, strict=True)
        counts = [t.samples if t.samples else max(1, round((t.share or 1.0) * n)) for t, n in pairs]
        return np.array(counts, dtype=np.int64)
    weights = np.array([each.weight for each in settings.tasks], dtype=np.float64)
    exact = settings.samples_per_epoch * weights / weights.sum()
    made: Int64 = np.floor(exact).astype(np.int64)
    rest = settings.samples_per_epoch - int(made.sum())
    made[np.argsort(made - exact, kind="stable")[:rest]] += 1
    return made
