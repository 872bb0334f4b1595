"""The page's section about the motion in the frames: the optical flow of clip and result side by side."""

from __future__ import annotations

import logging
from html import escape
from typing import Any

import numpy as np
from einops import rearrange

from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.motion_match import CONTROLS, Pair
from ditflow.optical_flow.motion import SPAN
from ditflow.pages.chosen import comparison_line
from ditflow.pages.parts import filled, png
from ditflow.pages.sharing import shared_text
from ditflow.pictures.flow_pictures import colour_wheel, heat, scale_of

logger = logging.getLogger(__name__)

NUMBERS = {  # titles of the numbers of an agreement
    "score": "motion",
    "camera": "camera",
    "objects": "objects",
    "direction": "direction",
    "reach": "reach",
    "compared": "share of the frame compared",
}


def motion_section(run: FinishedRun, index: int) -> tuple[str, dict[str, Any] | None]:
    """The part about a run and its script's data, or the reason and None if there is no motion to show.

    index: of the run among those on the page.
    """
    clip, result = (run.clip(name) for name in ("reference", "result"))
    try:
        pair = Pair.measure(clip.frames, result.frames)
    except DitflowError as error:
        logger.warning("%s: no optical flow (%s)", run.folder, error)
        return f"<p>Not available: {escape(shared_text(str(error), run))}</p>", None
    steps = min(len(pair.clip.forward), len(pair.result.forward))
    if not steps:
        return "<p>A single frame has no motion.</p>", None
    fields = pair.clip.forward[:steps], pair.result.forward[:steps]
    largest = scale_of(np.stack(fields))
    differences = np.linalg.norm(fields[0] - fields[1], axis=-1)
    known = pair.clip.trust[:steps] * pair.result.trust[:steps]
    section = filled(
        "motion.html",
        index=str(index),
        compared=comparison_line(run, clip, result),
        numbers=_table(pair.as_mapping()),
        largest=f"{largest:.3g}",
        span=str(min(SPAN, len(clip.frames) - 1)),
        last=str(steps - 1),
    )
    sheets = {
        "clip": png(colour_wheel(_row(fields[0]), largest)),
        "result": png(colour_wheel(_row(fields[1]), largest)),
        "difference": png(heat(_row(differences), largest, _row(known))),
    }
    _, height, width, _ = fields[0].shape
    return section, {"height": height, "width": width, "sheets": sheets}


def _row(steps: np.ndarray) -> np.ndarray:
    """The steps [steps, height, width, ...] side by side."""
    return rearrange(steps, "t h w ... -> h (t w) ...")


def _table(found: dict[str, Any]) -> str:
    cells = [(title, found[name]) for name, title in NUMBERS.items()]
    cells += [(f"against the clip {name}", found["controls"][name]) for name in CONTROLS]
    rows = "".join(
        f'<tr><th scope="row">{title}</th><td>{"-" if value is None else f"{value:.2f}"}</td></tr>'
        for title, value in cells
    )
    still = "".join(f"<p>Nothing moves in the {name}.</p>" for name in found["still"])
    return f"<table><tbody>{rows}</tbody></table>{still}"
