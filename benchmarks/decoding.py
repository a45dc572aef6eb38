"""The decoder: index, constrained select, filters, whole searches beside `generate`, cold items.

One thread and process CPU time; candidates interleaved A B A B; ratios of medians. The grids are frozen in the
modules below.
"""

from __future__ import annotations

import decoding_cost
import decoding_index
import decoding_loop
import decoding_parallel
import decoding_select
import decoding_trained
from run import Figure

FIGURES: list[Figure] = [
    *decoding_index.FIGURES,
    *decoding_parallel.FIGURES,
    *decoding_trained.FIGURES,
    *decoding_loop.FIGURES,
    *decoding_select.FIGURES,
    *decoding_cost.FIGURES,
]
