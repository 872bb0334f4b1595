"""The page's videos: for each distinct clip a row with the clip and the results of its runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.files import regular_file
from ditflow.limits import VIDEO_BYTES
from ditflow.pages.parts import data_url
from ditflow.run_folder.digests import clip_digest

SMALL_VIDEO = 320  # pixels: narrower videos are shown unsmoothed


def video_rows(runs: Mapping[str, FinishedRun]) -> tuple[str, list[dict[str, Any]]]:
    """The rows, and for each row the script's data: the length and rate of its videos."""
    names: dict[str, list[str]] = {}  # of runs, by the digest of their clip
    lengths = {}
    for name, run in runs.items():
        clip = run.clip("reference")
        digest = clip_digest(clip)
        names.setdefault(digest, []).append(name)
        lengths[digest] = {"frames": len(clip.frames), "frameRate": float(clip.frame_rate)}
    rows = [_row({name: runs[name] for name in names[digest]}) for digest in lengths]
    return "\n".join(rows), list(lengths.values())


def _row(runs: Mapping[str, FinishedRun]) -> str:
    """A clip and the results of its runs."""
    first = next(iter(runs.values()))
    reference = "preview of what was drawn"
    if first.settings.has_clip:
        reference = f"reference: {escape(Path(first.settings.video).name)}"
    figures = [_figure(first, "reference", reference)]
    for name, run in runs.items():
        about = f"{name}: model {Path(run.settings.model).name}, {run.record['device']}"
        caption = f'<span class="prompt">{escape(run.settings.prompt)}</span> {escape(about)}'
        figures.append(_figure(run, "result", caption))
    return "\n".join(['<div class="videos clip">', *figures, "</div>"])


def _figure(run: FinishedRun, name: str, caption: str) -> str:
    return (
        f'<figure class="{"small" if run.settings.size[0] < SMALL_VIDEO else "large"}">'
        f'<video muted loop playsinline preload="auto" src="{_mp4(run, name)}"></video>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _mp4(run: FinishedRun, name: str) -> str:
    """A run's video as a data URL, without its settings; a GIF or a folder of frames is converted to MP4."""
    path = run.video(name)
    if path.suffix == ".mp4":
        if (size := regular_file(path).stat().st_size) > VIDEO_BYTES:
            raise DitflowError(
                f"{path} has {size} bytes, at most {VIDEO_BYTES} fit on a page: leave out the run"
            )
        return data_url("video/mp4", video.without_metadata(path))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.mp4"
        video.write_clip(run.clip(name), made)
        return data_url("video/mp4", made.read_bytes())
