"""``genrec serve RUN --engine vllm``: check, write what vLLM can load, start vLLM with the plugin in this process."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec import artifacts
from genrec.errors import ConfigError, MissingExtra
from genrec.models.adapter_files import holds_adapter
from genrec.models.bundle import KIND, bundle_folder, schema_of
from genrec.models.engine_weights import weights_of, weights_of_run
from genrec.serving.merged_folders import merged_folder, remove_stale, use
from genrec.serving.settings import ServeSettings
from genrec.serving.vllm_plugin import SERVE

FIRST, BEHIND = (0, 30), (0, 34)
"""Versions of vLLM whose interfaces are known: from the one, up to before the other."""
CPU_BLOCK = 32
"""Tokens of a cache block on a CPU, the fewest that vLLM takes there: short prompts fill none of its 128."""


@dataclass(frozen=True)
class Installed:
    """The vLLM of this environment. cpu: the third-party build for CPUs."""

    version: str
    cpu: bool


def installed() -> Installed:
    """The vLLM there is. Raises MissingExtra for none, ConfigError for a version whose interfaces are not known."""
    for name in ("vllm", "vllm-cpu"):
        try:
            found = Installed(importlib.metadata.version(name), name == "vllm-cpu")
        except importlib.metadata.PackageNotFoundError:
            continue
        number = tuple(int(part) for part in found.version.split("+")[0].split(".")[:2] if part.isdigit())
        if not FIRST <= number < BEHIND:
            low, high = (".".join(map(str, each)) for each in (FIRST, BEHIND))
            raise ConfigError(
                f"vLLM {found.version}: expected a version from {low}, before {high}",
                hint="pip install 'genrec[vllm]'; on a CPU: serve/vllm_cpu.sh",
            )
        return found
    raise MissingExtra("vLLM is not installed", hint="pip install 'genrec[vllm]'; on a CPU: serve/vllm_cpu.sh")


def model_folder(run: Path, *, base: str | None = None) -> Path:
    """A folder that vLLM loads: that of the bundle, or beside the run the model with its adapter merged (internal).

    Raises ConfigError for an encoder-decoder model, and what :func:`merged_folder` raises.
    """
    bundle = bundle_folder(run.resolve())  # where a link leads may change while vLLM starts
    manifest = artifacts.read(bundle, kind=KIND, schema=schema_of(bundle))
    model = manifest.path / "model"
    config = artifacts.load_json(model / "config.json")
    if config.get("is_encoder_decoder"):
        raise ConfigError(
            f"{run}: vLLM serves no {config.get('model_type', 'encoder-decoder')} models", hint="--engine torch does"
        )
    if not holds_adapter(model):
        return model
    return merged_folder(run, weights_of(manifest), base=base)


def command(
    run: Path,
    settings: ServeSettings,
    found: Installed,
    *,
    model: Path,
    name: str | None = None,
    journal: Path | None = None,
    more: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """What to run, and what to add to the environment (internal). more: further options of vLLM, which win."""
    if settings.port == 0:
        raise ConfigError("--port: vLLM takes no free port by itself; give a number")
    shown = name or run.resolve().name
    limits = {
        key: getattr(settings, key)
        for key in ("timeout_seconds", "max_batch", "searches", "max_waiting", "max_beams", "max_inputs")
    }
    served: dict[str, Any] = {"run": str(run.absolute()), "name": shown, "limits": limits}
    served["weights"] = weights_of_run(run)
    if journal is not None:
        served["journal"] = str(journal.absolute())
    environment = {SERVE: json.dumps(served), "VLLM_PLUGINS": "genrec"}
    if settings.api_key is not None:
        environment["VLLM_API_KEY"] = settings.api_key  # in no list of processes, as an option would be
    serve = ["vllm.entrypoints.cli.main", "serve", str(model)]
    start = ["vllm.entrypoints.openai.api_server", "--model", str(model)] if found.cpu else serve
    options = ["--host", settings.host, "--port", str(settings.port), "--served-model-name", shown]
    options += ["--max-num-seqs", "256", "--api-server-count", "1"]
    if found.cpu:
        options += ["--block-size", str(CPU_BLOCK), "--enforce-eager"]
        environment["TORCHDYNAMO_DISABLE"] = "1"  # compiling a helper takes longer than most tests
    return [sys.executable, "-m", *start, *options, *more], environment


def start(
    run: Path,
    settings: ServeSettings,
    *,
    name: str | None = None,
    journal: Path | None = None,
    base: str | None = None,
    more: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Become vLLM. Raises as :func:`installed`, :func:`model_folder` and :func:`command` do.

    Folders ``RUN.merged-…`` of earlier weights that no server uses are removed; plugins that VLLM_PLUGINS names stay
    on. Stability: experimental.
    """
    found = installed()
    while not use(model := model_folder(run, base=base)):
        pass  # who serves other weights of the run removed it just now
    remove_stale(run, keep=model)
    line, added = command(run, settings, found, model=model, name=name, journal=journal, more=more)
    plugins = [each for each in environment.get("VLLM_PLUGINS", "").split(",") if each and each != "genrec"]
    added["VLLM_PLUGINS"] = ",".join([*plugins, "genrec"])
    sys.stdout.flush()
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.execvpe(line[0], line, {**quiet, **environment, **added})
