"""Reads a drawn motion from a YAML file.

camera:                                        # optional; without it, what no object covers is free
  - {time: 0, pan: [0, 0], zoom: 1, rotate: 0}
  - {time: 1, pan: [0.2, 0], zoom: 1.1, rotate: 0}
objects:                                       # optional
  - shape: ellipse                             # or box
    path:
      - {time: 0, center: [0.2, 0.5], size: [0.2, 0.3]}
      - {time: 1, center: [0.8, 0.5], size: [0.2, 0.3]}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ditflow.errors import SettingsError, shown
from ditflow.motion.drawing import Camera, Drawing, Figure
from ditflow.settings.yaml_file import read_mapping

SHAPES = ("box", "ellipse")


class Numbers(NamedTuple):
    """A value of a point: one number or two, within bounds."""

    count: int
    least: float
    most: float
    default: float | tuple[float, ...] | None = None  # None: it must be given

    def __str__(self) -> str:
        what = "a number" if self.count == 1 else "two numbers, [x, y],"
        return f"{what} from {self.least:g} to {self.most:g}"


TIME = Numbers(1, 0, 1)
CAMERA = {
    "time": TIME,
    "pan": Numbers(2, -100, 100, (0, 0)),
    "zoom": Numbers(1, 0.01, 100, 1),
    "rotate": Numbers(1, -36000, 36000, 0),
}
PATH = {"time": TIME, "center": Numbers(2, -100, 100), "size": Numbers(2, 0.001, 100)}


def read_drawing(path: Path) -> Drawing:
    """The drawn motion in a file. Raises SettingsError, in one line, for anything that is not as above."""
    values = read_mapping(path, "motion file")
    try:
        return _drawing(values)
    except SettingsError as error:
        raise SettingsError(f"motion file {path}: {error}") from None


def _drawing(values: Mapping[str, Any]) -> Drawing:
    _check_names("", values, ("camera", "objects"))
    if not values:
        raise SettingsError("nothing given; give camera, objects or both")
    camera = Camera(**_points("camera", values["camera"], CAMERA)) if "camera" in values else None
    figures = _list("objects", values["objects"], "objects") if "objects" in values else ()
    return Drawing(camera, tuple(_figure(f"object {n}", figure) for n, figure in enumerate(figures, start=1)))


def _figure(where: str, given: Any) -> Figure:
    _check_names(where, given, ("shape", "path"), required=("shape", "path"))
    if given["shape"] not in SHAPES:
        raise SettingsError(f"{where}: shape {shown(given['shape'])} given, accepted: {', '.join(SHAPES)}")
    return Figure(given["shape"], **_points(f"{where}, path", given["path"], PATH))


def _points(where: str, given: Any, kinds: Mapping[str, Numbers]) -> dict[str, np.ndarray]:
    """The values of all points by name, [points, numbers]; those of time are [points], in rising order."""
    required = [name for name, kind in kinds.items() if kind.default is None]
    rows: dict[str, list] = {name: [] for name in kinds}
    for number, point in enumerate(_list(where, given, "points"), start=1):
        here = f"{where}, point {number}"
        _check_names(here, point, kinds, required)
        for name, kind in kinds.items():
            rows[name].append(_numbers(f"{here}: {name}", kind, point.get(name, kind.default)))
    values = {name: np.array(row, np.float64) for name, row in rows.items()}
    times = values.pop("time")[:, 0]
    for number, (before, time) in enumerate(pairwise(times), start=2):
        if time <= before:
            raise SettingsError(
                f"{where}, point {number}: time {time:g} is not after {before:g}, that of the point before: "
                "put the points in order"
            )
    return {"times": times, **values}


def _list(where: str, given: Any, of: str) -> Sequence[Any]:
    if not isinstance(given, list):
        raise SettingsError(f"{where}: {shown(given)} given, a list of {of} accepted")
    if not given:
        raise SettingsError(f"{where}: no {of} given; give at least one")
    return given


def _check_names(where: str, given: Any, known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raises SettingsError unless `given` is a mapping with known names, among them the required ones."""
    place, known = f"{where}: " if where else "", list(known)
    if not isinstance(given, dict):
        raise SettingsError(
            f"{place}{shown(given)} given, accepted: {{{', '.join(f'{n}: ...' for n in known)}}}"
        )
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(known)}"
            raise SettingsError(f"{place}unknown key {shown(name)}: {hint}")
    for name in required:
        if name not in given:
            raise SettingsError(f"{place}no {name} given; give {', '.join(required)}")


def _numbers(where: str, kind: Numbers, given: Any) -> tuple[float, ...]:
    values = [given] if kind.count == 1 else given
    fits = isinstance(values, list | tuple) and len(values) == kind.count
    if not fits or not all(
        type(value) in (int, float) and kind.least <= value <= kind.most for value in values
    ):
        raise SettingsError(f"{where}: {shown(given)} given, {kind} accepted")
    return tuple(values)
