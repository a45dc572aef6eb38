"""Limits of the endpoint: every number that a request could make large has a cap."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from genrec.errors import ConfigError


@dataclass(frozen=True)
class ServeSettings:
    """How the endpoint protects itself.

    host, port: where it listens; a host other than loopback needs ``api_key``. api_key: what requests must show as
    ``Authorization: Bearer KEY``; None = no key asked for. admin_key: the key of the routes that change the catalog;
    None = those routes are off. max_body_bytes: of a request. max_inputs: histories in one request. max_history,
    max_listed: ids of one history, of one ``allow`` or ``deny``. max_top_k, max_beams: of a request. max_waiting:
    histories that wait for the model; a request beyond is answered 429. max_batch: histories searched at once;
    max_rows: as many of them as have so many beams in all, which bounds the memory of a batch. searches: batches
    searched side by side; more than one for a model in an engine only, which works on all at once.
    timeout_seconds: from a request's arrival to its answer, if it asks for no shorter time; 504 after that.
    header_seconds, body_seconds: for headers and body to arrive. drain_seconds: for requests under way when the server
    is told to stop.

    Raises ConfigError for a number below one, and for an open host without a key. Stability: experimental.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    admin_key: str | None = None
    max_body_bytes: int = 1 << 20
    max_inputs: int = 64
    max_history: int = 2000
    max_listed: int = 10_000
    max_top_k: int = 200
    max_beams: int = 500
    max_waiting: int = 256
    max_batch: int = 32
    max_rows: int = 4096
    searches: int = 1
    timeout_seconds: float = 10.0
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    drain_seconds: float = 15.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and name != "port" and value <= 0:
                raise ConfigError(f"{name}: expected a positive number, got {value}")
        if self.max_inputs > self.max_waiting:
            raise ConfigError(
                f"max_inputs: a request of {self.max_inputs} could never wait among {self.max_waiting} (max_waiting)"
            )
        for name in ("api_key", "admin_key"):
            key = getattr(self, name)
            if key is not None and (len(key) < 8 or not can_be_shown(key)):
                raise ConfigError(f"{name}: expected at least 8 printable ASCII characters without spaces")
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} can be reached from other machines, and no key is set",
                hint="set GENREC_API_KEY, or listen on 127.0.0.1",
            )


def can_be_shown(key: str) -> bool:
    """Whether a key can stand in a header (internal)."""
    return key.isascii() and key.isprintable() and " " not in key


def journal_of(run: Path) -> Path:
    """Where changes of a run's catalog are kept unless told otherwise: beside the run, or the link to it (internal)."""
    return run.parent / f"{run.name}.changes.jsonl"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host (internal)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
