"""Models and catalogs that are changed while they answer."""

import json
import shutil
import threading
import weakref

import pytest

from genrec.decoding.filters import ItemFilter
from genrec.errors import ArtifactError
from genrec.serving.patience import patience
from genrec.serving.problems import Problem
from genrec.testing.shop_endpoint import IDS, N, make_catalog, make_shop, save_shop

METRICS = {
    "genrec_requests_total", "genrec_request_latency_seconds", "genrec_stage_latency_seconds", "genrec_batch_size",
    "genrec_num_requests_running", "genrec_num_requests_waiting", "genrec_shed_total", "genrec_expired_total",
    "genrec_cold_total", "genrec_unknown_users_total", "genrec_unknown_items_total", "genrec_items_total",
    "genrec_invalid_item_total", "genrec_short_list_total", "genrec_swaps_total", "genrec_catalog_version",
    "genrec_model_version",
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


@pytest.fixture
def started(client, tmp_path):
    """A server at the link ``current``, over the folders one, two and three, started again with what it has kept."""
    from genrec.serving.changes import Changes
    from genrec.serving.digests import at
    from genrec.serving.lifecycle import mark
    from genrec.serving.model import ServedModel

    for seed, name in enumerate(("one", "two", "three")):
        save_shop(tmp_path / name, seed=seed)
    link = tmp_path / "current"

    def point(name):
        (tmp_path / "next").symlink_to(name)
        (tmp_path / "next").replace(link)

    def load(version, place=None):
        return ServedModel.load(place or link.resolve(), name="shop", version=version)

    def start():
        changes = Changes(tmp_path / "journal")
        return client(load=load, changes=changes, here=lambda: at(link), marked=lambda: mark(link))

    return point, start


def digest(shop):
    return shop.call("GET", "/version").json["model_digest"]


def stopped(shop):
    shop.registry.changes.close()


def test_a_way_back_outlives_the_server(started, tmp_path, caplog):
    from genrec.serving.digests import at

    point, start = started
    of = {name: at(tmp_path / name) for name in ("one", "two", "three")}
    assert len(set(of.values())) == 3
    point("one")
    shop = start()
    assert shop.admin("rollback").status == 409 and digest(shop) == of["one"]
    point("two")
    assert shop.admin("reload").json["model_digest"] == of["two"]
    back = shop.admin("rollback").json
    assert (back["model_digest"], back["kept"]) == (of["one"], True)
    stopped(shop)
    shop = start()
    assert digest(shop) == of["one"]
    assert shop.recommend(history=[IDS[1]]).json["data"][0]["model_digest"] == of["one"]
    forward = shop.admin("rollback").json  # the way back from there leads to the newer one
    assert (forward["model_digest"], forward["kept"], forward["model_version"]) == (of["two"], True, 2)
    assert shop.admin("reload").json["model_version"] == 3  # no number has two models
    stopped(shop)
    shop = start()
    assert digest(shop) == of["two"] and shop.admin("rollback").status == 409
    stopped(shop)
    shop = start()
    point("three")
    shop.admin("reload")
    assert shop.admin("rollback").json["model_digest"] == of["two"]
    stopped(shop)
    point("one")  # a later deployment counts
    shop = start()
    assert digest(shop) == of["one"]
    stopped(shop)
    point("three")  # and so does one of the model that it had gone back from, after another one
    shop = start()
    assert digest(shop) == of["three"]
    point("one")
    assert shop.admin("reload").status == shop.admin("rollback").status == 200
    stopped(shop)
    shutil.rmtree(tmp_path / "three")
    shop = start()  # what it had gone back to is gone
    assert digest(shop) == of["one"] and "does not load now" in caplog.text


def test_a_model_that_does_not_answer_is_let_go_of(client, caplog):
    shops = [make_shop(1), make_shop(2)]
    closed = []

    def fails():
        raise Problem(504, "no answer in time")

    shops[1].warm_up, shops[1].close = fails, lambda: closed.append(True)
    shop = client(load=lambda version: shops[version - 1])
    assert shop.admin("reload").status == 409 and closed == [True] and "no answer in time" in caplog.text
    assert shop.recommend(history=[IDS[1]]).json["data"][0]["model_version"] == 1
    shops[0].recommender.now.model.model.norm.weight.data.fill_(float("nan"))
    reply = shop.recommend(history=[IDS[1]])
    assert reply.status == 500 and reply.json["error"]["code"] == "model_failed"  # no fault of the request


def test_the_first_search_waits_a_minute_at_most(client):
    shop, found = make_shop(1), []
    shop.warm_up = lambda: found.append(patience().left)
    client(load=lambda version: shop)
    assert 0 < found[0] <= 60


def test_a_way_back_to_a_folder_that_was_replaced_is_not_kept(started, tmp_path):
    point, start = started
    point("one")
    shop = start()
    (tmp_path / "one").rename(tmp_path / "old")
    (tmp_path / "two").rename(tmp_path / "one")
    shop.admin("reload")
    back = shop.admin("rollback")
    assert back.status == 200 and back.json["kept"] is False


def test_two_models_at_most_are_held_and_a_failed_load_leaves_the_way_back(started, tmp_path):
    point, start = started
    point("one")
    shop = start()
    alive, most, real = weakref.WeakSet([shop.registry.current]), [], shop.registry._load

    def counted(version, place=None):
        most.append(len(alive))  # and the one that is loaded now
        found = real(version) if place is None else real(version, place)
        alive.add(found)
        return found

    shop.registry._load = counted
    for name in ("two", "three", "one"):
        point(name)
        assert shop.admin("reload").status == 200
    del name
    point("two")
    (tmp_path / "two" / "bundle" / "genrec.json").unlink()
    assert shop.admin("reload").status == 409
    assert shop.admin("rollback").status == 200  # "three" is read again
    assert max(most) == 1 and len(alive) == 2


def test_a_model_that_is_loaded_twice_leaves_the_way_back(started, tmp_path):
    point, start = started
    point("one")
    shop = start()
    first = digest(shop)
    point("two")
    assert shop.admin("reload").json["model_version"] == 2
    assert shop.admin("reload").json["model_version"] == 3
    assert shop.admin("rollback").json["model_digest"] == first
    point("one")  # what answers now is put in the place: the way back still leads to the other
    second = shop.admin("reload").json
    assert second["model_digest"] == first
    assert shop.admin("rollback").json["model_digest"] not in (None, first)


def test_only_what_was_not_loaded_yet_is_stale(started, tmp_path):
    point, start = started
    point("one")
    shop = start()
    registry = shop.registry
    assert not registry.stale()
    point("two")
    assert registry.stale()
    with registry._alone():  # another load is under way
        assert shop.admin("reload").json["error"]["code"] == "loading"
    assert registry.stale()
    assert shop.admin("reload").status == 200 and not registry.stale()
    assert shop.admin("rollback").status == 200 and not registry.stale()  # nobody deployed anything
    (tmp_path / "three" / "bundle" / "model" / "config.json").unlink()
    point("three")
    assert registry.stale()
    assert shop.admin("reload").status == 409 and not registry.stale()  # not tried again and again
    point("two")
    assert registry.stale()


def test_a_link_gives_the_model_its_name_wherever_it_leads(tmp_path):
    from genrec.serving.server import loading
    from genrec.serving.settings import ServeSettings

    save_shop(tmp_path / "one")
    (tmp_path / "current").symlink_to("one")
    model = loading(tmp_path / "current", ServeSettings())(1)
    assert model.name == "current" and model.place == tmp_path / "one"
    model.close()


def test_digests_tell_what_lists_alike_in_any_process(client):
    first, second = client(), client()

    def of(shop):
        found = shop.recommend(history=[IDS[1]], top_k=2).json["data"][0]
        told = shop.call("GET", "/v1/catalog").json
        assert found["catalog_digest"] == told["catalog_digest"] and found["model_digest"] == told["model_digest"]
        return found["catalog_version"], found["catalog_digest"]

    assert of(first) == of(second)
    seen = {of(first)[1]}
    first.admin("retire", {"items": [IDS[3], IDS[4]]})
    first.admin("fields", {"field": "price", "values": {IDS[5]: 2000}})
    first.admin("filters", {"name": "dear", "condition": "price > 1000"})
    for what, body in (
        ("filters", {"name": "dear", "condition": "price > 1000"}),
        ("retire", {"items": [IDS[4]]}),
        ("fields", {"field": "price", "values": {IDS[5]: 2000}}),
        ("retire", {"items": [IDS[3]]}),
    ):
        assert of(second)[1] != of(first)[1]
        seen.add(of(second)[1])
        second.admin(what, body)
    assert len(seen) == 4
    assert of(first)[1] == of(second)[1] and of(first)[0] != of(second)[0]


def test_filters_are_made_again_only_where_what_they_read_has_changed():
    from genrec.serving.rules import Rules
    from genrec.serving.schemas import RecommendationRequest

    shop = make_shop()
    store, rules = shop.store, Rules(make_catalog())
    store.set_filters({"cheap": "price < 25", "chosen": ItemFilter.of_items(range(30), N)})
    requests = {
        "price": {"where": ["price < 20", "kind = tea"]},
        "kind": {"where": ["kind = tea"]},
        "named": {"filter": "chosen & ~cheap"},
        "fixed": {"filter": "chosen"},
        "deny": {"deny": [IDS[3]], "allow": list(IDS[:9])},
        "all": {},
    }
    asked = {name: RecommendationRequest(history=[], **body) for name, body in requests.items()}

    def remade(change):
        before = {name: rules.of(request, store.snapshot) for name, request in asked.items()}
        change()
        after = {name: rules.of(request, store.snapshot) for name, request in asked.items()}
        fresh = {name: Rules(make_catalog()).of(request, store.snapshot) for name, request in asked.items()}
        for name in asked:
            assert (after[name] is None) == (fresh[name] is None) == (name == "all")
            assert after[name] is None or (after[name].mask == fresh[name].mask).all()
        return {name for name in asked if after[name] is not before[name]}

    assert remade(lambda: store.retire([1, 2])) == set()
    assert remade(lambda: store.update("price", [4], [3.0])) == {"price", "named"}
    assert remade(lambda: store.set_filters({"other": "price < 3"})) == set()
    assert remade(lambda: store.set_filters({"chosen": ItemFilter.of_items([1], N)})) == {"named", "fixed"}
    shop.close()


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


def test_many_changes_come_to_a_few_lines(tmp_path, monkeypatch, caplog):
    from genrec.serving import changes

    monkeypatch.setattr(changes, "_MANY", 20)
    file, shop = tmp_path / "changes.jsonl", make_shop()
    kept, most = changes.Changes(file), 0
    kept.add({"kind": "retire", "items": [IDS[2]]}, shop.store)
    kept.go_back({"place": "p", "digest": "d", "instead_of": "i"})
    for price in range(70):  # while it serves, too
        kept.add({"kind": "field", "field": "price", "values": {IDS[5]: price}}, shop.store)
        state = [{"kind": "retire", "items": [IDS[2]]}, {"kind": "field", "field": "price", "values": {IDS[5]: price}}]
        assert changes.Changes(file, reading=True).state() == state  # nothing is ever missing
        most = max(most, len(file.read_text().splitlines()))
    assert most == 23
    with monkeypatch.context() as broken:
        broken.setattr(changes.disk, "atomic_write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        for price in range(25):
            kept.add({"kind": "field", "field": "price", "values": {IDS[5]: price}}, shop.store)
    assert caplog.text.count("cannot be written anew") == 1 and len(file.read_text().splitlines()) > 23
    kept.close()
    again = changes.Changes(file)
    assert again.state()[1]["values"] == {IDS[5]: 24} and again.gone_back["place"] == "p"
    assert len(file.read_text().splitlines()) == 3
    again.close()
    shop.close()


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
    shop, loaded = client(load=two_models, marked=lambda: mark(link)), threading.Event()
    real = shop.registry.reload
    shop.registry.reload = lambda: (real(), loaded.set())[0]
    watcher = Watcher(shop.registry, seconds=0.02)
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
