"""Does the score tell a transferred motion from another one? Real clips under strong changes of look.

The clips are in ../shared, beside the repository.
"""

import cv2
import numpy as np
import pytest
from changed_looks import LOOKS
from repository import ROOT

from ditflow.evaluation.finished import whole_clip
from ditflow.evaluation.motion_match import CONTROLS
from ditflow.optical_flow.agreement import agreement
from ditflow.optical_flow.motion import measure_motion

VIDEOS = ROOT.parent / "shared" / "videos"
NAMES = ("bmx-trees", "car-turn", "hike", "lucia")
GRID, SIZE, FRAMES = (30, 45), (360, 240), 9

needs_clips = pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs the clips in ../shared/videos")


@pytest.fixture(scope="module")
def clips():
    """The start of each clip, at the size in which it is analysed."""
    found = {}
    for name in NAMES:
        frames = whole_clip(VIDEOS / f"{name}.mp4").frames[:FRAMES]
        found[name] = np.stack([cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA) for frame in frames])
    return found


def area_under_curve(positives, negatives):
    """The share of pairs in which the positive has the higher score."""
    return np.mean(np.subtract.outer(positives, negatives) > 0)


@needs_clips
def test_the_score_knows_its_clip_under_strong_changes_of_look(clips):
    """Against the other clips and against its own mirrored and reversed."""
    motions = {name: measure_motion(frames, *GRID) for name, frames in clips.items()}
    positives, negatives, first = [], [], 0
    for name, frames in clips.items():
        for look in LOOKS:
            changed = measure_motion(np.stack([look(frame) for frame in frames]), *GRID)
            own = agreement(motions[name], changed).score
            others = [agreement(motion, changed).score for key, motion in motions.items() if key != name]
            others += [
                agreement(CONTROLS[key](motions[name]), changed).score for key in ("mirrored", "reversed")
            ]
            positives.append(own)
            negatives += others
            first += own > max(others)
    assert area_under_curve(positives, negatives) >= 0.97
    assert first >= 0.95 * len(positives)
    assert min(positives) > 0.35 and np.median(negatives) < 0.15


@needs_clips
def test_a_real_clip_agrees_with_itself_alone(clips):
    frames = clips["bmx-trees"]
    motion = measure_motion(frames, *GRID)
    assert agreement(motion, measure_motion(frames, *GRID)).score == 1
    still = measure_motion(np.repeat(frames[:1], FRAMES, axis=0), *GRID)
    assert agreement(motion, still).still == ["result"] and agreement(motion, still).score == 0
    assert agreement(still, still).still == ["reference", "result"]
