"""SASRec with a full softmax: causal self-attention over item numbers, cross-entropy at every position.

Axes: B rows of a batch, T items of a row, P positions that carry a loss, N items, D width, U users.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec import artifacts
from genrec.baselines.softmax import linear_cross_entropy
from genrec.data.batching import length_batches
from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError
from genrec.metrics.ranking import RankedTargets, expected_ranks, ndcg, recall
from genrec.seeding import derive, rng

if TYPE_CHECKING:
    from genrec.data.splits import EvalSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SasRecSettings:
    """Size and training of :class:`SasRec` (stable).

    ``max_items``: longest history seen by the model, older items are cut. ``inner``: width of the
    feed-forward layers (0 = 4 x dim). ``warmup_steps``: linear warm-up, then cosine to 5 % over all epochs.
    ``patience``: evaluations without a better validation NDCG@10 before stopping (0 = never stop early).
    ``max_seconds``: stop after the epoch that passes this wall time, best weights kept.
    """

    dim: int = 64
    n_layers: int = 2
    n_heads: int = 2
    inner: int = 0
    dropout: float = 0.3
    max_items: int = 50
    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    warmup_steps: int = 100
    max_grad_norm: float = 5.0
    eval_every: int = 1
    eval_users: int = 2000
    patience: int = 5
    max_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "dim",
            "n_layers",
            "n_heads",
            "max_items",
            "epochs",
            "batch_size",
            "eval_every",
            "eval_users",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.dim % self.n_heads:
            raise ConfigError(f"dim: expected a multiple of n_heads={self.n_heads}, got {self.dim}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate: expected above 0, got {self.learning_rate}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), got {getattr(self, name)}")


class _Block(nn.Module):
    """Pre-norm causal self-attention and a GELU feed-forward, each with dropout and a residual."""

    def __init__(self, settings: SasRecSettings) -> None:
        super().__init__()
        dim, inner = settings.dim, settings.inner or 4 * settings.dim
        self.n_heads, self.dropout = settings.n_heads, settings.dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        n_rows, n_items, dim = x_BTD.shape
        heads = self.qkv(self.norm1(x_BTD)).view(n_rows, n_items, 3, self.n_heads, dim // self.n_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=drop, is_causal=True)
        mixed_BTD = mixed.transpose(1, 2).reshape(n_rows, n_items, dim)
        x_BTD = x_BTD + F.dropout(self.out(mixed_BTD), drop)
        hidden = F.dropout(F.gelu(self.up(self.norm2(x_BTD))), drop)
        return cast(Tensor, x_BTD + F.dropout(self.down(hidden), drop))


class SasRecEncoder(nn.Module):
    """Right-padded histories to one vector per position (internal).

    Position t sees items 0..t only, so padding on the right changes nothing and no mask is needed. The
    output layer is the item table itself: ``score(i) = h_t . E_i``.
    """

    def __init__(self, n_items: int, settings: SasRecSettings) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, settings.dim)
        self.positions = nn.Embedding(settings.max_items, settings.dim)
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.n_layers))
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = settings.dropout
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, items_BT: Tensor) -> Tensor:
        """items_BT: int64, padding is any valid item number on the right. Returns float ``[B, T, D]``."""
        x_BTD = self.items(items_BT) * self.items.embedding_dim**0.5
        x_BTD = x_BTD + self.positions.weight[: items_BT.shape[1]]
        x_BTD = F.dropout(x_BTD, self.dropout if self.training else 0.0)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return cast(Tensor, self.norm(x_BTD))


@dataclass
class SasRec:
    """Self-attentive sequential recommendation, trained with cross-entropy over all items (stable).

    Kang & McAuley 2018 (arXiv 1808.09781). We differ in the loss (the paper: binary cross-entropy with one
    sampled negative; here the full softmax at every position, which is what makes it a strong baseline), in
    GELU and pre-norm blocks, and in positions counted from the oldest kept item.

    ``log`` holds one dict per evaluation: ``epoch``, ``step``, ``seconds`` (wall), ``cpu_seconds``, ``loss``
    and, with a validation set, ``ndcg@10`` and ``recall@10``.
    """

    encoder: SasRecEncoder
    settings: SasRecSettings
    n_items: int
    log: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def fit(
        cls, train: Histories, n_items: int, settings: SasRecSettings, valid: EvalSet | None = None
    ) -> SasRec:
        """Train on ``train``; with ``valid``, keep the weights of the best validation NDCG@10.

        Reproducible: the same inputs, settings and number of threads give the same bits. The global random
        state of torch is left as it was. Validation uses a seeded sample of ``eval_users`` users, ranks the
        full catalog with seen items excluded, and counts tied items by their expected rank.

        Raises DataError if no history has two items or an item number is outside ``0..n_items-1``.
        """
        _check_items(train, n_items)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(settings.seed, "sasrec"))
            model = cls(SasRecEncoder(n_items, settings), settings, n_items)
            _train(model, train, valid)
        model.encoder.eval()
        return model

    @torch.inference_mode()
    def states(self, histories: Histories) -> npt.NDArray[np.float32]:
        """The vector a history is scored with, float32 ``[U, D]``; zero for an empty history."""
        kept = histories.last(self.settings.max_items)
        lengths = kept.lengths
        out_UD = np.zeros((len(kept), self.settings.dim), dtype=np.float32)
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        self.encoder.eval()
        for start in range(0, len(order), 512):
            rows = order[start : start + 512]
            h_BTD = self.encoder(_padded(kept, rows))
            last = torch.from_numpy(lengths[rows] - 1)
            out_UD[rows] = h_BTD[torch.arange(len(rows)), last].numpy()
        return out_UD

    def score_all(
        self, histories: Histories, users: npt.NDArray[np.int32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Score of every item for every history, float32 ``[U, N]``; ``users`` is not used.

        An empty history scores every item 0: all tie, so its expected ranks are honest.
        Rows do not depend on each other up to rounding. Memory is 4 U N bytes: call it in slices of users.
        """
        scores: npt.NDArray[np.float32] = self.states(histories) @ self.item_vectors().T
        return scores

    def item_vectors(self) -> npt.NDArray[np.float32]:
        """The learned item table, float32 ``[N, D]``: usable as item embeddings (collaborative, train only)."""
        return self.encoder.items.weight.detach().numpy().astype(np.float32, copy=True)

    def save(self, path: Path | str, *, catalog: str | None = None, overwrite: bool = False) -> None:
        """Write an artifact of kind ``sasrec``: weights in safetensors, settings and log in the manifest."""
        meta = {"n_items": self.n_items, "log": self.log}
        recipe = dataclasses.asdict(self.settings)
        state = {name: value.detach().numpy() for name, value in self.encoder.state_dict().items()}
        with artifacts.write(
            path, kind="sasrec", recipe=recipe, catalog=catalog, meta=meta, overwrite=overwrite
        ) as draft:
            artifacts.save_arrays(draft.dir / "sasrec.safetensors", state)

    @classmethod
    def load(cls, path: Path | str) -> SasRec:
        """Read what :meth:`save` wrote. Raises ArtifactError if it is missing or damaged."""
        manifest = artifacts.read(path, kind="sasrec")
        settings = SasRecSettings(**manifest.recipe)
        encoder = SasRecEncoder(manifest.meta["n_items"], settings)
        arrays = artifacts.load_arrays(Path(path) / "sasrec.safetensors")
        encoder.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
        encoder.eval()
        return cls(encoder, settings, manifest.meta["n_items"], manifest.meta["log"])


def _check_items(train: Histories, n_items: int) -> None:
    if len(train.items) and not 0 <= int(train.items.min()) <= int(train.items.max()) < n_items:
        raise DataError(
            f"train: expected item numbers in 0..{n_items - 1}, "
            f"got {int(train.items.min())}..{int(train.items.max())}"
        )
    if not (train.lengths >= 2).any():
        raise DataError("train: expected at least one history of two items or more, got none")


def _padded(histories: Histories, rows: npt.NDArray[np.int64]) -> Tensor:
    """Rows of ``histories`` as int64 ``[B, T]``, padded on the right with item 0 (never looked at)."""
    return torch.from_numpy(histories.take(rows).padded(pad=0, side="right").astype(np.int64))


def _batch_loss(
    encoder: SasRecEncoder, windows: Histories, rows: npt.NDArray[np.int64], eps: float
) -> Tensor:
    """Mean cross-entropy over the positions of ``rows`` that have a next item."""
    items_BT = _padded(windows, rows)
    lengths_B = torch.from_numpy(windows.lengths[rows])
    exists_BT = torch.arange(items_BT.shape[1] - 1) < (lengths_B[:, None] - 1)
    hidden_PD = encoder(items_BT[:, :-1])[exists_BT]
    target_P = items_BT[:, 1:][exists_BT]
    return linear_cross_entropy(hidden_PD, encoder.items.weight, target_P, label_smoothing=eps)


def _learning_rate(step: int, n_steps: int, settings: SasRecSettings) -> float:
    """Linear warm-up, then cosine down to 5 %."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, n_steps - settings.warmup_steps)
    return float(settings.learning_rate * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * min(done, 1.0)))))


def _train(model: SasRec, train: Histories, valid: EvalSet | None) -> None:
    settings, encoder = model.settings, model.encoder
    windows = train.last(settings.max_items + 1)
    windows = windows.take(np.flatnonzero(windows.lengths >= 2))
    lengths = windows.lengths
    n_steps = settings.epochs * -(-len(lengths) // settings.batch_size)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    best, best_state, waited, step = -1.0, None, 0, 0
    wall, cpu = time.monotonic(), time.process_time()
    for epoch in range(settings.epochs):
        encoder.train()
        losses = []
        for rows in length_batches(lengths, settings.batch_size, seed=settings.seed, epoch=epoch):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(step, n_steps, settings)
            loss = _batch_loss(encoder, windows, rows, settings.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), settings.max_grad_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
        late = settings.max_seconds is not None and time.monotonic() - wall > settings.max_seconds
        last = late or epoch + 1 == settings.epochs
        if not (last or (epoch + 1) % settings.eval_every == 0):
            continue
        entry = {
            "epoch": epoch + 1, "step": step, "loss": float(np.mean(losses)),
            "seconds": round(time.monotonic() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3),
        }  # fmt: skip
        if valid is not None and len(valid):
            entry |= _validate(model, valid)
            waited += 1
            if entry["ndcg@10"] > best:
                best, waited = entry["ndcg@10"], 0
                best_state = {name: value.clone() for name, value in encoder.state_dict().items()}
        model.log.append(entry)
        logger.info("sasrec %s", entry)
        if late or (settings.patience and waited >= settings.patience):
            break
    if best_state is not None:
        encoder.load_state_dict(best_state)


def _validate(model: SasRec, valid: EvalSet) -> dict[str, float]:
    """Recall@10 and NDCG@10 of a seeded sample of users, seen items excluded, expected ranks."""
    size = min(len(valid), model.settings.eval_users)
    sample = valid.take(np.sort(rng(model.settings.seed, "valid").permutation(len(valid))[:size]))
    ranks = []
    for start in range(0, size, 256):
        part = sample.take(np.arange(start, min(start + 256, size)))
        scores = model.score_all(part.histories)
        scores[part.histories.rows(), part.histories.items] = -np.inf
        ranks.append(expected_ranks(scores, part.targets.rows(), part.targets.items))
    ranked = RankedTargets(np.concatenate(ranks), sample.targets.rows(), size)
    return {"recall@10": float(recall(ranked, 10).mean()), "ndcg@10": float(ndcg(ranked, 10).mean())}
