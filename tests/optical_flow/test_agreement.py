"""The agreement of two motions."""

from math import hypot

import numpy as np
import pytest
from moving_pictures import uniform

from ditflow.optical_flow.agreement import agree, agreement
from ditflow.optical_flow.motion import Motion


def wander(seed=0, steps=3, rows=5, columns=7):
    generator = np.random.default_rng(seed)
    forward = generator.normal(size=(steps, rows, columns, 2)).astype(np.float32)
    trust = generator.uniform(size=(steps, rows, columns)).astype(np.float32)
    return Motion(forward, -forward, trust, trust)


def test_the_formula():
    first, second = wander(0).forward.astype(float), wander(1).forward.astype(float)
    weights = wander(2).trust.astype(float)
    apart = together = 0.0
    for at in np.ndindex(weights.shape):
        (a, b), (c, d) = first[at], second[at]
        apart += weights[at] * hypot(a - c, b - d)
        together += weights[at] * (hypot(a, b) + hypot(c, d))
    expected = 1 - apart / together, together / weights.sum()
    assert agree(first, second, weights) == pytest.approx(expected, rel=1e-12)


def test_a_motion_agrees_with_itself():
    motion = wander()
    found = agreement(motion, motion)
    assert found.score == found.whole == found.camera == found.objects == found.reach == 1
    assert found.direction == pytest.approx(1)
    assert found.compared == pytest.approx((motion.trust**2).mean()) and found.still == []


@pytest.mark.parametrize(
    "result, whole, direction, reach",
    [
        ((2, 0), 1, 1, 1),
        ((1, 0), 2 / 3, 1, 0.5),
        ((6, 0), 0.5, 1, 3),
        ((-2, 0), 0, -1, 1),
        ((0, 2), 1 - 2**-0.5, 0, 1),
    ],
    ids=["same", "half as far", "thrice as far", "opposite", "across"],
)
def test_speed_and_direction_count(result, whole, direction, reach):
    found = agreement(uniform(2, 0), uniform(*result))
    assert [found.whole, found.camera, found.score] == pytest.approx([whole] * 3, abs=1e-6)
    assert found.objects is None  # none moves
    assert found.direction == pytest.approx(direction, abs=1e-6)
    assert found.reach == pytest.approx(reach)


def test_place_counts():
    """The same motion elsewhere does not agree."""
    left, right = uniform(0, 0, rows=12, columns=16), uniform(0, 0, rows=12, columns=16)
    motions = []
    for motion, columns in ((left, slice(0, 3)), (right, slice(9, 12))):
        forward = motion.forward.copy()
        forward[:, 4:8, columns] = (3, 0)
        motions.append(Motion(forward, -forward, motion.trust, motion.trust))
    found = agreement(*motions)
    assert found.camera is None  # it stands
    assert found.whole == pytest.approx(0) and found.objects == pytest.approx(0, abs=1e-3)
    assert found.direction is None and found.reach == pytest.approx(1)


def test_camera_and_objects_are_judged_apart():
    """The same pan, and an object that moves against the clip's."""
    pan, motions = uniform(3, 1, rows=12, columns=16), []
    for x in (2, -2):
        forward = pan.forward.copy()
        forward[:, 4:8, 4:8] += (x, 0)
        motions.append(Motion(forward, -forward, pan.trust, pan.trust))
    found = agreement(*motions)
    assert found.camera == pytest.approx(1, abs=1e-3) and found.objects == pytest.approx(0, abs=1e-2)
    assert found.objects < found.score < found.whole


def test_what_is_not_trusted_does_not_count():
    first, second = wander(0), wander(0)
    wrong = second.forward.copy()
    wrong[0] = 100
    trust = second.trust.copy()
    trust[0] = 0
    found = agreement(first, Motion(wrong, -wrong, trust, trust))
    assert found.whole == 1 and found.compared < (first.trust**2).mean()


def test_still_videos_are_named():
    still, moving = uniform(0, 0), uniform(1, 0)
    for reference, result, score, names in [
        (still, still, 1, ["reference", "result"]),
        (moving, still, 0, ["result"]),
        (still, moving, 0, ["reference"]),
    ]:
        found = agreement(reference, result)
        assert (found.score, found.still, found.reach) == (score, names, None)


def test_unknown_motion_has_no_score():
    found = agreement(uniform(1, 0, trust=0.1), uniform(1, 0, trust=0.1))
    assert found.score is None and found.compared == pytest.approx(0.01)
    assert agreement(uniform(1, 0, steps=0), uniform(1, 0)).score is None


def test_videos_of_different_length():
    assert agreement(wander(steps=3), wander(steps=3).cut(2)).score == 1
