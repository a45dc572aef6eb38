"""Shards encoded by Ray Data: a pool of worker processes that survives the death of any of them."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from genrec.errors import DataError, require
from genrec.pipeline.encode_shards import ShardEncoder

logger = logging.getLogger(__name__)


def run_ray(
    folder: Path,
    todo: Sequence[int],
    done: Callable[[int], object],
    workers: int,
    worker: Callable[[str], Any] = ShardEncoder,
) -> None:
    """Do the shards ``todo`` of the plan in ``folder`` with ``workers`` processes (internal).

    Ray Data moves the numbers of the shards; each worker reads, encodes and writes whole shards itself, so what a dead
    worker leaves undone is given to another and nothing can arrive twice. Inputs and ``folder`` must be the same files
    for every worker. Uses the cluster that the program is connected to; where it is connected to none, one is
    started for these workers on this machine (see :func:`local_cluster`). worker: the class of a worker, made from the
    name of ``folder``, called as :meth:`ShardEncoder.__call__`.
    Raises MissingExtra without ray, and the first error of a worker, as the local engine does.
    """
    worker(str(folder))  # what is wrong with it is said here, and not by a worker
    with local_environment():
        ray = require("ray", "ray")
        data: Any = require("ray.data", "ray")
        with _quiet(), contextlib.nullcontext() if ray.is_initialized() else local_cluster(ray, workers):
            context = data.DataContext.get_current()
            context.enable_progress_bars = False
            context.print_on_execution_start = False
            made = data.from_items([{"shard": number} for number in todo], override_num_blocks=len(todo)).map_batches(
                worker,
                fn_constructor_kwargs={"folder": str(folder)},
                batch_size=1,
                compute=data.ActorPoolStrategy(size=min(workers, len(todo))),
                num_cpus=1,
            )
            for row in made.iter_rows():
                if row["error"]:
                    raise DataError(str(row["error"]), hint=str(row["hint"]) or None)
                done(int(row["rows"]))


@contextlib.contextmanager
def local_cluster(ray: Any, workers: int) -> Iterator[None]:
    """A cluster of this machine alone, reachable from this machine alone, for the time of the block (internal).

    Warns where the environment names another one, which is not used.
    """
    if "RAY_ADDRESS" in os.environ:
        logger.warning("RAY_ADDRESS is not used, the workers run on this machine: connect to a cluster in Python")
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 2**20,  # only numbers of shards travel
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def local_environment() -> Iterator[None]:
    """What Ray reads when it is imported and started, for the time of the block (internal).

    A choice of the user's own is left alone.
    """
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the only switch that makes its services listen on 127.0.0.1
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_worker_niceness": "0",  # of 15: these processes are the job
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        chosen = {name: value for name, value in chosen.items() if "AUTH" not in name}
    added = [name for name in chosen if name not in os.environ]
    os.environ.update({name: chosen[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Less of what Ray logs, and nothing of it where the results of a command go."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]  # set up when these are imported
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
