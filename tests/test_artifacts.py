"""The crash tests start processes that kill themselves at the n-th system call."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from genrec import artifacts, disk
from genrec.errors import ArtifactError

HERE = Path(__file__).parent


def save(path, version=1, kind="thing", **options):
    with artifacts.write(path, kind=kind, meta={"version": version}, **options) as draft:
        artifacts.save_json(draft.dir / "version.json", version)
        (draft.dir / "model").mkdir()
        (draft.dir / "model" / "weights.bin").write_bytes(bytes([version % 256]) * 1000)


def version_of(path):
    manifest = artifacts.read(path)
    assert artifacts.load_json(path / "version.json") == manifest.meta["version"]
    return manifest.meta["version"]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def full(folder):
    """An artifact with one file of each format, in a subfolder too."""
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "golden" / "make_artifact_v1.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(folder)
    return folder


# --- what is written ---------------------------------------------------------------------------------------


def test_roundtrip_and_manifest(tmp_path):
    recipe, parents = {"kind": "rq", "dims": (1, 2)}, {"catalog": "f" * 64}
    path = tmp_path / "new" / "folder" / "codes"
    with artifacts.write(path, kind="codes", schema=3, recipe=recipe, catalog="c" * 32, parents=parents) as draft:
        assert stat.S_IMODE(draft.dir.parent.stat().st_mode) == 0o700
        assert not path.exists()
        draft.meta["n"] = np.int64(4)
        artifacts.save_json(draft.dir / "a.json", [1])
    found = artifacts.read(path, kind="codes", schema=3)
    assert (found.recipe, found.parents, found.catalog) == ({"kind": "rq", "dims": [1, 2]}, parents, "c" * 32)
    assert (found.kind, found.schema, found.meta, found.path) == ("codes", 3, {"n": 4}, path)
    assert found.files["a.json"]["bytes"] == (path / "a.json").stat().st_size
    assert names(path.parent) == ["codes"]


def test_equal_input_gives_equal_bytes_and_digest(tmp_path):
    first, second = full(tmp_path / "a"), full(tmp_path / "b")
    for name in artifacts.read(first).files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one, two = (json.loads((p / "genrec.json").read_text()) for p in (first, second))
    assert {k for k in one if one[k] != two[k]} <= {"created", "sha256"}
    assert artifacts.read(first).digest == artifacts.read(second).digest
    save(tmp_path / "v1", 1)
    save(tmp_path / "v2", 2)
    assert artifacts.read(tmp_path / "v1").digest != artifacts.read(tmp_path / "v2").digest


def test_files_get_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        full(tmp_path / "a")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "a" / "arrays.safetensors").stat().st_mode) == 0o640


def test_an_error_in_the_block_changes_nothing(tmp_path):
    save(tmp_path / "a", 1)
    with (
        pytest.raises(RuntimeError, match="mine"),
        artifacts.write(tmp_path / "a", kind="thing", overwrite=True),
    ):
        raise RuntimeError("mine")
    with pytest.raises(KeyboardInterrupt), artifacts.write(tmp_path / "b", kind="thing"):
        raise KeyboardInterrupt
    assert version_of(tmp_path / "a") == 1
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("header", [{"meta": {"x": float("nan")}}, {"recipe": {"x": object()}}])
def test_a_header_without_json_form_is_refused_before_the_work(tmp_path, header):
    with (
        pytest.raises(ArtifactError, match="must be JSON"),
        artifacts.write(tmp_path / "a", kind="x", **header),
    ):
        pytest.fail("the block ran")
    assert names(tmp_path) == []


def test_links_and_our_own_manifest_name_are_refused_in_a_draft(tmp_path):
    with pytest.raises(ArtifactError, match="link"), artifacts.write(tmp_path / "a", kind="x") as draft:
        (draft.dir / "link").symlink_to("/etc/hostname")
    with (
        pytest.raises(ArtifactError, match=r"genrec\.json"),
        artifacts.write(tmp_path / "a", kind="x") as draft,
    ):
        (draft.dir / "genrec.json").write_text("{}")
    assert names(tmp_path) == []


def test_an_artifact_may_hold_artifacts(tmp_path):
    with artifacts.write(tmp_path / "bundle", kind="bundle") as draft:
        save(draft.dir / "codes", 5)
    assert "codes/genrec.json" in artifacts.read(tmp_path / "bundle").files
    assert version_of(tmp_path / "bundle" / "codes") == 5


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArtifactError, match="cannot write"), artifacts.write(tmp_path / "a", kind="x"):
            pytest.fail("the block ran")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_as_parent_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ArtifactError, match="cannot write"),
        artifacts.write(tmp_path / "file" / "a", kind="x"),
    ):
        pytest.fail("the block ran")
    assert not artifacts.exists(tmp_path / "file" / "a")


# --- replacing ---------------------------------------------------------------------------------------------


def test_replacing_needs_overwrite_and_keeps_the_rest(tmp_path):
    save(tmp_path / "a", 1)
    with pytest.raises(ArtifactError, match="exists already") as caught:
        save(tmp_path / "a", 2)
    assert "overwrite" in caught.value.hint
    assert version_of(tmp_path / "a") == 1
    save(tmp_path / "a", 2, overwrite=True)
    assert version_of(tmp_path / "a") == 2
    assert names(tmp_path) == ["a"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    save(tmp_path / "a", 1)
    assert version_of(tmp_path / "a") == 1


def foreign_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("x")


def foreign_manifest(path):
    path.mkdir()
    (path / "genrec.json").write_text("{}")


def note_in_artifact(path):
    save(path)
    (path / "notes.txt").write_text("x")


def other_kind(path):
    save(path, kind="catalog")


def link_to_artifact(path):
    save(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


@pytest.mark.parametrize(
    "make",
    [
        foreign_folder,
        foreign_manifest,
        note_in_artifact,
        other_kind,
        link_to_artifact,
        lambda p: p.write_text("x"),
    ],
)
def test_overwrite_never_replaces_what_is_not_ours(tmp_path, make):
    make(tmp_path / "a")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ArtifactError), artifacts.write(tmp_path / "a", kind="thing", overwrite=True):
        pytest.fail("the block ran")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_appears_during_the_work_is_not_replaced(tmp_path):
    with pytest.raises(ArtifactError, match="exists already"), artifacts.write(tmp_path / "a", kind="x"):
        foreign_folder(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["thesis.txt"]


# --- reading: any change is refused ------------------------------------------------------------------------


def test_kind_schema_and_absence(tmp_path):
    save(tmp_path / "a", schema=2)
    with pytest.raises(ArtifactError, match="holds 'thing', expected 'codes'"):
        artifacts.read(tmp_path / "a", kind="codes")
    with pytest.raises(ArtifactError, match=r"schema 2 .* reads schema 1") as caught:
        artifacts.read(tmp_path / "a", schema=1)
    assert "newer" in caught.value.hint
    with pytest.raises(ArtifactError, match=r"schema 2 .* reads schema 3"):
        artifacts.read(tmp_path / "a", schema=3)
    with pytest.raises(ArtifactError, match="does not exist"):
        artifacts.read(tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(ArtifactError, match="not an artifact, or an interrupted write"):
        artifacts.read(tmp_path / "c")
    assert artifacts.exists(tmp_path / "a", "thing")
    assert not artifacts.exists(tmp_path / "a", "codes")
    assert not artifacts.exists(tmp_path / "none" / "b")


def test_another_manifest_format_is_named(tmp_path):
    save(tmp_path / "a")
    data = json.loads((tmp_path / "a" / "genrec.json").read_text())
    (tmp_path / "a" / "genrec.json").write_text(json.dumps({**data, "format": 2}))
    with pytest.raises(ArtifactError, match="format 2, this genrec reads 1"):
        artifacts.read(tmp_path / "a")


def flip(file, rng):
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def truncate(file, rng):
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


def grow(file, rng):
    file.write_bytes(file.read_bytes() + b"\0")


def drop(file, rng):
    file.unlink()


def swap(file, rng):
    other = file.parent / "arrays.safetensors" if file.name != "arrays.safetensors" else file.parent / "items.parquet"
    data = other.read_bytes() if other.exists() else b"something else"
    file.write_bytes(data)


def link(file, rng):
    copy = file.parents[1] / "outside"
    shutil.move(file, copy)
    file.symlink_to(copy)


def add(file, rng):
    (file.parent / f"extra{rng.randrange(9)}.py").write_text("print('never run')")


@pytest.mark.parametrize("change", [flip, truncate, grow, drop, swap, link, add])
@pytest.mark.parametrize("name", ["genrec.json", "arrays.safetensors", "items.parquet", "model/config.json"])
def test_any_change_is_refused_and_named(tmp_path, name, change):
    original = full(tmp_path / "original")
    rng = random.Random(f"{name} {change.__name__}")
    for trial in range(20 if change in (flip, truncate) else 1):
        path = tmp_path / f"{trial}" / "a"
        shutil.copytree(original, path)
        change(path / name, rng)
        with pytest.raises(ArtifactError) as caught:
            artifacts.read(path, kind="golden", schema=1)
        assert ("extra" if change is add else name) in str(caught.value)


def test_a_digest_mismatch_names_both_digests_and_verify_skips_only_digests(tmp_path):
    save(tmp_path / "a")
    want = artifacts.read(tmp_path / "a").files["version.json"]["sha256"]
    (tmp_path / "a" / "version.json").write_bytes(b"2\n")
    with pytest.raises(ArtifactError, match=rf"version\.json has sha256 [0-9a-f]{{16}}.*{want[:16]}"):
        artifacts.read(tmp_path / "a")
    artifacts.read(tmp_path / "a", verify=False)
    (tmp_path / "a" / "version.json").write_bytes(b"22\n")
    with pytest.raises(ArtifactError, match="3 bytes"):
        artifacts.read(tmp_path / "a", verify=False)


def test_the_artifact_of_format_1_still_loads():
    path = HERE / "golden" / "artifact_v1"
    found = artifacts.read(path, kind="golden", schema=1)
    assert found.meta == {"title": "Größe"}
    assert artifacts.load_arrays(path / "arrays.safetensors")["codes"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert artifacts.load_table(path / "items.parquet")["id"].to_pylist() == ["a", "b", None]
    assert artifacts.load_json(path / "model" / "config.json") == {"layers": 2, "names": ["x", "ü"]}


# --- formats -----------------------------------------------------------------------------------------------

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from([np.bool_, np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=8), hnp.arrays(NUMBERS, SHAPES), max_size=4))
def test_arrays_come_back_bit_by_bit(tmp_path_factory, arrays):
    arrays.pop("__metadata__", None)
    file = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    given_arrays = {name: array.T for name, array in arrays.items()}
    artifacts.save_arrays(file, given_arrays)
    found = artifacts.load_arrays(file)
    assert set(found) == set(given_arrays)
    for name, array in given_arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    bytes_before = file.read_bytes()
    artifacts.save_arrays(file, dict(reversed(list(given_arrays.items()))))
    assert file.read_bytes() == bytes_before


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([object()]), np.array(["2020"], "M8[s]")])
def test_arrays_that_would_need_pickle_are_refused(tmp_path, array):
    with pytest.raises(ArtifactError, match="bad: "):
        artifacts.save_arrays(tmp_path / "a.safetensors", {"bad": array})


def test_tables_come_back_and_have_page_checksums(tmp_path):
    table = pa.table({"id": [f"i{n}" for n in range(2000)], "tags": [["a"], []] * 1000, "x": [0.5, None] * 1000})
    file = tmp_path / "fold=3" / "t.parquet"  # not a partition column
    file.parent.mkdir()
    artifacts.save_table(file, table)
    assert artifacts.load_table(file).equals(table)
    good, rng, silent = file.read_bytes(), random.Random(0), 0
    body = len(good) - int.from_bytes(good[-8:-4], "little") - 8
    for _ in range(40):
        data = bytearray(good)
        data[rng.randrange(4, body)] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with contextlib.suppress(ArtifactError):
            silent += not artifacts.load_table(file).equals(table)
    assert silent == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_json_comes_back(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("json") / "a.json"
    artifacts.save_json(file, value)
    assert artifacts.load_json(file) == value


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.text(), JSON, max_size=3),
    st.dictionaries(st.text("abc_é", min_size=1, max_size=6), st.binary(max_size=50), max_size=3),
)
def test_any_manifest_and_files_come_back(tmp_path_factory, meta, contents):
    path = tmp_path_factory.mktemp("any") / "a"
    with artifacts.write(path, kind="any", meta=meta) as draft:
        for name, data in contents.items():
            (draft.dir / name).write_bytes(data)
    found = artifacts.read(path)
    assert found.meta == meta
    assert {name: (path / name).read_bytes() for name in found.files} == contents


def test_json_accepts_arrays_dataclasses_and_paths(tmp_path):
    value = {"array": np.arange(2), "scalar": np.float32(0.5), "path": Path("a/b"), "error": disk.Leftover}
    with pytest.raises(ArtifactError, match="no JSON form"):
        artifacts.save_json(tmp_path / "a.json", value)
    value["error"] = disk.Leftover(Path("x"), "n", "tmp", "t")
    artifacts.save_json(tmp_path / "a.json", value)
    found = artifacts.load_json(tmp_path / "a.json")
    assert (found["array"], found["scalar"], found["path"], found["error"]["name"]) == (
        [0, 1],
        0.5,
        "a/b",
        "n",
    )


@pytest.mark.parametrize("data", [b"{", b"NaN", b'{"a":1,"a":2}', b"\xff", b"[" * 100_000, b""])
def test_garbage_is_an_artifact_error_in_every_format(tmp_path, data):
    file = tmp_path / "garbage"
    file.write_bytes(data)
    for load in (artifacts.load_json, artifacts.load_arrays, artifacts.load_table):
        with pytest.raises(ArtifactError, match="garbage"):
            load(file)
        with pytest.raises(ArtifactError, match="missing"):
            load(tmp_path / "missing")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.json"):
        artifacts.save_json(tmp_path / "a.json", [float("inf")])


def test_atomic_write_bytes(tmp_path):
    file = tmp_path / "new" / "report.json"
    artifacts.atomic_write_bytes(file, b"1")
    artifacts.atomic_write_bytes(file, b"2")
    assert file.read_bytes() == b"2"
    assert names(file.parent) == ["report.json"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        artifacts.atomic_write_bytes(tmp_path / "folder", b"3")
    assert names(tmp_path) == ["folder", "new"]


# --- crashes -----------------------------------------------------------------------------------------------

# dies at the n-th call of one of the system calls that a save consists of
DIE_AT = """
import os, signal, sys
from pathlib import Path
from genrec import artifacts
left = int(sys.argv[2])
def counted(real):
    def call(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call
os.fsync, os.rename, os.replace, os.unlink, os.rmdir = map(
    counted, (os.fsync, os.rename, os.replace, os.unlink, os.rmdir))
with artifacts.write(sys.argv[1], kind="thing", meta={"version": 2}, overwrite=True) as draft:
    artifacts.save_json(draft.dir / "version.json", 2)
print("saved", flush=True)
"""


def die_at(path, call):
    done = subprocess.run(
        [sys.executable, "-c", DIE_AT, str(path), str(call)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0


def test_a_kill_at_every_system_call_of_a_replacement(tmp_path):
    between, finished, call = 0, False, 0
    while not finished:
        call += 1
        path = tmp_path / str(call) / "a"
        save(path, 1)
        finished = die_at(path, call)
        between += not path.exists()
        if call % 2:
            assert artifacts.exists(path, "thing")  # a reader that comes first
            assert version_of(path) in ((2,) if finished else (1, 2))
        save(path, 3, overwrite=True)
        assert version_of(path) == 3
        assert names(path.parent) == ["a"]
    assert call > 8
    assert between >= 1, "no kill fell between the two renames"


@pytest.mark.parametrize("reader", [artifacts.read, artifacts.exists, lambda p: artifacts.sweep(p.parent)])
def test_an_interrupted_replacement_is_finished_by_whoever_comes(tmp_path, reader):
    path = tmp_path / "a"
    save(path, 1)
    save(tmp_path / "b", 2)
    token = disk.new_token()
    path.rename(disk.sibling(path, "old", token))
    disk.sibling(path, "tmp", token).mkdir()
    (tmp_path / "b").rename(disk.sibling(path, "tmp", token) / disk.CONTENT)
    reader(path)
    assert version_of(path) == 2


def test_a_replacement_whose_new_version_is_damaged_brings_back_the_old_one(tmp_path):
    path = tmp_path / "a"
    save(path, 1)
    save(tmp_path / "b", 2)
    (tmp_path / "b" / "version.json").unlink()
    token = disk.new_token()
    path.rename(disk.sibling(path, "old", token))
    disk.sibling(path, "tmp", token).mkdir()
    (tmp_path / "b").rename(disk.sibling(path, "tmp", token) / disk.CONTENT)
    assert version_of(path) == 1


def test_an_artifact_that_the_user_deleted_does_not_come_back(tmp_path):
    path = tmp_path / "a"
    lone = disk.sibling(path, "tmp", disk.new_token())
    lone.mkdir()
    for place in (lone / disk.CONTENT, disk.sibling(path, "old", disk.new_token())):
        save(tmp_path / "made", 1)
        (tmp_path / "made").rename(place)
        assert not artifacts.exists(path)
    with pytest.raises(ArtifactError, match="does not exist") as caught:
        artifacts.read(path)
    assert "rename it if you want it back" in caught.value.hint
    swept = artifacts.sweep(tmp_path)
    assert [".genrec-tmp-" in p.name for p in swept] == [True]
    assert len(names(tmp_path)) == 1, "the last copy was deleted"


def test_sweeping_spares_the_living_and_what_is_not_ours(tmp_path):
    save(tmp_path / "a", 1)
    mine = [".a.genrec-tmp-notatoken", ".hidden", "a.genrec-tmp-0123456789ab"]
    for name in mine:
        (tmp_path / name).mkdir()
    dead = [
        disk.sibling(tmp_path / "a", "tmp", disk.new_token()),
        disk.sibling(tmp_path / "x", "tmp", "0" * 12),
    ]
    dead[0].mkdir()
    dead[1].write_text("an interrupted atomic_write_bytes")
    with artifacts.write(tmp_path / "b", kind="thing") as draft:
        assert artifacts.sweep(tmp_path) == sorted(dead)
        assert draft.dir.is_dir()
    assert names(tmp_path) == sorted([*mine, "a", "b"])
    assert artifacts.sweep(tmp_path / "nowhere") == []


def test_a_save_removes_leftovers_of_its_own_path_only(tmp_path):
    mine, other = (disk.sibling(tmp_path / n, "tmp", disk.new_token()) for n in "ab")
    mine.mkdir()
    other.mkdir()
    save(tmp_path / "a", 1)
    assert names(tmp_path) == sorted([other.name, "a"])


def test_without_locks_only_old_leftovers_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "fcntl", None)
    young, old = (disk.sibling(tmp_path / n, "tmp", disk.new_token()) for n in "ab")
    young.mkdir()
    old.mkdir()
    os.utime(old, (1, 1))
    save(tmp_path / "a", 1)
    assert artifacts.sweep(tmp_path) == [old]
    assert names(tmp_path) == sorted([young.name, "a"])


def test_twenty_kills_lose_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, HERE.parent / "benchmarks" / "save_kill.py", "--trials", "20"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["figure"], row["value"]) for row in rows] == [
        ("save_kill_lost", 0),
        ("save_kill_half_read", 0),
    ]
    assert rows[0]["seen"]["acknowledged"] >= 20
    assert rows[0]["seen"]["left_after_sweep"] == 0


def test_readers_never_see_a_mixture_while_writers_replace(tmp_path):
    path = tmp_path / "a"
    save(path, 1)
    stop, failures = threading.Event(), []

    def keep_writing(first):
        version = first
        while not stop.is_set():
            save(path, version, overwrite=True)  # no version twice: nothing tells equal artifacts apart
            version += 2

    def look(manifest):
        return manifest.meta["version"], (path / "model" / "weights.bin").read_bytes()

    writers = [threading.Thread(target=keep_writing, args=(first,)) for first in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(60):
            version, data = artifacts.load(path, look)
            if data != bytes([version % 256]) * 1000:
                failures.append(version)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []
    assert names(tmp_path) == ["a"]


def test_importing_artifacts_is_cheap():
    code = "import sys, genrec.artifacts; print([m for m in ('torch', 'numpy', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Files, then the manifest, then folders, then the rename: what a power cut leaves is the old or the new."""
    seen = []
    flush, move = os.fsync, os.rename

    def fsync(fd):
        flush(fd)
        seen.append(("fsync", Path(f"/proc/self/fd/{fd}").readlink().name))

    def rename(old, new, **more):
        move(old, new, **more)
        seen.append(("rename", Path(new).name))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    with artifacts.write(tmp_path / "thing", kind="k") as draft:
        artifacts.save_json(draft.dir / "a.json", 1)
        (draft.dir / "inner").mkdir()
        artifacts.save_json(draft.dir / "inner" / "b.json", 2)
    published = seen.index(("rename", "thing"))
    order = [seen.index(("fsync", name)) for name in ("a.json", "b.json", "genrec.json")]
    assert max(order[:2]) < order[2] < seen.index(("fsync", "inner")) < published
    assert ("fsync", disk.CONTENT) in seen[order[2] : published]
    assert ("fsync", tmp_path.name) in seen[published:]
