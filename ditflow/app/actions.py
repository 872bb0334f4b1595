"""What the buttons of the page put into the queue."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditflow.app.form import Form, check_source
from ditflow.app.runner import Job, Runner
from ditflow.errors import SettingsError
from ditflow.models.families import family_of, known_model
from ditflow.run_folder.run import Run, run_name
from ditflow.settings import Settings, injection_settings

if TYPE_CHECKING:
    from ditflow.jobs.events import CancelToken, Event
    from ditflow.jobs.session import Session

PREVIEW_EVERY = 1  # steps


def transfer(runner: Runner, form: Form, runs: Path, others: Mapping[str, Any]) -> Job:
    """A new run, as the form asks for. Raises DitflowError if it cannot begin."""
    return _new_run(runner, "transfer", form.settings(runs, **others), runs)


def replay(runner: Runner, runs: Path, folder: Path) -> Job:
    """A new run with the settings of an earlier one. Raises DitflowError if they or its clip are gone."""
    settings = Run.open(folder).settings()
    check_source(settings)
    return _new_run(runner, "replay", settings, runs)


def inject(runner: Runner, runs: Path, folder: Path, prompt: str) -> Job:
    """A new run with the embedding of an earlier one. Raises DitflowError if it cannot begin."""
    if not prompt.strip():
        raise SettingsError("no prompt given: say what the new video should show")
    settings = injection_settings(folder, prompt=prompt)
    check_source(settings)
    return _new_run(runner, "inject", settings, runs)


def resume(runner: Runner, folder: Path) -> Job:
    """Go on with an unfinished run. Raises DitflowError if its settings are gone or it is in the queue."""
    settings = Run.open(folder).settings()
    if any(job.folder == folder and job.is_open for job in runner.jobs()):
        raise SettingsError(f"{folder.name} is in the queue: wait for its end")

    def start(session: Session, cancel: CancelToken) -> Iterator[Event]:
        return session.resume(folder, cancel=cancel, preview_every=PREVIEW_EVERY)

    return runner.add("resume", settings.prompt, settings.model, start, folder)


def download_note(model: str) -> str:
    """What a run has to download first; empty if the model is on this machine."""
    from ditflow.models.hub import cached_folder, missing_files

    weights, parts = known_model(model)["weights"], family_of(model).parts
    if "id" not in weights:
        return ""
    folder = cached_folder(weights["id"], parts)
    is_here = folder and not missing_files(folder, parts)
    return "" if is_here else f"The first run downloads {weights['download']} ({weights['licence']})."


def _new_run(runner: Runner, kind: str, settings: Settings, runs: Path) -> Job:
    folder = _free_folder(runs / run_name(settings), {job.folder for job in runner.jobs()})
    given = asdict(settings)
    clip, prompt, _ = (given.pop(name) for name in ("video", "prompt", "output"))

    def start(session: Session, cancel: CancelToken) -> Iterator[Event]:
        return session.transfer(
            clip or None, prompt, folder=folder, cancel=cancel, preview_every=PREVIEW_EVERY, **given
        )

    return runner.add(kind, prompt, settings.model, start, folder)


def _free_folder(wanted: Path, taken: Collection[Path]) -> Path:
    """The wanted folder, or that name with the next number if it exists or is taken."""
    folder = wanted
    for number in count(2):
        if folder not in taken and not folder.exists():
            break
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
