"""Evaluate runs by their folders, or any two videos."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError
from ditflow.evaluation.clip_scores import DEFAULT, ClipModel, prompt_similarity, temporal_consistency
from ditflow.evaluation.fidelity import bidirectional_fidelity, paper_fidelity
from ditflow.evaluation.finished import FinishedRun, whole_clip
from ditflow.evaluation.made_shapes import is_caption, prompt_match
from ditflow.evaluation.motion_match import Matrix, Pair, match
from ditflow.evaluation.own_flow import read_own_flow
from ditflow.evaluation.target_match import match_of_run
from ditflow.evaluation.tracks import track
from ditflow.files import finite
from ditflow.progress import Progress
from ditflow.run_folder.digests import clip_digest
from ditflow.video import Clip

logger = logging.getLogger(__name__)

Evaluation = dict[str, Any]  # can be written as JSON; an unknown number is None


@dataclass(frozen=True)
class Instruments:
    """What to measure with beside the dense optical flow."""

    tracker: str = "none"  # of points, "none" or one of tracks.TRACKERS
    tracker_weights: Path | None = None
    clip: ClipModel | None = None


def evaluate(*runs: str | PathLike, tracker: str = "none", clip: str = "auto") -> list[Evaluation]:
    """Score how well the results of finished runs follow their clips and prompts, one mapping each.

    `tracker`: of points, "none" or one of `tracks.TRACKERS`; `clip`: as in `choose_clip`. Raises DitflowError
    before any work if a folder is not a finished transfer.
    """
    folders = [Path(run) for run in runs]
    model = choose_clip(clip, [FinishedRun.open(folder).settings.prompt for folder in folders])
    return evaluate_runs(folders, Instruments(tracker, clip=model), Progress())[0]


def evaluate_runs(
    folders: Sequence[Path], instruments: Instruments, progress: Progress
) -> tuple[list[Evaluation], Matrix | None]:
    """Evaluate each run, and every result against every clip if there are several clips.

    Raises DitflowError before any work if a folder is not a finished transfer.
    """
    runs = [FinishedRun.open(folder) for folder in folders]
    progress.phase("evaluate", len(runs))
    found, pairs, digests = [], [], []
    for run in runs:
        result, reference = run.clip("result"), run.clip("reference")
        pair = Pair.measure(reference.frames, result.frames)
        named = {"run": str(run.folder), "prompt": run.settings.prompt}
        scores = measure(result, reference, pair, run.settings.prompt, instruments)
        own = {"target": _target(run, reference, result), "amf_distance": _amf_distance(run)}
        found.append(named | scores | own)
        pairs.append(pair)
        digests.append(clip_digest(reference))
    return found, _matrix(runs, pairs, digests)


def evaluate_videos(result: Path, reference: Path, prompt: str, instruments: Instruments) -> Evaluation:
    """Compare any two videos over the frames of the shorter one."""
    named = {"video": str(result), "reference": str(reference), "prompt": prompt}
    result, reference = whole_clip(result), whole_clip(reference)
    pair = Pair.measure(reference.frames, result.frames)
    own = {"target": None, "amf_distance": None}
    return named | measure(result, reference, pair, prompt, instruments) | own


def measure(result: Clip, reference: Clip, pair: Pair, prompt: str, instruments: Instruments) -> Evaluation:
    """Measure what needs only the frames, the motion in them, and the prompt."""
    clip = instruments.clip
    frames = clip and clip.frames(result.frames)
    return finite(
        {
            "motion": pair.as_mapping(),
            "tracks": _tracks(result, reference, instruments),
            "prompt_match": {
                "clip": prompt_similarity(frames, clip.text(prompt)) if clip and prompt else None,
                "made": prompt_match(result.frames, prompt),
            },
            "temporal_consistency": temporal_consistency(frames) if clip else None,
        }
    )


def choose_clip(name: str, prompts: Sequence[str]) -> ClipModel | None:
    """Load CLIP by name, downloading it if needed; "none" gives None.

    "auto" gives ViT-B/32 if it is already on this machine, and None if all prompts are captions of the small
    model, which have a check of their own. Raises DitflowError if a CLIP given by name cannot be loaded.
    """
    if name == "none" or (name == "auto" and all(is_caption(prompt) for prompt in prompts)):
        return None
    if name != "auto":
        return ClipModel.load(name)
    try:
        return ClipModel.load(DEFAULT, download=False)
    except DitflowError:
        logger.warning(
            "CLIP is not on this machine: its scores are left out; --clip %s downloads it", DEFAULT
        )
        return None


def _tracks(result: Clip, reference: Clip, instruments: Instruments) -> dict[str, Any] | None:
    """The scores by point tracks; `paper` only with the tracker it is defined for."""
    if instruments.tracker == "none":
        return None
    tracker = instruments.tracker, instruments.tracker_weights
    tracks = [track(clip.frames, *tracker) for clip in (reference, result)]
    return {
        "tracker": instruments.tracker,
        "bidirectional": bidirectional_fidelity(*tracks).as_mapping(),
        "paper": asdict(paper_fidelity(*tracks)) if instruments.tracker == "cotracker" else None,
    }


def _target(run: FinishedRun, reference: Clip, result: Clip) -> dict[str, float | None] | None:
    try:
        found = match_of_run(run, reference, result)
    except DitflowError as error:
        logger.warning("%s: no target fidelity (%s)", run.folder, error)
        return None
    return found and found.as_mapping()


def _amf_distance(run: FinishedRun) -> dict[str, float | None] | None:
    try:
        flows = read_own_flow(run)
    except DitflowError as error:
        logger.warning("%s: no AMF distance (%s)", run.folder, error)
        return None
    return finite({str(block): flow.distance for block, flow in flows.items()})


def _matrix(runs: Sequence[FinishedRun], pairs: Sequence[Pair], digests: Sequence[str]) -> Matrix | None:
    names: dict[str, str] = {}  # of clips by digest
    for run, digest in zip(runs, digests, strict=True):
        name = run.settings.source_name
        taken = name in names.values() and digest not in names
        names.setdefault(digest, f"{name} ({run.folder.name})" if taken else name)
    clips = [names[digest] for digest in digests]
    return match(pairs, clips, [str(run.folder) for run in runs])
