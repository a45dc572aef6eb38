"""The endpoint inside ``vllm serve``: a ``vllm.endpoint_plugins`` entry point, loaded by ``VLLM_PLUGINS=genrec``.

The application is that of ``genrec serve``, mounted under ``/v1/genrec``, where vLLM's API key guards it too:
``/v1/recommendations`` is ``/v1/genrec/recommendations``, ``/ready`` is ``/v1/genrec/ready``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.models.bundle import bundle_folder
from genrec.models.engine_weights import NEEDS, WEIGHTS, Held, weights_of
from genrec.serving import digests
from genrec.serving.app import create_app
from genrec.serving.changes import Changes
from genrec.serving.guard import ROUTES, Receive, Scope, Send, answer
from genrec.serving.lifecycle import Registry
from genrec.serving.openapi import describe
from genrec.serving.problems import Problem
from genrec.serving.served_weights import EXPORT, check_adapter, check_weights
from genrec.serving.server import loading
from genrec.serving.settings import ServeSettings, is_loopback, journal_of
from genrec.serving.telemetry import Metrics
from genrec.serving.vllm_engine import VllmEngine

log = logging.getLogger(__name__)

PREFIX = "/v1/genrec"
ADMIN_HEADER = b"x-genrec-admin-key"
"""Where the key for admins stands, since vLLM's own stands in ``Authorization``."""
SERVE = "GENREC_SERVE"
"""Environment variable: JSON of :class:`Served`, without keys."""
ADMIN_KEY = {"type": "apiKey", "in": "header", "name": "X-Genrec-Admin-Key"}
"""The same for OpenAPI."""


def twin_of(path: str) -> str:
    """Where clients of vLLM find a path of the endpoint (internal)."""
    return PREFIX + path.removeprefix("/v1")


TWINS = {twin_of(path): path for _, path in ROUTES}
"""Every path of the plugin, and the one of the endpoint that it is."""


@dataclass(frozen=True)
class Served:
    """What the plugin serves. run: a run folder or bundle; name: what requests call it, default the folder's.

    journal: where changes are kept, default beside the run. adapter: the ``--lora-modules`` name of the adapter that
    the run trained, where vLLM has only its base; sent with every read. weights: the name of those that the run had
    when vLLM was started, where known. limits: options of :class:`~genrec.serving.settings.ServeSettings`. Stability:
    experimental.
    """

    run: str
    name: str | None = None
    journal: str | None = None
    adapter: str | None = None
    weights: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Served:
        """From the environment. Raises ConfigError for anything but an object with these fields."""
        text = environment.get(SERVE)
        hint = f"""{SERVE}='{{"run": "runs/demo"}}', or start it with: genrec serve RUN --engine vllm"""
        if text is None:
            raise ConfigError(f"the plugin genrec is on, and {SERVE} does not say what to serve", hint=hint)
        try:
            said = json.loads(text)
            return cls(**said)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{SERVE}: expected an object with {[each.name for each in fields(cls)]}: {error}",
                              hint=hint) from None  # fmt: skip


class GenrecEndpoint:
    """What vLLM makes of the entry point; see ``vllm.plugins.endpoint_plugins.interface``. Stability: experimental."""

    name = "genrec"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.twin = Twin()

    def attach_router(self, app: Any) -> None:
        """Mount the application."""
        app.mount(PREFIX, self.twin)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Load the run and ask the engine once. Raises what loading raises, ConfigError for settings that are wrong."""
        _log_as_vllm_does()
        served = Served.of(os.environ)
        settings = settings_of(served, args, os.environ)
        lora = None if served.adapter is None else _adapter(served.adapter, state)
        held = check_engine(engine_client, Path(served.run), lora, started_with=served.weights)
        config = engine_client.model_config
        engine = VllmEngine(engine_client, asyncio.get_running_loop(), max_len=config.max_model_len, lora=lora)
        metrics = Metrics()
        run = Path(served.run)
        changes = Changes(Path(served.journal) if served.journal else journal_of(run))
        load = loading(run, settings, name=served.name, engine=engine, dtype=config.dtype, held=held)
        # in a thread: the first search waits for the engine, which answers on this loop
        registry = await asyncio.to_thread(
            Registry, load, changes=changes, metrics=metrics, here=lambda: digests.at(run)
        )
        self.twin.key = settings.api_key
        self.twin.app = create_app(registry, settings, metrics)
        describe(self.twin.app, settings, at=twin_of, admin=ADMIN_KEY)
        log.info("genrec: %s is served at %s", served.run, PREFIX)


class Twin:
    """The application under another prefix (internal).

    app: None = not loaded yet. key: what a request for an admin route shows beside the key for admins; None = nothing.
    """

    def __init__(self) -> None:
        self.app: Any = None
        self.key: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on under the path that the application knows."""
        if scope["type"] != "http":
            return  # a websocket that nobody accepts is refused
        if self.app is None:
            await answer(send, Problem(503, "the model is being loaded", code="loading", retry_after=1))
            return
        asked: str = scope["path"].removeprefix(scope.get("app_root_path", ""))  # --root-path stands before it
        path = TWINS.get(asked, asked)  # a path that is no twin is no route of the application either
        admin = ROUTES.get((scope["method"], path)) == "admin"
        headers = _with_admin_key(scope["headers"], self.key) if admin else scope["headers"]
        inner = {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "headers": headers}
        await self.app(inner, receive, send)


def _with_admin_key(headers: Iterable[tuple[bytes, bytes]], key: str | None) -> list[tuple[bytes, bytes]]:
    """The headers as the application reads them: a key for admins in Authorization, where vLLM wants its own.

    key: what stands in Authorization otherwise; without it there is no way in, also where vLLM itself asks for no key.
    """
    given = list(headers)
    shown = b"".join(value for name, value in given if name == b"authorization")
    if key is not None and not hmac.compare_digest(shown, f"Bearer {key}".encode()):
        return [each for each in given if each[0] != b"authorization"]
    keys = [value for name, value in given if name == ADMIN_HEADER]
    if len(keys) != 1:
        return given
    return [*(each for each in given if each[0] != b"authorization"), (b"authorization", b"Bearer " + keys[0])]


def settings_of(served: Served, args: Namespace, environment: Mapping[str, str]) -> ServeSettings:
    """The limits and keys of the endpoint inside vLLM (internal).

    The key is GENREC_API_KEY, else vLLM's first one. Raises ConfigError where other machines reach the server and no
    key is set.
    """
    open_to_others = not (getattr(args, "uds", None) or is_loopback(getattr(args, "host", None) or "0.0.0.0"))
    keys = [key for key in (getattr(args, "api_key", None) or [environment.get("VLLM_API_KEY")]) if key]
    own = environment.get("GENREC_API_KEY")
    if own and keys and own not in keys:
        raise ConfigError("GENREC_API_KEY: vLLM has another key, and a request can only show one")
    if open_to_others and not keys:
        message = "other machines reach this vLLM, and it asks for no key: no key is set for its own /v1/completions"
        raise ConfigError(message, hint="set VLLM_API_KEY, or --host 127.0.0.1")
    if len(keys) > 1 and own is None:
        raise ConfigError("vLLM has several keys", hint="set GENREC_API_KEY to the one that asks for recommendations")
    known = {each.name for each in fields(ServeSettings)} - {"host", "port", "api_key", "admin_key"}
    if unknown := sorted(set(served.limits) - known):
        raise ConfigError(f"{SERVE}: limits: no such setting: {unknown}", hint=f"known: {sorted(known)}")
    return ServeSettings(
        host="0.0.0.0" if open_to_others else "127.0.0.1",
        port=args.port,
        api_key=own or (keys[0] if keys else None),
        admin_key=environment.get("GENREC_ADMIN_KEY") or None,
        **{"max_batch": 1, "searches": 32, **served.limits},
    )


def check_engine(client: Any, run: Path, adapter: Any, *, started_with: str | None = None) -> str:
    """Refuse an engine that has another model or answers other numbers; say what would be slow or wrong (internal).

    adapter: sent with every read. started_with: name of the weights of the run when vLLM was started. Gives their name.
    """
    config = client.model_config
    manifest = artifacts.read(bundle_folder(run.resolve()), verify=False)
    trained = artifacts.load_json(manifest.path / "model" / "config.json")
    for name in ("genrec_vocabulary", "genrec_codes", "genrec_catalog"):
        if getattr(config.hf_config, name, None) != trained.get(name):
            raise FingerprintMismatch(
                f"vLLM serves another model than that of {run}: their {name.removeprefix('genrec_')} differ",
                hint=EXPORT,
            )
    ours = weights_of(manifest)
    held = Held.of(Path(config.model), {name: getattr(config.hf_config, name, None) for name in (WEIGHTS, NEEDS)})
    check_weights(held, ours, run)
    if started_with not in (None, ours):
        raise FingerprintMismatch(f"{run} has changed since vLLM was started", hint="start it again")
    folder = None if adapter is None else Path(adapter.lora_path)
    check_adapter(Path(config.model), manifest.path / "model", folder, held)
    mode = getattr(config, "logprobs_mode", "raw_logprobs")
    if getattr(mode, "value", mode) != "raw_logprobs":
        raise ConfigError(f"--logprobs-mode: expected raw_logprobs, got {mode}")
    whole = getattr(client, "vllm_config", None)
    if not getattr(whole, "use_v2_model_runner", False):
        log.warning(
            "this vLLM runs its V1 model runner, which gives wrong log-probabilities to other requests in a batch with "
            "ours: use this server for recommendations only"
        )
    cache = getattr(whole, "cache_config", None)
    if not getattr(cache, "enable_prefix_caching", True):
        log.warning("prefix caching is off: every beam reads the whole history again, which is many times slower")
    if (size := getattr(cache, "block_size", 0) or 0) > 32:
        log.warning("blocks of %d tokens: shorter prompts are read again for every beam; try --block-size 32", size)
    return ours


def _log_as_vllm_does() -> None:
    """Our lines go where vLLM's go: it gives handlers to its own loggers only."""
    ours, theirs = logging.getLogger("genrec"), logging.getLogger("vllm")
    if theirs.handlers and not ours.handlers:
        ours.handlers = list(theirs.handlers)
        ours.setLevel(logging.INFO)


def _adapter(name: str, state: Any) -> Any:
    """The adapter as vLLM knows it."""
    known = dict(getattr(getattr(state, "openai_serving_models", None), "lora_requests", None) or {})
    if name not in known:
        raise ConfigError(f"adapter: vLLM has no adapter {name!r}: {sorted(known)}",
                          hint="--enable-lora --lora-modules NAME=FOLDER")  # fmt: skip
    return known[name]
