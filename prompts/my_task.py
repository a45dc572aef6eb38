"""A worked task of your own: ``my_task:fill_gap`` in a recipe. Its template is fill_gap.jinja, beside this file."""

import numpy as np

from genrec.prompts.data import Row, TaskData


def fill_gap(data: TaskData, row: Row, random: np.random.Generator) -> dict[str, object] | None:
    """A history with one item taken out → that item."""
    if len(row.history) < 3:
        return None  # nothing on both sides of a gap: another user is drawn
    gap = int(random.integers(1, len(row.history) - 1))
    return {"before": row.history[:gap], "after": row.history[gap + 1 :], "item": row.history[gap]}
