"""A trained parallel model as one folder.

bundle/
  genrec.json                     manifest: settings of the model, shapes, fingerprints
  weights.safetensors             every weight once, float32; of a pretrained model with adapters only what was trained
  backbone/                       of a pretrained one: its configuration, and with adapters the digests of its files
  codes/ or slots/   catalog/     artifacts of their own; the catalog is optional
  content.safetensors             the item vectors, where the model reads them
  decoding.json
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genrec import artifacts, recipes
from genrec.errors import ArtifactError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.slots import ItemSlots
from genrec.models.parallel_backbone import load_transformer, save_transformer
from genrec.models.parallel_inputs import ItemShape, ParallelItems
from genrec.models.parallel_model import ParallelModel
from genrec.models.parallel_recommender import ParallelDecoding, ParallelRecommender
from genrec.models.parallel_settings import ParallelSettings

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog

KIND = "parallel_bundle"
SCHEMA = 1


def save_parallel(
    path: str | Path,
    recommender: ParallelRecommender,
    *,
    catalog: ItemCatalog | None = None,
    recipe: dict[str, Any] | None = None,
    parents: dict[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a bundle of a parallel model (experimental).

    catalog: stored too (needs pyarrow), so that lists can be printed. Raises FingerprintMismatch if it is not the
    catalog of the identifiers, ArtifactError as every writer does.
    """
    model, items = recommender.model, recommender.items
    if catalog is not None and catalog.fingerprint != items.catalog:
        raise FingerprintMismatch(
            f"identifiers belong to catalog {items.catalog[:8]}, got catalog {catalog.fingerprint[:8]}"
        )
    meta = {"model": recipes.to_json(model.settings), "shape": asdict(model.shape), "items": items.fingerprint}
    with artifacts.write(
        path,
        kind=KIND,
        schema=SCHEMA,
        recipe=recipe,
        catalog=items.catalog,
        parents=parents,
        meta=meta,
        overwrite=overwrite,
    ) as draft:
        weights = {name: value.detach().float().cpu().numpy() for name, value in _weights(model).items()}
        save_transformer(draft.dir, model.settings, model.body.transformer)
        artifacts.save_arrays(draft.dir / "weights.safetensors", weights)
        items.identifiers.save(draft.dir / ("codes" if isinstance(items.identifiers, ItemCodes) else "slots"))
        if items.content is not None:
            artifacts.save_arrays(draft.dir / "content.safetensors", {"content": items.content})
        if catalog is not None:
            catalog.save(draft.dir / "catalog")
        artifacts.save_json(draft.dir / "decoding.json", asdict(recommender.settings))


def load_parallel(
    path: str | Path, *, device: str | torch.device = "cpu", base: str | Path | None = None
) -> ParallelRecommender:
    """Read a bundle of :func:`save_parallel`, with its catalog if it has one (experimental).

    base: folder of the pretrained model of adapters, where it is not at the place it was trained at. Raises
    ArtifactError for a damaged folder or a missing pretrained model, FingerprintMismatch if the parts do not belong
    together.
    """

    def read(manifest: artifacts.Manifest) -> ParallelRecommender:
        folder, meta = manifest.path, manifest.meta
        settings = recipes.from_dict(ParallelSettings, meta["model"])
        weights = artifacts.load_arrays(folder / "weights.safetensors")
        transformer = load_transformer(folder, settings, len(weights.get("body.text", ())), base)
        model = ParallelModel(settings, ItemShape(**meta["shape"]), seed=0, transformer=transformer)
        _assign(model, weights, folder)
        kind = ItemCodes if settings.target == "codes" else ItemSlots
        identifiers = kind.load(folder / ("codes" if kind is ItemCodes else "slots"), catalog=manifest.catalog)
        file = folder / "content.safetensors"
        content = artifacts.load_arrays(file)["content"] if file.exists() else None
        items = ParallelItems(identifiers, content)
        if items.fingerprint != meta["items"]:
            raise FingerprintMismatch(
                f"{folder}: the model was trained on items {meta['items'][:8]}, the folder has {items.fingerprint[:8]}"
            )
        catalog: ItemCatalog | None = None
        if any(name.startswith("catalog/") for name in manifest.files):
            from genrec.data.catalog import ItemCatalog

            catalog = ItemCatalog.load(folder / "catalog")
        decoding = ParallelDecoding(**artifacts.load_json(folder / "decoding.json"))
        return ParallelRecommender(model.to(device), items, decoding, catalog=catalog)

    return artifacts.load(path, read, kind=KIND, schema=SCHEMA)


def _weights(model: ParallelModel) -> dict[str, torch.Tensor]:
    """Parameters, tied ones once, without those of a pretrained model's own; the scaling of an autoencoder's inputs."""
    scaling = {name: value for name, value in model.named_buffers() if name.startswith("parts.autoencoder.")}
    own = model.settings.lora is not None
    weights = {
        name: value
        for name, value in model.named_parameters()
        if not own or value.requires_grad or not name.startswith("body.transformer.")
    }
    return {**weights, **scaling}


@torch.no_grad()
def _assign(model: ParallelModel, arrays: dict[str, np.ndarray[Any, Any]], folder: Path) -> None:
    wanted = _weights(model)
    shapes = {name: tuple(value.shape) for name, value in wanted.items()}
    if shapes != {name: value.shape for name, value in arrays.items()}:
        raise ArtifactError(f"{folder}: the weights are not those of the model that the manifest describes")
    for name, value in wanted.items():
        value.copy_(torch.from_numpy(np.array(arrays[name])))
