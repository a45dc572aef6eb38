"""A pipeline's file read and checked: everything that can be wrong with it is said before anything runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from genrec import recipe_text, recipes
from genrec.errors import ConfigError
from genrec.item_tokenizers import registry
from genrec.models.pretrained import PretrainedSettings
from genrec.pipeline.recipe import PipelineRecipe, as_used

log = logging.getLogger(__name__)

RATE_LORA, RATE_WHOLE = 3e-4, 1e-4
"""Learning rates of a pretrained model, with adapters and whole, where the recipe gives none."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> recipes.Resolved[PipelineRecipe]:
    """Read and check a pipeline file; everything that can be wrong with it is said before anything runs.

    Options given that have no effect are named in a warning. What is missing on this machine is said by the
    ``check`` of the stage that needs it. ``tokenizer`` may be the file of an item tokenizer's recipe.
    """
    resolved = recipes.load(path, PipelineRecipe, _with_tokenizer_files(path, overrides))
    tokenizer = resolved.value.tokenizer
    try:
        registry.check_gives_codes(tokenizer["kind"])
        settings = registry.settings_class(tokenizer["kind"])
    except ConfigError as error:
        raise ConfigError(f"{path}: tokenizer.{error}", hint=error.hint) from error
    try:
        recipes.validate(tokenizer, settings, where=f"{path}: tokenizer")
    except ConfigError as error:
        if not any(change.startswith("tokenizer.kind=") for change in overrides):
            raise
        kind = tokenizer["kind"]  # the other keys are still those of the kind before
        advice = f"--set tokenizer=tokenizers/{kind}.yaml, or --set 'tokenizer={{kind: {kind}}}'"
        raise ConfigError(
            str(error), hint=f"another kind takes other keys: replace the whole block, {advice}"
        ) from error
    resolved = replace(resolved, value=_with_rate(resolved))
    for names, reason in _without_effect(resolved.value, resolved.given):
        log.warning("%s: %s: no effect, because %s", path, ", ".join(names), reason)
    return resolved


def _with_rate(resolved: recipes.Resolved[PipelineRecipe]) -> PipelineRecipe:
    """The recipe with a learning rate that fits a pretrained model, where the user gave none.

    Weights that know something already are moved less than drawn ones; small matrices beside them may move more.
    """
    recipe = resolved.value
    if not _rate_is_derived(resolved):
        return recipe
    return replace(recipe, train=replace(recipe.train, learning_rate=RATE_WHOLE if recipe.lora is None else RATE_LORA))


def _rate_is_derived(resolved: recipes.Resolved[PipelineRecipe]) -> bool:
    model = resolved.value.model
    pretrained = isinstance(model, PretrainedSettings) and not model.random_weights
    return pretrained and not resolved.given & {"train", "train.learning_rate"}


def _with_tokenizer_files(path: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides, with the contents of the recipe in place of its name where ``tokenizer`` names a file."""
    data = recipe_text.read_text(path).data
    named = data.get("tokenizer") if isinstance(data, dict) else None
    changes = [f"tokenizer={named}"] if isinstance(named, str) else []
    found = []
    for change in (*changes, *overrides):
        place, _, value = change.partition("=")
        if place.strip() == "tokenizer" and value.strip().endswith((".yaml", ".yml")):
            found.append(f"tokenizer={json.dumps(recipe_text.read_text(Path(value.strip())).data)}")
        elif place.strip() == "tokenizer" and (kind := value.strip()).replace("_", "").isalnum():
            raise ConfigError(
                f"tokenizer: expected settings, or the file of a recipe, got {kind!r}",
                hint=f"such as --set tokenizer=tokenizers/{kind}.yaml or --set 'tokenizer={{kind: {kind}}}'",
            )
        elif change not in changes:
            found.append(change)
    return found


def _without_effect(recipe: PipelineRecipe, given: Iterable[str]) -> list[tuple[list[str], str]]:
    """Options that the user gave and that change nothing, with the reason."""
    kind, train = recipe.split.kind, ("patience", "metric", "eval_users", "eval_beams", "eval_unit")
    rules = [
        (kind != "time", ("split.valid_fraction", "split.test_fraction"), f"split.kind is {kind}"),
        (kind != "predefined", ("split.column",), f"split.kind is {kind}"),
        (kind != "held_out_items", ("split.cold_fraction",), f"split.kind is {kind}"),
        (not recipe.needs_sasrec, ("sasrec",), "neither a baseline nor an embedding block is sasrec"),
        (not recipe.train.eval_every, tuple(f"train.{name}" for name in train), "train.eval_every is 0"),
    ]
    found = [
        (sorted(path for path in given if any(f"{path}.".startswith(f"{name}.") for name in names)), reason)
        for applies, names, reason in rules
        if applies
    ]
    return [(names, reason) for names, reason in found if names]


def described(resolved: recipes.Resolved[PipelineRecipe]) -> list[recipes.Row]:
    """The settings of a run with their origin: given, derived (from the pipeline's seed or model) or default.

    Defaults that are unset or have no effect are left out.
    """
    given = resolved.value.tokenizer
    tokenizer = recipes.to_json(recipes.validate(given, registry.settings_class(given["kind"])))
    whole = replace(resolved, value=replace(resolved.value, tokenizer=tokenizer))
    rows = whole.describe(as_used(whole.value))
    if _rate_is_derived(resolved):
        rows = [row._replace(origin="derived") if row.path == "train.learning_rate" else row for row in rows]
    idle = {path for names, _ in _without_effect(whole.value, [row.path for row in rows]) for path in names}
    return [row for row in rows if row.origin == "given" or not (row.value in (None, "") or row.path in idle)]
