"""Kill a process that saves artifacts, at random moments, and count what is lost.

    python benchmarks/save_kill.py [--trials 200] [--seed 0]

Each trial starts a process that saves version after version over one artifact path and acknowledges every
finished save on its standard output. After a random time it gets SIGKILL. Then the artifact must be readable,
with every digest right, its two files must hold the same version, and that version must not be older than the
last acknowledged one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from genrec import artifacts
from genrec.disk import leftovers
from genrec.errors import ArtifactError

LONGEST_LIFE = 0.15  # seconds between the first acknowledged save and the kill


@dataclass
class Tally:
    """What the trials found."""

    lost: int = 0
    half_read: int = 0
    acknowledged: int = 0
    leftovers: int = 0
    interrupted: int = 0
    left_after_sweep: int = 0


def save(path: Path, version: int) -> None:
    """One version: two files that must agree, the second one big enough to be killed in the middle."""
    with artifacts.write(path, kind="versions", meta={"version": version}, overwrite=True) as draft:
        artifacts.save_json(draft.dir / "version.json", version)
        (draft.dir / "payload").mkdir()
        (draft.dir / "payload" / "numbers.bin").write_bytes(version.to_bytes(8, "little") * 20_000)


def newest(path: Path) -> int:
    """Version in the artifact, 0 if there is none. Raises ArtifactError or AssertionError for a mixture."""
    if not path.exists() and not leftovers(path.parent, path.name):
        return 0
    manifest = artifacts.read(path, kind="versions")
    version: int = artifacts.load_json(path / "version.json")
    payload = (path / "payload" / "numbers.bin").read_bytes()
    assert version == manifest.meta["version"] == int.from_bytes(payload[:8], "little")
    assert payload == version.to_bytes(8, "little") * 20_000
    return version


def child(path: Path) -> None:
    """Save for ever."""
    version = newest(path)
    while True:
        version += 1
        save(path, version)
        print(version, flush=True)


def one_trial(path: Path, rng: random.Random, tally: Tally) -> None:
    """Start, kill, look."""
    process = subprocess.Popen([sys.executable, __file__, "--child", str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(rng.uniform(0, LONGEST_LIFE))
    process.kill()
    lines = (first + process.stdout.read()).split(b"\n")[:-1]  # an unfinished line is no acknowledgement
    process.stdout.close()
    process.wait()
    if not lines:
        raise RuntimeError("the child died before its first save")
    last = int(lines[-1])
    tally.acknowledged += len(lines)
    tally.leftovers += len(leftovers(path.parent))
    tally.interrupted += not path.exists()
    try:
        tally.lost += newest(path) < last
    except ArtifactError as error:
        tally.half_read += 1
        print(f"half-read: {error}", file=sys.stderr)
    except AssertionError:
        tally.half_read += 1


def run(trials: int, seed: int) -> Tally:
    """All trials on one artifact path, so that each starts from what the last kill left."""
    tally, rng = Tally(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        for _ in range(trials):
            one_trial(path, rng, tally)
        artifacts.sweep(folder)
        tally.left_after_sweep = len(list(Path(folder).iterdir())) - 1
    return tally


def git_version() -> str:
    """Commit that is measured."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    return "unknown"


def main() -> None:
    """Print one JSON object per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
    began = time.monotonic()
    tally = run(options.trials, options.seed)
    common = {
        "unit": f"of {options.trials}",
        "target": 0,
        "source": "measured",
        "command": f"python benchmarks/save_kill.py --trials {options.trials} --seed {options.seed}",
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        "git": git_version(),
    }
    seen = {**vars(tally), "seconds": round(time.monotonic() - began, 1)}
    for figure, value in (("save_kill_lost", tally.lost), ("save_kill_half_read", tally.half_read)):
        print(json.dumps({"figure": figure, "value": value, **common, "seen": seen}))


if __name__ == "__main__":
    main()
