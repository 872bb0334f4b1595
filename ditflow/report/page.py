"""Write finished runs as one HTML page that works offline."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.files import json_text, regular_file, whole_or_absent
from ditflow.limits import VIDEO_BYTES
from ditflow.pictures.charts import loss_chart, phase_table
from ditflow.report.flow import flow_section
from ditflow.report.motion import motion_section
from ditflow.report.parts import data_url, file, filled

SMALL_VIDEO = 320  # pixels: narrower videos are shown unsmoothed


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write a page about the first run, with the videos, losses and times of the others beside its own.

    Raises DitflowError if a folder is not a finished run or the page cannot be written.
    """
    runs = [FinishedRun.open(folder) for folder in folders]
    page = _page(runs)
    try:
        with whole_or_absent(output) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DitflowError(f"{output} cannot be written ({error.strerror}): give another --output") from None


def _page(runs: Sequence[FinishedRun]) -> str:
    first = runs[0]
    flow, flow_data = flow_section(first)
    motion, motion_data = motion_section(first)
    clip = first.clip("result")
    data = {"frames": len(clip.frames), "frameRate": float(clip.frame_rate), "flow": flow_data}
    data["motion"] = motion_data
    return filled(
        "page.html",
        title=escape(f"ditflow: {first.settings.prompt}"),
        prompt=escape(first.settings.prompt),
        summary=escape(f"{first.folder.name}: model {first.settings.model}, {first.record['device']}"),
        style=file("page.css"),
        script=file("page.js"),
        last_frame=str(len(clip.frames) - 1),
        videos=_videos(runs),
        motion=motion,
        flow=flow,
        losses=loss_chart({run.folder.name: run.record.get("losses", []) for run in runs}),
        phases=phase_table({run.folder.name: run.record["phases"] for run in runs}),
        settings="\n".join(_settings(run) for run in runs),
        data=json_text(data, indent=None).replace(
            "<", "\\u003c"
        ),  # so that no text in it closes the script element
    )


def _videos(runs: Sequence[FinishedRun]) -> str:
    source = "reference" if runs[0].settings.has_clip else "preview of what was drawn"
    shown = [(source, runs[0], "reference"), *((run.folder.name, run, "result") for run in runs)]
    return "\n".join(
        f'<figure class="{"small" if run.settings.size[0] < SMALL_VIDEO else "large"}">'
        f'<video muted playsinline preload="auto" src="{_mp4(run, name)}"></video>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
        for title, run, name in shown
    )


def _mp4(run: FinishedRun, name: str) -> str:
    """A run's video as a data URL; a GIF or a folder of frames is converted to MP4."""
    path = run.video(name)
    if path.suffix == ".mp4":
        if (size := regular_file(path).stat().st_size) > VIDEO_BYTES:
            raise DitflowError(
                f"{path} has {size} bytes, at most {VIDEO_BYTES} fit on a page: leave out the run"
            )
        return data_url("video/mp4", path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.mp4"
        video.write_clip(run.clip(name), made)
        return data_url("video/mp4", made.read_bytes())


def _settings(run: FinishedRun) -> str:
    replay = f"ditflow transfer --config {shlex.quote(str(run.folder.resolve() / 'settings.yaml'))}"
    versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
    return (
        f"<p>{escape(run.folder.name)}, made with {escape(versions)}. To repeat it:</p>"
        f"<pre><code>{escape(replay)}</code></pre>"
        f"<details><summary>All settings of {escape(run.folder.name)}</summary>"
        f"<pre>{escape(run.settings.to_yaml())}</pre></details>"
    )
