"""The endpoint: are its lists valid, does it stand what clients send, what does an answer cost.

Requests go through the ASGI application in this process, without a network; benchmarks/serving_overload.py and
serving_processes.py have the figures of started servers. Validity and malformed requests: a shop of 40 items with
collisions, random weights (genrec.testing.shop_endpoint). Costs: T5 of TIGER's size over 12,101 random items of 4 codes
of 256.
"""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Callable
from typing import Any

import decoding_loop
import numpy as np
from run import Figure, Measured, Options
from serving_overload import FIGURES as OF_OVERLOAD
from serving_processes import FIGURES as OF_PROCESSES
from serving_processes import GENERATE

USERS = 32  # in one request
SEEDS = {"histories": 0, "malformed": 1}


def validity(options: Options, n_items: int = 100_000) -> dict[str, Any]:
    """Lists of random users under random rules, each item looked up in the rules; kept for the three figures."""
    from genrec.testing.shop_endpoint import IDS, N, ShopClient, make_catalog

    if "validity" in options.cache:
        return dict(options.cache["validity"])
    shop, random = ShopClient(), np.random.default_rng(SEEDS["histories"])
    fields = make_catalog().fields
    price = np.array([np.nan if p is None else p for p in fields["price"]])
    kind = np.array(fields["kind"])
    shop.admin("filters", {"name": "chosen", "items": list(IDS[:25])})
    shop.admin("retire", {"items": [IDS[3], IDS[12]]})
    numbers = {item: n for n, item in enumerate(IDS)}
    found = {"lists": 0, "items": 0, "invalid": 0, "disallowed": 0, "short": 0}
    while found["items"] < n_items:
        histories = [random.integers(0, N, random.integers(0, 7)) for _ in range(USERS)]
        top_k, limit = int(random.integers(1, 25)), int(random.integers(1, 50))
        allowed, request = ~np.isin(np.arange(N), (3, 12)), {"top_k": top_k}
        if random.random() < 0.6:
            request["where"], allowed = [f"price < {limit}", "kind = tea"], allowed & (price < limit) & (kind == "tea")
        if random.random() < 0.4:
            request["filter"], allowed = "~chosen", allowed & (np.arange(N) >= 25)
        if random.random() < 0.4:
            deny = random.integers(0, N, 6)
            request["deny"], allowed = [IDS[n] for n in deny], allowed & ~np.isin(np.arange(N), deny)
        inputs = [{"history": [IDS[n] for n in history]} for history in histories]
        reply = shop.recommend(inputs=inputs, **request)
        for history, one in zip(histories, reply.json["data"], strict=True):
            may = allowed.copy()
            may[history] = False
            items = [numbers.get(item["id"], -1) for item in one["items"]]
            found["lists"] += 1
            found["items"] += len(items)
            found["invalid"] += sum(n < 0 for n in items) + len(items) - len(set(items))
            found["disallowed"] += sum(n >= 0 and not may[n] for n in items)
            found["short"] += len(items) < min(top_k, int(may.sum()))
    shop.close()
    options.cache["validity"] = found
    return found


def counted(key: str) -> Callable[[Options], Measured]:
    """One of the counts of :func:`validity`."""

    def measure(options: Options) -> Measured:
        found = validity(options)
        return Measured(
            found[key], found, f"{found['items']} items in {found['lists']} lists, seed {SEEDS['histories']}"
        )

    return measure


def malformed(options: Options, n_requests: int = 20_000) -> Measured:
    """Half made from the schema with wrong values, half good requests with broken bytes; how many were answered 5xx."""
    from genrec.serving.schemas import RecommendationRequest
    from genrec.testing.shop_endpoint import IDS, ShopClient, make_text_shop

    shops, random, statuses = (
        [ShopClient(), ShopClient(load=make_text_shop)],
        np.random.default_rng(SEEDS["malformed"]),
        {},
    )
    values = [
        None, True, -1, 0, 2**70, 1e308, "", "x", "\ud800", "item-01", [], [[]], {}, [None], ["item-01", 7], "a & b",
        ["price < 3"], ["price <"], "~" * 200, [{"history": []}], [{"user": 1}], "raw", float("nan"), float("inf"),
    ]  # fmt: skip
    names = [*RecommendationRequest.model_fields, "odd"]
    for number in range(n_requests):
        body: dict[str, Any] = {"history": [IDS[random.integers(40)]]}
        if number % 2:
            body |= {"top_k": int(random.integers(1, 60)), "exact": bool(number % 4 == 1), "deny": ["item-01"]}
            for name in random.choice(names, random.integers(0, 3)):
                body[str(name)] = values[random.integers(len(values))]
            raw = json.dumps(body).encode("utf-8", "surrogatepass")
        else:
            broken = bytearray(json.dumps({**body, "top_k": 5, "where": ["price < 20"]}).encode())
            for _ in range(random.integers(1, 6)):
                broken[random.integers(len(broken))] = random.integers(256)
            raw = bytes(broken[: random.integers(1, len(broken) + 1)] if random.random() < 0.3 else broken)
        # every other pair of requests goes to the one that reads queries
        status = shops[number // 2 % 2].call("POST", "/v1/recommendations", raw).status
        statuses[status] = statuses.get(status, 0) + 1
    for shop in shops:
        shop.close()
    bad = sum(count for status, count in statuses.items() if status >= 500)
    return Measured(bad, {str(k): v for k, v in sorted(statuses.items())}, f"{n_requests} requests")


def swaps(options: Options, n_swaps: int = 100, clients: int = 4) -> dict[str, Any]:
    """Other models and retired items while clients ask; answers that failed, and lists of no single version."""
    from genrec.testing.shop_endpoint import IDS, N, ShopClient, make_shop

    if "swaps" in options.cache:
        return dict(options.cache["swaps"])

    def load(version: int) -> Any:
        return make_shop(version, seed=version % 3)

    expected = {}
    for seed in range(3):
        fresh = make_shop(seed=seed)
        for n in range(clients):
            lists = fresh.recommender.recommend([[n]], top_k=N, users=[""])
            expected[seed, n] = [IDS[i] for i in lists.items[0] if i >= 0]
        fresh.close()
    shop, stop = ShopClient(load=load), threading.Event()
    found = {"answers": 0, "failed": 0, "mixed": 0, "swaps": n_swaps}

    def ask(n: int) -> None:
        while not stop.is_set():
            reply = shop.recommend(history=[IDS[n]], top_k=N)
            found["answers"] += 1
            if reply.status != 200:
                found["failed"] += 1
                continue
            (one,) = reply.json["data"]
            listed, whole = [item["id"] for item in one["items"]], expected[one["model_version"] % 3, n]
            gone = sorted(set(whole) - set(listed))
            # items are retired in this order, so what is gone tells the version
            found["mixed"] += listed != [i for i in whole if i not in gone] or gone != sorted(order[: len(gone)])

    order = [IDS[n] for n in range(N - 1, clients, -1)][: n_swaps // 10]
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    for each in threads:
        each.start()
    for number in range(n_swaps):
        if number % 10 == 9:
            assert shop.admin("retire", {"items": [order[number // 10]]}).status == 200
        else:
            assert shop.admin("reload").status == 200
    stop.set()
    for each in threads:
        each.join()
    shop.close()
    options.cache["swaps"] = found
    return found


def of_swaps(key: str) -> Callable[[Options], Measured]:
    """One of the counts of :func:`swaps`."""

    def measure(options: Options) -> Measured:
        found = swaps(options)
        return Measured(found[key], found, f"{found['swaps']} swaps, 4 clients")

    return measure


def ratio_to_generate(options: Options, n_beams: int, users: int = 8, repeats: int = 3) -> Measured:
    """CPU time of `generate` over that of the endpoint, for the same users; the same items are asserted."""
    from genrec.data.catalog import ItemCatalog
    from genrec.data.histories import Histories
    from genrec.decoding.index import CatalogIndex
    from genrec.item_tokenizers.codes import ItemCodes
    from genrec.models.prompting import build_prompts
    from genrec.models.recommender import DecodingSettings, GenerativeRecommender
    from genrec.serving.model import ServedModel
    from genrec.testing.shop_endpoint import ShopClient

    made = options.cache.get("loop t5") or decoding_loop.setup(decoding_loop.t5)
    options.cache["loop t5"] = made
    n = decoding_loop.N_ITEMS
    catalog = ItemCatalog(tuple(f"i{number}" for number in range(n)), {"title": [""] * n})
    rows = made.tokens.codes(made.tokens_NL)
    codes = ItemCodes.from_int(rows, (decoding_loop.LEVEL_SIZE,) * decoding_loop.N_LEVELS, catalog.fingerprint)
    recommender = GenerativeRecommender(
        made.model, made.tokens, codes, CatalogIndex.build(codes), DecodingSettings(n_beams=n_beams)
    )
    shop = ShopClient(load=lambda version: ServedModel(recommender, catalog, name="t5", version=version))
    items = np.random.default_rng(1).integers(0, n, (users, decoding_loop.N_HISTORY))
    prompts = build_prompts("encoder", Histories.from_lists(list(items)), made.tokens_NL, made.tokens)
    request = {"inputs": [{"history": [f"i{i}" for i in row]} for row in items], "n_beams": n_beams, "scores": "raw"}
    beams, decoding_loop.N_BEAMS = decoding_loop.N_BEAMS, n_beams
    try:
        sides = {
            "ours": lambda: shop.recommend(**request, top_k=10, exclude_seen=False).json["data"],
            "generate": decoding_loop.generate(made, prompts),
        }
        seconds, found = decoding_loop.compare(sides, repeats)
    finally:
        decoding_loop.N_BEAMS = beams
    listed = np.array([[int(item["id"][1:]) for item in one["items"]] for one in found["ours"]])
    assert (made.tokens_NL[listed] == found["generate"][0]).all(), "the items differ from those of generate"
    shop.close()
    ms = {name: [round(s * 1e3, 1) for s in each] for name, each in seconds.items()}
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return Measured(
        medians["generate"] / medians["ours"], {"cpu_ms": ms}, f"{users} users, {repeats} repeats, one thread"
    )


FIGURES = [
    Figure("invalid_items", "of 1e5", counted("invalid"), "0"),
    Figure("disallowed_items", "of 1e5", counted("disallowed"), "0"),
    Figure("short_lists", "of 1e5", counted("short"), "0"),
    Figure("fuzz_5xx", "of 20,000", malformed, "0", quick=True),
    Figure("swap_failed", "of 100 swaps", of_swaps("failed"), "0", quick=True),
    Figure("swap_mixed", "of 100 swaps", of_swaps("mixed"), "0", quick=True),
    Figure("torch_ratio_to_generate_b10", "ratio", lambda o: ratio_to_generate(o, 10), ">= 5", GENERATE, True),
    Figure("torch_ratio_to_generate_b20", "ratio", lambda o: ratio_to_generate(o, 20), ">= 5", GENERATE, True),
    *OF_OVERLOAD,
    *OF_PROCESSES,
]
