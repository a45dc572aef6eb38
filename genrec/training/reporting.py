"""Where the log of a training goes beside the run folder: trackers such as TensorBoard, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from genrec.errors import ConfigError, MissingExtra


def reporters(names: Sequence[str]) -> list[TrainerCallback]:
    """The trackers of these names; their packages are imported here and nowhere else (internal).

    What they are told (project, folder, key) they read from their own environment variables. Raises ConfigError for a
    name that transformers does not know, MissingExtra for a package that is not installed.
    """
    found = []
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            raise ConfigError(
                f"report_to: expected names out of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}, got {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else None,
            )
        try:
            found.append(INTEGRATION_TO_CALLBACK[name]())
        except (RuntimeError, ImportError) as error:
            raise MissingExtra(
                f"report_to: {name!r} is not installed ({error})", hint=f"pip install {name}, or leave it out"
            ) from error
    return found
