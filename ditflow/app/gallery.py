"""The runs in a folder, for the page: what each was asked for, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from ditflow.errors import DitflowError
from ditflow.files import inside
from ditflow.limits import PROMPT_CHARACTERS
from ditflow.run_folder.embeddings import FILE as EMBEDDING
from ditflow.run_folder.run import RECORD, SETTINGS
from ditflow.settings.yaml_file import read_mapping

MEDIA = {  # the files of a run that the page may show, and their types
    "result.mp4": "video/mp4",
    "result.gif": "image/gif",
    "reference.mp4": "video/mp4",
    "reference.gif": "image/gif",
}


@dataclass(frozen=True)
class ShownRun:
    folder: Path
    prompt: str
    model: str
    state: Literal["finished", "unfinished", "unreadable"]
    pictures: tuple[str, ...]  # of MEDIA: the result, then the reference
    has_embedding: bool  # so that it can be injected


class Stamp(NamedTuple):
    """What changes if a run ends or is written to."""

    name: str
    finished: bool
    written: float


def stamps(folder: Path) -> list[Stamp]:
    """The stamps of the runs in a folder, the latest first."""
    found = []
    for path in _folders(folder):
        with suppress(FileNotFoundError):  # removed just now
            written = (path / SETTINGS).stat().st_mtime
            found.append(Stamp(path.name, (path / RECORD).is_file(), written))
    return sorted(found, key=lambda stamp: stamp.written, reverse=True)


def read_run(folder: Path) -> ShownRun:
    """What is shown of a run; of a damaged one, what is wrong with it."""
    try:
        values = read_mapping(inside(folder, SETTINGS))
    except DitflowError as error:
        return ShownRun(folder, str(error), "", "unreadable", (), False)
    state = "finished" if (folder / RECORD).is_file() else "unfinished"
    pictures = tuple(name for name in MEDIA if (folder / name).is_file())
    has_embedding = (folder / EMBEDDING).is_file()
    return ShownRun(
        folder, str(values.get("prompt")), str(values.get("model")), state, pictures, has_embedding
    )


def run_named(folder: Path, name: str) -> Path:
    """The folder of a run by a name that may come from a browser. Raises DitflowError if there is none."""
    for path in _folders(folder):
        if path.name == name:
            return path
    raise DitflowError(f"{folder} has no run of that name: load the page again")


def picture(folder: Path, name: str, file: str) -> Path:
    """The path of one of MEDIA of a run. Raises DitflowError if it does not exist or is a link elsewhere."""
    run = run_named(folder, name)
    if file not in MEDIA or not (path := inside(run, file)).is_file():
        raise DitflowError(f"run {name} has no such picture")
    return path


def card_html(run: ShownRun) -> str:
    """A run's videos, prompt and model, and its buttons."""
    shown = "".join(_media(run.folder, name) for name in run.pictures)
    state = "" if run.state == "finished" else f" · {run.state}"
    return (
        f'<div class="card"><div class="media">{shown}</div><b>{escape(run.prompt)}</b>'
        f"<small>{escape(run.folder.name)} · {escape(run.model)}{state}</small>{_buttons(run)}</div>"
    )


def _buttons(run: ShownRun) -> str:
    """What can be done with a run; `cards.js` reports what is pressed."""
    name = escape(run.folder.name)
    if run.state == "unfinished":
        return f'<p><button data-action="resume" data-of="{name}">Resume</button></p>'
    if run.state == "unreadable":
        return ""
    link = f'<a href="/report/{quote(run.folder.name, safe="")}" target="_blank">Report</a>'
    buttons = f'<p>{link}<button data-action="replay" data-of="{name}">Replay</button></p>'
    if run.has_embedding:
        field = f'<input name="prompt" placeholder="another prompt" maxlength="{PROMPT_CHARACTERS}">'
        buttons += f'<form data-action="inject" data-of="{name}">{field}<button>Inject</button></form>'
    return buttons


def result_html(runs: Path, folder: Path) -> str:
    """The new video of a run that has just ended."""
    found = next((name for name in MEDIA if (folder / name).is_file()), None)
    return _media(folder, found) if found and folder.parent == runs else ""


def _media(folder: Path, name: str) -> str:
    source = f"/run/{quote(folder.name, safe='')}/{name}"
    side = name.partition(".")[0]
    title = "new video" if side == "result" else "clip"
    if name.endswith(".gif"):
        return f'<figure><img src="{source}" alt="{title}"><figcaption>{title}</figcaption></figure>'
    return (
        f'<figure><video class="{side}" src="{source}" autoplay loop muted playsinline></video>'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _folders(folder: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(folder.glob(f"*/{SETTINGS}")))
