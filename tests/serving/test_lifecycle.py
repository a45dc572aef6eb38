"""Models and catalogs that are changed while they answer."""

import json
import threading

import pytest

from genrec.errors import ArtifactError
from genrec.testing.shop_endpoint import IDS, N, make_shop

METRICS = {
    "genrec_requests_total", "genrec_request_latency_seconds", "genrec_stage_latency_seconds", "genrec_batch_size",
    "genrec_num_requests_running", "genrec_num_requests_waiting", "genrec_shed_total", "genrec_expired_total",
    "genrec_cold_total", "genrec_unknown_items_total", "genrec_items_total", "genrec_invalid_item_total",
    "genrec_short_list_total", "genrec_swaps_total", "genrec_catalog_version", "genrec_model_version",
}  # fmt: skip


def two_models(version):
    return make_shop(version, seed=version)


def ids(reply):
    return [each["id"] for each in reply.json["data"][0]["items"]]


def test_a_reload_answers_from_the_next_model_and_a_rollback_from_the_one_before(client):
    shop = client(load=two_models)
    first = ids(shop.recommend(history=[IDS[1]]))
    shop.admin("retire", {"items": [first[0]]})
    assert shop.admin("reload").json["model_version"] == 2
    second = ids(shop.recommend(history=[IDS[1]]))
    assert second != first and first[0] not in second  # what was retired stays so
    shop.admin("retire", {"items": [second[0]]})
    assert shop.admin("rollback").json["model_version"] == 1
    assert ids(shop.recommend(history=[IDS[1]], top_k=N)) == [
        i for i in ids_of_fresh(client, N) if i not in (first[0], second[0])
    ]
    assert client().admin("rollback").status == 409


def ids_of_fresh(client, top_k):
    return ids(client(load=two_models).recommend(history=[IDS[1]], top_k=top_k))


def test_a_model_that_does_not_load_leaves_the_old_one(client):
    def load(version):
        if version > 1:
            raise ArtifactError("a/secret/path: damaged")
        return make_shop(version)

    shop = client(load=load)
    before = ids(shop.recommend(history=[IDS[1]]))
    reply = shop.admin("reload")
    assert reply.status == 409 and "secret" not in reply.body.decode()
    assert ids(shop.recommend(history=[IDS[1]])) == before
    assert 'genrec_swaps_total{result="failed"} 1.0' in shop.metrics.text().decode()


def test_no_answer_mixes_two_versions_while_they_change(client):
    shop, wrong, stop = client(load=two_models), [], threading.Event()
    expected = {}
    for version in (1, 2):
        fresh = make_shop(version, seed=version)
        for n in range(4):
            found = fresh.recommender.recommend([[n]], top_k=N, users=[""])
            expected[version, n] = [IDS[i] for i in found.items[0] if i >= 0]
        fresh.close()

    def ask(n):
        while not stop.is_set():
            reply = shop.recommend(history=[IDS[n]], top_k=N)
            if reply.status != 200:
                wrong.append(reply.body)
                return
            (one,) = reply.json["data"]
            gone = [i for i in reversed(IDS) if i not in [each["id"] for each in one["items"]] and i != IDS[n]]
            retired = set(gone)
            if gone != list(reversed(IDS))[: len(gone)]:  # they are retired from the last one on
                wrong.append((n, gone))
                return
            version = 1 if one["model_version"] == 1 else 2
            if [i["id"] for i in one["items"]] != [i for i in expected[version, n] if i not in retired]:
                wrong.append((n, one))
                return

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for step in range(15):
        assert shop.admin("retire", {"items": [IDS[39 - step]]}).status == 200
        now = ids(shop.recommend(history=[IDS[20]], top_k=N))
        assert IDS[39 - step] not in now  # never listed once the change is acknowledged
        if step == 7:
            assert shop.admin("reload").status == 200
    stop.set()
    for each in threads:
        each.join(60)
    assert wrong == []


def test_changes_outlive_the_server_that_made_them(client, tmp_path):
    from genrec.serving.changes import Changes

    file = tmp_path / "shop.changes.jsonl"
    shop = client(changes=Changes(file))
    shop.admin("retire", {"items": [IDS[3]]})
    shop.admin("fields", {"field": "price", "values": {IDS[5]: 2000}})
    shop.admin("filters", {"name": "dear", "condition": "price > 1000"})
    asked = {"history": [IDS[0]], "filter": "dear", "top_k": N}
    assert ids(shop.recommend(**asked)) == [IDS[5]]
    for wrong in ({"field": "nobody", "values": {IDS[1]: 1}}, {"field": "title", "values": {IDS[1]: 1}}):
        assert shop.admin("fields", wrong).status == 400
    assert shop.admin("filters", {"name": "bad name", "items": []}).status == 400
    assert len(file.read_text().splitlines()) == 3  # what was refused is not kept
    with file.open("a") as out:
        out.write('{"kind": "retire", "items": ["it')  # a crash in the middle of a line
    with pytest.raises(ArtifactError, match="another server"):
        Changes(file)
    assert len(Changes(file, reading=True).state()) == 3
    shop.registry.changes.close()
    again = client(changes=Changes(file))
    assert ids(again.recommend(**asked)) == [IDS[5]]
    assert IDS[3] not in ids(again.recommend(history=[IDS[0]], top_k=N))
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()] == ["retire", "field", "filter"]
    again.registry.changes.close()
    file.write_text('{"kind": "retire"}\n' + file.read_text())
    with pytest.raises(ArtifactError, match="line 1"):
        Changes(file)


def test_a_change_that_cannot_be_kept_is_not_made(client, tmp_path, monkeypatch):
    from genrec.serving import changes

    file = tmp_path / "changes.jsonl"
    shop = client(changes=changes.Changes(file))
    assert shop.admin("retire", {"items": [IDS[2]]}).status == 200
    with monkeypatch.context() as broken:
        broken.setattr(changes.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert shop.admin("retire", {"items": [IDS[3]]}).status == 503
    assert IDS[3] in ids(shop.recommend(history=[IDS[0]], top_k=N))
    assert shop.admin("retire", {"items": [IDS[4]]}).status == 200  # the file is as it was before
    shop.registry.changes.close()
    assert changes.Changes(file).state() == [{"kind": "retire", "items": [IDS[2], IDS[4]]}]


def test_many_changes_come_to_a_few_lines(client, tmp_path):
    from genrec.serving.changes import Changes

    file = tmp_path / "changes.jsonl"
    shop = client(changes=Changes(file))
    for price in range(1100):
        assert shop.admin("fields", {"field": "price", "values": {IDS[5]: price}}).status == 200
    shop.registry.changes.close()
    assert Changes(file).state() == [{"kind": "field", "field": "price", "values": {IDS[5]: 1099}}]
    assert len(file.read_text().splitlines()) == 1


def test_a_way_back_leaves_out_what_the_earlier_catalog_cannot_have(client):
    shop = client(load=two_models)
    shop.admin("reload")
    shop.registry.changes._note({"kind": "filter", "name": "odd", "condition": "nofield < 3"})
    first = ids(shop.recommend(history=[IDS[1]]))[0]
    shop.registry.changes._note({"kind": "retire", "items": [first]})
    assert shop.admin("rollback").status == 200
    assert first not in ids(shop.recommend(history=[IDS[1]], top_k=N))


def test_the_watcher_follows_a_link_to_the_next_version(client, tmp_path):
    from genrec.serving.lifecycle import Watcher, mark

    for name in ("one", "two"):
        (tmp_path / name / "bundle").mkdir(parents=True)
        (tmp_path / name / "bundle" / "genrec.json").write_text("{}")
    link = tmp_path / "current"
    link.symlink_to("one")
    shop, loaded = client(load=two_models), threading.Event()
    real = shop.registry.reload
    shop.registry.reload = lambda: (real(), loaded.set())[0]
    watcher = Watcher(shop.registry, link, seconds=0.02, seen=mark(link))
    assert not loaded.wait(0.2)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(link)
    assert loaded.wait(60)
    watcher.close()
    assert shop.call("GET", "/version").json["model_version"] == 2


def test_metrics_have_the_names_that_dashboards_use(client):
    shop = client()
    shop.recommend(history=[IDS[1]])
    for n in range(30):  # labels don't grow with what clients send
        shop.call("GET", f"/{n}")
        shop.recommend(history=[f"unknown {n}"])
    text = shop.call("GET", "/metrics").body.decode()
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE") and "_created" not in line}
    assert named == METRICS
    routes = {line.split('route="')[1].split('"')[0] for line in text.splitlines() if 'route="' in line}
    assert routes == {"/v1/recommendations", "other"}
    assert 'genrec_requests_total{route="other",status="404"} 30.0' in text
