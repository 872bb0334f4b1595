"""What the page says about a run whose motion was chosen."""

from __future__ import annotations

import logging
import shlex
from html import escape
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError
from ditflow.evaluation.finished import FinishedRun
from ditflow.evaluation.target_match import match_of_run
from ditflow.pages.sharing import FILES
from ditflow.settings import Settings
from ditflow.video import Clip

logger = logging.getLogger(__name__)

MOVED = {"flip", "reverse_motion", "motion_shift"}  # settings that move the clip's motion to other places


def target_line(settings: Settings) -> str:
    """What the section about motion flow says of its target."""
    line = f"The target is what was asked for with {_choice(settings)}. Grey is free: nothing is asked there."
    if moves_target(settings):
        line += " Its arrows are drawn on the result, because what is asked is not at the clip's places."
    return f"<p>{line}</p>"


def moves_target(settings: Settings) -> bool:
    """Whether the target asks for the clip's motion at other places or times than the clip's."""
    return not MOVED.isdisjoint(settings.chosen_by)


def comparison_line(run: FinishedRun, reference: Clip, result: Clip) -> str:
    """What the section about the motion in the pictures says of its comparison with the reference."""
    settings = run.settings
    if not settings.has_clip:
        line = f"The reference is a preview of what was drawn ({_choice(settings)}), as there is no clip."
    elif settings.chooses_motion and settings.guidance:
        line = (
            f"The result is compared with the whole clip, which is not what was asked ({_choice(settings)})."
        )
    else:
        return ""
    return f"<p>{line}{_match(run, reference, result)}</p>"


def _match(run: FinishedRun, reference: Clip, result: Clip) -> str:
    try:
        found = match_of_run(run, reference, result)
    except DitflowError as error:
        logger.warning("%s: no target fidelity (%s)", run.folder, error)
        return ""
    if found is None or found.fidelity is None:
        return ""
    return (
        f" Against what was asked, the mean cosine between displacements is {found.fidelity:.2f} and the "
        f"reach {found.reach:.2f}, over the {found.compared:.0%} that can be compared."
    )


def _choice(settings: Settings) -> str:
    """The settings that chose the motion, as on the command line; files without their folders."""
    words = " ".join(_words(name, getattr(settings, name)) for name in settings.chosen_by)
    return f"<code>{escape(words)}</code>"


def _words(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    if name in FILES:
        value = shlex.quote(Path(value).name)
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([flag, *(f"{each:g}" if isinstance(each, float) else each for each in values)])
