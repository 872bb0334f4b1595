"""Follows a part of a video's first frame through the video, by dense flow."""

from __future__ import annotations

import numpy as np

from ditflow.optical_flow.dense import CELL, dis, opencv, resized, sample, smoothed

MARGIN = CELL  # pixels, as many as DIS compares at once: nearer to the edge, flow is partly that of the rest


def follow(
    mask: np.ndarray,  # [height, width] bool: the part of the first frame
    frames: np.ndarray,  # [frames, height, width, 3] uint8
    rows: int,
    columns: int,
) -> np.ndarray:  # [frames, rows * CELL, columns * CELL] bool
    """Where the part is in every frame. What leaves the frame is gone.

    Each pixel is traced back to the first frame: through the frame before, then by flow straight to the first
    frame, which does not drift. Only the flow inside the part is used, and carried on to its edge: dense flow
    is smooth, so that at the edge it would stretch the part over the ground that it uncovers.

    Raises DitflowError if OpenCV is not installed.
    """
    search = dis()
    first, *later = smoothed(frames, rows, columns)
    start = resized(mask.astype(np.float32), *first.shape)
    origin = np.zeros((*first.shape, 2), np.float32)  # from each pixel to its place in the first frame
    parts, before = [start > 0.5], first
    for picture in later:
        back = search.calc(picture, before, None)
        back = _carried_on(back, sample(_core(parts[-1]).astype(np.float32), back) > 0.5)
        through = back + sample(origin, back)
        straight = search.calc(picture, first, through.copy())
        straight = _carried_on(straight, _core(_part(start, straight)))
        found, again = _part(start, through), _part(start, straight)
        # without overlap it has found something else
        better = (found & again).any() and (
            _unlike(picture, first, straight, again) < _unlike(picture, first, through, found)
        )
        origin = straight if better else through
        parts.append(again if better else found)
        before = picture
    return np.stack(parts)


def _part(start: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """The pixels [height, width] that come from the part, and from inside the frame."""
    height, width = start.shape
    y, x = np.mgrid[:height, :width]
    x, y = x + origin[..., 0], y + origin[..., 1]
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    return inside & (sample(start, origin) > 0.5)


def _core(part: np.ndarray) -> np.ndarray:
    """The pixels of a part that lie further than MARGIN from its edge; of a thin part, its middle."""
    cv2 = opencv()
    depth = cv2.distanceTransform(np.pad(part, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return depth > min(MARGIN, depth.max() / 2)


def _carried_on(
    flow: np.ndarray,  # [height, width, 2]
    core: np.ndarray,  # [height, width] bool
) -> np.ndarray:
    """The flow of the core, and elsewhere that of the core's nearest pixel; without a core, the flow."""
    if not core.any():
        return flow
    cv2 = opencv()
    outside = (~core).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    by_label = np.zeros((nearest.max() + 1, 2), flow.dtype)
    by_label[nearest[core]] = flow[core]
    return by_label[nearest]


def _unlike(after: np.ndarray, first: np.ndarray, origin: np.ndarray, part: np.ndarray) -> float:
    """Mean difference in grey levels between the pixels of a part and where they come from."""
    return float(np.abs(sample(first, origin).astype(np.float32) - after)[part].mean())
