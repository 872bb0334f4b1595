"""Write finished runs as one HTML page that works offline: videos, flow, losses, time, memory, settings."""

from __future__ import annotations

import base64
import logging
import re
import shlex
import tempfile
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from ditflow import video
from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.own_flow import OwnFlow, read_own_flow
from ditflow.files import json_text, regular_file, whole_or_absent
from ditflow.limits import VIDEO_BYTES
from ditflow.models.families import family_of
from ditflow.pictures.charts import loss_chart, phase_table
from ditflow.pictures.clip_flow import latent_frames
from ditflow.pictures.flow_pictures import colour_wheel, scale_of

logger = logging.getLogger(__name__)

LARGEST_PICTURE = 640, 480  # pixels: largest frame behind arrows
SMALL_VIDEO = 320  # pixels: narrower videos are shown unsmoothed
WHEEL = 64  # pixels: radius of the colour wheel


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
    flow, flow_data = _flow(first)
    clip = first.clip("result")
    data = {"frames": len(clip.frames), "frameRate": float(clip.frame_rate), "flow": flow_data}
    return _filled(
        "page.html",
        title=escape(f"ditflow: {first.settings.prompt}"),
        prompt=escape(first.settings.prompt),
        summary=escape(f"{first.folder.name}: model {first.settings.model}, {first.record['device']}"),
        style=_file("page.css"),
        script=_file("page.js"),
        last_frame=str(len(clip.frames) - 1),
        videos=_videos(runs),
        flow=flow,
        losses=loss_chart({run.folder.name: run.record.get("losses", []) for run in runs}),
        phases=phase_table({run.folder.name: run.record["phases"] for run in runs}),
        settings="\n".join(_settings(run) for run in runs),
        data=json_text(data, indent=None).replace(
            "<", "\\u003c"
        ),  # so that no text in it closes the script element
    )


def _file(name: str) -> str:
    return (files("ditflow.report") / name).read_text(encoding="utf-8")


def _filled(template: str, **parts: str) -> str:
    """Fill a template: each `{{ name }}` becomes the part of that name."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: parts[found[1]], _file(template))


def _videos(runs: Sequence[FinishedRun]) -> str:
    shown = [("reference", runs[0], "reference"), *((run.folder.name, run, "result") for run in runs)]
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
        return _data("video/mp4", path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.mp4"
        video.write_clip(run.clip(name), made)
        return _data("video/mp4", made.read_bytes())


def _flow(run: FinishedRun) -> tuple[str, dict[str, Any] | None]:
    """The section and its script's data, or the reason and None if the flow cannot be read."""
    try:
        blocks = read_own_flow(run)
    except DitflowError as error:
        logger.warning("%s: no motion flow (%s)", run.folder, error)
        return f"<p>Not available: {escape(str(error))}</p>", None
    frames, _, height, width, _ = next(iter(blocks.values())).reference.shape
    largest = scale_of(np.stack([np.stack([flow.reference, flow.result]) for flow in blocks.values()]))
    section = _filled(
        "flow.html",
        largest=f"{largest:.3g}",
        blocks="".join(f"<option>{block}</option>" for block in blocks),
        last=str(frames - 1),
        next=str(min(1, frames - 1)),
        wheel=_png(_wheel()),
    )
    spans = family_of(run.settings.model).latent_spans(run.settings.frames)
    pictures = {name: _pictures(run.clip(name), spans) for name in ("reference", "result")}
    found = {str(block): _block(flow, largest) for block, flow in blocks.items()}
    return section, {
        "frames": frames,
        "height": height,
        "width": width,
        "pictures": pictures,
        "blocks": found,
    }


def _block(flow: OwnFlow, largest: float) -> dict[str, Any]:
    def side(pairs: np.ndarray) -> dict[str, str]:
        sheet = colour_wheel(rearrange(pairs, "q k h w c -> (q h) (k w) c"), largest)
        vectors = base64.b64encode(pairs.astype("<i2").tobytes()).decode()  # hard flow is whole patches
        return {"sheet": _png(Image.fromarray(sheet)), "vectors": vectors}

    return {"distance": flow.distance, "reference": side(flow.reference), "result": side(flow.result)}


def _pictures(clip: video.Clip, spans: Sequence[range]) -> list[str]:
    """One frame for each latent frame, as JPEG."""
    found = []
    for index in latent_frames(len(clip.frames), spans):
        picture, packed = Image.fromarray(clip.frames[index]), BytesIO()
        picture.thumbnail(LARGEST_PICTURE)
        picture.save(packed, "JPEG", quality=88)
        found.append(_data("image/jpeg", packed.getvalue()))
    return found


def _wheel() -> Image.Image:
    reach = (np.arange(2 * WHEEL) + 0.5) / WHEEL - 1
    vectors = np.stack(np.meshgrid(reach, reach), axis=-1)
    inside = 255 * (np.hypot(vectors[..., 0], vectors[..., 1]) <= 1)
    return Image.fromarray(np.dstack([colour_wheel(vectors, 1.0), inside.astype(np.uint8)]))


def _png(picture: Image.Image) -> str:
    packed = BytesIO()
    picture.save(packed, "PNG")
    return _data("image/png", packed.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _settings(run: FinishedRun) -> str:
    replay = f"ditflow transfer --config {shlex.quote(str(run.folder.resolve() / 'settings.yaml'))}"
    versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
    return (
        f"<p>{escape(run.folder.name)}, made with {escape(versions)}. To repeat it:</p>"
        f"<pre><code>{escape(replay)}</code></pre>"
        f"<details><summary>All settings of {escape(run.folder.name)}</summary>"
        f"<pre>{escape(run.settings.to_yaml())}</pre></details>"
    )
