"""Track points of a video from its first frame to its last."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ditflow.errors import DitflowError, SettingsError, first_line
from ditflow.files import regular_file
from ditflow.optical_flow.dense import opencv
from ditflow.video import Clip

TRACKERS = ("lk", "cotracker")
GRID = 55  # points in each direction, as in the released evaluation
WINDOW = (15, 15)  # pixels around a point, by which it is recognised
RETURN = 1.0  # pixels: a point tracked forward and back must end closer to its start
# pinned to a revision of 2025-01-21, so that remote code cannot change unnoticed
REPOSITORY = "facebookresearch/co-tracker:82e02e8029753ad4ef13cf06be7f4fc5facdda4d"
ENTRY = "cotracker3_offline"
WEIGHTS = "https://huggingface.co/facebook/cotracker3/resolve/main/scaled_offline.pth"


@dataclass(frozen=True)
class Tracks:
    """The paths of a grid of points. An index is the same place in the first frame of every video."""

    places: np.ndarray  # [points, frames, 2] float64, (x, y) in pixels
    found: np.ndarray  # [points] bool: tracked to the last frame
    diagonal: float  # of the frame, pixels


def track(
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    tracker: str = "lk",
    weights: Path | None = None,  # CoTracker's; None takes them from the hub
) -> Tracks:
    """Track GRID x GRID points.

    Raises SettingsError for an unknown tracker, DitflowError if it is not installed or cannot be loaded.
    """
    if tracker not in TRACKERS:
        raise SettingsError(f"tracker {tracker!r}: give none or one of {', '.join(TRACKERS)}")
    if weights is not None and tracker != "cotracker":
        raise SettingsError(f"weights {weights} are for the tracker cotracker, not {tracker}")
    places, found = _cotracker(frames, weights) if tracker == "cotracker" else _lucas_kanade(frames)
    return Tracks(places.astype(np.float64), found, float(np.hypot(*frames.shape[1:3])))


def _lucas_kanade(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pyramidal Lucas-Kanade from frame to frame, in colour. Points without texture around them are lost."""
    cv2 = opencv()
    points = _grid(*frames.shape[1:3])
    if Clip(frames, Fraction(1)).is_still:  # points without texture are not lost then
        return np.repeat(points[:, None], len(frames), axis=1), np.ones(len(points), bool)
    places, found = [points], np.ones(len(points), bool)
    for before, after in zip(frames, frames[1:], strict=False):
        moved, there, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, winSize=WINDOW)
        returned, back, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, None, winSize=WINDOW)
        found &= (there & back).astype(bool)[:, 0] & (np.hypot(*(returned - points).T) < RETURN)
        places.append(moved)
        points = moved
    return np.stack(places, axis=1), found


def _grid(height: int, width: int) -> np.ndarray:
    """The centres of GRID x GRID cells, [points, 2] float32."""
    share = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    return np.stack(np.meshgrid(share * width - 0.5, share * height - 0.5), axis=-1).reshape(-1, 2)


def _cotracker(frames: np.ndarray, weights: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """CoTracker3; every point counts as found, as in the released evaluation."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = None if weights is None else _read_weights(weights)
    try:
        # a named revision without validation needs no network if the hub has it cached;
        # pretrained=True would unpickle the weights, which can run code
        predictor = torch.hub.load(REPOSITORY, ENTRY, pretrained=False, skip_validation=True, trust_repo=True)
        if state is None:
            state = torch.hub.load_state_dict_from_url(WEIGHTS, map_location="cpu", weights_only=True)
        predictor.model.load_state_dict(state)
    except Exception as error:  # remote code may raise anything
        reason = first_line(error)
        raise DitflowError(
            f"CoTracker3 cannot be loaded ({reason}): run it once with a network connection, "
            "or use --tracker lk"
        ) from None
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float()
    with torch.no_grad():
        places, _ = predictor.to(device)(video.to(device), grid_size=GRID)  # [1, frames, points, 2]
    found = places[0].transpose(0, 1).cpu().numpy()
    return found, np.ones(len(found), bool)


def _read_weights(path: Path) -> dict:
    """Read CoTracker's weights. They are a pickle, so only tensors are accepted."""
    import torch

    try:
        return torch.load(regular_file(path), map_location="cpu", weights_only=True)
    except DitflowError:
        raise
    except Exception as error:  # its type depends on the file's content
        reason = error.strerror if isinstance(error, OSError) else "it holds more than tensors, or is damaged"
        raise DitflowError(
            f"CoTracker3 cannot be loaded from {path} ({reason}): give another file, or use --tracker lk"
        ) from None
