"""Write finished runs as one HTML page that works offline."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.files import json_text, whole_or_absent
from ditflow.pages.flow import flow_section
from ditflow.pages.motion import motion_section
from ditflow.pages.parts import file, filled, png
from ditflow.pages.sharing import given_files, shared_yaml
from ditflow.pages.videos import video_rows
from ditflow.pictures.charts import loss_chart, phase_table
from ditflow.pictures.flow_pictures import wheel
from ditflow.run_folder.kind import none_finished

logger = logging.getLogger(__name__)

Runs = Mapping[str, FinishedRun]  # by a name of their own
Section = Callable[[FinishedRun, int], tuple[str, dict[str, Any] | None]]


def report(runs: Sequence[str | PathLike], output: str | PathLike) -> None:
    """Write a page with the videos, motion, losses and times of runs. Folders of anything else are skipped.

    Raises DitflowError if no folder is a finished transfer or the page cannot be written.
    """
    page = _page(_transfers(list(map(Path, runs))))
    try:
        with whole_or_absent(Path(output)) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DitflowError(f"{output} cannot be written ({error.strerror}): give another --output") from None


def _transfers(folders: Sequence[Path]) -> dict[str, FinishedRun]:
    """The runs by their folders' names, each with a number if it is taken."""
    runs: dict[str, FinishedRun] = {}
    skipped = []
    for folder in folders:
        try:
            run = FinishedRun.open(folder)
        except DitflowError as error:
            skipped.append(error)
            continue
        name, count = folder.resolve().name, 1
        while (shown := f"{name}-{count}" if count > 1 else name) in runs:
            count += 1
        runs[shown] = run
    if not runs:
        raise none_finished(skipped)
    for error in skipped:
        logger.warning("skipped: %s", error)
    return runs


def _page(runs: Runs) -> str:
    prompts = list(dict.fromkeys(run.settings.prompt for run in runs.values()))
    title = prompts[0] if len(prompts) == 1 else f"{len(runs)} runs, {len(prompts)} prompts"
    videos, clips = video_rows(runs)
    motion, motion_data = _of_each(runs, motion_section)
    flow, flow_data = _of_each(runs, flow_section)
    data = json_text({"clips": clips, "motion": motion_data, "flow": flow_data}, indent=None)
    return filled(
        "page.html",
        title=escape(f"ditflow: {title}"),
        heading=escape(title),
        style=file("page.css"),
        script=file("page.js"),
        last_frame=str(max(clips, key=lambda clip: clip["frames"] / clip["frameRate"])["frames"] - 1),
        videos=videos,
        wheel=png(wheel()),
        motion=motion,
        flow=flow,
        losses=loss_chart({name: run.record.get("losses", []) for name, run in runs.items()}),
        phases=phase_table({name: run.record["phases"] for name, run in runs.items()}),
        settings="\n".join(_settings(name, run) for name, run in runs.items()),
        data=data.replace("<", "\\u003c"),  # so that no text in it closes the script element
    )


def _of_each(runs: Runs, section: Section) -> tuple[str, list[dict[str, Any] | None]]:
    """A section's part about each run, below its name, and their data."""
    parts, data = [], []
    for index, (name, run) in enumerate(runs.items()):
        text, found = section(run, index)
        heading = f"<h3>{escape(name)}: {escape(run.settings.prompt)}</h3>" if len(runs) > 1 else ""
        parts.append(f'<div class="run">{heading}\n{text}</div>')
        data.append(found)
    return "\n".join(parts), data


def _settings(name: str, run: FinishedRun) -> str:
    config = f"{name}.yaml"
    replay = f"ditflow transfer --config {shlex.quote(config)}"
    versions = ", ".join(f"{package} {version}" for package, version in run.record["versions"].items())
    beside = " and ".join(f"<code>{escape(each)}</code>" for each in given_files(run.settings))
    return (
        f"<p>{escape(name)}, made with {escape(versions)}. To repeat it, save its settings as "
        f"<code>{escape(config)}</code> beside {beside}, and run there:</p>"
        f"<pre><code>{escape(replay)}</code></pre>"
        f"<details><summary>All settings of {escape(name)}</summary>"
        f"<pre>{escape(shared_yaml(run.settings))}</pre></details>"
    )
