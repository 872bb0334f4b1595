"""Runs transfers from a program: events while they run, and a model that stays in memory between them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from ditflow.errors import SettingsError
from ditflow.jobs.ensure import ensure_transfer
from ditflow.jobs.events import CancelToken, Event, events_of
from ditflow.jobs.given import Given
from ditflow.jobs.transfer import Transferred, begin_transfer, continue_transfer
from ditflow.models.kept import KeptParts
from ditflow.progress import Progress
from ditflow.run_folder.run import Run, read_latents
from ditflow.settings import Settings, injection_settings, read_settings
from ditflow.video import Clip
from ditflow.video.reading import IN_MEMORY

ClipLike = str | PathLike | Clip | tuple[np.ndarray, float | Fraction]


@dataclass(frozen=True)
class Result:
    """The new video of a run."""

    frames: np.ndarray  # uint8 [frames, height, width, 3]
    frame_rate: Fraction  # frames a second
    latents: Tensor  # [1, latent frames, channels, height, width]
    losses: list[list[float]]  # [guided steps][gradients]
    folder: Path | None  # None if nothing was kept on disk


class Session:
    """Transfers with one model, one after the other.

    What a run has loaded stays in host memory for the next one; between runs nothing of it is on a GPU.
    `settings` hold for every transfer that does not give its own; without a `device`, it is the model's.
    Runs of other threads or sessions of this process wait for their turn, because torch's global settings,
    which each run sets and restores, are shared.
    """

    def __init__(
        self, model: str = "small", *, device: str | None = None, memory: str = "auto", **settings: Any
    ):
        self.common = {"model": model, "memory": memory} | settings
        if device is not None:
            self.common["device"] = device
        self.kept = KeptParts()
        self.result: Result | None = None  # of the last run that has finished
        read_settings(**self.common)  # refuses wrong ones now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the memory of the model. The session can be used again: the next run loads it anew."""
        self.kept.clear()

    def transfer(
        self,
        clip: ClipLike | None,
        prompt: str,
        *,
        folder: str | PathLike | None = None,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        **settings: Any,
    ) -> Iterator[Event]:
        """Make a new video with the clip's motion and the prompt's content, while the events are iterated.

        `clip`: a video file or folder of images, a `Clip`, or (frames, frames a second) with frames uint8
        [frames, height, width, 3]; None if `motion` is given. `folder`: of the run, which can be resumed from
        it; None: nothing is left on disk. `cancel`: looked at before every optimisation step and tile.
        `preview_every`: denoising steps from one event with a preview to the next; 0: none.

        Raises SettingsError at once for wrong settings. While iterating, raises DitflowError, and
        Cancelled after the last finished step is on disk.
        """
        given, source = self._source(clip)
        asked = self._settings(settings, prompt=prompt, video=source)
        return self._started(asked, folder, given, cancel, preview_every)

    def inject(
        self,
        run: str | PathLike,
        prompt: str,
        *,
        clip: ClipLike | None = None,
        folder: str | PathLike | None = None,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        **settings: Any,
    ) -> Iterator[Event]:
        """Use the embedding that an earlier run has optimised with another prompt; else as `transfer`.

        The other settings are that run's. `clip`: that run's, if it was in memory; None: the one that its
        settings name.
        """
        given, source = self._source(clip)
        here = {name: self.common[name] for name in ("device", "memory") if name in self.common}
        named = {"prompt": prompt} | ({"video": source} if source else {})
        asked = injection_settings(run, **here | settings | named)
        return self._started(asked, folder, given, cancel, preview_every)

    def resume(
        self, folder: str | PathLike, *, cancel: CancelToken | None = None, preview_every: int = 0
    ) -> Iterator[Event]:
        """Continue an interrupted run. A finished one has no events, only its result."""
        run, memory = Run.open(folder), self.common["memory"]

        def work(progress: Progress) -> Result:
            return _of_run(run) if run.finished else _of(continue_transfer(run, progress, memory, self.kept))

        return events_of(work, self._finish, cancel, preview_every)

    def ensure(
        self,
        settings: Settings,
        folder: str | PathLike,
        *,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
    ) -> Iterator[Event]:
        """The run of these settings in this folder, as `ditflow.ensure`. A finished one has no events."""

        def work(progress: Progress) -> Result:
            found = ensure_transfer(settings, folder, progress, Given(kept=self.kept))
            return _of_run(found) if isinstance(found, Run) else _of(found)

        return events_of(work, self._finish, cancel, preview_every)

    def _started(
        self,
        settings: Settings,
        folder: str | PathLike | None,
        given: Given,
        cancel: CancelToken | None,
        preview_every: int,
    ) -> Iterator[Event]:
        def work(progress: Progress) -> Result:
            with _place(folder) as place:
                done = begin_transfer(replace(settings, output=str(place)), progress, given)
            return _of(done, keeps_folder=folder is not None)

        return events_of(work, self._finish, cancel, preview_every)

    def _finish(self, result: Result) -> None:
        self.result = result

    def _settings(self, settings: dict[str, Any], **named: Any) -> Settings:
        return read_settings(**self.common | settings | named)

    def _source(self, clip: ClipLike | None) -> tuple[Given, str]:
        """What is in memory, and the value of `Settings.video`."""
        if isinstance(clip, tuple):
            clip = Clip(clip[0], Fraction(clip[1]).limit_denominator(1 << 16))
        if isinstance(clip, Clip):
            _check_frames(clip.frames)
            return Given(clip, self.kept), IN_MEMORY
        return Given(kept=self.kept), "" if clip is None else fspath(clip)


@contextmanager
def _place(folder: str | PathLike | None) -> Iterator[Path]:
    """The folder of a run, which is removed in the end if none is given."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="ditflow-") as scratch:
        yield Path(scratch) / "run"


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.shape[3:] != (3,):
        given = f"{getattr(frames, 'dtype', type(frames).__name__)} {list(getattr(frames, 'shape', []))}"
        raise SettingsError(f"clip: {given} given; accepted: a uint8 array [frames, height, width, 3]")


def _of(done: Transferred, keeps_folder: bool = True) -> Result:
    clip, folder = done.clip, done.run.folder if keeps_folder else None
    return Result(clip.frames, clip.frame_rate, done.latents, done.losses, folder)


def _of_run(run: Run) -> Result:
    """The result of a finished run. Raises DitflowError if its files are damaged."""
    settings = run.settings()
    clip = run.clip("result", settings)
    _, latents = read_latents(run.folder, settings.has_clip)
    return Result(clip.frames, clip.frame_rate, latents, run.record().get("losses", []), run.folder)
