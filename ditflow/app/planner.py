"""Plans what the models of the form need on this machine, one after the other, in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection

from ditflow.app.fits import Choice, Place, default_choice, fit, is_shipped, place_of
from ditflow.models.families import models
from ditflow.progress import quieten_libraries

PLANNING, UNKNOWN = "being planned", "could not be planned"
LOWER = 10  # of the process's priority than the server's

Plan = Callable[[Choice, Place], str]


class Planner:
    """Finds the fit of each choice once. The one on the page comes first, then each model by itself.

    A plan takes seconds and torch's global settings, so another process makes it: no run waits for it.
    """

    def __init__(self, plan: Plan = fit):
        by_need = sorted(models(), key=lambda name: (not is_shipped(name), name))
        self._others = [default_choice(name) for name in by_need]
        self._found: dict[Choice, str] = {}
        self._shown: Choice | None = None
        self._changed, self._closed = threading.Condition(), False
        context = get_context("spawn")
        self._process_end, process_end = context.Pipe()
        self._process = context.Process(target=_answer, args=(process_end, plan), daemon=True)
        self._process.start()
        process_end.close()
        self._thread = threading.Thread(target=self._work, name="planner", daemon=True)
        self._thread.start()

    def text(self, choice: Choice) -> str:
        """How the choice on the page fits; as long as it is unknown, that it is being planned."""
        with self._changed:
            self._shown = choice
            self._changed.notify_all()
            return self._found.get(choice, PLANNING)

    def labels(self) -> list[tuple[str, str]]:
        """Each model, with how it fits where that is known, and its name."""
        with self._changed:
            found = ((choice.model, self._found.get(choice, PLANNING)) for choice in self._others)
            return [(f"{model}: {text}", model) for model, text in found]

    def close(self) -> None:
        """End the process, with the plan that it makes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._process.terminate()
        self._thread.join()

    def _work(self) -> None:
        places = {
            choice.model: place_of(choice.model) for choice in self._others
        }  # before a run takes memory
        while choice := self._next():
            place = places[choice.model]
            text = place if isinstance(place, str) else self._ask(choice, place)
            with self._changed:
                self._found[choice] = text

    def _next(self) -> Choice | None:
        """The choice to plan; waits for one. None if all is closed."""

        def first() -> Choice | None:
            wanted = [*([self._shown] if self._shown else []), *self._others]
            return next((each for each in wanted if each not in self._found), None)

        with self._changed:
            self._changed.wait_for(lambda: self._closed or first())
            return None if self._closed else first()

    def _ask(self, choice: Choice, place: Place) -> str:
        try:
            self._process_end.send((choice, place))
            return self._process_end.recv()
        except (EOFError, OSError):  # the process has ended
            return UNKNOWN


def _answer(asked: Connection, plan: Plan) -> None:
    """What the process does: it plans what it is asked for, as long as the server lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    if hasattr(os, "nice"):  # not on Windows
        os.nice(LOWER)
    quieten_libraries()
    while True:
        try:
            choice, place = asked.recv()
        except EOFError:
            return
        asked.send(plan(choice, place))
