"""What the endpoint answers, against scores of every item of the catalog."""

import time

import numpy as np
import pytest
import torch

from genrec.data.catalog import ItemCatalog
from genrec.decoding.filters import ItemFilter
from genrec.testing.shop_endpoint import IDS, N, make_catalog, make_shop, make_text_shop


def best(model, history, allowed, top_k, normalize="level"):
    """Brute force: every item is scored; ids of equal score may stand in any order."""
    scores = model.recommender.score([history], normalize=normalize)[0]
    allowed = allowed & np.isfinite(scores)
    order = np.argsort(-np.where(allowed, scores, -np.inf), kind="stable")[: min(top_k, int(allowed.sum()))]
    return scores[order]


def test_lists_are_the_best_allowed_items_for_any_rules(client):
    shop, random = client(), np.random.default_rng(0)
    price, kind = (np.array(make_catalog().fields[name], dtype=object) for name in ("price", "kind"))
    cheap = np.array([p is not None and p < 25 for p in price])
    shop.admin("filters", {"name": "cheap", "condition": "price < 25"})
    shop.admin("filters", {"name": "chosen", "items": [*IDS[:30], "nobody"]})
    shop.admin("retire", {"items": [IDS[3], IDS[12], "nobody"]})
    model = shop.registry.current
    for _ in range(60):
        history = random.integers(0, N, random.integers(1, 6)).tolist()
        request = {"history": [IDS[n] for n in history], "top_k": int(random.integers(1, 45))}
        allowed = np.ones(N, bool)
        allowed[[3, 12]] = False
        if random.random() < 0.5:
            request["where"], allowed = ["kind = tea", "price >= 10"], allowed & (kind == "tea")
            allowed &= np.array([p is not None and p >= 10 for p in price])
        if random.random() < 0.5:
            request["filter"], allowed = "chosen & ~cheap", allowed & ~cheap & (np.arange(N) < 30)
        if random.random() < 0.3:
            some = random.choice(N, 12, replace=False)
            request["allow"], allowed = [IDS[n] for n in some], allowed & np.isin(np.arange(N), some)
        if random.random() < 0.3:
            some = random.choice(N, 5, replace=False)
            request["deny"], allowed = [*(IDS[n] for n in some), "nobody"], allowed & ~np.isin(np.arange(N), some)
        if random.random() < 0.3:
            request["exclude_seen"] = False
        else:
            allowed[history] = False
        reply = shop.recommend(**request)
        assert reply.status == 200, reply.body
        (found,) = reply.json["data"]
        numbers = [IDS.index(each["id"]) for each in found["items"]]
        assert allowed[numbers].all() and len(set(numbers)) == len(numbers)
        expected = best(model, history, allowed, request["top_k"])
        np.testing.assert_allclose([each["score"] for each in found["items"]], expected, atol=1e-5)
        assert found["source"] == "model" and found["skipped_items"] == 0 and found["normalize"] == "level"
    said = {
        line.split()[0]: float(line.split()[1]) for line in shop.metrics.text().decode().splitlines() if line[0] != "#"
    }
    assert said["genrec_invalid_item_total"] == said["genrec_short_list_total"] == 0 < said["genrec_items_total"]


def test_several_users_get_what_each_gets_alone(client):
    shop = client()
    inputs = [{"history": [IDS[n], IDS[n + 1]]} for n in range(0, 30, 3)] + [{"user": "u3"}, {"history": []}]
    together = shop.recommend(inputs=inputs, top_k=7).json["data"]
    assert [each["index"] for each in together] == list(range(len(inputs)))
    for one, asked in zip(together, inputs, strict=True):
        alone = shop.recommend(**asked, top_k=7).json["data"][0]
        assert [i["id"] for i in one["items"]] == [i["id"] for i in alone["items"]]
        assert [i["score"] for i in one["items"]] == pytest.approx([i["score"] for i in alone["items"]], abs=1e-5)


@pytest.mark.parametrize(("scores", "normalize"), [("raw", "vocab"), ("renormalized", "children"), (None, "level")])
def test_scores_are_normalised_as_asked(client, scores, normalize):
    shop = client()
    more = {} if scores is None else {"scores": scores}
    found = shop.recommend(history=[IDS[1]], top_k=5, **more).json["data"][0]
    allowed = np.arange(N) != 1
    with pytest.warns(UserWarning) if scores else _nothing():
        expected = best(shop.registry.current, [1], allowed, 5, normalize)
    assert found["normalize"] == normalize
    np.testing.assert_allclose([each["score"] for each in found["items"]], expected, atol=1e-5)


class _nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


def test_each_item_is_explained_where_that_is_asked(client):
    from genrec.models.explain import FATES, as_json, explain

    shop = client()
    shop.admin("retire", {"items": [IDS[3]]})
    asked = {"inputs": [{"history": [IDS[1], IDS[6]]}, {"user": "u4"}, {"history": []}], "where": ["kind = tea"]}
    plain = shop.recommend(**asked, top_k=4).json["data"]
    found = shop.recommend(**asked, top_k=4, explain=True).json["data"]
    model = shop.registry.current
    tea = ItemFilter.of_items(range(0, N, 2), N)
    histories = [[1, 6], model.log.histories()[4].tolist()]
    for one, without, history in zip(found, plain, histories, strict=False):
        assert [{"id": i["id"], "score": i["score"]} for i in one["items"]] == without["items"]
        numbers = [IDS.index(item["id"]) for item in one["items"]]
        paths = explain(model.recommender, history, numbers, normalize="level", allowed=tea)
        assert [item["path"] for item in one["items"]] == [[as_json(step) for step in path] for path in paths]
        for item in one["items"]:
            assert item["path"][-1]["score"] == pytest.approx(item["score"], abs=1e-5)
            of_all = np.prod([step["probability"] for step in item["path"]])
            assert of_all == pytest.approx(np.exp(item["score"]), rel=1e-4)
            assert [step["level"] for step in item["path"]] == [0, 1, 2]
            assert all(set(step["mass"]) == set(FATES) for step in item["path"])
    assert found[2]["source"] == "popular" and all("path" not in item for item in found[2]["items"])
    assert shop.recommend(inputs=[{"history": []}] * 3, top_k=100, explain=True).json["error"]["param"] == "explain"


def test_a_user_of_the_log_is_the_history_of_the_log(client):
    shop = client()
    log = shop.registry.current.log
    history = [IDS[n] for n in log.histories()[4]]
    by_name, by_history = shop.recommend(user="u4"), shop.recommend(history=history)
    assert by_name.json["data"][0]["items"] == by_history.json["data"][0]["items"]
    # a user who came after the log was made, among others
    one, new = shop.recommend(inputs=[{"user": "u4"}, {"user": "nobody"}]).json["data"]
    assert one["items"] == by_name.json["data"][0]["items"]
    assert new["source"] == "popular" and new["items"] == shop.recommend(history=[]).json["data"][0]["items"]
    assert "genrec_unknown_users_total 1.0" in shop.metrics.text().decode()
    without = client(load=lambda version: make_shop(version, with_log=False))
    reply = without.recommend(user="u4")
    assert reply.status == 404 and "no log" in reply.json["error"]["message"]


def test_unknown_items_are_skipped_and_counted_and_nobody_gets_an_empty_list(client):
    shop = client()
    found = shop.recommend(history=["what", IDS[2], "is", IDS[8]]).json["data"][0]
    assert found["skipped_items"] == 2
    assert found["items"] == shop.recommend(history=[IDS[2], IDS[8]]).json["data"][0]["items"]
    counts = np.bincount(shop.registry.current.log.item, minlength=N)
    for history in ([], ["nobody knows me"]):
        cold = shop.recommend(history=history, top_k=N + 3, where=["kind = pot"]).json["data"][0]
        order = sorted((n for n in range(1, N, 2)), key=lambda n: (-counts[n], n))
        assert [each["id"] for each in cold["items"]] == [IDS[n] for n in order]
        assert cold["source"] == "popular" and cold["items"][0]["score"] is None


def test_retired_items_stay_readable_and_are_never_listed(client):
    shop = client()
    before = shop.recommend(history=[IDS[6], IDS[7]], top_k=N).json["data"][0]
    gone = before["items"][0]["id"]
    assert shop.admin("retire", {"items": [gone, "nobody"]}).json == {"catalog_version": 1, "unknown_items": 1}
    after = shop.recommend(history=[IDS[6], IDS[7]], top_k=N).json["data"][0]
    assert gone not in [each["id"] for each in after["items"]] and after["catalog_version"] == 1
    assert shop.recommend(history=[gone], top_k=3).json["data"][0]["skipped_items"] == 0
    assert gone not in [each["id"] for each in shop.recommend(history=[], top_k=N).json["data"][0]["items"]]


def test_a_changed_price_counts_from_the_next_request(client):
    shop = client()
    asked = {"history": [IDS[0]], "top_k": N, "where": ["price > 1000"]}
    assert shop.recommend(**asked).json["data"][0]["items"] == []
    shop.admin("fields", {"field": "price", "values": {IDS[5]: 2000, IDS[6]: 3000.5, IDS[7]: None, "nobody": 1}})
    assert {each["id"] for each in shop.recommend(**asked).json["data"][0]["items"]} == {IDS[5], IDS[6]}


def test_what_can_be_asked_for_is_told_of_one_version(client, monkeypatch):
    shop = client(load=lambda version: make_shop(version) if version == 1 else make_text_shop(version))
    before, model = shop.call("GET", "/v1/catalog").json, shop.registry.current
    real, store, left = model.catalog_digest, model.store, iter(range(N))

    class Changes:
        """A store that is changed after every look."""

        @property
        def snapshot(self):
            found = store.snapshot
            store.retire([next(left)])
            return found

    def swapped_meanwhile(snapshot):
        shop.registry.current = make_text_shop(2)
        return real(snapshot)

    monkeypatch.setattr(model, "store", Changes())
    monkeypatch.setattr(model, "catalog_digest", swapped_meanwhile)
    assert shop.call("GET", "/v1/catalog").json == before
    shop.registry.current.close()
    shop.registry.current = model


def test_the_stages_of_a_search_are_told(client, monkeypatch):
    shop = client()
    model = shop.registry.current.recommender
    scorer = model.now._scorer

    def slowly(name, seconds):
        real = getattr(scorer, name)
        monkeypatch.setattr(scorer, name, lambda *given: (time.sleep(seconds), real(*given))[1])

    def of(stage, what="sum"):
        return shop.metrics.registry.get_sample_value(f"genrec_stage_latency_seconds_{what}", {"stage": stage})

    slowly("start", 0.2)
    slowly("step", 0.05)
    assert shop.recommend(history=[IDS[1]]).status == 200
    assert of("prefill") >= 0.25 and of("steps") >= 0.1  # three codes, the first of them with the prompt
    assert of("prefill") + of("steps") <= of("search")
    assert of("prefill", "count") == of("steps", "count") == of("search", "count") == 1
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cuda")))  # it would not wait
    assert shop.recommend(history=[IDS[1]]).status == 200
    assert of("prefill", "count") == of("steps", "count") == 1 and of("search", "count") == 2


def test_a_named_filter_reads_fields_as_a_request_does(client):
    from genrec.serving.model import ServedModel

    catalog = make_catalog()
    fields = {**catalog.fields, "days in stock": [float(n) for n in range(N)]}

    def load(version):
        made = make_shop(version)
        made.close()
        return ServedModel(made.recommender, ItemCatalog(IDS, fields), name="shop", version=version)

    shop = client(load=load)
    asked = {"history": [IDS[0]], "top_k": N}
    listed = shop.recommend(**asked, where=["days in stock < 3"]).json["data"][0]["items"]
    assert {each["id"] for each in listed} == {IDS[1], IDS[2]}
    assert shop.admin("filters", {"name": "fresh", "condition": "days in stock < 3"}).status == 200
    assert shop.recommend(**asked, filter="fresh").json["data"][0]["items"] == listed


def test_what_can_be_asked_for_is_listed(client):
    shop = client()
    shop.admin("filters", {"name": "cheap", "condition": "price < 25"})
    found = shop.call("GET", "/v1/catalog").json
    assert found["fields"] == {"title": "text", "price": "float", "kind": "text"} and found["filters"] == ["cheap"]
    assert found["n_items"] == N and found["model"] == "shop" and found["history_store"]
    assert shop.call("GET", "/v1/models").json["data"][0]["id"] == "shop"
    assert shop.recommend(history=[IDS[0]], model="shop").status == 200
    assert shop.recommend(history=[IDS[0]], model="other").status == 404
