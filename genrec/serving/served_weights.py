"""Whether an engine has the weights of the run that is served."""

from __future__ import annotations

from pathlib import Path

from genrec.errors import FingerprintMismatch
from genrec.models.engine_weights import Held
from genrec.models.export import is_exported

EXPORT = "genrec export RUN FOLDER --merge, and serve that folder; or genrec serve RUN --engine vllm"


def check_weights(held: Held, ours: str, run: Path) -> None:
    """Raise FingerprintMismatch where an engine has other weights than the run (internal)."""
    if held.name != ours:
        what = "does not say which weights it has" if held.name is None else f"has other weights than {run}"
        raise FingerprintMismatch(f"the model in vLLM {what}", hint=EXPORT)


def check_adapter(model: Path, source: Path, adapter: Path | None, held: Held) -> None:
    """Raise FingerprintMismatch where a base lacks its adapter, has another one, or a merged model has one (internal).

    model: what the engine loaded; source: model folder of the bundle; adapter: folder of what goes with every read.
    """
    if held.needs_adapter and adapter is None:
        raise FingerprintMismatch(
            f"{model} is the base of an adapter, and none goes with the requests",
            hint="name it, as --lora-modules does; or " + EXPORT,
        )
    if adapter is not None and not (held.needs_adapter and is_exported(adapter, source)):
        raise FingerprintMismatch(
            f"the adapter in {adapter} is not that of the run on its base",
            hint="genrec export RUN FOLDER --base-plus-adapter gives both; " + EXPORT,
        )
