"""Ray's workers give the codes of the plain loop, and nothing is lost or doubled when one of them is killed.

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
import pyarrow.parquet as pq
import pytest

from genrec.embeddings.base import ItemEmbeddings
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.pipeline import encode_ray
from genrec.pipeline.encode import EncodeSettings, encode_items
from genrec.pipeline.encode_shards import read_shard

N, GROUP = 960, 80
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra `ray`)"),
]
EMBEDDER = '''
import hashlib
import os
import time
from pathlib import Path

import numpy as np

class Stops:
    """Vectors from a hash of the text; the first process that is asked for item 500 says who it is, and waits."""
    def encode(self, texts, *, batch_size):
        note = os.environ.get("NOTE")
        if note and any(text == "thing 500" for text in texts) and not Path(note).exists():
            part = Path(note + ".part")
            part.write_text(str(os.getpid()))
            part.rename(note)
            time.sleep(900)
        rows = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)[:8] for text in texts]
        return np.stack(rows).astype(np.float32) / 99
'''


def settings(folder: Path, engine: str) -> EncodeSettings:
    return EncodeSettings(
        tokenizer=folder / "fitted", text=("{title}",), model="stopping_embedder:Stops", engine=engine, workers=2
    )  # type: ignore[arg-type]


def on_ray(folder: Path) -> None:
    """What the script does: the items with Ray, the listening addresses, and EncodeBatch in a pipeline of one's own."""
    import psutil

    from genrec.item_tokenizers.encode_batch import EncodeBatch

    told: dict[str, object] = {"pid": os.getpid()}
    with encode_ray.local_environment():
        import ray
        import ray.data

        with encode_ray.local_cluster(ray, 2):
            encode_items(folder / "items.parquet", folder / "ray", settings(folder, "ray"))
            assert ray.is_initialized()  # a cluster that was there before stays
            told["listening"] = sorted(
                {
                    place.laddr.ip
                    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
                    for place in process.net_connections(kind="tcp")
                    if place.status == psutil.CONN_LISTEN
                }
            )
            rows = (
                ray.data.read_parquet(str(folder / "vectors.parquet"))
                .map_batches(
                    EncodeBatch,
                    fn_constructor_kwargs={"tokenizer": str(folder / "fitted"), "vector_column": "vector"},
                    batch_size=128,
                    compute=ray.data.ActorPoolStrategy(size=1),  # the other CPU reads
                )
                .take_all()
            )
    told["own"] = {row["item_id"]: row["codes"].tolist() for row in rows}
    told["n_own"] = len(rows)
    (folder / "told.json").write_text(json.dumps(told))


def kill_the_one_that_waits(note: Path, killed: list[int]) -> None:
    end = time.monotonic() + 900
    while time.monotonic() < end and not note.exists():
        time.sleep(0.1)
    if note.exists():
        killed.append(int(note.read_text()))
        os.kill(killed[0], signal.SIGKILL)


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stopping_embedder.py").write_text(EMBEDDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    ids, titles = [f"i{n}" for n in range(N)], [f"thing {n}" for n in range(N)]
    pq.write_table(pa.table({"item_id": ids, "title": titles}), tmp_path / "items.parquet", row_group_size=GROUP)
    vectors = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8)
    pq.write_table(pa.table({"item_id": ids, "vector": column}), tmp_path / "vectors.parquet", row_group_size=GROUP)
    tokenizer = RqKMeans(RqKMeansSettings(n_levels=2, level_size=48, collisions="reassign"))
    tokenizer.fit(TokenizerSource.of_vectors(vectors[:400]), seed=0)
    tokenizer.save(tmp_path / "fitted")
    expected = encode_items(tmp_path / "items.parquet", tmp_path / "local", settings(tmp_path, "local"))

    killed: list[int] = []
    watcher = threading.Thread(target=kill_the_one_that_waits, args=(tmp_path / "note", killed))
    watcher.start()
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "NOTE": str(tmp_path / "note"), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    watcher.join()
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert killed and killed[0] != told["pid"]  # a worker died in the middle of shard 6

    shards = [read_shard(tmp_path / "ray" / "shards", number) for number in range(N // GROUP)]
    assert [item_id for shard in shards for item_id in shard.ids] == ids
    found = ItemCodes.load(tmp_path / "ray" / "codes")
    assert found.fingerprint == expected.codes.fingerprint
    noise = ("RAY_BACKEND_LOG_LEVEL", "streaming_executor.py", "(raylet)")  # the last tells of the death
    said = [line for line in (done.stdout + done.stderr).splitlines() if not any(word in line for word in noise)]
    assert not said, said
    assert {ip.removeprefix("::ffff:") for ip in told["listening"]} <= {"127.0.0.1", "::1"}

    own = tokenizer.encode(TokenizerSource("", np.zeros(N, np.uint64), ItemEmbeddings(vectors, ""))).as_int()
    assert told["n_own"] == N and told["own"] == dict(zip(ids, own.tolist(), strict=True))


if __name__ == "__main__":
    on_ray(Path(sys.argv[1]))
