"""Every command and every Python block of README.md and docs/ works.

They run in a folder that looks like a user's: ``runs/`` with finished (tiny) runs, ``data/`` with a small data
set, ``train/`` with the pipelines. ``cd`` is followed inside a block. Commands that would take minutes are checked
with ``--plan``; installing is compared with what ``make install`` does, which CI runs, and launching several processes
with the command lines of tests/training/test_script.py, which run.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from genrec.cli.main import main
from genrec.data.synthetic import SyntheticData

ROOT = Path(__file__).resolve().parent.parent
WORKBENCH = [ROOT / name / "README.md" for name in ("tokenizers", "prompts", "train", "serve")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *WORKBENCH]
PIPELINES = sorted((ROOT / "train" / "pipelines").glob("*.yaml"))
TINY = """
name: demo
data: {reader: {format: neutral, path: data/amazon-beauty-2014}}
embeddings: [{lsa: {dim: 8}}]
tokenizer: {kind: rqkmeans, n_levels: 3, level_size: 8, collisions: reassign}
model: {kind: decoder, hidden_size: 16, n_layers: 1, n_heads: 2, d_ff: 32, dropout: 0.0}
train: {epochs: 1, batch_size: 32, warmup_steps: 2, eval_every: 0}
evaluate: {n_beams: 10, n_bootstrap: 10}
baselines: [popularity, item_knn]
"""
OWN = [
    "embeddings.0.lsa.dim=8", "embeddings.1.ppmi.dim=8", "tokenizer.level_size=8", "train.epochs=1",
    "train.warmup_steps=1", "train.eval_every=0", "evaluate.n_beams=10", "evaluate.n_bootstrap=10",
    "model={kind: decoder, hidden_size: 16, n_layers: 1, n_heads: 2, d_ff: 32}", "baselines=[popularity]",
]  # fmt: skip

ADAPT = [
    "continual.steps=1",
    "train.learning_rate=1e-6",
    "tolerance=1.0",
    "evaluate.n_beams=5",
    "evaluate.n_bootstrap=0",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def write_own_files(folder: Path, shop: SyntheticData) -> None:
    """The two files that train/pipelines/own.yaml expects, as it stands."""
    catalog, log = shop.catalog, shop.interactions
    columns = [catalog.ids, *(catalog.text(name) for name in ("title", "brand", "categories"))]
    events = zip(log.user.tolist(), log.item.tolist(), log.time.tolist(), strict=True)
    tables = {
        "products.csv": [["sku", "name", "maker", "department"], *zip(*columns, strict=True)],
        "orders.csv": [
            ["customer", "sku", "ordered_at"],
            *([log.user_ids[user], catalog.ids[item], time] for user, item, time in events),
        ],
    }
    for name, rows in tables.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


def write_large_tables(folder: Path, shop: SyntheticData) -> None:
    """What docs/scale.md encodes (vectors, texts, a class that embeds these), and users for docs/serving.md."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    vectors = np.random.default_rng(0).normal(size=(len(shop.catalog), 8)).astype(np.float32)
    np.save(folder / "data" / "vectors.npy", vectors)
    ids, titles = list(shop.catalog.ids), shop.catalog.text("title")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8)
    parquet.write_table(pa.table({"item_id": ids, "vector": column}), folder / "data" / "items.parquet")
    parquet.write_table(pa.table({"item_id": ids, "title": titles}), folder / "data" / "texts.parquet")
    histories = [list(ids[n : n + 3]) for n in range(5)]
    parquet.write_table(pa.table({"history": histories}), folder / "data" / "users.parquet")
    (folder / "hashed_words.py").write_text(
        "import zlib\nimport numpy as np\n\n\nclass Embedder:\n    def encode(self, texts, *, batch_size):\n"
        "        return np.stack([np.random.default_rng(zlib.crc32(t.encode())).normal(size=8) for t in texts])\n"
    )


def write_new_items(folder: Path, shop: SyntheticData) -> None:
    """What docs/continual.md adds to the demo's shop, and events on it."""
    titles, ids = shop.catalog.text("title"), shop.catalog.ids
    with (folder / "new.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"item_id": f"new-{n}", "title": titles[n]}) + "\n" for n in range(3))
    (folder / "newer.jsonl").write_text(json.dumps({"item_id": "newer", "title": titles[5]}) + "\n")
    for name in ("learn", "measure"):
        events = [f"{name}-{n},{item},{t}" for n in range(3) for t, item in enumerate((ids[n], ids[n + 9], f"new-{n}"))]
        (folder / f"{name}.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]) + "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from genrec.data.export import export_neutral
    from genrec.data.synthetic import make, tiny

    folder = tmp_path_factory.mktemp("home")
    shop = make(tiny())
    for name in ("amazon-beauty-2014", "amazon-office-2014", "amazon-games-2014-timesplit", "shop"):
        export_neutral(folder / "data" / name, shop.catalog, shop.interactions)
    write_own_files(folder / "data" / "shop", shop)
    write_large_tables(folder, shop)
    write_new_items(folder, shop)
    (folder / "train").symlink_to(ROOT / "train")
    (folder / "tokenizers").symlink_to(ROOT / "tokenizers")
    (folder / "tiny.yaml").write_text(TINY)
    changes = [word for change in OWN for word in ("--set", change)]
    for pipeline in (["tiny.yaml"], ["train/pipelines/own.yaml", *changes]):
        done = shell(folder, "run", *pipeline)
        assert done.returncode == 0, done.stderr
    for name in ("a", "b", "a-0", "a-1", "a-2"):
        (folder / "runs" / name).symlink_to(folder / "runs" / "demo")
    return folder


def shell(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """A genrec command in this process, with ``folder`` as the working folder."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["genrec", *args])
    with argv, contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def real(command: str, folder: Path) -> list[str]:
    """The arguments of a ``genrec`` command, with stand-ins for what only the reader knows."""
    args = shlex.split(command)[1:]
    if args[0] in ("run", "demo") and "--plan" not in args:
        args = ["run", "train/pipelines/demo.yaml", *args[1:]] if args[0] == "demo" else args
        args.append("--plan")
    if "--user" in args or "--history" in args:
        from genrec.data.catalog import ItemCatalog
        from genrec.data.interactions import Interactions

        log = Interactions.load(folder / "runs" / "demo" / "interactions")
        ids = ItemCatalog.load(folder / "runs" / "demo" / "catalog").ids
        if "--user" in args:
            args[args.index("--user") + 1] = log.user_ids[0]
        else:
            args[args.index("--history") + 1] = ",".join(ids[:3])
        for option in {"--deny", "--scores"} & set(args):
            args[args.index(option) + 1] = ",".join(ids[3:6])
    return args


def module(path: str) -> ModuleType:
    """A file of this repository that is no module of a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def installing() -> Iterator[list[str]]:
    """What the pages may say about installing: the steps of ``make install``, as one types them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    index = "https://download.pytorch.org/whl/cpu"
    for chosen in ("plots,fast", "embed,minilm", "serve,fast"):
        assert set(chosen.split(",")) <= set(extras)
        for line in module(".ci/install.py").commands(Path(".venv"), chosen, gpu=False, cpu_wheels=index):
            short = [word.replace(f"{ROOT}/", "").replace(str(ROOT), ".") for word in line if word != "--quiet"]
            yield ["python3", *short[1:]] if short[1:3] == ["-m", "venv"] else short[2:]
    yield ["source", ".venv/bin/activate"]


def run_script(words: list[str], folder: Path) -> None:
    """``python SCRIPT …`` in this process. The run folder is finished, so nothing is trained again."""
    stop = pytest.raises(SystemExit)
    argv = mock.patch.object(sys, "argv", words[1:])
    with argv, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), stop as end:
        runpy.run_path(words[1], run_name="__main__")
    assert end.value.code == 0, words


def launched(words: list[str]) -> list[str]:
    """The launcher's own words of a command that trains in several processes."""
    script = next(at for at, word in enumerate(words) if word.startswith("train/") and word.endswith(".py"))
    names = {"torchrun": ["torch.distributed.run"], "accelerate": ["accelerate.commands.launch"]}
    return names[words[0]] + [word for word in words[1:script] if word != "launch"]


def check_command(command: str, place: Path) -> Path:
    """Do what the command says, or show that somebody does; returns the folder in which the next one runs."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    words = [w for w in shlex.split(command) if "=" not in w or w.startswith(("-", "torch=="))]
    if words[0] == "make":
        assert set(words[1:]) <= targets, command
    elif words[:2] == ["genrec", "serve"] or words[0] == "curl":
        pages = module("tests/serving/test_server.py").PAGE  # what runs them
        assert command in pages.replace("\\\n", " "), command
    elif words[0] == "genrec":
        done = shell(place, *real(command, place))
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if words[1] == "init":
            for name in ("data", "runs"):
                (place / words[2] / name).symlink_to(place / name)
    elif words[0] == "cd":
        return place / words[1]
    elif words[0] in ("torchrun", "accelerate"):
        script = next(word for word in words if word.startswith("train/") and word.endswith(".py"))
        tested = {"train/align_lora.py": "test_align_script"}.get(script, "test_script")
        lines = module(f"tests/training/{tested}.py").LAUNCHERS.values()
        # a port of 0: tests may run side by side
        known = [[word for word in line if word not in ("--main_process_port", "0")] for line in lines]
        assert launched(words) in known, command
    elif words[:2] == ["python", "train/parallel.py"] or words[:2] == ["python", "train/preference.py"]:
        run_script([*words, "--set", "train.max_steps=1", "--set", "train.eval_every=0"], place)
    elif words[:2] == ["python", "train/continual.py"]:
        run_script([*words, *(w for c in ADAPT for w in ("--set", c))], place)
    elif words[:2] == ["python", "train/finetune.py"]:
        run_script(words, place)
    else:
        assert words in list(installing()), f"no rule how to test {command!r}"
    return place


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name + "/" + p.name)
def test_commands(page: Path, home: Path) -> None:
    for block in blocks(page, "bash"):
        place = home
        for command in commands(block):
            place = check_command(command, place)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: p.name)
def test_the_command_at_the_top_of_a_pipeline(pipeline: Path, home: Path) -> None:
    command = pipeline.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split("  #")[0].strip()
    assert command.startswith("genrec ") and pipeline.name in command
    done = shell(home, *real(command, home))
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name + "/" + p.name)
def test_python_blocks(page: Path, home: Path) -> None:
    for n, block in enumerate(blocks(page, "python")):
        with contextlib.chdir(home), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, f"{page.name}, Python block {n}", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("layout", "prompt"), [("decoder", "<s> {}"), ("encoder", "{} </s>")])
def test_the_prompt_of_the_training_page_is_the_one_that_is_trained_on(home: Path, layout: str, prompt: str) -> None:
    """Written as docs/training.md says, the text tokenizer gives the tokens that genrec builds."""
    from genrec.data.histories import Histories
    from genrec.models.bundle import load_bundle
    from genrec.models.prompting import build_prompts, item_tokens

    found = load_bundle(home / "runs" / "demo").recommender
    history = [3, 14, 15]
    text = " ".join(found.token_map.text(row) for row in found.codes.as_int()[history])
    written = found.token_map.text_tokenizer()(prompt.format(text))["input_ids"]
    tokens = item_tokens(found.codes, found.token_map)
    built = build_prompts(layout, Histories.from_lists([history]), tokens, found.token_map)
    assert written == built.tokens_BT[0].tolist()
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert f"`{prompt.format('<a_4> <b_9> <c_2> <a_7> <b_0> <c_1>')}`" in page


def test_links_between_pages_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
