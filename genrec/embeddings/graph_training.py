"""The graph network of MMGRec and its training. Internal: use :mod:`genrec.embeddings.graph`.

Axes: N items, U users, E different (user, item) pairs, D width of the content, H width of a layer, B pairs of a batch,
S negatives of a pair.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.data.histories import Histories
from genrec.seeding import derive, rng

if TYPE_CHECKING:
    from genrec.embeddings.graph import GraphSettings

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Graph:
    """Who has which item: different pairs, ascending by user, then item; int64 ``[E]`` each (internal).

    items are numbers ``0 .. n_items-1``; which those are is told by the caller.
    """

    users_E: Rows
    items_E: Rows
    n_users: int
    n_items: int

    @classmethod
    def of(cls, train: Histories, n_items: int) -> Graph:
        """Of histories whose items are below ``n_items``."""
        pairs = np.unique(np.stack([train.rows(), train.items.astype(np.int64)], axis=1), axis=0)
        return cls(pairs[:, 0], pairs[:, 1], len(train), n_items)

    def means(self, device: str) -> tuple[Means, Means]:
        """Means over a user's items, ``[U, N]``, and over an item's users, ``[N, U]``."""
        of_users = _matrix(self.users_E, self.items_E, (self.n_users, self.n_items))
        of_items = _matrix(self.items_E, self.users_E, (self.n_items, self.n_users))
        return Means.of(of_users, device), Means.of(of_items, device)

    def negatives(self, rows_B: Rows, n_negatives: int, generator: np.random.Generator) -> Rows:
        """Items that the user of each pair does not have, evenly drawn, int64 ``[B, S]``.

        Drawn again as long as it is one of the user's: the user must lack some item.
        """
        key_E = self.users_E * self.n_items + self.items_E
        user_B1 = self.users_E[rows_B][:, None]
        out = generator.integers(self.n_items, size=(len(rows_B), n_negatives))
        wrong = np.ones(out.shape, dtype=bool)
        while wrong.any():
            asked = user_B1 * self.n_items + out
            wrong = key_E[np.minimum(np.searchsorted(key_E, asked), len(key_E) - 1)] == asked
            out[wrong] = generator.integers(self.n_items, size=int(wrong.sum()))
        return out

    @property
    def told_apart(self) -> Rows:
        """Pairs of users who lack some item, int64: only these have a negative."""
        degree = np.bincount(self.users_E, minlength=self.n_users)
        return np.flatnonzero(degree[self.users_E] < self.n_items)


@dataclass(frozen=True, eq=False)
class Means:
    """A matrix whose rows are means, and its transpose: sparse tensors for a product and its gradient (internal)."""

    matrix: Tensor
    transposed: Tensor

    @classmethod
    def of(cls, matrix: Any, device: str) -> Means:
        """Of a scipy CSR matrix."""
        return cls(_sparse(matrix).to(device), _sparse(matrix.T.tocsr()).to(device))

    def __call__(self, x: Tensor) -> Tensor:
        """The mean rows of ``x``."""
        found: Tensor = _Product.apply(self.matrix, self.transposed, x)  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    """``matrix @ x`` with the gradient ``transposed @ gradient``, both products of sparse rows (one order of sums)."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        found: Tensor = torch.sparse.mm(matrix, x)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, torch.sparse.mm(ctx.transposed, gradients[0])


class Sage(nn.Module):
    """``h R + (mean over neighbours of h) M + b`` for users and items alike (internal).

    Hamilton, Ying and Leskovec (2017, 1706.02216), mean aggregation.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.root = nn.Linear(n_in, n_out)
        self.mean = nn.Linear(n_in, n_out, bias=False)

    def forward(self, users_UH: Tensor, items_NH: Tensor, of_users: Means, of_items: Means) -> tuple[Tensor, Tensor]:
        """The next layer's vectors of users and items."""
        # means are linear: mapping first makes the sparse products narrower
        mapped_U, mapped_N = self.mean(users_UH), self.mean(items_NH)
        return self.root(users_UH) + of_users(mapped_N), self.root(items_NH) + of_items(mapped_U)


class GraphNetwork(nn.Module):
    """Content of items and free vectors of users, to vectors of both (internal)."""

    def __init__(self, width: int, n_users: int, settings: GraphSettings) -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.project = nn.Linear(width, settings.inner, bias=False)
        self.users = nn.Parameter(torch.empty(n_users, settings.inner))
        self.first, self.second = Sage(settings.inner, settings.inner), Sage(settings.inner, settings.dim)
        nn.init.xavier_normal_(self.users)

    def forward(
        self, x_ND: Tensor, of_users: Means, of_items: Means, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vectors of users ``[U, dim]`` and items ``[N, dim]``; ``noise``: where dropout is drawn from, None = none."""
        users, items = self._dropped(self.users, 0, noise), self._dropped(self.project(x_ND), 0, noise)
        users, items = self.first(users, items, of_users, of_items)
        users, items = (self._dropped(F.leaky_relu(h), 1, noise) for h in (users, items))
        users, items = self.second(users, items, of_users, of_items)
        return users, items

    def _dropped(self, h: Tensor, layer: int, noise: torch.Generator | None) -> Tensor:
        share = self.dropout[layer]
        if noise is None or share == 0:
            return h
        kept = torch.rand(h.shape, generator=noise, device=h.device) >= share
        return h * kept / (1 - share)


def bpr_loss(users_BH: Tensor, items_BH: Tensor, negatives_BSH: Tensor) -> Tensor:
    """Mean of ``-log sigmoid(u . i - u . j)`` over pairs and their negatives (Rendle et al. 2009) (internal)."""
    wanted = (users_BH * items_BH).sum(dim=1, keepdim=True)
    others = torch.einsum("bh,bsh->bs", users_BH, negatives_BSH)
    return -F.logsigmoid(wanted - others).mean()


def learn(x_ND: Floats, train: Histories, settings: GraphSettings) -> Floats:
    """Train the network on the items with events; vectors of all items, float32 ``[N, dim]`` (internal)."""
    cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    device = "cuda" if cuda else "cpu"
    events = np.unique(train.items)
    graph = Graph.of(Histories(train.offsets, np.searchsorted(events, train.items).astype(np.int32)), len(events))
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
        torch.manual_seed(derive(settings.seed, "graph"))
        network = GraphNetwork(x_ND.shape[1], graph.n_users, settings)
    network.to(device)
    scale = _scale(x_ND[events])
    _train(network, graph, torch.from_numpy(x_ND[events] * scale).to(device), settings)
    whole = Graph.of(train, len(x_ND))
    with torch.no_grad():
        _, items = network(torch.from_numpy(x_ND * scale).to(device), *whole.means(device))
    made: Floats = items.cpu().numpy()
    return made


def _train(network: GraphNetwork, graph: Graph, x_ND: Tensor, settings: GraphSettings) -> list[float]:
    """Mean loss of every epoch."""
    device, pairs, log = x_ND.device.type, graph.told_apart, []
    of_users, of_items = graph.means(device)
    adam = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    noise = torch.Generator(device).manual_seed(derive(settings.seed, "graph", "dropout"))
    for epoch in range(settings.epochs if len(pairs) else 0):
        generator, total = rng(settings.seed, "graph", "pairs", epoch), 0.0
        order = pairs[generator.permutation(len(pairs))]
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            negatives = graph.negatives(rows, settings.n_negatives, generator)
            users, items = network(x_ND, of_users, of_items, noise)
            u, i, j = (torch.from_numpy(at).to(device) for at in (graph.users_E[rows], graph.items_E[rows], negatives))
            loss = bpr_loss(users[u], items[i], items[j])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            total += float(loss.detach()) * len(rows)
        log.append(total / len(order))
        _LOG.info("graph, epoch %d: loss %.4f", epoch + 1, log[-1])
    return log


def _matrix(row_E: Rows, column_E: Rows, shape: tuple[int, int]) -> Any:
    from scipy import sparse

    weight = 1.0 / np.bincount(row_E, minlength=shape[0])[row_E]
    return sparse.csr_matrix((weight.astype(np.float32), (row_E, column_E)), shape)


def _sparse(matrix: Any) -> Tensor:
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    at = torch.from_numpy(np.stack([rows, matrix.indices.astype(np.int64)]))
    values = torch.from_numpy(matrix.data)
    return torch.sparse_coo_tensor(at, values, matrix.shape, is_coalesced=True, check_invariants=False)


def _scale(x_ND: Floats) -> np.float32:
    """What brings the rows to mean squared length D, so that inputs of any unit are learned alike."""
    square = float(np.mean(x_ND.astype(np.float64) ** 2))
    return np.float32(1.0 if square == 0 else square**-0.5)
