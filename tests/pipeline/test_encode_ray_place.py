"""Where the workers of ``--engine ray`` run, without ray."""

import os
from types import SimpleNamespace

from genrec.pipeline.encode_ray import local_cluster


def test_a_cluster_that_is_not_used_is_told(caplog, monkeypatch):
    begun = []
    ray = SimpleNamespace(init=lambda **how: begun.append(how["address"]), shutdown=lambda: begun.append("ended"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with local_cluster(ray, 2):
        assert not caplog.text
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "10.0.0.1:6379")
    with local_cluster(ray, 2):
        assert "RAY_ADDRESS is not used" in caplog.text
    assert begun == ["local", "ended"] * 2
