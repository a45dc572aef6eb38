"""The stages of a pipeline in their order, with what each reads, writes and is expected to cost."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genrec import recipes
from genrec.baselines import sasrec_training
from genrec.data import readers
from genrec.embeddings import sentence
from genrec.embeddings.text import check_parts
from genrec.errors import ConfigError, DataError, GenrecError
from genrec.item_tokenizers import registry
from genrec.pipeline import alignment, baseline_stages, data_stages, model_stages, report_stage
from genrec.pipeline.costs import Costs
from genrec.pipeline.recipe import Block, PipelineRecipe
from genrec.pipeline.runner import Stage, file_digest, read_ledger
from genrec.training.settings import MAY_CHANGE

log = logging.getLogger(__name__)


def stages(recipe: PipelineRecipe, folder: Path) -> list[Stage]:
    """All stages of ``recipe`` for the run folder ``folder``."""
    costs = Costs(recipe, folder)
    split_version = 3 if recipe.split.kind == "predefined" else 2  # marks ties inside parts only
    part = _Parts(recipe)
    found = [
        Stage(
            "prepare", ("catalog", "interactions"), partial(data_stages.prepare, recipe=recipe),
            recipe=part("data"), inputs=_inputs(recipe, folder), estimate=costs.prepare,
            about="read the catalog and the log", check=partial(_check_data, recipe),
        ),
        Stage(
            "split", ("split",), partial(data_stages.split, recipe=recipe),
            recipe=part("split", "seed"), needs=("prepare",), version=split_version, estimate=costs.split,
            about="cut histories into train, valid, test",
        ),
    ]  # fmt: skip
    sasrec = [
        Stage(
            "sasrec", ("sasrec",), partial(baseline_stages.fit_sasrec, recipe=recipe),
            recipe=part("sasrec", "seed"), needs=("split",), version=sasrec_training.VERSION, estimate=costs.sasrec,
            about="train the SASRec baseline",
        )
    ]  # fmt: skip
    from_sasrec = ("sasrec",) if any(block.sasrec for block in recipe.embeddings) else ()
    found += sasrec if recipe.vectors_from_sasrec else []
    found += [
        Stage(
            "embed", ("embeddings",), partial(data_stages.embed, recipe=recipe),
            recipe=part("embeddings", "seed"), needs=("prepare", "split", *from_sasrec),
            inputs=_vector_files(recipe, folder, "embed"), version=3, estimate=costs.embed,
            about="item vectors", check=partial(_check_sources, recipe),
        ),
    ]  # fmt: skip
    if recipe.needs_text_vectors:
        content = part("embeddings", "seed")
        content["embeddings"] = [content["embeddings"][recipe.text_block]]
        found.append(
            Stage(
                "content", ("text_embeddings",), partial(data_stages.content, recipe=recipe),
                recipe=content, needs=("prepare", "split"), inputs=_vector_files(recipe, folder, "content"),
                estimate=costs.embed, about="vectors of the text alone, for content-kNN",
                check=partial(_check_sources, recipe),
            )
        )  # fmt: skip
    block, beside = recipe.collaborative, []
    if block is not None:
        beside = ["collaborative"]
        found.append(
            Stage(
                "collaborative", ("collaborative",), partial(data_stages.collaborative, recipe=recipe),
                recipe=part("collaborative", "seed"), needs=("prepare", "split", *["sasrec"] * block.sasrec),
                inputs=_vector_files(recipe, folder, "collaborative"), estimate=costs.embed,
                about="vectors of co-occurrence", check=partial(_check_sources, recipe),
            )
        )  # fmt: skip
    found += [
        Stage(
            "tokenize", ("item_tokenizer", "codes", "index"), partial(data_stages.tokenize, recipe=recipe),
            recipe=part("tokenizer", "shuffle_identifiers", "seed"), needs=("prepare", "split", "embed", *beside),
            inputs=_tokenizer_code(recipe.tokenizer), estimate=costs.tokenize,
            about="item identifiers",
        ),
    ]  # fmt: skip
    if recipe.users is not None:
        vectors = "embed" if recipe.users.vectors == "embeddings" else "collaborative"
        found.append(
            Stage(
                "users", ("users",), partial(data_stages.users, recipe=recipe),
                recipe=part("users", "seed"), needs=("prepare", "split", vectors),
                inputs=_tokenizer_code(recipe.users.tokenizer), estimate=costs.users,
                about="user identifiers, from training histories", check=partial(_check_users, recipe),
            )
        )  # fmt: skip
    users = ("prepare", *["users"] * (recipe.users is not None)) if recipe.knows_users else ()
    texts = ("prepare",) if recipe.alignment is not None and not users else ()
    found += sasrec if recipe.needs_sasrec and not recipe.vectors_from_sasrec else []
    found += [_baseline(name, recipe, part, costs) for name in recipe.baselines]
    found += [
        Stage(
            "train", ("training", "bundle"), partial(model_stages.train, recipe=recipe),
            recipe=part("model", "lora", "alignment", "train", "token_init", "n_user_tokens", "seed"),
            needs=(*users, *texts, "split", "tokenize"), inputs=_training_files(recipe, folder),
            check=partial(alignment.check, recipe),
            version=model_stages.TRAIN_VERSION, estimate=costs.train,
            standing=partial(model_stages.standing, folder, recipe),
            about=f"train the {recipe.model.kind} to write identifiers",
        ),
        Stage(
            "evaluate", (f"eval/{recipe.model.kind}",), partial(model_stages.evaluate_model, recipe=recipe),
            recipe=part("evaluate", "split", "seed"), needs=(*users[:1], "split", "train"), version=2,
            estimate=costs.evaluate,
            about="constrained beam search for every test user",
        ),
        Stage(
            "report", ("report",), partial(report_stage.report, recipe=recipe),
            recipe=part(),
            needs=("prepare", "split", "tokenize", "train", "evaluate", *(f"evaluate {n}" for n in recipe.baselines)),
            estimate=costs.report, about="tables, pictures, examples",
        ),
    ]  # fmt: skip
    return [replace(each, with_defaults=partial(_with_defaults, now=each.recipe, recipe=recipe)) for each in found]


def stages_until(all_stages: Sequence[Stage], last: str | None) -> list[Stage]:
    """``last`` and all it needs, in order (None = every stage); raises ConfigError for a name that is none."""
    if last is None:
        return list(all_stages)
    names = [stage.name for stage in all_stages]
    if last not in names:
        near = get_close_matches(last, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise ConfigError(f"--until: expected one of {', '.join(names)}, got {last!r}", hint=hint)
    needs = {stage.name: stage.needs for stage in all_stages}
    wanted, todo = {last}, [last]
    while todo:
        new = set(needs[todo.pop()]) - wanted
        wanted |= new
        todo += new
    return [stage for stage in all_stages if stage.name in wanted]


def _with_defaults(older: dict[str, Any], now: dict[str, Any], recipe: PipelineRecipe) -> dict[str, Any]:
    """``older``, a stage's part of a recipe, as this version reads it, with the keys that ``now`` has.

    The options of the item tokenizer, which a recipe holds as they were given, are all filled in.
    """
    rest = {name: value for name, value in recipes.to_json(recipe).items() if name not in now}
    read = recipes.to_json(recipes.from_dict(PipelineRecipe, {**rest, **older}))
    kind = read["tokenizer"]["kind"]
    read["tokenizer"] = recipes.to_json(recipes.validate(read["tokenizer"], registry.settings_class(kind)))

    def cut(name: str) -> Any:
        value, like = read[name], now[name]
        both = isinstance(value, dict) and isinstance(like, dict) and name != "tokenizer"
        return {key: each for key, each in value.items() if key in like} if both else value

    return {name: cut(name) for name in now}


class _Parts:
    """Blocks of the resolved recipe as JSON: what a stage's result depends on."""

    def __init__(self, recipe: PipelineRecipe) -> None:
        self._all = recipes.to_json(recipe)
        for name in MAY_CHANGE:  # how long and how often, not what
            del self._all["train"][name]
        for name in sasrec_training.MAY_CHANGE:
            del self._all["sasrec"][name]

    def __call__(self, *names: str) -> dict[str, Any]:
        return copy.deepcopy({name: self._all[name] for name in names or self._all})


def _baseline(name: str, recipe: PipelineRecipe, part: _Parts, costs: Costs) -> Stage:
    needs = ["split"]
    needs += ["sasrec"] if name == "sasrec" else []
    needs += ["content"] if name.startswith("content_knn") else []
    needs += ["prepare"] if name in ("item_knn_larger_id", "oracle") else []
    own = part("evaluate", "split", "seed")
    for setting in ("n_beams", "normalize"):  # baselines score every item, they do not search
        del own["evaluate"][setting]
    return Stage(
        f"evaluate {name}", (f"eval/{name}",), partial(baseline_stages.evaluate_baseline, recipe=recipe, name=name),
        recipe=own, needs=tuple(needs), version=2, estimate=costs.dense, about="baseline",
    )  # fmt: skip


def _inputs(recipe: PipelineRecipe, folder: Path) -> dict[str, str]:
    """Digests of the files that the reader reads, so that changed files are read again.

    Where files are gone that were read before, and no other took their place, what was read counts. Raises DataError
    if the data never were there. A file that cannot be found in a folder that exists is the reader's to complain
    about, when it runs.
    """
    reader = recipe.data.reader
    if reader is None:
        return {}
    path = Path(reader.path)
    try:
        files = readers.source_files(reader)
    except DataError:
        files = []
    line = read_ledger(folder).get("prepare", {})
    before = dict(line.get("inputs", {}))
    gone = [name for name in before if not Path(name).exists()]
    same = line.get("recipe") == _Parts(recipe)("data")  # without any file a changed recipe fails, when it runs
    if gone and {str(file) for file in files} <= before.keys() and (same or not files):
        log.warning("%s is gone: going on with what was read from it before", ", ".join(gone))
        return before
    if not path.exists():
        hint = f"get the data, or name their folder with --data. {recipe.data.get_it}".strip()
        raise DataError(f"{path}: no such folder", hint=hint)
    return {str(file): file_digest(file) for file in files} or {str(path): "incomplete"}


def _vector_files(recipe: PipelineRecipe, folder: Path, stage: str) -> dict[str, str]:
    """Digests of the vectors and encoders that lie in files; where they are gone, those of what the stage read before.

    A model of the hub is known by its name and ``revision`` only.
    """
    before = read_ledger(folder).get(stage, {}).get("inputs", {})
    found = {}
    for _, block in _blocks(recipe):
        name = block.file or (block.sentence.model if block.sentence is not None else "")
        try:
            path = Path(name) if block.sentence is None else sentence.model_folder(name)
        except GenrecError:  # said by the check of the stage, if it has to run
            path = Path(name)
        if name and path is not None and path.exists():
            found[name] = file_digest(path)
        elif name in before:
            log.warning("%s is gone: going on with what was made of it before", name)
            found[name] = before[name]
    return found


def _training_files(recipe: PipelineRecipe, folder: Path) -> dict[str, str]:
    """Digests of templates, tasks and pretrained model; where they are gone, those that the training read."""
    before = dict(read_ledger(folder).get("train", {}).get("inputs", {}))
    try:
        found = alignment.files_read(recipe)
    except GenrecError as error:  # said by the check of the stage, if it has to run
        if before:
            log.warning("%s: going on with what was read before", error)
        return before
    gone = before.keys() & {alignment.MODEL} - found.keys()
    return found | {name: before[name] for name in gone}


def _check_data(recipe: PipelineRecipe) -> None:
    """Raise DataError for files that are missing, or whose header names other columns."""
    if recipe.data.reader is not None:
        readers.check(recipe.data.reader)


def _check_sources(recipe: PipelineRecipe) -> None:
    """Raise ConfigError or MissingExtra for vectors, encoders or packages that are not on this machine.

    Also for texts that name columns which the catalog does not have, as far as its columns are known.
    """
    fields = _item_fields(recipe)
    for where, block in _blocks(recipe):
        text = block.lsa or block.sentence
        if text is not None and fields is not None:
            try:
                check_parts(text.text, fields)
            except ConfigError as error:
                raise ConfigError(f"{where}.{error}", hint=error.hint) from error
        if block.file is not None and not Path(block.file).is_file():
            raise ConfigError(f"{where}.file: no file {block.file!r}")
        if block.sentence is not None:
            sentence.model_folder(block.sentence.model)


def _item_fields(recipe: PipelineRecipe) -> list[str] | None:
    """Fields of the catalog, from the table's header before anything has run; None where they are not known yet."""
    if recipe.data.reader is not None:
        try:
            return readers.item_fields(recipe.data.reader)
        except DataError:  # what is wrong with the data is said elsewhere
            return None
    return None


def _blocks(recipe: PipelineRecipe) -> list[tuple[str, Block]]:
    """Every source of vectors with its place in the recipe."""
    found = [(f"embeddings.{n}", block) for n, block in enumerate(recipe.embeddings)]
    return found if recipe.collaborative is None else [*found, ("collaborative", recipe.collaborative)]


def _check_users(recipe: PipelineRecipe) -> None:
    """Raise ConfigError for a tokenizer of users that does not exist or has other settings."""
    if recipe.users is not None:
        kind = recipe.users.tokenizer["kind"]
        registry.check_gives_codes(kind)
        recipes.validate(recipe.users.tokenizer, registry.settings_class(kind), where="users.tokenizer")


def _tokenizer_code(tokenizer: dict[str, Any]) -> dict[str, str]:
    """Digest of the module of a third-party tokenizer: its code is part of the recipe."""
    module, colon, _ = str(tokenizer["kind"]).partition(":")
    found = find_spec(module) if colon else None
    return {module: file_digest(Path(found.origin))} if found is not None and found.origin else {}
