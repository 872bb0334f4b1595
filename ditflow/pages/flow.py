"""The page's section about motion flow, read from the run's own model."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from einops import rearrange

from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.own_flow import OwnFlow, read_own_flow
from ditflow.models.families import family_of
from ditflow.pages.chosen import moves_target, target_line
from ditflow.pages.parts import filled, jpeg, png
from ditflow.pages.sharing import shared_text
from ditflow.pictures.clip_flow import latent_frames
from ditflow.pictures.flow_pictures import colour_wheel, scale_of
from ditflow.video import Clip

logger = logging.getLogger(__name__)

LARGEST_PICTURE = 640, 480  # pixels: largest frame behind arrows
PER_PATCH = 32  # vectors are whole numbers of this part of a patch: 1023 patches fit in 16 bits
FREE = -(1 << 15)  # stands for NaN


def flow_section(run: FinishedRun, index: int) -> tuple[str, dict[str, Any] | None]:
    """The part about a run and its script's data, or the reason and None if the flow cannot be read.

    index: of the run among those on the page.
    """
    try:
        blocks = read_own_flow(run)
    except DitflowError as error:
        logger.warning("%s: no motion flow (%s)", run.folder, error)
        return f"<p>Not available: {escape(shared_text(str(error), run))}</p>", None
    frames, _, height, width, _ = next(iter(blocks.values())).reference.shape
    has_target = run.has_target
    largest = scale_of(np.stack([np.stack([flow.reference, flow.result]) for flow in blocks.values()]))
    section = filled(
        "flow.html",
        index=str(index),
        asked=target_line(run.settings) if has_target else "",
        side="target" if has_target else "reference",
        largest=f"{largest:.3g}",
        blocks="".join(f"<option>{block}</option>" for block in blocks),
        last=str(frames - 1),
    )
    spans = family_of(run.settings.model).latent_spans(run.settings.frames)
    behind = {"reference": "result" if has_target and moves_target(run.settings) else "reference"}
    behind["result"] = "result"
    pictures = {side: _pictures(run.clip(name), spans) for side, name in behind.items()}
    found = {str(block): _block(flow, largest) for block, flow in blocks.items()}
    return section, {
        "frames": frames,
        "height": height,
        "width": width,
        "pictures": pictures,
        "blocks": found,
        "perPatch": PER_PATCH,
        "free": FREE,
    }


def _block(flow: OwnFlow, largest: float) -> dict[str, Any]:
    def side(pairs: np.ndarray) -> dict[str, str]:
        sheet = colour_wheel(rearrange(pairs, "q k h w c -> (q h) (k w) c"), largest)
        parts = np.where(np.isnan(pairs), FREE, np.rint(pairs * PER_PATCH)).astype("<i2")
        return {"sheet": png(sheet), "vectors": base64.b64encode(parts.tobytes()).decode()}

    return {"distance": flow.distance, "reference": side(flow.reference), "result": side(flow.result)}


def _pictures(clip: Clip, spans: Sequence[range]) -> list[str]:
    """One frame for each latent frame."""
    return [jpeg(clip.frames[index], LARGEST_PICTURE) for index in latent_frames(len(clip.frames), spans)]
