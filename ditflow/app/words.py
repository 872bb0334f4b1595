"""Says in words, and as HTML, what a job does and how a run would fit."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from ditflow.progress import duration

if TYPE_CHECKING:
    import numpy as np

    from ditflow.app.runner import Job
    from ditflow.jobs.events import Event

PHASES = {"text": "prompt", "encode": "clip", "denoise": "denoising", "decode": "video"}
SUBSTEPS = {"denoise": "update"}  # what an event's substeps are; else tiles
FEW = 10  # seconds that are not counted
NO_FIT = "does not fit"  # how a plan that is too large begins in words
PREVIEW_MS = 250  # each latent frame of a preview is shown


def progress_text(event: Event) -> str:
    """Where a phase is: `step 3 of 25, update 2, about 40 seconds left`."""
    parts = [f"step {min(event.step + 1, event.steps)} of {event.steps}"] if event.steps else []
    if event.substep:
        parts.append(f"{SUBSTEPS.get(event.phase, 'tile')} {event.substep}")
    if event.loss is not None and event.phase == "denoise":
        parts.append(f"loss {event.loss:.3g}")
    if event.seconds_left is not None:
        left = "a few seconds" if event.seconds_left < FEW else f"about {duration(event.seconds_left)}"
        parts.append(f"{left} left")
    return ", ".join(parts)


def job_html(job: Job) -> str:
    """Where a job is, or how it ended, and what it has warned of."""
    title = f"<b>{escape(job.kind)}: {escape(job.title)}</b>"
    warnings = "".join(f'<p class="warning">{escape(line)}</p>' for line in job.warnings)
    if job.state != "running":
        return f'<div class="job {job.state}">{title}<p>{escape(job.message)}</p>{warnings}</div>'
    event, names = job.event, list(PHASES)
    now = names.index(event.phase) if event else -1
    states = ["done"] * now + ["now"] * (event is not None) + ["next"] * len(names)
    items = "".join(f'<li class="{s}">{PHASES[name]}</li>' for s, name in zip(states, names, strict=False))
    share = f' value="{event.step}" max="{event.steps}"' if event and event.steps else ""
    text = progress_text(event) if event else "loading the model"
    if job.cancel.is_set():
        text = "is being cancelled"
    bar = f"<ol>{items}</ol><progress{share}></progress><p>{escape(text)}</p>"
    return f'<div class="job running">{title}{bar}{warnings}</div>'


def waiting_html(job: Job) -> str:
    """A job that waits, with a button that takes it out of the queue."""
    button = f'<button data-action="remove" data-of="{job.number}">Remove</button>'
    return f'<div class="waiting"><span>waiting: {escape(job.title)}</span>{button}</div>'


def fits_html(fits: str, download: str) -> str:
    """How the choice of the form fits this machine."""
    kind = "failed" if fits.startswith(NO_FIT) else ""
    return f'<div class="fits {kind}">{escape(fits[:1].upper() + fits[1:])}. {escape(download)}</div>'


def preview_html(
    frames: np.ndarray,  # [latent frames, height, width, 3] uint8
) -> str:
    """A preview as a moving picture in the page itself; the page enlarges it."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, "PNG", save_all=True, append_images=others, duration=PREVIEW_MS, loop=0)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="preview" alt="preview of the new video" src="data:image/png;base64,{data}">'
