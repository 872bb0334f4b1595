"""Draw a clip's motion flow: a sheet of all pairs of frames, and arrows over the clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ditflow.pictures.flow_pictures import arrows, flow_sheet
from ditflow.video import Clip

LARGEST_SHEET = 2400  # pixels
SMALLEST_FRAME = 256  # pixels of height; smaller frames are enlarged, so that arrows do not hide them


def draw_flow(
    clip: Clip,
    flow: np.ndarray,  # [frames (query), frames (key), height, width, 2] in latent patches; NaN where free
    spans: Sequence[range],  # of `ModelFamily.latent_spans`
) -> tuple[np.ndarray, Clip]:
    """The sheet, and a clip of the latent frames, each with arrows to the next one."""
    frames, _, _, width, _ = flow.shape
    sheet = flow_sheet(flow, max(1, LARGEST_SHEET // (frames * width * 2)))
    shown = latent_frames(len(clip.frames), spans)
    enlarge = -(-SMALLEST_FRAME // clip.frames.shape[1])
    pictures = [
        arrows(
            clip.frames[shown[index]].repeat(enlarge, axis=0).repeat(enlarge, axis=1),
            flow[index, min(index + 1, frames - 1)],
        )
        for index in range(frames)
    ]
    return sheet, Clip(np.stack(pictures), clip.frame_rate * frames / len(clip.frames))


def latent_frames(count: int, spans: Sequence[range]) -> list[int]:
    """The video frame, of `count`, to show for each latent frame: the middle one of those it encodes."""
    return [min(span[len(span) // 2], count - 1) for span in spans]
