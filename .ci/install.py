"""Make a virtual environment with genrec in it (standard library only; `make` calls this).

    python3 .ci/install.py --venv .venv --extras plots,pieces,fast,serve,dev          # do it
    python3 .ci/install.py --venv .venv --extras plots,pieces,fast,serve,dev --print  # show the commands and stop

torch's default Linux wheel brings several gigabytes of CUDA packages. Where no NVIDIA GPU is found, set
GENREC_TORCH_CPU to an index URL or to a folder of wheels, and torch is taken from there:

    GENREC_TORCH_CPU=https://download.pytorch.org/whl/cpu make demo
    GENREC_TORCH_CPU=/path/to/wheels make demo
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"


def has_gpu() -> bool:
    """Is there an NVIDIA GPU (driver loaded)?"""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def torch_pin() -> str:
    """The torch requirement of the constraints file, such as ``torch==2.13.0``."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith("torch=="):
            return line.strip()
    raise SystemExit(f"{CONSTRAINTS} pins no torch")


def commands(venv: Path, extras: str, *, gpu: bool, cpu_wheels: str | None) -> list[list[str]]:
    """The command lines that fill the environment, in order."""
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS)]
    lines = [[sys.executable, "-m", "venv", str(venv)]]
    if cpu_wheels and not gpu:
        source = "--index-url" if "://" in cpu_wheels else "--find-links"
        # an index of torch wheels has old or no versions of what torch needs: that comes with genrec, from PyPI
        lines.append([*pip, "--no-deps", torch_pin(), source, cpu_wheels])
    lines.append([*pip, "-e", f"{ROOT}[{extras}]" if extras else str(ROOT)])
    return lines


def stamp_of(extras: str) -> str:
    """Changes when a file that decides what is installed changes."""
    text = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return hashlib.sha256(text + f"{extras} {sys.version}".encode()).hexdigest()


def main() -> int:
    """Install unless the environment is already up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the environment goes")
    parser.add_argument("--extras", default="plots,pieces,fast,serve,dev", help="extras of pyproject.toml")
    parser.add_argument("--print", action="store_true", help="print the commands instead of running them")
    args = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything checks the version
        sys.exit(f"genrec needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable})")
    lines = commands(args.venv, args.extras, gpu=has_gpu(), cpu_wheels=os.environ.get("GENREC_TORCH_CPU"))
    if args.print:
        print("\n".join(" ".join(line) for line in lines))
        return 0
    stamp = args.venv / ".genrec-installed"
    if stamp.exists() and stamp.read_text() == stamp_of(args.extras):
        return 0
    print(f"installing genrec[{args.extras}] into {args.venv} (a few minutes the first time)", flush=True)
    for line in lines:
        done = subprocess.run(line)
        if done.returncode != 0:
            print(f"failed: {' '.join(line)}", file=sys.stderr)
            return done.returncode
    stamp.write_text(stamp_of(args.extras))
    return 0


if __name__ == "__main__":
    sys.exit(main())
