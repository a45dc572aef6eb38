"""Log-probabilities of given items, without a search.

Axes: B batch, M items per row, S symbols of a level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, Scorer, StepScores
from genrec.decoding.select import DeviceIndex, children_total
from genrec.errors import DataError


@torch.inference_mode()
def score_items(
    scorer: Scorer,
    index: DeviceIndex,
    prompts: Prompts,
    items_BM: npt.NDArray[np.integer],
    *,
    normalize: Normalize,
) -> npt.NDArray[np.float32]:
    """Summed log-probability of the identifier of each item, float32 ``[B, M]``; -inf where the item is -1.

        score[b, m] = sum over levels of logp(code of the item | prompt b, codes before)

    The scores are those a beam search gives to the items it finds. Every item is one beam of the scorer, so
    memory grows with M. Raises DataError for an item that is not in the index, or if the model returns NaN.
    """
    host = index.host
    items = np.asarray(items_BM, dtype=np.int64)
    padding = items < 0
    known = np.where(padding, host.items[0], items)
    code_BML = torch.from_numpy(host.path_codes(known)).to(index.device)  # checks that all are in the index
    path = torch.from_numpy(host.nodes_of(host.rank_of[known])).to(index.device)
    state = scorer.start(prompts, normalize)
    total = torch.zeros(items.shape, device=index.device)
    node = torch.zeros(items.shape, dtype=torch.int64, device=index.device)
    beam = torch.arange(items.shape[1], device=index.device).expand(items.shape)
    for level in range(host.depth):
        code = code_BML[..., level]
        found = _step(scorer, state, level, beam, code_BML, host.level_sizes)
        values = found.values_BWS
        picked = values.expand(*items.shape, -1).gather(-1, code.clamp(max=values.shape[-1] - 1)[..., None])
        total_BW = children_total(index, level, node, values) if normalize == "children" else found.total_BW
        picked = picked.squeeze(-1) - (values.logsumexp(-1) if total_BW is None else total_BW)
        passed = host.ragged and code == host.pass_code(level)
        total = total + (torch.where(passed, 0.0, picked) if isinstance(passed, Tensor) else picked)
        node = path[..., level]
    out = total.cpu().numpy()
    if np.isnan(out[~padding]).any():
        raise DataError("the model returned NaN", hint="the weights or the inputs are not finite")
    return np.where(padding, np.float32(-np.inf), out)


def _step(
    scorer: Scorer,
    state: object,
    level: int,
    beam: Tensor,
    code_BML: Tensor,
    level_sizes: tuple[int, ...],
) -> StepScores:
    if level == 0:
        return scorer.step(state, None, None)
    before = code_BML[..., level - 1]
    # identifiers that have ended go on as dead beams
    fed = torch.where(before < level_sizes[level - 1], before, 0)
    return scorer.step(state, torch.zeros_like(beam) if level == 1 else beam, fed)
