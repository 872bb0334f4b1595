"""Previews of drawn motion: what they show is where the drawing says, and its flow is the drawn target."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from drawings import STILL, camera, figure

from ditflow.models.families import family_of
from ditflow.models.protocols import Grid
from ditflow.motion.drawing import Drawing
from ditflow.motion.drawn import drawn_target
from ditflow.motion.preview import PLAIN, preview
from ditflow.optical_flow.tokens import token_flow

FRAMES, WIDTH, HEIGHT = 24, 96, 64
SPANS = family_of("small").latent_spans(FRAMES)
CAMERAS = {
    "pan": camera((0, 0, 0, 1, 0), (1, 0.4, -0.2, 1, 0)),
    "zoom": camera((0, 0, 0, 1, 0), (1, 0, 0, 1.6, 0)),
    "zoom_out": camera((0, 0, 0, 1, 0), (1, 0, 0, 0.5, 0)),
    "rotation": camera((0, 0, 0, 1, 0), (1, 0, 0, 1, 40)),
    "all": camera((0, 0, 0, 1, 0), (0.5, 0.2, 0.1, 1.2, -20), (1, 0.3, -0.1, 0.9, -30)),
}
ACROSS = figure("ellipse", (0, 0.2, 0.5, 0.3, 0.45), (1, 0.8, 0.5, 0.3, 0.45))


def shown(drawing, frames=FRAMES, size=(WIDTH, HEIGHT)):
    """The frames of a preview as floats."""
    return preview(drawing, frames, size, Fraction(8)).frames.astype(float)


def painted(pictures):
    """The pixels that differ from the plain ground."""
    return (pictures != PLAIN).any(axis=-1)


def values(points, numbers, times):
    return np.stack([np.interp(times, points, column) for column in numbers.T])


def filmed(camera, time):
    """The matrix [2, 3] that brings places of the plane, in pixels, to those of the frame at a time."""
    ((x,), (y,)), ((zoom,),), ((degrees,),) = (
        values(camera.times, each, [time]) for each in (camera.pan, camera.zoom, camera.rotate)
    )
    angle = -np.deg2rad(degrees)
    turned = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = np.array([WIDTH, HEIGHT]) / 2 - turned @ (x * WIDTH, y * HEIGHT)
    return np.column_stack([turned, offset])


def resampled(picture, later, earlier):
    """A picture of the earlier frame as the later one shows it, and which of its pixels are known."""
    below = [0, 0, 1]
    back = np.vstack([earlier, below]) @ np.linalg.inv(np.vstack([later, below]))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    at = (back[:2, :2] @ [x.ravel(), y.ravel()] + back[:2, 2:] - 0.5).reshape(2, HEIGHT, WIDTH)
    known = ((at > 0) & (at < np.array([WIDTH - 1, HEIGHT - 1])[:, None, None])).all(axis=0)
    return cv2.remap(picture, *at.astype(np.float32), cv2.INTER_CUBIC), known


@pytest.mark.parametrize("moving", CAMERAS.values(), ids=CAMERAS)
def test_the_ground_is_where_the_camera_shows_it(moving):
    """To a grey level; with zoom, details come and go as well."""
    pictures = shown(Drawing(moving, ()))
    for later in (1, 12, 23):
        earlier = later // 2
        found, known = resampled(pictures[earlier], filmed(moving, later / 23), filmed(moving, earlier / 23))
        difference = np.abs(found - pictures[later])[known].mean()
        unmoved = np.abs(pictures[later] - pictures[earlier])[known].mean()
        assert known.mean() > 0.3 and unmoved > 2
        assert difference < (1 if np.ptp(moving.zoom) == 0 else 0.5 * unmoved)


@pytest.mark.parametrize("shape", ["box", "ellipse"])
def test_an_object_is_where_its_path_says(shape):
    drawn = figure(shape, (0, 0.3, 0.4, 0.2, 0.3), (0.4, 0.35, 0.6, 0.4, 0.3), (1, 0.7, 0.45, 0.25, 0.6))
    pictures = shown(Drawing(None, (drawn,)), size=(480, 320))
    x, y = values(drawn.times, drawn.center, np.arange(24) / 23) * np.array([[480], [320]])
    width, height = values(drawn.times, drawn.size, np.arange(24) / 23) * np.array([[480], [320]])
    for frame, inside in enumerate(painted(pictures)):
        rows, columns = np.nonzero(inside)
        assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x[frame], y[frame]), abs=0.5)
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == pytest.approx((width[frame], height[frame]), abs=2)
        share = {"box": 1, "ellipse": np.pi / 4}[shape]
        assert inside.sum() == pytest.approx(width[frame] * height[frame] * share, rel=0.06)


def test_the_content_of_an_object_moves_with_it():
    drawn = figure("box", (0, 0.25, 0.25, 0.25, 0.375), (1, 0.25 + 46 / 96, 0.25 + 23 / 64, 0.25, 0.375))
    pictures = shown(Drawing(STILL, (drawn,)))
    for frame in (5, 23):  # 2 pixels to the right and 1 down in each
        moved = pictures[frame, 4 + frame : 28 + frame, 12 + 2 * frame : 36 + 2 * frame]
        assert np.abs(moved - pictures[0, 4:28, 12:36]).max() <= 1
    assert pictures[0, 4:28, 12:36].std(axis=(0, 1)).min() > 10


def test_the_content_of_an_object_grows_with_it():
    drawn = figure("box", (0, 0.5, 0.5, 0.4, 0.5), (1, 0.5, 0.5, 0.8, 0.8))
    pictures = shown(Drawing(None, (drawn,)), frames=2, size=(480, 320))
    first, last = pictures[0, 80:240, 144:336, 1], pictures[1, 32:288, 48:432, 1]
    grown = cv2.resize(first, (384, 256), interpolation=cv2.INTER_CUBIC)
    assert np.corrcoef(grown.ravel(), last.ravel())[0, 1] > 0.7  # finer details are new
    assert np.corrcoef(grown[:, ::-1].ravel(), last.ravel())[0, 1] < 0.3


def test_a_later_object_hides_an_earlier_one():
    left, right = (figure("box", (0, x, 0.5, 0.5, 0.5)) for x in (0.375, 0.625))
    for figures in ((left, right), (right, left)):
        (picture,) = shown(Drawing(None, figures), frames=1)
        orange, blue = (shades[..., 0] > shades[..., 2] for shades in (picture, -picture))
        assert blue[16:48, 36:60].all()  # what both cover has the second one's colour
        assert orange[16:48, 12:36].all() != orange[16:48, 60:84].all()


def test_edges_are_soft():
    """A box whose left side is in the middle of a pixel, and its top a quarter into one."""
    drawn = figure("box", (0, 0.5, 0.5, 0.5 + 1 / 96, 0.5 + 1.5 / 64))
    picture = shown(Drawing(None, (drawn,)), frames=1)[0, :, :, 0] - PLAIN
    inside = picture[16:48, 24:72]
    assert inside.min() > 100
    assert picture[16:48, 23] == pytest.approx(inside[:, 0] / 2, rel=0.2)
    assert picture[15, 24:72] == pytest.approx(inside[0] * 0.75, rel=0.2)
    assert not picture[:, 22].any() and not picture[14].any()


def test_the_ground_is_plain_without_a_camera_and_textured_with_one():
    outside = np.r_[:8, 56:64]
    free, still = (shown(Drawing(each, (ACROSS,)))[:, outside] for each in (None, STILL))
    assert (free == PLAIN).all()
    assert (still == still[0]).all() and still[0].std(axis=(0, 1)).min() > 10


@pytest.mark.parametrize("zoom", [0.01, 1, 100])
def test_the_ground_is_textured_wherever_the_camera_looks(zoom):
    far = camera((0, 0, 0, 1, 0), (0.5, 100, -100, zoom, 0), (1, -37, 11, zoom, 3600))
    for picture in shown(Drawing(far, ()), frames=9):
        assert picture.std(axis=(0, 1)).min() > 8
        tiles = picture[..., 0].reshape(4, 16, 4, 24).std(axis=(1, 3))
        assert tiles.min() > 3


def test_objects_outside_of_the_frame_or_smaller_than_a_pixel_are_no_harm():
    away, tiny = figure("box", (0, -3, 0.5, 0.2, 0.2)), figure("ellipse", (0, 0.5, 0.5, 0.001, 0.001))
    assert (shown(Drawing(None, (away,))) == PLAIN).all()
    assert painted(shown(Drawing(None, (tiny, away)))).sum(axis=(1, 2)).max() <= 4


def test_a_preview_is_a_clip_and_always_the_same():
    drawing = Drawing(CAMERAS["all"], (ACROSS,))
    clips = [preview(drawing, 9, (48, 32), Fraction(24, 5)) for _ in range(2)]
    assert clips[0].frames.shape == (9, 32, 48, 3) and clips[0].frames.dtype == np.uint8
    assert clips[0].frame_rate == Fraction(24, 5)
    assert np.array_equal(clips[0].frames, clips[1].frames)


def errors(drawing, grid, size):
    """Of a preview's flow, in patches, where the drawing asks for motion; and the share that is known."""
    times = np.array([span[2] for span in SPANS]) / 23  # of the frames that `token_flow` compares
    target = drawn_target(drawing, grid, times).numpy()
    found = token_flow(preview(drawing, FRAMES, size, Fraction(8)).frames, grid, SPANS)
    moving = np.linalg.norm(target, axis=-1) > 0.5
    known = moving & np.isfinite(found[..., 0])
    assert moving.mean() > 0.02 and np.linalg.norm(target[moving], axis=-1).max() > 1.5
    return np.linalg.norm(found - target, axis=-1)[known], known.sum() / moving.sum()


@pytest.mark.parametrize("moving", CAMERAS.values(), ids=CAMERAS)
def test_the_flow_of_a_camera_is_the_target(moving):
    error, known = errors(Drawing(moving, ()), Grid(6, 8, 12), (WIDTH, HEIGHT))
    assert known > 0.9 and error.mean() < 0.12 and np.percentile(error, 95) < 0.35


OVER_STILL = (
    figure("box", (0, 0.15, 0.3, 0.25, 0.35), (1, 0.85, 0.7, 0.25, 0.35)),
    figure("ellipse", (0, 0.85, 0.35, 0.3, 0.4), (1, 0.15, 0.65, 0.2, 0.25)),
)


@pytest.mark.parametrize(
    "drawing, grid, mean, median",
    [
        pytest.param(Drawing(None, (ACROSS,)), Grid(6, 8, 12), 0.05, 0.04, id="alone"),
        pytest.param(Drawing(STILL, (ACROSS,)), Grid(6, 8, 12), 0.5, 0.3, id="over_a_ground"),
        pytest.param(Drawing(STILL, OVER_STILL), Grid(6, 20, 30), 0.3, 0.15, id="crossing"),
    ],
)
def test_the_flow_of_objects_is_the_target(drawing, grid, mean, median):
    """At an object's edge, dense flow is partly that of the ground."""
    error, known = errors(drawing, grid, (grid.width * 8, grid.height * 8))
    assert known > 0.5 and error.mean() < mean and np.median(error) < median
