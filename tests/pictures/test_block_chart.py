"""The chart of scores by block: each dot is where its score belongs."""

import numpy as np
import pytest

from ditflow.pictures.block_chart import CHOSEN, HEIGHT, LEFT, LINES, TOP, WIDTH, block_chart


def dot(chart, block, score, count, panel=0):
    """The colour at the place of a score."""
    height = chart.shape[0] // 2 if panel else 0
    x, y = LEFT + (block + 0.5) * WIDTH / count, height + TOP + (1 - score) * HEIGHT
    return tuple(chart[round(y), round(x)])


def test_dots_lines_and_the_chosen_block():
    first = {"t = 0": [0.2, 0.9, None], "t = 500": [0.1, 0.5, 0.4]}
    chart = block_chart({"one": first, "two": {"t = 0": [0.75, 0.1, -0.3]}}, [3, 4, 9], chosen=4)
    assert dot(chart, 0, 0.2, 3) == dot(chart, 1, 0.9, 3) == LINES[0]
    assert [dot(chart, block, score, 3) for block, score in enumerate((0.1, 0.5, 0.4))] == [LINES[1]] * 3
    assert dot(chart, 0.5, 0.55, 3) == LINES[0]  # on the line between two dots
    assert dot(chart, 0, 0.75, 3, panel=1) == dot(chart, 2, 0, 3, panel=1) == LINES[0]  # negative: at 0
    assert dot(chart, 1, 0.97, 3) == dot(chart, 1, 0.97, 3, panel=1) == CHOSEN
    assert dot(chart, 0, 0.97, 3) != CHOSEN
    assert not (block_chart({"one": first}, [3, 4, 9], chosen=None) == CHOSEN).all(axis=-1).any()


@pytest.mark.parametrize("count", [1, 42, 300])
def test_any_number_of_blocks(count):
    chart = block_chart({"one": {"t = 0": [0.5] * count}}, list(range(count)), chosen=count - 1)
    assert dot(chart, 0, 0.5, count) == dot(chart, count - 1, 0.5, count) == LINES[0]
    labels = chart[TOP + HEIGHT + 8 : TOP + HEIGHT + 24]  # numbers do not run into each other
    dark = (labels.max(axis=-1) < 128).any(axis=0)
    assert np.diff(np.flatnonzero(np.diff(dark.astype(int)) == -1)).size < 200
