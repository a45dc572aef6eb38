"""A, F and LA of DSI++ on a matrix made by hand."""

import numpy as np
import pytest

from genrec.metrics.forgetting import average, forgetting, learning

NAN = float("nan")
P = np.array([[0.50, NAN, NAN], [0.40, 0.30, NAN], [0.44, 0.10, 0.60]])


def test_by_hand():
    assert [average(P, n) for n in range(3)] == pytest.approx([0.5, (0.4 + 0.3) / 2, (0.44 + 0.1 + 0.6) / 3])
    assert [learning(P, n) for n in range(3)] == pytest.approx([0.5, (0.5 + 0.3) / 2, (0.5 + 0.3 + 0.6) / 3])
    # batch 0 was best before step 1 (.50, not .40), batch 1 right after it was learned
    assert [forgetting(P, n) for n in range(3)] == pytest.approx([0, 0.5 - 0.4, ((0.5 - 0.44) + (0.3 - 0.1)) / 2])
    assert forgetting(P) == forgetting(P, 2) and forgetting([[0.2, 0], [0.3, 0.1]]) == pytest.approx(-0.1)


@pytest.mark.parametrize("wrong", [[0.1, 0.2], [[0.1, 0.2]], np.zeros((0, 0)), [[NAN]]])
def test_what_is_no_such_matrix_is_an_error(wrong):
    for figure in (average, forgetting, learning):
        with pytest.raises(ValueError, match="values"):
            figure(wrong)
    with pytest.raises(ValueError, match="step"):
        average(P, 3)
