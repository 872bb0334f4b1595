"""What guidance asks for, put together from a clip's flow, a mask, two cameras and a drawing."""

import pytest
import torch

from ditflow.models.protocols import Grid
from ditflow.motion.chosen import TENSORS, ChosenMotion
from ditflow.motion.edits import flipped, reversed_in_time, shifted
from ditflow.settings import Settings

GRID = Grid(3, 4, 5)
SHAPE = (3, 3, 20, 2)


def flow(seed=0, share_still=0.3):
    """Hard flow that stays inside the frame; some of it is still."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    reached = torch.stack([torch.randint(side, SHAPE[:3], generator=draw) for side in (5, 4)], dim=-1)
    found = (reached - torch.stack([x.flatten(), y.flatten()], dim=-1)).float()
    return found.masked_fill(torch.rand(*SHAPE[:3], 1, generator=draw) < share_still, 0)


def cells(seed=5):
    return torch.rand(3, 20, generator=torch.Generator().manual_seed(seed)) < 0.4


def chosen(tensors=(), **settings):
    given = {"model": "small", "video": "clip.mp4", "mask": "mask.png", **settings}
    return ChosenMotion(Settings(**given), GRID, **dict(tensors))


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_only_moving_patches_inside_the_mask_count():
    seen, counted = flow(), cells()
    found = chosen({"counted": counted}).target(seen)
    for query in range(3):
        for key in range(3):
            for cell in range(20):
                asked = counted[query, cell] and seen[query, key, cell].any()
                assert found[query, key, cell].isnan().logical_not().all() == asked
    given = ~found.isnan()
    assert torch.equal(found[given], seen[given]) and given.any() and not given.all()


def test_still_patches_count_if_all_rows_do():
    found = chosen({"counted": torch.ones(3, 20, dtype=torch.bool)}, rows="all").target(flow())
    assert_same(found, flow())


@pytest.mark.parametrize(
    "settings, change",
    [
        ({"flip": "horizontal"}, lambda target: flipped(target, GRID, "horizontal")),
        ({"reverse_motion": True}, reversed_in_time),
        ({"motion_shift": (0.2, -0.25)}, lambda target: shifted(target, GRID, 0.2, -0.25)),
    ],
    ids=["flip", "reverse", "shift"],
)
def test_the_mask_moves_with_the_motion(settings, change):
    """Where the second camera counts is what the moved mask leaves."""
    everywhere, counted = torch.full(SHAPE, 0.5), cells()
    tensors = {"counted": counted, "elsewhere": everywhere}
    found = chosen(tensors, rows="all", camera_from="b.mp4", **settings).target(flow(share_still=0))
    masked, mask = (
        change(target.where(counted[:, None, :, None], torch.nan))
        for target in (flow(share_still=0), torch.zeros(SHAPE))
    )
    assert_same(found, masked.where(~mask.isnan(), everywhere))
    assert (found == 0.5).all(dim=-1).any() and not (found == 0.5).all()


def test_hidden_patches_inside_the_mask_stay_free():
    """The second camera's motion does not fill what nothing is asked of inside the mask."""
    counted = cells()
    found = chosen({"counted": counted, "elsewhere": torch.ones(SHAPE)}, camera_from="b.mp4").target(flow())
    inside = counted[:, None, :, None].expand(SHAPE)
    still = (flow() == 0).all(dim=-1, keepdim=True).expand(SHAPE)
    assert found[inside & still].isnan().all()
    assert (found[~inside] == 1).all()


def test_scale_leaves_the_place_and_frees_what_leaves_the_frame():
    seen = torch.zeros(SHAPE)
    seen[0, 1, 0] = torch.tensor([2.0, 1.0])  # of the corner
    seen[0, 1, 4] = torch.tensor([-3.0, 0.0])  # to column 1
    found = chosen(mask="", motion_scale=2).target(seen)
    assert found[0, 1, 0].tolist() == [4, 2]
    assert found[0, 1, 4].isnan().all()
    assert (~found.isnan()).sum() == 2


def test_the_camera_replaces_what_a_block_sees():
    camera = torch.full(SHAPE, 0.25)
    assert_same(chosen({"camera": camera}, mask="", transfer="camera").target(flow()), camera)
    masked = chosen({"camera": camera, "counted": cells()}, transfer="camera").target(flow())
    assert_same(masked, camera.where(cells()[:, None, :, None], torch.nan))


def test_a_drawing_lies_over_the_clip():
    drawn = torch.full(SHAPE, torch.nan)
    drawn[0, 1, 3] = 1.0  # the cell's content is hidden in frame 2, where nothing is asked of it
    found = chosen({"drawn": drawn}, mask="", motion="a.yaml", rows="all").target(flow())
    expected = flow()
    expected[0, :, 3] = torch.nan
    expected[0, 1, 3] = 1.0
    assert_same(found, expected)
    unchanged = chosen({"drawn": drawn}, mask="", motion="a.yaml", motion_scale=3).target(flow())
    assert unchanged[0, 1, 3].tolist() == [1, 1]


def test_a_drawing_alone():
    drawn = torch.full(SHAPE, torch.nan)
    drawn[0, 1, 3] = 1.0
    assert_same(chosen({"drawn": drawn}, video="", mask="", motion="a.yaml").target(), drawn)


def test_tensors_are_what_makes_it_again():
    tensors = {"counted": cells(), "camera": flow(1), "elsewhere": flow(2), "drawn": flow(3)}
    assert tuple(tensors) == TENSORS
    made = chosen(tensors, camera_from="b.mp4", motion="a.yaml", transfer="camera")
    assert made.tensors.keys() == tensors.keys()
    assert_same(
        chosen(made.tensors, camera_from="b.mp4", motion="a.yaml").target(flow()),
        chosen(tensors, camera_from="b.mp4", motion="a.yaml").target(flow()),
    )
    assert chosen(mask="", flip="vertical").tensors == {}
