"""Evaluations as JSON and as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ditflow.evaluation.evaluate import Evaluation
from ditflow.evaluation.intervals import Interval, interval
from ditflow.evaluation.motion_match import CONTROLS, Matrix

NUMBERS: dict[str, Callable[[Evaluation], float | None]] = {  # in the order of the table's columns
    "motion": lambda found: found["motion"]["score"],
    **{
        name: lambda found, name=name: found["motion"][name]
        for name in ("camera", "objects", "direction", "reach", "compared")
    },
    **{name: lambda found, name=name: found["motion"]["controls"][name] for name in CONTROLS},
    "target": lambda found: _of_target(found, "fidelity"),
    "target_reach": lambda found: _of_target(found, "reach"),
    "target_compared": lambda found: _of_target(found, "compared"),
    "bidirectional": lambda found: _of_tracks(found, "bidirectional"),
    "paper": lambda found: _of_tracks(found, "paper"),
    "prompt_clip": lambda found: found["prompt_match"]["clip"],
    "prompt_made": lambda found: _share(found["prompt_match"]["made"]),
    "temporal_consistency": lambda found: found["temporal_consistency"],
    "amf_distance": lambda found: _mean(found["amf_distance"]),
}


def summary(found: Sequence[Evaluation]) -> dict[str, Interval | None]:
    """Mean and confidence interval of each of NUMBERS, over the evaluations that have it."""
    columns = {name: [number(each) for each in found] for name, number in NUMBERS.items()}
    return {
        name: interval([value for value in values if value is not None]) for name, values in columns.items()
    }


def as_json(found: Sequence[Evaluation], matrix: Matrix | None = None) -> dict[str, Any]:
    """The evaluations, their summary, and every result against every clip."""
    means = {name: value and asdict(value) for name, value in summary(found).items()}
    return {"evaluations": list(found), "summary": means, "matrix": matrix and matrix.as_mapping()}


def as_table(found: Sequence[Evaluation], matrix: Matrix | None = None) -> str:
    """A line per evaluation and one for their mean, then the matrix; a dash is an unknown value."""
    names = [name for name, value in summary(found).items() if value is not None]
    lines = _head(["result", *names, "remarks"])
    for each in found:
        cells = [_number(NUMBERS[name](each)) for name in names]
        lines.append(_line([each.get("run") or each["video"], *cells, _remarks(each)]))
    if len(found) > 1:
        means = [str(value) for value in summary(found).values() if value is not None]
        lines.append(_line([f"mean of {len(found)}, 95 %", *means, ""]))
    if matrix:
        lines += ["", *_matrix_lines(matrix)]
    return "\n".join(lines)


def _matrix_lines(matrix: Matrix) -> list[str]:
    lines = _head(["motion against", *matrix.clips])
    for name, row, own in zip(matrix.results, matrix.scores, matrix.own, strict=True):
        cells = [_number(score) for score in row]
        cells[own] = f"**{cells[own]}**"
        lines.append(_line([name, *cells]))
    of = len(matrix.results)
    return [*lines, "", f"The own clip (in bold) is first for {matrix.own_first} of {of} results."]


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "| --- " * len(cells) + "|"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _remarks(found: Evaluation) -> str:
    motion, tracks, made = found["motion"], found["tracks"], found["prompt_match"]["made"]
    remarks = [f"nothing moves in the {video}" for video in motion["still"]]
    if motion["score"] is None:
        remarks.append("too little of the frame can be compared")
    if found["target"]:
        remarks.append("motion is compared with the reference, not with the target")
    if tracks:
        points = tracks["bidirectional"]["found"].items()
        remarks += [f"no point of the {video} could be tracked" for video, count in points if not count]
        if dropped := tracks["paper"] and tracks["paper"]["dropped"]:
            remarks.append(f"paper: {dropped['reference']} + {dropped['result']} tracks dropped")
        elif not tracks["paper"]:
            remarks.append("paper needs --tracker cotracker")
    remarks += [f"wrong {what}" for what, right in (made or {}).items() if not right]
    return ", ".join(remarks)


def _of_tracks(found: Evaluation, name: str) -> float | None:
    scores = found["tracks"] and found["tracks"][name]
    return scores and scores["score"]


def _of_target(found: Evaluation, name: str) -> float | None:
    return found["target"] and found["target"][name]


def _share(answers: dict[str, bool] | None) -> float | None:
    return statistics.fmean(answers.values()) if answers else None


def _mean(values: dict[str, float | None] | None) -> float | None:
    return statistics.fmean(values.values()) if values and None not in values.values() else None
