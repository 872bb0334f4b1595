"""Evaluate runs by their folders, or any two videos."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditflow.errors import DitflowError
from ditflow.evaluation.clip_scores import DEFAULT, ClipModel, prompt_similarity, temporal_consistency
from ditflow.evaluation.fidelity import bidirectional_fidelity, paper_fidelity
from ditflow.evaluation.finished import FinishedRun, whole_clip
from ditflow.evaluation.intervals import Interval, interval
from ditflow.evaluation.made_shapes import is_caption, prompt_match
from ditflow.evaluation.own_flow import read_own_flow
from ditflow.evaluation.tracks import track
from ditflow.files import finite
from ditflow.progress import Progress

logger = logging.getLogger(__name__)

Evaluation = dict[str, Any]  # can be written as JSON; an unknown number is None

NUMBERS: dict[str, Callable[[Evaluation], float | None]] = {  # in the order of the table's columns
    "bidirectional": lambda found: found["motion_fidelity"]["bidirectional"]["score"],
    "paper": lambda found: found["motion_fidelity"]["paper"]["score"],
    "prompt_clip": lambda found: found["prompt_match"]["clip"],
    "prompt_made": lambda found: _share(found["prompt_match"]["made"]),
    "temporal_consistency": lambda found: found["temporal_consistency"],
    "amf_distance": lambda found: _mean(found["amf_distance"]),
}


@dataclass(frozen=True)
class Instruments:
    """The models to measure with."""

    tracker: str = "lk"
    tracker_weights: Path | None = None
    clip: ClipModel | None = None


def evaluate_runs(folders: Sequence[Path], instruments: Instruments, progress: Progress) -> list[Evaluation]:
    """Evaluate each run. Raises DitflowError before any work if a folder is not a finished transfer."""
    runs = [FinishedRun.open(folder) for folder in folders]
    progress.phase("evaluate", len(runs))
    return [_evaluate_run(run, instruments, progress) for run in runs]


def evaluate_videos(result: Path, reference: Path, prompt: str, instruments: Instruments) -> Evaluation:
    """Compare any two videos over the frames of the shorter one."""
    named = {"video": str(result), "reference": str(reference), "prompt": prompt}
    clips = whole_clip(result).frames, whole_clip(reference).frames
    return named | finite(measure(*clips, prompt, instruments)) | {"amf_distance": None}


def _evaluate_run(run: FinishedRun, instruments: Instruments, progress: Progress) -> Evaluation:
    named = {"run": str(run.folder), "prompt": run.settings.prompt}
    result, reference = run.clip("result").frames, run.clip("reference").frames
    found = named | finite(measure(result, reference, run.settings.prompt, instruments))
    try:
        flows = read_own_flow(run)
        found["amf_distance"] = finite({str(block): flow.distance for block, flow in flows.items()})
    except DitflowError as error:
        logger.warning("%s: no AMF distance (%s)", run.folder, error)
        found["amf_distance"] = None
    progress.step(str(run.folder))
    return found


def measure(
    result: np.ndarray,  # [frames, height, width, 3] uint8
    reference: np.ndarray,  # the same; count and size may differ
    prompt: str,
    instruments: Instruments,
) -> Evaluation:
    """Measure what needs only the frames and the prompt."""
    tracks = [track(clip, instruments.tracker, instruments.tracker_weights) for clip in (reference, result)]
    clip = instruments.clip
    frames = clip and clip.frames(result)
    return {
        "motion_fidelity": {
            "tracker": instruments.tracker,
            "bidirectional": bidirectional_fidelity(*tracks).as_mapping(),
            "paper": asdict(paper_fidelity(*tracks)),
        },
        "prompt_match": {
            "clip": prompt_similarity(frames, clip.text(prompt)) if clip and prompt else None,
            "made": prompt_match(result, prompt),
        },
        "temporal_consistency": temporal_consistency(frames) if clip else None,
    }


def summary(found: Sequence[Evaluation]) -> dict[str, Interval | None]:
    """Mean and confidence interval of each of NUMBERS, over the evaluations that have it."""
    columns = {name: [number(each) for each in found] for name, number in NUMBERS.items()}
    return {
        name: interval([value for value in values if value is not None]) for name, values in columns.items()
    }


def as_json(found: Sequence[Evaluation]) -> dict[str, Any]:
    """The evaluations and their summary."""
    means = {name: value and asdict(value) for name, value in summary(found).items()}
    return {"evaluations": list(found), "summary": means}


def as_table(found: Sequence[Evaluation]) -> str:
    """A Markdown table with a line per evaluation, and one for their mean; a dash is an unknown value."""
    names = [name for name, value in summary(found).items() if value is not None]
    lines = [f"| result | {' | '.join(names)} | remarks |", "| --- " * (len(names) + 2) + "|"]
    for each in found:
        cells = ["-" if (value := NUMBERS[name](each)) is None else f"{value:.3f}" for name in names]
        lines.append(f"| {each.get('run') or each['video']} | {' | '.join(cells)} | {_remarks(each)} |")
    if len(found) > 1:
        means = [str(value) for value in summary(found).values() if value is not None]
        lines.append(f"| mean of {len(found)}, 95 % | {' | '.join(means)} | |")
    return "\n".join(lines)


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


def _remarks(found: Evaluation) -> str:
    fidelity, paper = found["motion_fidelity"]["bidirectional"], found["motion_fidelity"]["paper"]
    remarks = [f"nothing moves in the {video}" for video in fidelity["still"]]
    remarks += [
        f"no point of the {video} could be tracked" for video, n in fidelity["found"].items() if not n
    ]
    dropped = paper["dropped"]
    remarks.append(f"paper: {dropped['reference']} + {dropped['result']} tracks dropped")
    made = found["prompt_match"]["made"] or {}
    remarks += [f"wrong {what}" for what, right in made.items() if not right]
    return ", ".join(remarks)


def _share(answers: dict[str, bool] | None) -> float | None:
    return statistics.fmean(answers.values()) if answers else None


def _mean(values: dict[str, float] | None) -> float | None:
    return statistics.fmean(values.values()) if values and None not in values.values() else None
