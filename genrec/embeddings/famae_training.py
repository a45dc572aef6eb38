"""The network of FAMAE, its loss, its metrics and its training. Internal: use :mod:`genrec.embeddings.famae`.

Axes: B rows of a batch, T places of a window, J fields, D width, V values of a field, N items, S sampled negatives.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.data.batching import length_batches
from genrec.data.histories import Histories
from genrec.metrics.ranking import expected_ranks
from genrec.progress import ProgressBar
from genrec.schedules import warmup_cosine
from genrec.seeding import derive, rng, torch_rng

if TYPE_CHECKING:
    from genrec.embeddings.famae import FamaeSettings

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
_LOG = logging.getLogger(__name__)
_PAD = -1
_NEVER = -1e4  # a score without weight; with -inf, a row without negatives would have no gradient


@dataclass(frozen=True, eq=False)
class Windows:
    """Runs of neighbouring items of one history; the last item of each is the target (internal).

    Window w is ``items[starts[w]:ends[w]]``, int64 ``[W]`` each.
    """

    items: npt.NDArray[np.int32]
    starts: Rows
    ends: Rows

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: Rows) -> Tensor:
        """int64 ``[B, T]``, the target in the last column, -1 before the start of a history."""
        taken = Histories.from_slices(self.items, self.starts[rows], self.ends[rows])
        return torch.from_numpy(taken.padded(pad=_PAD, side="left").astype(np.int64))


@dataclass(frozen=True, eq=False)
class Trained:
    """Tables of the best epoch, one row of numbers per epoch, and the row of the best (internal)."""

    tables: tuple[Floats, ...]
    log: list[dict[str, float]]
    best: dict[str, float]


class FamaeNetwork(nn.Module):
    """Windows of items with some fields of the target masked, to one vector per window (internal)."""

    values_NJ: Tensor

    def __init__(self, values_NJ: npt.NDArray[np.int32], sizes: tuple[int, ...], settings: FamaeSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.register_buffer("values_NJ", torch.from_numpy(values_NJ.astype(np.int64)), persistent=False)
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.masks = nn.Parameter(torch.empty(len(sizes), dim))
        self.positions = nn.Embedding(settings.max_items, dim)
        for weight in (self.masks, self.positions.weight, *(table.weight for table in self.tables)):
            nn.init.normal_(cast(Tensor, weight), std=0.05)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, settings.n_heads, settings.inner, settings.dropout, "relu", batch_first=True, norm_first=True
            )
            for _ in range(settings.n_layers)
        )
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(settings.dropout)

    def forward(self, items_BT: Tensor, masked_BJ: Tensor) -> Tensor:
        """The vector read at the target, float ``[B, D]``; masked: bool, which fields of the target are hidden.

        Places count from the target back, so padding in front changes nothing.
        """
        empty_BT = items_BT == _PAD
        values_BTJ = self.values_NJ[items_BT.clamp(min=0)]
        x_BTD = torch.zeros((), device=items_BT.device)
        target_BD = torch.zeros((), device=items_BT.device)
        for at, table in enumerate(self.tables):
            part_BTD = table(values_BTJ[:, :, at])
            x_BTD = x_BTD + part_BTD[:, :-1]
            target_BD = target_BD + torch.where(masked_BJ[:, at, None], self.masks[at], part_BTD[:, -1])
        x_BTD = torch.cat([x_BTD, target_BD[:, None]], dim=1)
        x_BTD = self.dropout(x_BTD + self.positions.weight[: items_BT.shape[1]].flip(0))
        for layer in self.layers:
            x_BTD = layer(x_BTD, src_key_padding_mask=empty_BT)
        return cast(Tensor, self.norm(x_BTD[:, -1]))

    def scores(self, h_BD: Tensor, at: int, values: Tensor | None = None) -> Tensor:
        """``sqrt(D) cos(h, vector of v)`` for values of field ``at`` (all, or these int64 ``[S]``), ``[B, V or S]``."""
        weight = cast(Tensor, self.tables[at].weight)
        rows = weight if values is None else weight[values]
        return F.normalize(h_BD, dim=1) @ F.normalize(rows, dim=1).T * float(np.sqrt(weight.shape[1]))


def draw_masks(n_rows: int, n_fields: int, generator: torch.Generator) -> Tensor:
    """Which fields are hidden, bool ``[B, J]``: first how many (1..J evenly), then which, all subsets alike."""
    how_many_B = torch.randint(1, n_fields + 1, (n_rows, 1), generator=generator)
    places = torch.rand(n_rows, n_fields, generator=generator).argsort(dim=1).argsort(dim=1)
    return places < how_many_B


def field_loss(network: FamaeNetwork, h_BD: Tensor, true_B: Tensor, at: int, negatives_S: Tensor | None) -> Tensor:
    """Cross-entropy of the true values of field ``at``, summed over the rows.

    negatives_S: values drawn evenly from all V; each stands for (V - 1) / S values, and one that is the true value of
    a row does not count in it. None: softmax over all values.
    """
    if negatives_S is None:
        return F.cross_entropy(network.scores(h_BD, at), true_B, reduction="sum")
    n_values = cast(nn.Embedding, network.tables[at]).num_embeddings
    weight = cast(Tensor, network.tables[at].weight)
    true_BD = F.normalize(weight[true_B], dim=1)
    true_score_B = (F.normalize(h_BD, dim=1) * true_BD).sum(dim=1) * float(np.sqrt(weight.shape[1]))
    others_BS = network.scores(h_BD, at, negatives_S)
    same_BS = true_B[:, None] == negatives_S
    others_BS = others_BS.masked_fill(same_BS, _NEVER)
    stands_for_B = (n_values - 1) / (~same_BS).sum(dim=1).clamp(min=1)
    rest_B = torch.logsumexp(others_BS, dim=1) + stands_for_B.log()
    return (torch.logaddexp(true_score_B, rest_B) - true_score_B).sum()


def batch_loss(
    network: FamaeNetwork, items_BT: Tensor, masked_BJ: Tensor, settings: FamaeSettings, generator: torch.Generator
) -> Tensor:
    """Mean over windows of the sum over masked fields of the cross-entropy."""
    h_BD = network(items_BT, masked_BJ)
    true_BJ = network.values_NJ[items_BT[:, -1]]
    total = torch.zeros((), device=h_BD.device)
    for at, table in enumerate(network.tables):
        n_values = cast(nn.Embedding, table).num_embeddings
        negatives_S = None
        if n_values > settings.full_softmax:
            negatives_S = torch.randint(n_values, (settings.n_negatives,), generator=generator).to(h_BD.device)
        rows = masked_BJ[:, at].nonzero()[:, 0]
        if len(rows):
            total = total + field_loss(network, h_BD[rows], true_BJ[rows, at], at, negatives_S)
    return total / len(items_BT)


def cut_windows(train: Histories, settings: FamaeSettings) -> tuple[Windows, Windows]:
    """Windows to train on and held-out windows: every item of a history but its first is a target once.

    Held out: the last window of ``valid_users`` users of three items or more, at most a fifth of them.
    """
    row_E = train.rows()
    place_E = np.arange(len(train.items)) - train.offsets[row_E]
    ends = np.flatnonzero(place_E >= 1) + 1
    starts = np.maximum(train.offsets[row_E[ends - 1]], ends - settings.max_items)
    long = np.flatnonzero(train.lengths >= 3)
    n_held = min(settings.valid_users, len(long) // 5)
    users = rng(settings.seed, "famae", "held out").choice(long, size=n_held, replace=False)
    held = np.isin(ends, train.offsets[1:][users])
    return Windows(train.items, starts[~held], ends[~held]), Windows(train.items, starts[held], ends[held])


@torch.no_grad()
def metrics(network: FamaeNetwork, windows: Windows, *, k: int = 10, batch_size: int = 256) -> dict[str, float]:
    """Recall@k of the target among all items, with all its fields masked, and with only the item itself masked.

    ::

        metric_1: what the history says about the next item;  metric_2: what its fields tell beside that
    """
    network.eval()
    device, n_fields = network.masks.device, len(network.tables)
    hits = {"metric_1": 0.0, "metric_2": 0.0}
    for start in range(0, len(windows), batch_size):
        items_BT = windows.batch(np.arange(start, min(start + batch_size, len(windows)))).to(device)
        target_B = items_BT[:, -1].cpu().numpy()
        for name, n_masked in (("metric_1", n_fields), ("metric_2", 1)):
            masked_BJ = (torch.arange(n_fields, device=device) < n_masked).expand(len(items_BT), -1)
            scores_BN = network.scores(network(items_BT, masked_BJ), 0).cpu().numpy()
            hits[name] += float((expected_ranks(scores_BN, np.arange(len(target_B)), target_B) <= k).sum())
    return {name: found / len(windows) for name, found in hits.items()}


def fit_tables(
    train: Histories, values_NJ: npt.NDArray[np.int32], sizes: tuple[int, ...], settings: FamaeSettings
) -> Trained:
    """Train from scratch and return the tables of the best epoch."""
    cuda = torch.cuda.is_available()
    device = torch.device(settings.device if settings.device != "auto" else "cuda" if cuda else "cpu")
    windows, held = cut_windows(train, settings)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
        torch.manual_seed(derive(settings.seed, "famae"))
        network = FamaeNetwork(values_NJ, sizes, settings).to(device)
        return _epochs(network, windows, held, settings)


def _epochs(network: FamaeNetwork, windows: Windows, held: Windows, settings: FamaeSettings) -> Trained:
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
    )
    n_steps = settings.epochs * -(-len(windows) // settings.batch_size)
    generator, step, waited = torch_rng(settings.seed, "famae", "masks"), 0, 0
    log: list[dict[str, float]] = []
    best: dict[str, float] = {}
    tables = _copied(network)
    for epoch in ProgressBar(range(1, settings.epochs + 1), desc="famae", unit="epoch"):
        network.train()
        losses = []
        for rows in length_batches(
            windows.ends - windows.starts, settings.batch_size, seed=settings.seed, epoch=epoch - 1
        ):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warmup_cosine(step, n_steps, settings.warmup_steps)
            items_BT = windows.batch(rows).to(network.masks.device)
            masked_BJ = draw_masks(len(rows), len(network.tables), generator).to(network.masks.device)
            loss = batch_loss(network, items_BT, masked_BJ, settings, generator)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach() * len(rows))
            step += 1
        found = metrics(network, held) if len(held) else {}
        log.append({"epoch": epoch, "loss": float(torch.stack(losses).sum()) / len(windows), **found})
        _LOG.info("famae %s", log[-1])
        if not best or not found or _quality(log[-1]) > _quality(best):
            best, tables, waited = log[-1], _copied(network), 0
        else:
            waited += 1
        if settings.patience and waited >= settings.patience:
            break
    return Trained(tables, log, best)


def _quality(row: dict[str, float]) -> float:
    return row["metric_1"] + row["metric_2"]


def _copied(network: FamaeNetwork) -> tuple[Floats, ...]:
    return tuple(cast(Tensor, table.weight).detach().cpu().numpy().copy() for table in network.tables)
