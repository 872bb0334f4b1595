"""How well a result moves as it was asked to, for runs whose motion was chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from ditflow.evaluation.finished import FinishedRun
from ditflow.optical_flow.agreement import COMPARED
from ditflow.optical_flow.motion import MOVES
from ditflow.optical_flow.tokens import token_flow
from ditflow.planning.fake import FakeModel
from ditflow.run_folder.chosen import load_chosen
from ditflow.run_folder.run import Run
from ditflow.video import Clip


@dataclass(frozen=True)
class TargetMatch:
    """The match of a result's motion with its target; a number is None if there is too little to judge by."""

    fidelity: float | None  # mean cosine between the result's displacements and those asked for
    reach: float | None  # how far they go along those asked for, as a share of them
    compared: (
        float | None
    )  # share of those asked for where the result's motion is known; None: none asked for

    def as_mapping(self) -> dict[str, float | None]:
        return asdict(self)


def target_match(
    target: np.ndarray,  # [frames (query), frames (key), cells, 2] in latent patches; NaN: nothing is asked
    found: np.ndarray,  # the same, of the result; NaN: unknown
) -> TargetMatch:
    """Compare where a result's content goes with where it was asked to go, where it was asked to move.

    Content that stays has a cosine of 0.
    """
    moves = np.linalg.norm(target, axis=-1) > MOVES  # false where nothing is asked
    if not moves.any():
        return TargetMatch(None, None, None)
    target, found = target[moves].astype(np.float64), found[moves].astype(np.float64)
    known = ~np.isnan(found).any(axis=-1)
    compared = float(known.mean())
    if compared < COMPARED:
        return TargetMatch(None, None, compared)
    target, found = target[known], found[known]
    asked, gone = np.linalg.norm(target, axis=-1), np.linalg.norm(found, axis=-1)
    along = (target * found).sum(axis=-1) / asked
    cosines = np.divide(along, gone, out=np.zeros_like(along), where=gone > MOVES)
    return TargetMatch(float(cosines.mean()), float(along.sum() / asked.sum()), compared)


def match_of_run(
    run: FinishedRun,
    reference: Clip,
    result: Clip,
) -> TargetMatch | None:
    """Compare a run's result with its target by the optical flow of both videos; None if it has no target.

    What the clip's motion is made of is unknown where its optical flow is: there nothing is compared.

    Raises DitflowError if OpenCV is not installed, or if the run's folder lacks its target, or if no local
    file tells the model's shape.
    """
    if not run.has_target:
        return None
    model = FakeModel(run.settings)
    grid, spans = model.grid(), model.family.latent_spans(run.settings.frames)
    chosen = load_chosen(Run(run.folder), run.settings, grid)
    seen = torch.from_numpy(token_flow(reference.frames, grid, spans)) if run.settings.has_clip else None
    return target_match(chosen.target(seen).numpy(), token_flow(result.frames, grid, spans))
