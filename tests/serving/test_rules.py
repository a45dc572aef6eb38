"""What the rules of a request cost: once for all of its users."""

import pytest

from genrec.data.attributes import Attributes
from genrec.serving.problems import Problem
from genrec.testing.shop_endpoint import IDS, make_catalog, make_shop


@pytest.fixture
def rules():
    pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
    from genrec.serving.rules import Rules

    return Rules(make_catalog())


def test_conditions_that_cannot_be_followed_are_read_once_for_all_users_of_a_request(client, monkeypatch):
    shop, read, real = client(), [], Attributes.parsed
    monkeypatch.setattr(Attributes, "parsed", lambda self, text: read.append(text) or real(self, text))
    where = [*(f"kind = tea{n}" for n in range(15)), "nofield < 1"]
    reply = shop.recommend(inputs=[{"history": [IDS[n % 40]]} for n in range(64)], where=where)
    assert reply.status == 400 and reply.json["error"]["code"] == "invalid_filter"
    shop.app.state.batcher.close(30)
    assert len(read) <= 2 * len(where)  # 64 users are two batches, searched by one thread


def test_what_was_refused_is_asked_anew_of_another_version_of_the_catalog(rules):
    from genrec.serving.schemas import RecommendationRequest

    shop, request = make_shop(), RecommendationRequest(history=[], filter="cheap")
    for _ in range(2):
        with pytest.raises(Problem, match="filter: expected names"):
            rules.of(request, shop.store.snapshot)
    shop.store.set_filters({"cheap": "price < 25"})
    assert 0 < len(rules.of(request, shop.store.snapshot)) < 40
    shop.close()


def test_a_long_list_of_denied_items_is_read_once_for_all_users_of_a_request(rules):
    from genrec.serving.schemas import RecommendationRequest

    class Counted(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    shop, ids = make_shop(), Counted(IDS[:9])
    request = RecommendationRequest(history=[]).model_copy(update={"deny": ids})
    first = rules.of(request, shop.store.snapshot)
    once = ids.times
    assert once and all(rules.of(request, shop.store.snapshot) is first for _ in range(100))
    assert ids.times == once and first.mask.tolist() == [n >= 9 for n in range(40)]
    shop.close()
