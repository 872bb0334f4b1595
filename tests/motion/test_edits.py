"""Changes of targets against what they mean cell by cell."""

import math

import pytest
import torch

from ditflow.models.protocols import Grid
from ditflow.motion.edits import combined, flipped, inside, reversed_in_time, scaled, shifted

GRID = Grid(3, 4, 5)


def drawn_target(seed=0):
    """Random displacements that stay inside the frame, a fifth of them free."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    reached = torch.rand(3, 3, 20, 2, generator=draw) * torch.tensor([4.0, 3.0])
    target = reached - torch.stack([x.flatten(), y.flatten()], dim=-1)
    return target.masked_fill(torch.rand(3, 3, 20, 1, generator=draw) < 0.2, torch.nan)


def cell_by_cell(rule):
    """Every row by `rule(query, key, x, y)`: a displacement or None."""
    target = torch.full((3, 3, 20, 2), torch.nan)
    for query in range(3):
        for key in range(3):
            for cell in range(20):
                found = rule(query, key, cell % 5, cell // 5)
                if found is not None:
                    target[query, key, cell] = torch.as_tensor(found)
    return target


def free_outside(target):
    def rule(query, key, x, y):
        to_x, to_y = (target[query, key, 5 * y + x] + torch.tensor([x, y])).tolist()
        stays = -0.5 <= to_x <= 4.5 and -0.5 <= to_y <= 3.5
        return target[query, key, 5 * y + x] if stays else None

    return cell_by_cell(rule)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, -1.0, 0.0])
def test_scaled(factor):
    target = drawn_target()
    expected = free_outside(target * factor)
    assert_same(scaled(target, GRID, factor), expected)
    if factor == 2:
        assert expected.isnan().sum() > target.isnan().sum()  # some leave the frame
    if factor == 1:
        assert_same(expected, target)


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_flipped(axis):
    target = drawn_target()

    def rule(query, key, x, y):
        if axis == "horizontal":
            across, down = target[query, key, 5 * y + 4 - x]
            return torch.stack([-across, down])
        across, down = target[query, key, 5 * (3 - y) + x]
        return torch.stack([across, -down])

    assert_same(flipped(target, GRID, axis), cell_by_cell(rule))
    assert_same(inside(flipped(target, GRID, axis), GRID), flipped(target, GRID, axis))


def test_reversed():
    target = drawn_target()
    assert_same(reversed_in_time(target), cell_by_cell(lambda q, k, x, y: target[2 - q, 2 - k, 5 * y + x]))


@pytest.mark.parametrize("x, y", [(0.2, 0), (-0.4, 0.25), (0, -0.5), (0.31, 0.1), (0, 0), (1, 0), (0, -3)])
def test_shifted(x, y):
    target = drawn_target()
    right, down = math.floor(5 * x + 0.5), math.floor(4 * y + 0.5)

    def rule(query, key, column, row):
        from_column, from_row = column - right, row - down
        if 0 <= from_column < 5 and 0 <= from_row < 4:
            return target[query, key, 5 * from_row + from_column]
        return None

    assert_same(shifted(target, GRID, x, y), free_outside(cell_by_cell(rule)))


def test_the_frame_ends_half_a_patch_beyond_the_outer_cells():
    target = torch.zeros(1, 1, 20, 2)
    target[0, 0, 0] = torch.tensor([-0.5, -0.5])
    target[0, 0, 19] = torch.tensor([0.5, 0.5])
    assert_same(inside(target, Grid(1, 4, 5)), target)
    for cell, displacement in ((0, (-0.51, 0)), (0, (0, -0.51)), (19, (0.51, 0)), (19, (0, 0.51))):
        beyond = target.clone()
        beyond[0, 0, cell] = torch.tensor(displacement)
        found = inside(beyond, Grid(1, 4, 5)).isnan()
        assert found[0, 0, cell].all() and found.sum() == 2


def test_a_row_that_is_nan_in_one_component_is_free():
    target = torch.zeros(3, 3, 20, 2)
    target[1, 2, 7, 0] = torch.nan
    assert inside(target, GRID)[1, 2, 7].isnan().all()


def test_combined():
    within, elsewhere = drawn_target(), drawn_target(1)
    cells = torch.rand(3, 20, generator=torch.Generator().manual_seed(2)) < 0.4

    def rule(query, key, x, y):
        return (within if cells[query, 5 * y + x] else elsewhere)[query, key, 5 * y + x]

    assert_same(combined(within, cells, elsewhere), cell_by_cell(rule))

    def alone(query, key, x, y):
        return within[query, key, 5 * y + x] if cells[query, 5 * y + x] else None

    assert_same(combined(within, cells), cell_by_cell(alone))


def test_the_given_target_is_not_changed():
    target = drawn_target()
    before = target.clone()
    scaled(target, GRID, 2), flipped(target, GRID, "vertical"), reversed_in_time(target)
    shifted(target, GRID, 0.4, 0.25), combined(target, torch.zeros(3, 20, dtype=torch.bool))
    assert_same(target, before)
