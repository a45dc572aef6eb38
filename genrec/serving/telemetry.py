"""Metrics of the endpoint (prometheus-client); names are frozen by a test, labels have few values."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Stopwatch:
    """How long the stages of one search took, in one or several passes, by the clock of this thread (internal).

    look: called where a stage begins; what it raises ends the search.
    """

    def __init__(self, look: Callable[[], object] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._look, self._stage, self._since = look, "", 0.0

    def __call__(self, stage: str) -> None:
        """A stage begins, or goes on; "" = none."""
        if self._look is not None:
            self._look()
        now = time.monotonic()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now


class Metrics:
    """All counters of one server, in a registry of their own (internal)."""

    def __init__(self) -> None:
        self.registry = new = CollectorRegistry()
        self.requests = Counter("genrec_requests", "Requests answered", ["route", "status"], registry=new)
        self.latency = Histogram(
            "genrec_request_latency_seconds", "Arrival to answer", ["route"], buckets=_SECONDS, registry=new
        )
        self.stages = Histogram(
            "genrec_stage_latency_seconds", "Parts of an answer", ["stage"], buckets=_SECONDS, registry=new
        )
        self.batch = Histogram(
            "genrec_batch_size", "Histories searched at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=new
        )
        self.running = Gauge("genrec_num_requests_running", "Histories being searched", registry=new)
        self.waiting = Gauge("genrec_num_requests_waiting", "Histories that wait", registry=new)
        self.shed = Counter("genrec_shed", "Histories refused since too many waited", registry=new)
        self.expired = Counter("genrec_expired", "Histories dropped: deadline or client gone", registry=new)
        self.cold = Counter("genrec_cold", "Histories without a known item", registry=new)
        self.unknown_users = Counter("genrec_unknown_users", "User ids that are not in the log", registry=new)
        self.skipped = Counter("genrec_unknown_items", "Unknown item ids in histories", registry=new)
        self.items = Counter("genrec_items", "Items listed", registry=new)
        self.invalid = Counter("genrec_invalid_item", "Items listed that were not allowed", registry=new)
        self.short = Counter("genrec_short_list", "Lists shorter than what was allowed", registry=new)
        self.swaps = Counter("genrec_swaps", "Loads of a model or a catalog", ["result"], registry=new)
        self.catalog_version = Gauge("genrec_catalog_version", "Version of the catalog", registry=new)
        self.model_version = Gauge("genrec_model_version", "Version of the model", registry=new)

    def told(self, watch: Stopwatch) -> None:
        """Count the stages of a search."""
        for stage, seconds in watch.seconds.items():
            self.stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """The metrics in Prometheus' text form."""
        return bytes(generate_latest(self.registry))
