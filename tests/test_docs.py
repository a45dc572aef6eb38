"""Every command and every Python block of README.md and docs/ works.

They run in a folder that looks like a user's: ``runs/`` with finished (tiny) runs, ``data/`` with a small data
set in the neutral format, ``train/`` with the pipelines. Commands that would take minutes are checked with
``--plan``.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from genrec.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
WORKBENCH = [ROOT / name / "README.md" for name in ("tokenizers", "prompts", "train", "serve")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *WORKBENCH]
PIPELINES = sorted((ROOT / "train" / "pipelines").glob("*.yaml"))
TINY = """
name: demo
data: {reader: {format: neutral, path: data/amazon-beauty-2014}}
embeddings: [{lsa: {dim: 8}}]
tokenizer: {kind: rqkmeans, n_levels: 2, level_size: 8, collisions: reassign}
model: {kind: decoder, hidden_size: 16, n_layers: 1, n_heads: 2, d_ff: 32, dropout: 0.0}
train: {epochs: 1, batch_size: 32, warmup_steps: 2, eval_every: 0}
evaluate: {n_beams: 10, n_bootstrap: 10}
baselines: [popularity, item_knn]
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    joined = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip() and line[0] != "#"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from genrec.data.export import export_neutral
    from genrec.data.synthetic import make, tiny

    folder = tmp_path_factory.mktemp("home")
    shop = make(tiny())
    for name in ("amazon-beauty-2014", "amazon-office-2014", "amazon-games-2014-timesplit", "shop"):
        export_neutral(folder / "data" / name, shop.catalog, shop.interactions)
    (folder / "train").symlink_to(ROOT / "train")
    (folder / "tokenizers").symlink_to(ROOT / "tokenizers")
    (folder / "tiny.yaml").write_text(TINY)
    for name in ("demo", "a", "b", "a-0", "a-1", "a-2"):
        if name == "demo":
            done = shell(folder, "run", "tiny.yaml", "--out", "runs/demo")
            assert done.returncode == 0, done.stderr
        else:
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
        from genrec.data.interactions import Interactions

        log = Interactions.load(folder / "runs" / "demo" / "interactions")
        from genrec.data.catalog import ItemCatalog

        ids = ItemCatalog.load(folder / "runs" / "demo" / "catalog").ids
        if "--user" in args:
            args[args.index("--user") + 1] = log.user_ids[0]
        else:
            args[args.index("--history") + 1] = ",".join(ids[:3])
    return args


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name + "/" + p.name)
def test_commands(page: Path, home: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in commands(page):
        words = [w for w in shlex.split(command) if "=" not in w or w.startswith("-")]
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
        elif words[0] == "genrec":
            done = shell(home, *real(command, home))
            assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}{done.stderr}"
        elif words[0] in ("python", "torchrun", "accelerate"):
            scripts = [w for w in words if w.endswith(".py")]
            assert scripts and all((ROOT / s).exists() for s in scripts), command
        else:
            assert words[0] in ("git", "cd", "pip"), f"{page.name}: no rule how to test {command!r}"


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


def test_links_between_pages_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
