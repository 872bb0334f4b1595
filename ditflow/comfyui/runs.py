"""Runs in ComfyUI's temporary folder: begun, continued or found finished, with ComfyUI's own progress."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy import model_management
from comfy.utils import ProgressBar

from ditflow.comfyui.model import HeldModel
from ditflow.comfyui.pictures import preview_of
from ditflow.comfyui.sockets import GivenMotion
from ditflow.errors import Cancelled
from ditflow.video import Clip, write_clip

if TYPE_CHECKING:
    from ditflow.jobs.events import Event
    from ditflow.jobs.session import Result, Session

    Begin = Callable[..., Iterator[Event]]  # Session.transfer or Session.inject with its own arguments


class Interrupt:
    """ComfyUI's interrupt, as a cancel token."""

    def is_set(self) -> bool:
        return model_management.processing_interrupted()


def place_of(model: HeldModel, *inputs: Any) -> Path:
    """The folder for everything about one run; the same for the same model and inputs.

    So an interrupted run is continued when it is queued again. ComfyUI empties its temporary folder when it
    starts.
    """
    text = json.dumps([model.session.common, *inputs], sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Path(folder_paths.get_temp_directory()) / "ditflow" / name


def motion_settings(motion: GivenMotion, place: Path) -> Mapping[str, Any]:
    """The settings of a motion; its mask and drawing are written to the folder."""
    settings = {}
    place.mkdir(parents=True, exist_ok=True)
    if motion.mask is not None:
        settings = {"mask": str(_written(motion, place)), "mask_invert": motion.mask_invert}
    if motion.drawing:
        drawing = place / "drawing.yaml"
        drawing.write_text(motion.drawing, encoding="utf-8")
        settings["motion"] = str(drawing)
    return settings


def _written(motion: GivenMotion, place: Path) -> Path:
    """The mask's file: a folder of frames, or one image that stands for the first frame."""
    folder = place / "mask"
    write_clip(Clip(motion.mask, motion.clip.frame_rate), folder, replace_frames=True)
    images = sorted(folder.iterdir())
    return images[0] if len(images) == 1 else folder


def result_of(model: HeldModel, place: Path, begin: Callable[[Session], Begin]) -> Result:
    """Begin the run, continue it, or take it as it is if it is finished. Raises DitflowError.

    Raises ComfyUI's exception if it is interrupted.
    """
    from ditflow.run_folder.run import SETTINGS

    folder, watched = place / "run", {"cancel": Interrupt(), "preview_every": 1}
    with model.working() as session:
        if (folder / SETTINGS).is_file():
            events = session.resume(folder, **watched)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # begun, and ended before it could be continued
            events = begin(session)(folder=folder, **watched)
        _follow(events)
        return session.result


def _follow(events: Iterator[Event]) -> None:
    """Show events on the node that runs: denoising steps, and a preview after each."""
    bar = ProgressBar(1)
    try:
        with closing(events):  # which ends the job, should the bar see the interrupt first
            for event in events:
                if event.steps:
                    picture = None if event.preview is None else preview_of(event.preview, event.step)
                    bar.update_absolute(event.step, event.steps, picture)
    except Cancelled:
        model_management.throw_exception_if_processing_interrupted()
        raise
