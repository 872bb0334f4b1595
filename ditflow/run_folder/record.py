"""The record of a finished run, run.json: what it must hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ditflow.errors import DitflowError, shown
from ditflow.files import regular_file
from ditflow.limits import RECORD_BYTES

LONGEST = 200  # characters of a text or a name
MOST = 1000  # entries of a list or mapping: the most denoising steps, and optimisation steps in each
LARGEST = 1e18  # seconds or bytes


class Rule(NamedTuple):
    expected: str
    accepts: Callable[[Any], bool]


class Each(NamedTuple):
    """A mapping of any names to values of one shape."""

    shape: Any


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # neither true nor NaN


def _holds(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and len(value) <= MOST


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


TEXT = Rule(f"a text of at most {LONGEST} characters", _is_text)
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
AMOUNT = Rule(
    f"a number from 0 to {LARGEST:g}, or null", lambda value: value is None or _is_number(value, 0, LARGEST)
)
LOSS = Rule("a number or null", lambda value: value is None or _is_number(value, -1e300, 1e300))
MAPPING = Rule(
    f"a mapping of at most {MOST} names", lambda value: isinstance(value, dict) and len(value) <= MOST
)
LIST = Rule(f"a list of at most {MOST} entries", lambda value: isinstance(value, list) and len(value) <= MOST)

# a mapping's required keys; [shape] is a list
RECORD = {
    "versions": Each(TEXT),
    "device": TEXT,
    "phases": Each({"seconds": AMOUNT, "peak_bytes": AMOUNT}),
}
OPTIONAL = {"losses": [[LOSS]], "resumed": FLAG, "skipped_optimisation_steps": AMOUNT, "threads": AMOUNT}


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's run.json. NaN and infinity, which older versions wrote, become None.

    Raises DitflowError, which names the key, if it is damaged.
    """
    try:
        with regular_file(path).open("rb") as file:
            content = file.read(RECORD_BYTES + 1)
        if len(content) > RECORD_BYTES:
            raise ValueError(f"it has more than {RECORD_BYTES} bytes")
        record = json.loads(content, parse_constant=lambda _: None)
        _check(record, RECORD, "")
        _check(record, {name: shape for name, shape in OPTIONAL.items() if name in record}, "")
    except (DitflowError, OSError, ValueError, RecursionError) as error:
        raise DitflowError(f"{path} is damaged ({error}): make the run again") from None
    return record


def _check(value: Any, shape: Any, key: str) -> None:
    """Raises ValueError with the key, the value and what is expected."""
    rule = shape if isinstance(shape, Rule) else LIST if isinstance(shape, list) else MAPPING
    if not rule.accepts(value):
        raise ValueError(f"{key or 'it'} is {shown(value)}, expected {rule.expected}")
    if isinstance(shape, Rule):
        return
    if isinstance(shape, list):
        parts = [(f"{key}[{index}]", each, shape[0]) for index, each in enumerate(value)]
    else:
        each = isinstance(shape, Each)
        if missing := [] if each else [name for name in shape if name not in value]:
            raise ValueError(f"it lacks {_joined(key, missing[0])}")
        names = value if each else shape
        parts = [(_joined(key, name), value[name], shape.shape if each else shape[name]) for name in names]
    for name, part, inner in parts:
        _check(part, inner, name)


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}"[:LONGEST] if key else name
