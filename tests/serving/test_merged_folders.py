"""RUN.merged-…: made once, used while a server lives, removed after that, and nothing else with it."""

import json
import subprocess
import sys

import pytest

from genrec.disk import hold, leftovers, new_folder
from genrec.errors import ConfigError
from genrec.models import export
from genrec.models.engine_weights import WEIGHTS
from genrec.serving import merged_folders
from genrec.serving.merged_folders import merged_folder, remove_stale, use

OLD, NEW = "0" * 64, "1" * 64


def made(folder, weights, **more):
    """What an export leaves, without the weights themselves."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({WEIGHTS: weights, **more}))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose merges are written down in ``run.merges``."""
    folder = tmp_path / "shop"
    folder.mkdir()

    def merge(path, out, base=None):
        merges.append((path, out))
        made(out, NEW)

    merges = []
    monkeypatch.setattr(export, "export_merged", merge)
    return folder, merges


def test_a_folder_is_made_once(run):
    folder, merges = run
    first = merged_folder(folder, NEW)
    assert first == folder.parent / ("shop.merged-" + "1" * 12) and merges == [(folder, first)]
    assert merged_folder(folder, NEW) == first and len(merges) == 1


@pytest.mark.parametrize("config", [{}, {WEIGHTS: OLD}, {WEIGHTS: NEW, "genrec_needs_adapter": True}])
def test_a_folder_of_something_else_is_refused(run, config):
    folder, merges = run
    there = folder.parent / ("shop.merged-" + "1" * 12)
    there.mkdir()
    (there / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="is not the model of"):
        merged_folder(folder, NEW)
    assert not merges


def test_who_merges_at_the_same_time_shares_the_folder(run, monkeypatch):
    folder, _ = run

    def late(path, out, base=None):
        made(out, NEW)  # by the other
        raise ConfigError(f"{out} exists")

    monkeypatch.setattr(export, "export_merged", late)
    assert merged_folder(folder, NEW).is_dir()

    def broken(path, out, base=None):
        raise ConfigError("the base is gone")

    monkeypatch.setattr(export, "export_merged", broken)
    with pytest.raises(ConfigError, match="base is gone"):
        merged_folder(folder, OLD)


def test_only_what_it_made_for_this_run_is_removed(run):
    folder, _ = run
    beside = folder.parent
    stale, keep = made(beside / ("shop.merged-" + "0" * 12), OLD), merged_folder(folder, NEW)
    kept = [
        keep,
        made(beside / ("shop2.merged-" + "0" * 12), OLD),  # of another run
        made(beside / ("my-shop.merged-" + "0" * 12), OLD),
        made(beside / ("shop.merged-" + "2" * 12), OLD),  # named by hand
        made(beside / ("shop.merged-" + "0" * 12 + "-mine"), OLD),
        made(beside / ("shop.merged-" + "a" * 12), "a" * 64, genrec_needs_adapter=True),  # the base of an adapter
        beside / ("shop.merged-" + "b" * 12),
        beside / ("shop.merged-" + "c" * 12),
    ]
    kept[-2].mkdir()  # something else
    kept[-1].symlink_to(made(beside / "elsewhere", "c" * 64))
    assert remove_stale(folder, keep=keep) == [stale]
    assert not stale.exists() and all(each.exists() for each in kept) and not leftovers(beside)
    assert remove_stale(folder, keep=keep) == []


def test_a_folder_that_a_server_uses_stays_also_after_exec(run):
    folder, _ = run
    stale, keep = made(folder.parent / ("shop.merged-" + "0" * 12), OLD), merged_folder(folder, NEW)
    program = """
import os, sys
from pathlib import Path
from genrec.serving import merged_folders
from genrec.serving.merged_folders import use
assert use(Path(sys.argv[1]))
os.execvp("sh", ["sh", "-c", "echo served; read end"])
"""
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(stale)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout.readline() == "served\n"
        assert use(keep) and remove_stale(folder, keep=keep) == [] and stale.is_dir()
        server.stdin.close()
        server.wait(30)
    assert remove_stale(folder, keep=keep) == [stale]


def test_a_folder_that_was_removed_meanwhile_is_not_used(run, monkeypatch):
    folder, _ = run
    gone = made(folder.parent / ("shop.merged-" + "0" * 12), OLD)

    def late(path, **how):
        """Until it has the lock, another process has removed the folder, and a third one made it again."""
        held = hold(path, **how)
        path.rename(path.with_name("aside"))
        made(path, OLD)
        return held

    monkeypatch.setattr(merged_folders, "hold", late)
    assert not use(gone)
    monkeypatch.undo()
    assert use(gone) and not use(folder.parent / "nothing")


def test_two_servers_may_use_one_folder(run):
    folder, _ = run
    keep = merged_folder(folder, NEW)
    assert use(keep) and use(keep)
    assert remove_stale(folder, keep=folder) == []


def test_a_folder_that_was_made_meanwhile_is_left_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match="exists already"), new_folder(tmp_path / "out") as draft:
        (draft / "ours").touch()
        made(tmp_path / "out", OLD)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["config.json"] and not leftovers(tmp_path)
