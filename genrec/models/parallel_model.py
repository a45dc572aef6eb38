"""A model that predicts all parts of the next item's identifier at once, from the items before it.

Axes: N items, n parts of an item, K codes of a part, X width of given vectors, D width, B rows, H items of a history,
Q places to predict at, M places of all rows together.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.errors import ConfigError
from genrec.item_tokenizers.sets_training import SlotAutoencoder, make_model
from genrec.models.parallel_backbone import transformer_of
from genrec.models.parallel_body import ParallelBody
from genrec.models.parallel_inputs import ItemShape, ParallelItems, PartTables
from genrec.models.parallel_settings import ParallelSettings
from genrec.seeding import derive

STD = 0.02


class CodeParts(nn.Module):
    """The parts of items with codes (internal): ``LN(E_j[code_j]) + LN(W piece_j) + slot_j``, the second with content.

    Parts that share a vocabulary share E. slot_j, learned, tells which part it is (RecGPT's positions do).
    """

    def __init__(self, settings: ParallelSettings, shape: ItemShape, width: int) -> None:
        super().__init__()
        sizes = shape.sizes[:1] if shape.shared else shape.sizes
        first = torch.tensor([0, *sizes[:-1]]).cumsum(0) if not shape.shared else torch.zeros(shape.n_parts).long()
        self.register_buffer("first", first, persistent=False)
        self.codes = nn.Embedding(sum(sizes), width)
        self.norm = nn.LayerNorm(width)
        self.slots = nn.Parameter(torch.empty(shape.n_parts, width))
        self.map = self.map_norm = None
        if settings.content:
            self.map = nn.Linear(-(-shape.content // shape.n_parts), width, bias=False)
            self.map_norm = nn.LayerNorm(width)

    def forward(self, tables: PartTables, items: Tensor) -> Tensor:
        """``[..., n, D]`` for int64 item numbers ``[...]``."""
        assert tables.codes is not None
        parts = self.norm(self.codes(tables.codes[items] + cast(Tensor, self.first))) + self.slots
        if self.map is not None and self.map_norm is not None:
            assert tables.vectors is not None
            parts = parts + self.map_norm(self.map(tables.vectors[items]))
        return cast(Tensor, parts)


class VectorParts(nn.Module):
    """The parts of items with slots (internal): ``W_j z_j + b_j``, for the input and for scoring alike.

    z_j: the item's vector in slot j, a constant; with ``joint`` the semantic ones come from an autoencoder that learns
    too (zeros for items without content).
    """

    def __init__(self, settings: ParallelSettings, shape: ItemShape, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.n_parts, width, shape.dim))
        self.bias = nn.Parameter(torch.zeros(shape.n_parts, width))
        joint = settings.joint
        self.autoencoder = None if joint is None else make_model(shape.content, joint, seed=0)

    def forward(self, tables: PartTables, items: Tensor) -> Tensor:
        """``[..., n, D]`` for int64 item numbers ``[...]``."""
        assert tables.vectors is not None
        vectors = tables.vectors[items]
        if self.autoencoder is not None:
            assert tables.content is not None and tables.known is not None
            content = tables.content[items]
            made = self.autoencoder.encoder(content.flatten(0, -2)).unflatten(0, items.shape)
            vectors = torch.cat([vectors, made * tables.known[items][..., None, None]], dim=-2)
        return torch.einsum("...nx,ndx->...nd", vectors, self.weight) + self.bias


class CodeScores(nn.Module):
    """From states to logits of the codes of every part (internal).

    A linear layer without bias for each part (one for all that share a vocabulary), or, with a temperature, cosines
    with the codes' embeddings divided by it.
    """

    def __init__(self, settings: ParallelSettings, shape: ItemShape, width: int) -> None:
        super().__init__()
        self.sizes, self.shared, self.temperature = shape.sizes, shape.shared, settings.temperature
        n_rows = shape.sizes[0] if shape.shared else sum(shape.sizes)
        self.weight = nn.Parameter(torch.empty(n_rows, width)) if settings.temperature is None else None

    def forward(self, states_MnD: Tensor, codes: nn.Embedding) -> list[Tensor]:
        """float32 ``[M, K]`` for each part."""
        with torch.autocast(states_MnD.device.type, enabled=False):
            states = states_MnD.float()
            weight = (codes.weight if self.weight is None else self.weight).float()
            if self.temperature is not None:
                states, weight = F.normalize(states, dim=-1) / self.temperature, F.normalize(weight, dim=-1)
            rows = [weight] * len(self.sizes) if self.shared else torch.split(weight, list(self.sizes))
            return [states[:, part] @ own.T for part, own in enumerate(rows)]


class Heads(nn.Module):
    """One residual head for each part over one state (internal): ``h + silu(W_j h + b_j)``, at first all h."""

    def __init__(self, n_parts: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_parts, width, width))
        self.bias = nn.Parameter(torch.zeros(n_parts, width))

    def forward(self, states_BQ1D: Tensor) -> Tensor:
        """``[B, Q, n, D]``."""
        turned = torch.einsum("bqd,ned->bqne", states_BQ1D[:, :, 0], self.weight) + self.bias
        return states_BQ1D + F.silu(turned)


class ParallelModel(nn.Module):
    """Items in, a distribution over codes or a vector for every part of the next item out, in one pass (experimental).

    Nothing here is of one catalog: what items are comes with every call (:class:`PartTables`), so a model whose item
    tokenizer can encode other items recommends them too. Published methods: :func:`preset
    <genrec.models.parallel_settings.preset>`; RecGPT's learned positions are rotary ones with a learned vector for each
    part. Weights that are not pretrained are drawn by the seed; the global random state is left as it was.
    transformer: of :mod:`genrec.models.parallel_backbone`, and the rows of its instruction; None = as the settings say.
    """

    def __init__(
        self,
        settings: ParallelSettings,
        shape: ItemShape,
        *,
        seed: int,
        transformer: tuple[Any, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, "parallel"))
            self.body = ParallelBody(settings, shape.n_parts, *(transformer or transformer_of(settings, seed=seed)))
            width = self.body.width
            kind = VectorParts if settings.target == "vectors" else CodeParts
            self.parts: CodeParts | VectorParts = kind(settings, shape, width)
            self.heads = Heads(shape.n_parts, width) if settings.readout == "heads" else None
            self.scores = CodeScores(settings, shape, width) if settings.target == "codes" else None
            for name, weight in self.named_parameters():
                if name in ("body.start", "body.queries", "parts.codes.weight", "parts.slots", "scores.weight"):
                    nn.init.normal_(weight, std=STD)
        self.eval()

    @classmethod
    def of(
        cls, settings: ParallelSettings, items: ParallelItems, *, seed: int, autoencoder: SlotAutoencoder | None = None
    ) -> ParallelModel:
        """A new model for these items, in evaluation mode.

        autoencoder: of the fitted item tokenizer (``SetRec.autoencoder()``), copied, where ``joint`` asks for one.
        Maps of slots start so that parts have entries of about 0.02, whatever the lengths of the given vectors: then
        products with states are small, and the loss begins near ln N. Raises ConfigError where ``joint`` and
        ``autoencoder`` do not go together.
        """
        if (settings.joint is None) != (autoencoder is None):
            raise ConfigError("joint: expected with autoencoder, and only then", hint="SetRec.autoencoder() gives it")
        model = cls(settings, items.shape, seed=seed)
        if isinstance(model.parts, VectorParts):
            if autoencoder is not None:
                model.parts.autoencoder = copy.deepcopy(autoencoder)
            model._start_maps(items, seed)
        return model

    @torch.no_grad()
    def _start_maps(self, items: ParallelItems, seed: int) -> None:
        parts = cast(VectorParts, self.parts)
        slots = torch.from_numpy(items.identifiers.vectors)  # type: ignore[union-attr]
        length_n = slots.norm(dim=2).square().mean(dim=0).sqrt().clamp(min=1e-6)
        generator = torch.Generator().manual_seed(derive(seed, "parallel", "maps"))
        drawn = torch.randn(parts.weight.shape, generator=generator)
        parts.weight.copy_(drawn * (STD / length_n)[:, None, None])

    def positions(self, parts: Tensor) -> Tensor:
        """Parts ``[..., n, D]`` as they enter the transformer: as they are, or ``[..., 1, D]``."""
        return parts if self.settings.item == "slots" else parts.mean(dim=-2, keepdim=True)

    def states(self, parts_BHnD: Tensor, lengths_B: Tensor, after_BQ: Tensor) -> Tensor:
        """What predicts each part of the next item at every place, ``[B, Q, n, D]``; see :class:`ParallelBody`."""
        found: Tensor = self.body(self.positions(parts_BHnD), lengths_B, after_BQ)
        return found if self.heads is None else cast(Tensor, self.heads(found))

    def code_logits(self, states_MnD: Tensor) -> list[Tensor]:
        """Logits float32 ``[M, K]`` of each part (``target: codes``)."""
        assert self.scores is not None and isinstance(self.parts, CodeParts)
        return cast(list[Tensor], self.scores(states_MnD, self.parts.codes))

    def item_vectors(self, tables: PartTables) -> Tensor:
        """The vectors of all items that states are compared with, ``[N, n, D]`` (``target: vectors``)."""
        assert tables.vectors is not None
        return cast(Tensor, self.parts(tables, torch.arange(len(tables.vectors), device=tables.vectors.device)))
