"""The queue before the model: batches, limits, deadlines, clients that go away."""

import asyncio
import json
import threading
import time

import pytest

from genrec.serving.problems import Problem
from genrec.serving.settings import ServeSettings
from genrec.testing.shop_endpoint import IDS


@pytest.fixture
def batcher():
    pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
    from genrec.serving.batching import Batcher
    from genrec.serving.telemetry import Metrics

    made = []

    def make(answer, max_batch=4, max_rows=100, max_waiting=10):
        limits = {"max_batch": max_batch, "max_rows": max_rows, "max_waiting": max_waiting}
        made.append(Batcher(answer, **limits, metrics=Metrics()))
        return made[-1]

    yield make
    for each in made:
        each.close(10)


def job(query, key="a", seconds=60.0, rows=1):
    from genrec.serving.batching import Job

    return Job(query, key, time.monotonic() + seconds, rows)


class Held:
    """A model that waits until it is let go; remembers its batches."""

    def __init__(self):
        self.batches, self.begun, self.let_go = [], threading.Event(), threading.Event()

    def __call__(self, queries):
        self.batches.append(list(queries))
        self.begun.set()
        assert self.let_go.wait(30)
        return [ValueError("odd") if query == "odd" else query * 2 for query in queries]


def test_batches_have_one_key_and_keep_the_order_of_arrival(batcher):
    model = Held()
    queue = batcher(model)
    first = job(0)
    queue.submit([first])
    assert model.begun.wait(30)
    jobs = [job(n, key) for n, key in enumerate("abaabbaba", start=1)]
    queue.submit(jobs)
    model.let_go.set()
    assert [each.future.result(30) for each in [first, *jobs]] == [2 * n for n in range(10)]
    assert model.batches == [[0], [1, 3, 4, 7], [2, 5, 6, 8], [9]]


def test_a_batch_has_a_limit_of_rows_and_a_large_job_goes_alone(batcher):
    model = Held()
    queue = batcher(model, max_rows=10)
    queue.submit([job(0)])
    assert model.begun.wait(30)
    jobs = [job(n, rows=rows) for n, rows in ((1, 4), (2, 4), (3, 4), (4, 50), (5, 6))]
    queue.submit(jobs)
    model.let_go.set()
    assert [each.future.result(30) for each in jobs] == [2, 4, 6, 8, 10]
    assert model.batches == [[0], [1, 2], [3, 5], [4]]


def test_what_is_wrong_with_one_is_its_own_answer_and_a_failure_ends_nothing(batcher):
    model = Held()
    model.let_go.set()
    queue = batcher(model)
    jobs = [job(1), job("odd"), job(3)]
    queue.submit(jobs)
    assert jobs[0].future.result(30) == 2 and jobs[2].future.result(30) == 6
    with pytest.raises(ValueError, match="odd"):
        jobs[1].future.result(30)

    def broken(queries):
        raise RuntimeError("the model is broken")

    queue = batcher(broken)
    for _ in range(2):
        again = job(1)
        queue.submit([again])
        with pytest.raises(RuntimeError, match="broken"):
            again.future.result(30)


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_back(batcher):
    model = Held()
    queue = batcher(model, max_waiting=5)
    queue.submit([job(0)])
    assert model.begun.wait(30)
    waiting = [job(n) for n in range(4)]
    queue.submit(waiting)
    with pytest.raises(Problem) as refused:
        queue.submit([job(8), job(9)])
    assert refused.value.status == 429 and int(refused.value.headers()["retry-after"]) >= 1
    queue.submit([job(5)])
    model.let_go.set()
    assert waiting[3].future.result(30) == 6
    assert sum(8 in batch for batch in model.batches) == 0


def test_jobs_that_nobody_waits_for_are_not_searched(batcher):
    model = Held()
    queue = batcher(model)
    queue.submit([job(0)])
    assert model.begun.wait(30)
    late, given_up, wanted = job(1, seconds=-1), job(2), job(3)
    queue.submit([late, given_up, wanted])
    given_up.future.cancel()
    model.let_go.set()
    assert wanted.future.result(30) == 6
    assert late.future.cancelled() and model.batches == [[0], [3]]


def test_a_closed_queue_answers_what_waits_and_takes_no_more(batcher):
    model = Held()
    queue = batcher(model)
    jobs = [job(n) for n in range(6)]
    queue.submit(jobs)
    model.let_go.set()
    queue.close(30)
    assert [each.future.result(0) for each in jobs] == [0, 2, 4, 6, 8, 10]
    with pytest.raises(Problem) as refused:
        queue.submit([job(1)])
    assert refused.value.status == 503


def query(shop):
    from genrec.serving.batching import Job
    from genrec.serving.model import Query
    from genrec.serving.schemas import RecommendationRequest

    asked = Query(request := RecommendationRequest(history=[IDS[2]]), request.users[0])
    return Job(asked, asked.key, time.monotonic() + 60)


def held(shop):
    """The shop's model, held until it is let go."""
    real, begun, let_go = shop.registry.current.answer, threading.Event(), threading.Event()

    def answer(*args):
        begun.set()
        assert let_go.wait(30)
        return real(*args)

    shop.registry.current.answer = answer
    return begun, let_go


def test_a_request_ends_at_its_deadline_and_one_too_many_is_refused(client):
    shop = client(settings=ServeSettings(timeout_seconds=0.3, max_waiting=2, max_inputs=2))
    begun, let_go = held(shop)
    asked = {"history": [IDS[1]]}
    started = time.monotonic()
    reply = shop.recommend(**asked)
    assert reply.status == 504 and reply.json["error"]["code"] == "deadline" and time.monotonic() - started >= 0.3
    assert begun.is_set()
    assert shop.recommend(**asked, timeout=0.05).status == 504  # waits behind the first one
    queue = shop.app.state.batcher
    queue.submit([query(shop), query(shop)])  # the one whose time was up has given its place away
    assert shop.recommend(**asked).status == 429
    let_go.set()
    shop.app.state.batcher.close(30)
    assert shop.recommend(**asked).status == 503


def test_a_client_that_hangs_up_frees_its_place(client):
    shop = client()
    begun, let_go = held(shop)
    path, body = "/v1/recommendations", b'{"history": ["item-01"]}'

    async def both():
        gone = asyncio.Event()
        first = asyncio.ensure_future(shop.asked("POST", path, [body]))
        await asyncio.to_thread(begun.wait, 30)
        second = asyncio.ensure_future(shop.asked("POST", path, [body], gone=gone))
        while shop.metrics.waiting._value.get() == 0:
            await asyncio.sleep(0.01)
        gone.set()
        assert (await second).status == 400
        let_go.set()
        return (await first).status

    assert asyncio.run(both()) == 200
    shop.app.state.batcher.close(30)
    assert shop.metrics.expired._value.get() == 1 and shop.metrics.items._value.get() == 10


class Steps:
    """Counts the steps of the shop's model; each waits until it is let go."""

    def __init__(self, shop):
        scorer = shop.registry.current.recommender._scorer
        real, self.n, self.begun, self.let_go = scorer.step, 0, threading.Event(), threading.Event()

        def step(*args):
            self.n += 1
            self.begun.set()
            assert self.let_go.wait(30)
            return real(*args)

        scorer.step = step


@pytest.mark.parametrize("why", ["deadline", "disconnected"])
def test_a_search_that_nobody_waits_for_ends_and_the_next_one_begins(client, why):
    shop = client()
    steps, gone = Steps(shop), asyncio.Event()
    asked = {"history": [IDS[1]], "top_k": 1, "exact": True, "timeout": 0.2 if why == "deadline" else 10}

    async def given_up():
        body = [json.dumps(asked).encode()]
        reply = asyncio.ensure_future(shop.asked("POST", "/v1/recommendations", body, gone=gone))
        await asyncio.to_thread(steps.begun.wait, 30)
        if why == "disconnected":
            gone.set()
        return await reply

    assert asyncio.run(given_up()).json["error"]["code"] == why and steps.n == 1
    steps.let_go.set()
    assert shop.recommend(history=[IDS[2]]).status == 200
    assert steps.n == 1 + 3  # the other two levels of the first request were never searched
    assert shop.metrics.expired._value.get() == 1 and shop.metrics.running._value.get() == 0


@pytest.mark.parametrize("staying", [1, 0])
def test_a_search_goes_on_for_those_who_wait_and_ends_with_the_last(client, staying):
    shop = client()
    steps, jobs = Steps(shop), [query(shop), query(shop)]
    shop.app.state.batcher.submit(jobs)
    assert steps.begun.wait(30)
    for each in jobs[staying:]:
        each.gone.set()
    steps.let_go.set()
    if staying:
        assert len(jobs[0].future.result(30)[1].ids) == 10 and steps.n == 3
        return
    with pytest.raises(Problem, match="no answer in time"):
        jobs[0].future.result(30)
    assert steps.n == 1


def test_a_search_ends_with_the_deadline_of_the_last(client):
    shop = client()
    steps, jobs = Steps(shop), [query(shop), query(shop)]
    jobs[0].deadline, jobs[1].deadline = time.monotonic() + 0.1, time.monotonic() + 0.4
    shop.app.state.batcher.submit(jobs)
    assert steps.begun.wait(30)
    time.sleep(0.4)
    steps.let_go.set()
    with pytest.raises(Problem, match="no answer in time"):
        jobs[1].future.result(30)
    assert steps.n == 1
