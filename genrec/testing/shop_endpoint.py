"""A shop of 40 items behind the endpoint, asked without a network."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.decoding.index import CatalogIndex
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import DecoderSettings, build
from genrec.models.bundle import save_bundle
from genrec.models.engine_scorer import Engine
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.prompts.encode import ExampleEncoder
from genrec.prompts.tasks import load_task
from genrec.serving.app import create_app
from genrec.serving.changes import Changes
from genrec.serving.lifecycle import Mark, Registry
from genrec.serving.model import ServedModel
from genrec.serving.settings import ServeSettings
from genrec.serving.telemetry import Metrics
from genrec.testing.text_models import byte_level_tokenizer
from genrec.vocab.text_vocabulary import extend_vocabulary
from genrec.vocab.token_map import TokenMap

N = 40
IDS = tuple(f"item-{n:02d}" for n in range(N))


def make_catalog() -> ItemCatalog:
    """Ids, titles, a price (one is missing) and a kind."""
    random = np.random.default_rng(3)
    price = [None if n == 7 else float(p) for n, p in enumerate(random.integers(1, 50, N))]
    return ItemCatalog(
        IDS, {"title": [f"Thing {n}" for n in range(N)], "price": price, "kind": ["tea", "pot"] * (N // 2)}
    )


def make_shop(
    version: int = 1,
    seed: int = 0,
    with_log: bool = True,
    engine: Callable[[Any], Engine] | None = None,
    hidden_size: int = 16,
) -> ServedModel:
    """A random model over 40 items, of which four pairs share an identifier; users u0 to u9 have a log.

    engine: makes one from the model, which is asked then; None = the model is searched here. hidden_size: of two heads;
    vLLM takes none below 32.
    """
    catalog = make_catalog()
    rows = np.array([[n // 12, n % 12 // 3, n % 3] for n in range(N)])
    rows[[5, 9, 20, 33]] = rows[[4, 8, 19, 32]]
    codes = ItemCodes.from_int(rows, (4, 4, 3), catalog.fingerprint)
    token_map = TokenMap.of(codes)
    settings = DecoderSettings(hidden_size=hidden_size, n_layers=1, n_heads=2, d_ff=24)
    model = build(settings, token_map, seed=seed).eval()
    recommender = GenerativeRecommender(
        model,
        token_map,
        codes,
        CatalogIndex.build(codes),
        DecodingSettings(n_beams=60, loss="level"),
        engine=None if engine is None else engine(model),
    )
    log = None
    if with_log:
        users, items = [f"u{n // 4}" for n in range(40)], np.random.default_rng(1).integers(0, 12, 40)
        log = Interactions.from_arrays(users, items, None, n_items=N, catalog=catalog.fingerprint)
    return ServedModel(recommender, catalog, name="shop", version=version, log=log)


def make_text_shop(version: int = 1, tasks: Sequence[str] = ("search", "search_with_history")) -> ServedModel:
    """The same with a random model that reads text, as if it were trained on these tasks; it has no log."""
    catalog = make_catalog()
    rows = np.array([[n // 12, n % 12 // 3, n % 3] for n in range(N)])
    codes = ItemCodes.from_int(rows, (4, 4, 3), catalog.fingerprint)
    vocabulary = extend_vocabulary(byte_level_tokenizer(), codes)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    size = vocabulary.token_map.vocab_size
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=size, num_attention_heads=2, num_key_value_heads=1, **shape))
    prompts = TemplatePrompts(
        load_task("sequential").template,
        ExampleEncoder(vocabulary, codes, layout="decoder", max_tokens=160),
        searches={name: load_task(name).template for name in tasks},
    )
    recommender = GenerativeRecommender(
        model.eval(),
        vocabulary.token_map,
        codes,
        CatalogIndex.build(codes),
        DecodingSettings(n_beams=40, loss="level"),
        prompts=prompts,
    )
    return ServedModel(recommender, catalog, name="text shop", version=version)


def save_shop(folder: Path, seed: int = 0, hidden_size: int = 16) -> Path:
    """Write the shop as a run folder, with its log; gives the folder."""
    shop = make_shop(seed=seed, hidden_size=hidden_size)
    save_bundle(folder / "bundle", shop.recommender, catalog=shop.store.snapshot.catalog)
    assert shop.log is not None
    shop.log.save(folder / "interactions")
    shop.close()
    return folder


@dataclasses.dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes
    unread: int = 0
    """Pieces of the request's body that were not looked at."""

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class ShopClient:
    """The endpoint of the shop, called as a server would call it."""

    def __init__(
        self,
        settings: ServeSettings | None = None,
        load: Callable[..., ServedModel] = make_shop,
        changes: Changes | None = None,
        here: Callable[[], str | None] = lambda: None,
        marked: Callable[[], Mark | None] = lambda: None,
        engine_well: Callable[[], bool] = lambda: True,
    ) -> None:
        self.settings, self.metrics = settings or ServeSettings(admin_key="admin-key"), Metrics()
        kept = Changes() if changes is None else changes
        self.registry = Registry(load, changes=kept, metrics=self.metrics, here=here, marked=marked)
        self.app = create_app(self.registry, self.settings, self.metrics, engine_well=engine_well)

    async def asked(
        self,
        method: str,
        path: str,
        chunks: Sequence[bytes] = (b"",),
        headers: dict[str, str] | None = None,
        gone: asyncio.Event | None = None,
    ) -> Reply:
        """One request. gone: set = the client has hung up."""
        head = {"host": "x", **(headers or {})}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in head.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": c, "more_body": True} for c in chunks]
        messages[-1]["more_body"] = False
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            if messages:
                return messages.pop(0)
            await (gone.wait() if gone is not None else asyncio.Event().wait())
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start = next(m for m in sent if m["type"] == "http.response.start")
        body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        return Reply(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body, len(messages))

    def call(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        """One request; a body that is not bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return asyncio.run(self.asked(method, path, (raw,), {k.replace("_", "-"): v for k, v in headers.items()}))

    def recommend(self, **request: Any) -> Reply:
        """Ask for lists."""
        return self.call("POST", "/v1/recommendations", request)

    def admin(self, what: str, body: Any = b"") -> Reply:
        """Use an admin route, with the key."""
        return self.call("POST", f"/v1/admin/{what}", body, authorization=f"Bearer {self.settings.admin_key}")

    def close(self) -> None:
        """End its threads."""
        self.app.state.batcher.close(10)
        self.registry.close()
