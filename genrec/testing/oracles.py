"""Slow, obvious versions of what genrec does fast. Plug-in authors may use them in their own tests.

Axes: B batch, N items, L levels, M items asked for, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Trie = dict[int, Any]
LogProbs = Callable[[int, tuple[int, ...]], npt.NDArray[np.float64]]
"""(batch row, codes before) → log-probability of every symbol of the next level."""

END = -1
ITEMS = -2


def dict_trie(codes_NL: npt.ArrayLike, *, ragged: bool, keep: Iterable[int] | None = None) -> Trie:
    """Dict of dicts: code → subtrie. Ragged identifiers have an ``END`` edge. Leaves hold ``{ITEMS: [...]}``.

    codes_NL: integers, -1 beyond the length of short identifiers.
    """
    root: Trie = {}
    rows = np.asarray(codes_NL)
    for item in range(len(rows)) if keep is None else keep:
        node = root
        for code in [int(c) for c in rows[item] if c >= 0] + [END] * ragged:
            node = node.setdefault(code, {})
        node.setdefault(ITEMS, []).append(int(item))
    return root


def walk(trie: Trie, codes: Sequence[int]) -> Trie | None:
    """The subtrie behind a prefix, or None."""
    node = trie
    for code in codes:
        if code not in node:
            return None
        node = node[code]
    return node


def items_below(trie: Trie) -> list[int]:
    """All items of a subtrie, ascending."""
    found = list(trie.get(ITEMS, []))
    for code, below in trie.items():
        if code != ITEMS:
            found += items_below(below)
    return sorted(found)


def exhaustive_scores(
    codes_NL: npt.ArrayLike,
    level_sizes: Sequence[int],
    logp: LogProbs,
    *,
    row: int,
    ragged: bool,
    trie: Trie | None = None,
) -> npt.NDArray[np.float64]:
    """Summed log-probability of every item, one Python step per code, float64 ``[N]``.

    trie: given, probabilities are normalised over its children at every node (the "children" normaliser).
    """
    sizes = [*level_sizes, 0]
    out = []
    for codes in np.asarray(codes_NL).tolist():
        codes = [c for c in codes if c >= 0] + [END] * ragged
        total = 0.0
        for level, code in enumerate(codes):
            prefix = tuple(codes[:level])
            values = logp(row, prefix)
            total += values[sizes[level] if code == END else code]
            if trie is not None:
                node = walk(trie, prefix)
                assert node is not None
                allowed = [sizes[level] if c == END else c for c in node if c != ITEMS]
                total -= np.logaddexp.reduce(values[allowed])
        out.append(total)
    return np.array(out)


def expected_ranks(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Mean 1-based rank of each score among all of them, ties sharing it, by counting pairs; -inf → inf."""
    values = np.asarray(scores, dtype=np.float64)
    out = [1 + (values > v).sum() + ((values == v).sum() - 1) / 2 if v > -np.inf else np.inf for v in values]
    return np.array(out)


def generate_items(
    model: Any,
    trie: Trie,
    token_of: Callable[[int, int], int],
    inputs: dict[str, Any],
    *,
    n_beams: int,
    max_new_tokens: int,
    eos_id: int | None,
    skip: int,
) -> list[list[tuple[tuple[int, ...], float]]]:
    """Identifiers (tuples of token ids) and scores per batch row by Hugging Face ``generate``.

    Beam search without length penalty, constrained by a trie of dicts through ``prefix_allowed_tokens_fn``.

    token_of: (level, code or END) → token id. skip: number of prompt tokens in front of each output row.
    """
    tokens = _token_trie(trie, token_of, 0)

    def allowed(_: int, ids: Any) -> list[int]:
        node = walk(tokens, ids.tolist()[skip:])
        # beams that have ended, or never lived, may do anything: their score is already decided
        return [t for t in node if t >= 0] if node and set(node) != {ITEMS} else [0]

    out = model.generate(
        **inputs,
        num_beams=n_beams,
        num_return_sequences=n_beams,
        length_penalty=0.0,
        early_stopping="never",
        do_sample=False,
        max_new_tokens=max_new_tokens,
        min_new_tokens=None,
        eos_token_id=eos_id,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = out.sequences[:, skip:].tolist()
    ended = [tuple(r[: r.index(eos_id) + 1]) if eos_id is not None and eos_id in r else tuple(r) for r in rows]
    scored = list(zip(ended, out.sequences_scores.tolist(), strict=True))
    return [scored[i : i + n_beams] for i in range(0, len(scored), n_beams)]


def _token_trie(trie: Trie, token_of: Callable[[int, int], int], level: int) -> Trie:
    return {
        key if key == ITEMS else token_of(level, key): below
        if key == ITEMS
        else _token_trie(below, token_of, level + 1)
        for key, below in trie.items()
    }


def beam_scores(
    trie: Trie, n_levels: int, logp: LogProbs, *, row: int, n_beams: int
) -> list[tuple[tuple[int, ...], float]]:
    """Beam search in Python for identifiers of fixed length: (codes, score), best first.

    Ties go to the earlier beam, then to the lower code.
    """
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(n_levels):
        found = []
        for place, (prefix, score) in enumerate(beams):
            values = logp(row, prefix)
            node = walk(trie, prefix)
            assert node is not None
            found += [(-(score + float(values[code])), place, code) for code in node]
        beams = [((*beams[place][0], code), -score) for score, place, code in sorted(found)[:n_beams]]
    return beams
