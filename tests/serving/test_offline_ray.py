"""`genrec batch --engine ray`: the files of the local engine, and nothing is lost or doubled when a worker is killed.

The cluster is started by a process of its own: this file, run as a script.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from genrec.testing.shop_endpoint import IDS, save_shop

USERS, GROUP = 60, 6
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra `ray`)"),
]
STOPS = '''
import os
import time
from pathlib import Path

from genrec.serving.offline_shards import ShardRecommender

class Stops(ShardRecommender):
    """The first process that is asked for shard 4 says who it is, and waits."""
    def do(self, number):
        note = Path(os.environ["NOTE"])
        if number == 4 and not note.exists():
            part = Path(f"{note}.part")
            part.write_text(str(os.getpid()))
            part.rename(note)
            time.sleep(900)
        return super().do(number)
'''


def made(folder: Path, out: str, workers: int | None):
    from genrec.serving.offline import recommend_all
    from genrec.serving.schemas import RecommendationRequest

    request = RecommendationRequest(history=[], top_k=7, where=["kind = tea"])
    journal = folder / "journal"
    return recommend_all(
        folder / "shop", folder / "users.parquet", folder / out, request, journal=journal, ray_workers=workers
    )


def on_ray(folder: Path) -> None:
    """What the script does."""
    import stopping_shards

    from genrec.serving import offline

    offline.ShardRecommender = stopping_shards.Stops
    found = made(folder, "ray", 2)
    (folder / "told.json").write_text(json.dumps({"pid": os.getpid(), "users": found.users, "cold": found.cold}))


def kill_the_one_that_waits(note: Path, killed: list[int]) -> None:
    end = time.monotonic() + 500
    while time.monotonic() < end and not note.exists():
        time.sleep(0.1)
    if note.exists():
        killed.append(int(note.read_text()))
        os.kill(killed[0], signal.SIGKILL)


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")
    save_shop(tmp_path / "shop")
    (tmp_path / "stopping_shards.py").write_text(STOPS)
    (tmp_path / "journal").write_text('{"kind": "retire", "items": ["item-02"]}\n')
    random = np.random.default_rng(0)
    histories = [[IDS[i] for i in random.integers(0, 40, n % 5)] for n in range(USERS)]
    parquet.write_table(pa.table({"history": histories}), tmp_path / "users.parquet", row_group_size=GROUP)
    expected = made(tmp_path, "local", None)

    killed: list[int] = []
    watcher = threading.Thread(target=kill_the_one_that_waits, args=(tmp_path / "note", killed))
    watcher.start()
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "NOTE": str(tmp_path / "note"), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    watcher.join()
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert killed and killed[0] != told["pid"]
    assert (told["users"], told["cold"]) == (USERS, expected.cold)
    shards = sorted((tmp_path / "ray").glob("*.parquet"))
    assert [file.name for file in shards] == [file.name for file in expected.files]
    assert len(shards) == USERS // GROUP
    for ours, theirs in zip(shards, expected.files, strict=True):
        found, wanted = parquet.read_table(ours).to_pylist(), parquet.read_table(theirs).to_pylist()
        assert [(row["row"], row["items"]) for row in found] == [(row["row"], row["items"]) for row in wanted]
        assert not any("item-02" in row["items"] for row in found)


if __name__ == "__main__":
    on_ray(Path(sys.argv[1]))
