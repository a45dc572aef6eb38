"""A trained recommender as one folder.

bundle/
  genrec.json                  manifest
  model/                       plain Hugging Face folder: weights, config, text tokenizer; or an adapter
                               (genrec.models.adapter_files), which needs its pretrained model
  codes/  index/  catalog/     artifacts of their own; the catalog is optional
  token_map.json  decoding.json
  users/                       of a model that knows users by codes: the index it was trained with
  prompt/                      of a model that was trained on templates: the prompt it is asked with, see
                               genrec.models.template_prompts (schema 2; bundles without one have schema 1)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from genrec import artifacts
from genrec.decoding.index import CatalogIndex
from genrec.errors import ArtifactError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes, check_catalog
from genrec.models.adapter_files import holds_adapter, load_adapter, save_adapter
from genrec.models.adapters import is_adapted, quiet_peft
from genrec.models.backbone import layout_of
from genrec.models.engine_scorer import Engine, skeleton
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.models.template_prompts import TemplatePrompts
from genrec.vocab.text_vocabulary import TextVocabulary
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog

KIND = "bundle"
SCHEMA, WITH_PROMPT = 1, 2
"""A reader that does not know prompts must not ask a model without them, so bundles that have one say so."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A recommender and the manifest it was loaded under."""

    recommender: GenerativeRecommender
    manifest: artifacts.Manifest

    @cached_property
    def vocabulary(self) -> TextVocabulary | None:
        """The text tokenizer with the item tokens; None where the model knows no text."""
        token_map = self.recommender.token_map
        return None if token_map.base is None else TextVocabulary.load(self.manifest.path / "model", token_map)

    @cached_property
    def catalog(self) -> ItemCatalog | None:
        """What is needed to print lists, None if the bundle has none. Read when first asked: it needs pyarrow."""
        folder = self.manifest.path / "catalog"
        if not any(name.startswith("catalog/") for name in self.manifest.files):
            return None
        from genrec.data.catalog import ItemCatalog

        catalog = ItemCatalog.load(folder)
        check_catalog("the codes of the bundle", self.manifest.catalog or "", catalog.fingerprint)
        config = self.recommender.model.config
        n_items, trained_on = getattr(config, "genrec_n_items", 0), getattr(config, "genrec_catalog", "")
        if n_items and not catalog.extends(trained_on, n_items):
            raise FingerprintMismatch(
                f"the model was trained on catalog {trained_on[:8]} of {n_items} items, and the bundle has another",
                hint="the bundle was put together from two runs: train again, or take the bundle of one run",
            )
        return catalog


def save_bundle(
    path: str | Path,
    recommender: GenerativeRecommender,
    *,
    catalog: ItemCatalog | None = None,
    recipe: dict[str, Any] | None = None,
    parents: dict[str, str] | None = None,
    vocabulary: TextVocabulary | None = None,
    overwrite: bool = False,
) -> None:
    """Write a bundle. ``model/`` is a plain Hugging Face folder, usable without genrec.

    Of a model with adapters, ``model/`` holds what was trained and what the pretrained model is, not the weights of the
    latter. The recommender's prompts and user index are stored, so that the model is asked as it was trained. catalog:
    stored too (needs pyarrow), so that lists can be printed. vocabulary: of a model that knows text.
    Raises FingerprintMismatch if the catalog or the vocabulary is not that of the model, ConfigError for adapters on a
    model that cannot be loaded again, ArtifactError as every writer does. Stability: stable.
    """
    token_map = recommender.token_map
    if (None if vocabulary is None else vocabulary.token_map) != (None if token_map.base is None else token_map):
        raise FingerprintMismatch(
            "expected the text vocabulary of the model, got " + ("none" if vocabulary is None else "another one")
        )
    codes, prompts = recommender.codes, recommender.prompts
    if catalog is not None and catalog.fingerprint != codes.catalog:
        raise FingerprintMismatch(f"codes belong to catalog {codes.catalog[:8]}, got catalog {catalog.fingerprint[:8]}")
    meta = {
        "vocabulary": recommender.token_map.fingerprint,
        "codes": codes.fingerprint,
        "layout": layout_of(recommender.model),
    }
    if prompts is not None:
        meta["prompt"] = prompts.template.fingerprint
    with artifacts.write(
        Path(path),
        kind=KIND,
        schema=SCHEMA if prompts is None else WITH_PROMPT,
        recipe=recipe,
        catalog=codes.catalog,
        parents=parents,
        meta=meta,
        overwrite=overwrite,
    ) as draft:
        _save_model(draft.dir / "model", recommender.model, token_map, vocabulary)
        codes.save(draft.dir / "codes")
        recommender.index.save(draft.dir / "index")
        if catalog is not None:
            catalog.save(draft.dir / "catalog")
        artifacts.save_json(draft.dir / "token_map.json", recommender.token_map.to_dict())
        artifacts.save_json(draft.dir / "decoding.json", asdict(recommender.settings))
        if recommender.user_index is not None:
            recommender.user_index.save(draft.dir / "users")
        if prompts is not None:
            prompts.save(draft.dir / "prompt")


def load_bundle(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    user_ids: Sequence[str] | None = None,
    base: str | Path | None = None,
    engine: Engine | None = None,
) -> Bundle:
    """Read a bundle, or the bundle of a run folder; nothing is looked up on a hub.

    An adapter is merged into its pretrained model: a search costs what that of a whole model does. dtype: None = as
    stored. base: folder of the pretrained model, where it is not at the place it was trained at. engine: where the
    model runs, with numbers of type ``dtype``; its weights are not read then. Raises ArtifactError for a damaged folder
    or a missing pretrained model, FingerprintMismatch if the parts do not belong together. Stability: stable.
    """

    def read(manifest: artifacts.Manifest) -> Bundle:
        folder = manifest.path
        token_map = TokenMap.from_dict(artifacts.load_json(folder / "token_map.json"))
        if token_map.fingerprint != manifest.meta["vocabulary"]:
            raise FingerprintMismatch(
                f"{folder}: the model was trained on vocabulary {manifest.meta['vocabulary'][:8]}, "
                f"token_map.json has {token_map.fingerprint[:8]}"
            )
        codes = ItemCodes.load(folder / "codes", catalog=manifest.catalog)
        if engine is None:
            model = load_model(folder / "model", token_map, dtype, base).to(device)
        else:
            model = skeleton(folder / "model", dtype)
        prompts = None
        if manifest.schema == WITH_PROMPT:
            words = TextVocabulary.load(folder / "model", token_map)
            prompts = TemplatePrompts.load(folder / "prompt", words, codes, layout=layout_of(model))
        recommender = GenerativeRecommender(
            model,
            token_map,
            codes,
            CatalogIndex.load(folder / "index", codes=codes),
            DecodingSettings(**artifacts.load_json(folder / "decoding.json")),
            user_ids=user_ids,
            prompts=prompts,
            user_index=UserIndex.load(folder / "users") if token_map.user_levels else None,
            engine=engine,
        )
        return Bundle(recommender, manifest)

    folder, inside = Path(path), Path(path) / KIND
    try:
        return artifacts.load(bundle_folder(path), read, kind=KIND, schema=schema_of(bundle_folder(path)))
    except ArtifactError as error:
        if error.hint is None and not any((each / "model").exists() for each in (folder, inside)):
            raise ArtifactError(str(error), hint="give a run folder or a bundle") from error
        raise


def schema_of(folder: Path) -> int:
    """The schema of a bundle as far as this version reads it; what is wrong is said when it is read (internal)."""
    try:
        return max(SCHEMA, min(artifacts.read(folder, verify=False).schema, WITH_PROMPT))
    except ArtifactError:
        return SCHEMA


def bundle_folder(path: str | Path) -> Path:
    """The bundle of a run folder, or the folder itself (internal).

    Raises ArtifactError for a run without a trained model.
    """
    folder, inside = Path(path), Path(path) / KIND
    if (folder / "recipe.json").exists() and not inside.exists():
        hint = f"`genrec run PIPELINE.yaml --out {folder}` goes on where it stopped"
        raise ArtifactError(f"{folder}: no trained model yet", hint=hint)
    return inside if inside.is_dir() else folder


def _save_model(folder: Path, model: PreTrainedModel, token_map: TokenMap, vocabulary: TextVocabulary | None) -> None:
    if is_adapted(model):
        save_adapter(folder, model)
    else:
        model.save_pretrained(folder)
    words = token_map.text_tokenizer() if vocabulary is None else copy.deepcopy(vocabulary.tokenizer)
    words.padding_side = "right" if layout_of(model) == "encoder" else "left"
    # attributes are saved only where the tokenizer was made with them
    words.init_kwargs["padding_side"] = words.padding_side
    words.save_pretrained(folder)


def load_model(
    folder: Path, token_map: TokenMap, dtype: torch.dtype | None, base: str | Path | None = None
) -> PreTrainedModel:
    """A whole model from a model folder, an adapter merged (internal)."""
    if holds_adapter(folder):
        with quiet_peft():
            merged: PreTrainedModel = load_adapter(folder, token_map, base=base).merge_and_unload().eval()
        return merged if dtype is None else merged.to(dtype)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(folder, local_files_only=True, dtype=dtype or "auto")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: not a loadable Hugging Face model ({error})") from error
    return model.eval()
