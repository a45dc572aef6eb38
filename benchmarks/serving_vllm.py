"""vLLM behind the endpoint: the lists beside transformers' generate, the cost beside vLLM's own beam search.

    bash serve/vllm_cpu.sh .venv-vllm
    GENREC_VLLM_PYTHON=.venv-vllm/bin/python make bench NAME=serving
    .venv-vllm/bin/python benchmarks/serving_vllm.py           # these two alone, as JSON

Started by benchmarks/serving_processes.py with the Python of an environment that has vLLM and genrec. Random weights,
float32, one thread. Servers are those that users start; costs are the CPU-seconds of all processes of a server, without
the client.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

HERE = Path(__file__).resolve().parent
SIZES = (256, 256, 256, 64)
N_ITEMS, N_HISTORY, CLIENTS = 5_000, 16, 8
VLLM = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
PATIENCE = 3600  # seconds for the servers to start: one to ten minutes each, by what else the machine does


def catalogs(folder: Path) -> dict[str, Path]:
    """Two runs of one random model: 5,000 items with 256 first codes, and 30 items that share their first code."""
    from genrec.data.catalog import ItemCatalog
    from genrec.decoding.index import CatalogIndex
    from genrec.item_tokenizers.codes import ItemCodes
    from genrec.models.backbone import DecoderSettings, build
    from genrec.models.bundle import save_bundle
    from genrec.models.recommender import DecodingSettings, GenerativeRecommender
    from genrec.vocab.token_map import TokenMap

    random = np.random.default_rng(0)
    wide = np.unique(random.integers(0, 256, (N_ITEMS, 3)), axis=0)
    few = np.unique(random.integers(0, 5, (60, 3)), axis=0)[:30]
    rows = {
        "wide": np.concatenate([wide, random.integers(0, 64, (len(wide), 1))], axis=1),
        "small": np.concatenate([np.full((len(few), 1), 7), few], axis=1),
    }
    for name, codes_NL in rows.items():
        random.shuffle(codes_NL)
        n = len(codes_NL)
        catalog = ItemCatalog(tuple(f"i{number}" for number in range(n)), {"title": [""] * n})
        codes = ItemCodes.from_int(codes_NL, SIZES, catalog.fingerprint)
        tokens = TokenMap.of(codes)
        model = build(DecoderSettings(hidden_size=128, n_layers=2, n_heads=4, d_ff=256), tokens, seed=0).eval()
        made = GenerativeRecommender(model, tokens, codes, CatalogIndex.build(codes), DecodingSettings(n_beams=10))
        save_bundle(folder / name, made, catalog=catalog)
    return {name: folder / name for name in rows}


class Server:
    """A server in processes of its own; ends with the block."""

    def __init__(self, command: list[str], port: int, log: Path, **environment: str) -> None:
        self.url, self._log = f"http://127.0.0.1:{port}", log.open("w")
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, **VLLM, **environment}
        )
        self._name = log

    def __enter__(self) -> Server:
        return self

    def wait(self) -> None:
        """Until it answers; SystemExit with the end of its log where it does not."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended: {self._name.read_text()[-3000:]}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=10):
                return
            time.sleep(1)
        raise SystemExit(f"the server did not start in {PATIENCE} s: {self._name.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        everyone = self._everyone()
        self._process.terminate()
        psutil.wait_procs(everyone, timeout=30)
        for each in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._log.close()

    def _everyone(self) -> list[psutil.Process]:
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Of all its processes so far."""
        return sum(each.cpu_times().user + each.cpu_times().system for each in self._everyone())

    def post(self, path: str, body: dict) -> dict:
        """The answer to a request."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plugin(run: Path) -> Server:
    """`genrec serve RUN --engine vllm`."""
    port = free_port()
    command = [sys.executable, "-m", "genrec.cli.main", "serve", str(run), "--engine", "vllm", "--port", str(port)]
    command += ["--timeout", "300", "--", "--dtype", "float32", "--max-model-len", "512"]
    return Server(command, port, run.parent / f"{run.name}.log")


def constrained(run: Path) -> Server:
    """vLLM with the catalog as a logits processor, for its own beam search."""
    tokens_NL = here_of(run)._tokens_NM
    np.savez(run.parent / "trie.npz", tokens_NL=tokens_NL[np.lexsort(tokens_NL.T[::-1])])
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(run / "model")]
    command += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--block-size", "32", "--enforce-eager", "--max-num-seqs", "256"]
    command += ["--max-logprobs", "-1", "--logprobs-mode", "processed_logits"]
    command += ["--logits-processors", "vllm_trie_processor:TrieProcessor"]
    command += ["--additional-config", json.dumps({"genrec": str(run.parent / "trie.npz")})]
    return Server(command, port, run.parent / "constrained.log", PYTHONPATH=str(HERE))


@functools.cache
def here_of(run: Path):
    """The recommender of a run, searched in this process."""
    from genrec.models.bundle import load_bundle

    return load_bundle(run).recommender


def histories(run: Path, n_users: int, seed: int) -> list[list[int]]:
    """Item numbers."""
    return np.random.default_rng(seed).integers(0, here_of(run).n_items, (n_users, N_HISTORY)).tolist()


def of_generate(run: Path, users: list[list[int]], n_beams: int) -> list[list[int]]:
    """Items of transformers' beam search with a dictionary trie."""
    from genrec.data.histories import Histories
    from genrec.models.prompting import build_prompts
    from genrec.testing.oracles import dict_trie, generate_items

    here = here_of(run)
    prompts = build_prompts("decoder", Histories.from_lists(users), here._tokens_NM, here.token_map)
    inputs = {"input_ids": torch.from_numpy(prompts.tokens_BT), "attention_mask": torch.from_numpy(prompts.mask_BT)}
    offset = here.token_map.level_offset
    found = generate_items(
        here.model,
        dict_trie(here.codes.as_int(), ragged=False),
        lambda level, code: offset[level] + code,
        inputs,
        n_beams=n_beams,
        max_new_tokens=len(SIZES),
        eos_id=None,
        skip=prompts.tokens_BT.shape[1],
    )
    number = {tuple(row): item for item, row in enumerate(here._tokens_NM.tolist())}
    return [[number[ids] for ids, score in row if score > -1e8] for row in found]


def lists(server: Server, route: str, users: list[list[int]], n_beams: int) -> list[list[int]]:
    """Items of the endpoint."""
    body = {"n_beams": n_beams, "top_k": n_beams, "scores": "raw", "exclude_seen": False}
    inputs = [{"history": [f"i{item}" for item in user]} for user in users]
    found = server.post(route, {**body, "inputs": inputs})["data"]
    return [[int(item["id"][1:]) for item in one["items"]] for one in found]


def over_http(server: Server, run: Path, users: list[list[int]], n_beams: int) -> list[list[int]]:
    """Items of the search here, over /v1/completions of that server."""
    from genrec.decoding.interface import SearchOptions
    from genrec.models.bundle import load_bundle
    from genrec.serving.http_engine import HttpEngine

    engine = HttpEngine(server.url)
    options = SearchOptions(n_beams=n_beams, top_k=n_beams, exclude_seen=False, normalize="vocab")
    found = load_bundle(run, engine=engine).recommender.recommend(users, options)
    engine.close()
    return [row[row >= 0].tolist() for row in found.items]


def in_process(run: Path, users: list[list[int]], n_beams: int) -> list[list[int]]:
    """Items of the search here, over the model here."""
    from genrec.decoding.interface import SearchOptions

    options = SearchOptions(n_beams=n_beams, top_k=n_beams, exclude_seen=False, normalize="vocab")
    found = here_of(run).recommend(users, options)
    return [row[row >= 0].tolist() for row in found.items]


def equal(server: Server, run: Path, beams: tuple[int, ...], n_users: int = 8) -> dict[str, list[int]]:
    """Lists that equal those of generate, of how many, by who made them."""
    users, counts = histories(run, n_users, seed=1), {}
    for n_beams in beams:
        wanted = of_generate(run, users, n_beams)
        sides = {
            "torch": in_process(run, users, n_beams),
            "vllm": lists(server, "/v1/genrec/recommendations", users, n_beams),
            "http": over_http(server, run, users, n_beams),
        }
        for name, found in sides.items():
            same = sum(a == b for a, b in zip(found, wanted, strict=True))
            counts[f"{run.name} B={n_beams} {name}"] = [same, n_users]
    return counts


def costs(
    ours: Server, theirs: Server, run: Path, n_beams: int, rounds: int = 5, n: int = 40
) -> dict[str, list[float]]:
    """CPU-seconds of ``n`` requests from 8 clients, round by round in turn; the same items are asserted."""
    tokens_NL, bos = here_of(run)._tokens_NM, here_of(run).token_map.bos_id
    number = {tuple(row): item for item, row in enumerate(tokens_NL.tolist())}

    def of_ours(user: list[int]) -> list[int]:
        return lists(ours, "/v1/genrec/recommendations", [user], n_beams)[0]

    def of_theirs(user: list[int]) -> list[int]:
        body = {"model": "model", "prompt": [bos, *tokens_NL[user].ravel().tolist()], "use_beam_search": True}
        body |= {"n": n_beams, "max_tokens": len(SIZES), "ignore_eos": True, "temperature": 0, "length_penalty": 0}
        choices = theirs.post("/v1/completions", {**body, "return_token_ids": True})["choices"]
        return [number[tuple(choice["token_ids"][-len(SIZES) :])] for choice in choices]

    seconds: dict[str, list[float]] = {"ours": [], "vllm": []}
    for turn in range(rounds + 1):  # the first is not counted
        users = histories(run, n, seed=100 + turn)
        found = {}
        for name, server, ask in (("ours", ours, of_ours), ("vllm", theirs, of_theirs)):
            begun = server.cpu_seconds()
            with ThreadPoolExecutor(CLIENTS) as clients:
                found[name] = list(clients.map(ask, users))
            if turn:
                seconds[name].append(round(server.cpu_seconds() - begun, 2))
        assert found["ours"] == found["vllm"], "the items differ from those of vLLM's beam search"
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = catalogs(Path(folder))
        # all start at once: that is most of the time
        small, ours, theirs = plugin(runs["small"]), plugin(runs["wide"]), constrained(runs["wide"])
        with small, ours, theirs:
            for server in (small, ours, theirs):
                server.wait()
            counts = equal(small, runs["small"], (10, 40)) | equal(ours, runs["wide"], (10, 20))
            print(json.dumps(counts), file=sys.stderr, flush=True)
            seconds = costs(ours, theirs, runs["wide"], 10)
    ratio = statistics.median(seconds["vllm"]) / statistics.median(seconds["ours"])
    print(json.dumps({"lists": counts, "b10": {"ratio": ratio, "cpu_s": seconds}}))


if __name__ == "__main__":
    main()
