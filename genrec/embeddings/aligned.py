"""Item vectors turned so that what is bought together comes together: TRAINING histories only.

Legend: N items, D width, C width of collaborative vectors, P pairs, B pairs of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.collaborative import SvdSettings, svd
from genrec.embeddings.linear import unit_rows
from genrec.errors import ConfigError
from genrec.seeding import rng

Floats = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
_log = logging.getLogger(__name__)
TERMS = ("co_occurrence", "item_item", "user_item")


@dataclass(frozen=True)
class AlignSettings:
    """Settings of :func:`align`; raises ConfigError for values outside their range (experimental)."""

    epochs: int = 5  # passes over the pairs; 0 leaves the vectors as they are
    batch_size: int = 512  # pairs per step: each is told from the others of its batch
    learning_rate: float = 1e-3  # of Adam
    temperature: float = 0.07  # cosines are divided by it
    window: int = 1  # items at most this far apart in a history are a pair
    co_occurrence: float = 1.0  # weight of the term between items of one history
    item_item: float = 0.0  # weight of the term between an item and its own collaborative vector
    user_item: float = 0.0  # weight of the term between an item and the users who have it
    collaborative_dim: int = 64  # width of the collaborative vectors of the last two terms
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 0, "batch_size": 2, "window": 1, "collaborative_dim": 1, **dict.fromkeys(TERMS, 0)}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected above 0, got {getattr(self, name)}")
        if not any(getattr(self, name) > 0 for name in TERMS):
            raise ConfigError(f"co_occurrence: expected one of {', '.join(TERMS)} above 0, got none")


@dataclass(frozen=True, eq=False)
class Term:
    """One alignment term: which pairs, what stands at their second end, and which others are no negatives (internal).

    pairs: int64 ``[P, 2]``: item, and a number that means something to the term. known: ascending
    ``first * width + second`` of all pairs that are no negatives of each other; width: exceeds every second number.
    """

    name: str
    weight: float
    pairs: Int64
    known: Int64
    width: int


def align(vectors: ItemEmbeddings, train: Histories, settings: AlignSettings) -> ItemEmbeddings:
    """The vectors times a matrix that brings items together with what goes with them (experimental).

    ::

        W = identity;  P = the linear map that brings collaborative vectors c nearest to the item vectors x
        anchors x[i] W, each with a partner:
            co_occurrence   x[j] W                    j: an item at most `window` away from i in a training history
            item_item       c[i] P                    the item itself
            user_item       mean of c[j] P            j: the other items of a user who has i
        s[b, e] = cos(anchor_b, partner_e) / temperature, left out (b != e) where b and e belong together as well
                  (a known pair, the same item, a user who has the item)
        loss of a term = mean cross entropy of picking e = b from row b, and b = e from column e
        minimise the weighted sum of the terms over W and P, in batches;  vectors = x W

    The item side of the alignment of DAS (2025, 2508.10584): its terms of co-occurrence, of an item with its own
    collaborative vector (i2i) and of an item with its users (u2i), for vectors that are quantized afterwards, so any
    item tokenizer can have it. The collaborative vectors are :func:`genrec.embeddings.collaborative.svd` of the
    training histories, scaled to length 1; they stay as they are, and a user's is the mean over the history *without*
    the item asked for, since an item must not be its own evidence. Known pairs are no negatives.

    What DAS has beyond this is not here, because a source of item vectors has no place for it: identifiers of users and
    thus the terms anchored at users (user to item, user to user, users of one item); training together with the
    quantizer and a ranking model; and the two-part ID vectors of that model that take popularity out of the
    collaborative side (nothing here does: popular items pull more). Its weights are not published.

    A zero row stays zero, and an item that nobody has bought follows from its own vector. Rows keep their average
    length. Items without events, and further rows behind them, change nothing for the others.
    """
    terms = terms_of(vectors, train, settings)
    asked = any(len(term.pairs) >= 2 and term.name != "co_occurrence" for term in terms)
    partners = _Partners.of(vectors.vectors, train, settings) if asked else None
    terms = [_with_partners(term, partners) for term in terms]
    for term in terms:
        if len(term.pairs) < 2:
            _log.warning("align: the term %s has fewer than two pairs and is left out", term.name)
    terms = [term for term in terms if len(term.pairs) >= 2]
    if settings.epochs == 0 or not terms:
        return vectors
    turn = _fit(vectors.vectors, terms, partners, settings)
    made = vectors.vectors.astype(np.float64) @ turn
    taught = np.unique(np.concatenate([_items(term) for term in terms]))
    before = float((vectors.vectors[taught].astype(np.float64) ** 2).sum())
    made *= np.sqrt(before / max(float((made[taught] ** 2).sum()), 1e-30))
    recipe = {**vectors.recipe, "align": asdict(settings)}
    return ItemEmbeddings(made.astype(np.float32), vectors.catalog, recipe)


def terms_of(vectors: ItemEmbeddings, train: Histories, settings: AlignSettings) -> list[Term]:
    """The terms with a weight (internal)."""
    known, n, found = vectors.known, vectors.n_items, []
    if settings.co_occurrence:
        pairs = pairs_of(train, known, settings.window)
        both = np.concatenate([pairs, pairs[:, ::-1], np.stack([np.unique(pairs)] * 2, axis=1)])
        found.append(Term("co_occurrence", settings.co_occurrence, pairs, np.unique(both[:, 0] * n + both[:, 1]), n))
    items = np.unique(train.items).astype(np.int64)
    if settings.item_item:
        own = np.stack([items[known[items]]] * 2, axis=1)
        found.append(Term("item_item", settings.item_item, own, np.unique(own[:, 0] * n + own[:, 1]), n))
    if settings.user_item:
        pairs, width = clicks_of(train, known), max(len(train), 1)
        found.append(Term("user_item", settings.user_item, pairs, np.unique(pairs[:, 0] * width + pairs[:, 1]), width))
    return found


def _with_partners(term: Term, partners: _Partners | None) -> Term:
    """The term without the pairs whose second end is a row of zeros: nothing can come near that."""
    if partners is None or term.name == "co_occurrence" or not len(term.pairs):
        return term
    there = np.concatenate([partners.at(term, part).any(axis=1) for part in np.array_split(term.pairs, 64)])
    if not there.all():
        _log.warning(
            "align: %s: %.1f %% of the pairs are left out, since nothing collaborative is known of their items",
            term.name,
            100 * (1 - there.mean()),
        )
    return replace(term, pairs=term.pairs[there])


def pairs_of(train: Histories, known: npt.NDArray[np.bool_], window: int) -> Int64:
    """Two different known items at most ``window`` apart in a history, as often as so, int64 ``[P, 2]`` (internal)."""
    rows, items = train.rows(), train.items.astype(np.int64)
    found = [np.empty((0, 2), np.int64)]
    for distance in range(1, min(window, len(items) - 1) + 1):
        a, b = items[:-distance], items[distance:]
        near = (rows[:-distance] == rows[distance:]) & (a != b) & known[a] & known[b]
        found.append(np.stack([a[near], b[near]], axis=1))
    return np.concatenate(found)


def clicks_of(train: Histories, known: npt.NDArray[np.bool_]) -> Int64:
    """(known item, user who has it and another one), each once, int64 ``[P, 2]`` (internal)."""
    pairs = np.unique(np.stack([train.rows(), train.items.astype(np.int64)], axis=1), axis=0)[:, ::-1]
    several = np.bincount(pairs[:, 1], minlength=len(train)) > 1
    return np.asarray(pairs[several[pairs[:, 1]] & known[pairs[:, 0]]])


def apart(pairs_B2: Int64, keys: Int64, width: int) -> npt.NDArray[np.bool_]:
    """Which (b, c) are no negatives, bool ``[B, B]``: known pairs, but for b = c (internal).

    keys: ascending ``first * width + second`` of all (first, second) that are known to belong together.
    """
    asked = pairs_B2[:, :1] * width + pairs_B2[None, :, 1]
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    out = keys[at] == asked
    np.fill_diagonal(out, False)
    return np.asarray(out)


def _items(term: Term) -> Int64:
    return term.pairs.ravel() if term.name == "co_occurrence" else term.pairs[:, 0]


@dataclass(frozen=True, eq=False)
class _Partners:
    """Collaborative vectors of length 1 (none behind the last item with events), their sum over the different items of
    each user, how many these are, and the map to the item vectors to start from."""

    items_NC: Floats
    users_UC: Float64
    counts_U: Int64
    start_CD: Float64

    @classmethod
    def of(cls, x_ND: Floats, train: Histories, settings: AlignSettings) -> _Partners | None:
        """None where no term needs them."""
        from scipy import sparse

        if not settings.item_item and not settings.user_item:
            return None
        n = int(train.items.max()) + 1
        own = svd(train, n, SvdSettings(dim=settings.collaborative_dim, seed=settings.seed), "")
        length_N = np.linalg.norm(own.vectors, axis=1)
        # a row of dust belongs to a small component that the kept directions know nothing of
        items_NC = unit_rows(np.where((length_N > 1e-5 * length_N.max())[:, None], own.vectors, np.float32(0)))
        pairs = np.unique(np.stack([train.rows(), train.items.astype(np.int64)], axis=1), axis=0)
        has = sparse.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (len(train), n))
        taught = items_NC.any(axis=1) & x_ND[:n].any(axis=1)
        c, x = items_NC[taught].astype(np.float64), unit_rows(x_ND[:n][taught].astype(np.float64))
        ridge = c.T @ c + 1e-3 * max(len(c), 1) / c.shape[1] * np.eye(c.shape[1])
        return cls(items_NC, np.asarray(has @ items_NC.astype(np.float64)), np.diff(has.indptr).astype(np.int64),
                   np.linalg.solve(ridge, c.T @ x))  # fmt: skip

    def at(self, term: Term, batch_B2: Int64) -> Floats:
        """What stands at the second end of each pair, before the map: float32 ``[B, C]``."""
        own = self.items_NC[batch_B2[:, 0]]
        if term.name == "item_item":
            return own
        users = batch_B2[:, 1]
        return np.asarray((self.users_UC[users] - own) / (self.counts_U[users, None] - 1), dtype=np.float32)


def _fit(x_ND: Floats, terms: list[Term], partners: _Partners | None, settings: AlignSettings) -> Float64:
    import torch
    from torch.nn.functional import cross_entropy, normalize

    turn = torch.eye(x_ND.shape[1], requires_grad=True)
    project = torch.zeros(0) if partners is None else torch.from_numpy(partners.start_CD).float().requires_grad_()

    def loss_of(term: Term, batch: Int64) -> torch.Tensor:
        a = normalize(torch.from_numpy(x_ND[batch[:, 0]]) @ turn, dim=1)
        if term.name == "co_occurrence":
            p = normalize(torch.from_numpy(x_ND[batch[:, 1]]) @ turn, dim=1)
        else:
            assert partners is not None
            p = normalize(torch.from_numpy(partners.at(term, batch)) @ project, dim=1)
        no_negative = torch.from_numpy(apart(batch, term.known, term.width))
        scores = (a @ p.T / settings.temperature).masked_fill(no_negative, float("-inf"))
        own = torch.arange(len(batch))
        return term.weight * (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2

    adam = torch.optim.Adam([turn, *([project] if partners else [])], lr=settings.learning_rate)
    for epoch in range(settings.epochs):
        total, steps = 0.0, 0
        for batches in _batches(terms, settings, epoch):
            loss = torch.stack([loss_of(term, batch) for term, batch in zip(terms, batches, strict=True)]).sum()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            total, steps = total + float(loss.detach()), steps + 1
        _log.info("alignment, epoch %d: loss %.4f", epoch + 1, total / max(steps, 1))
    return turn.detach().numpy().astype(np.float64)


def _batches(terms: list[Term], settings: AlignSettings, epoch: int) -> Iterator[list[Int64]]:
    """A batch of every term for each step, pairs in seeded order; terms with fewer pairs begin again."""
    names = ["align" if term.name == "co_occurrence" else f"align {term.name}" for term in terms]
    orders = [
        rng(settings.seed, name, epoch).permutation(len(term.pairs)) for name, term in zip(names, terms, strict=True)
    ]
    n_pairs = max(map(len, orders))
    for start in range(0, n_pairs - 1, settings.batch_size):
        at = np.arange(start, min(start + settings.batch_size, n_pairs))
        yield [term.pairs[order[at % len(order)]] for term, order in zip(terms, orders, strict=True)]
