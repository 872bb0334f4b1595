"""Draw a clip's motion flow: a sheet of all pairs of frames, and arrows over the clip."""

from __future__ import annotations

import numpy as np

from ditflow.pictures.flow_pictures import arrows, flow_sheet
from ditflow.video import Clip

LARGEST_SHEET = 2400  # pixels
SMALLEST_FRAME = 256  # pixels of height; smaller frames are enlarged, so that arrows do not hide them


def draw_flow(
    clip: Clip,
    flow: np.ndarray,  # [frames (query), frames (key), height, width, 2] in latent patches
) -> tuple[np.ndarray, Clip]:
    """The sheet, and a clip of the latent frames, each with arrows to the next one."""
    frames, _, _, width, _ = flow.shape
    sheet = flow_sheet(flow, max(1, LARGEST_SHEET // (frames * width * 2)))
    shown = latent_frames(len(clip.frames), frames)
    enlarge = -(-SMALLEST_FRAME // clip.frames.shape[1])
    pictures = [
        arrows(
            clip.frames[shown[index]].repeat(enlarge, axis=0).repeat(enlarge, axis=1),
            flow[index, min(index + 1, frames - 1)],
        )
        for index in range(frames)
    ]
    return sheet, Clip(np.stack(pictures), clip.frame_rate * frames / len(clip.frames))


def latent_frames(count: int, latent_count: int) -> list[int]:
    """The video frame to show for each latent frame: the middle one of those it encodes."""
    edges = np.linspace(0, count, latent_count + 1)
    return [int((first + last) // 2) for first, last in zip(edges, edges[1:], strict=False)]
