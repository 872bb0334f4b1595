"""Converts the value of one setting to its type and checks it against its choices and bounds."""

from __future__ import annotations

import argparse
import math
import os
import re
import unicodedata
from dataclasses import Field
from typing import Any, NamedTuple, get_args, get_origin

from ditflow.errors import SettingsError, shown

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
LONGEST_NAME = 255  # bytes in a file or folder name
LONGEST_PATH = 4000  # bytes; Linux takes 4095, and the run's own names are added


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def read_value(item: Field, kind: Any, given: Any) -> Any:
    """Convert `given` to the type `kind` and check it. Raises SettingsError."""
    try:
        value = _convert(kind, given)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{item.name}: {shown(given)} given, {_expected(kind)} accepted") from None
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise SettingsError(f"{item.name}: {shown(given)} given, accepted: {', '.join(choices)}")
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, str):
            _check_text(item, part)
        else:
            _check_bounds(item, given, part)
    return value


def is_possible(path: str) -> bool:
    """Whether the system can look up a path of this length."""
    names = [os.fsencode(name) for name in path.replace(os.sep, "/").split("/")]
    return len(os.fsencode(path)) <= LONGEST_PATH and all(len(name) <= LONGEST_NAME for name in names)


def count(text: str) -> int:
    """A number of things, for an argument of the command line that is no setting."""
    if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text)):
        raise argparse.ArgumentTypeError(f"{shown(text)} given; accepted: a number from 1 to 9999")
    return int(text)


def plain(value: Any) -> Any:
    """A value in a form that YAML can write."""
    if isinstance(value, Size):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _check_bounds(item: Field, given: Any, number: float) -> None:
    least, most = item.metadata["least"], item.metadata["most"]
    if least is not None and number < least:
        raise SettingsError(f"{item.name}: {shown(given)} given, at least {least} accepted")
    if most is not None and number > most:
        raise SettingsError(f"{item.name}: {shown(given)} given, at most {most} accepted")


def _check_text(item: Field, text: str) -> None:
    prose, most = item.metadata["group"] == "text", item.metadata["most"]
    for character in text:
        # control characters, and surrogates, which stand for bytes that are not UTF-8
        if unicodedata.category(character) in ("Cc", "Cs") and not (prose and character in "\t\n\r"):
            raise SettingsError(
                f"{item.name}: {shown(text)} contains {character!r}, which cannot be printed; remove it"
            )
    if most is not None and len(text) > most:
        raise SettingsError(f"{item.name}: {len(text)} characters given, at most {most} accepted")
    if not prose and not is_possible(text):
        raise SettingsError(
            f"{item.name}: {shown(text)} has more than {LONGEST_PATH} bytes, or a name of more than "
            f"{LONGEST_NAME} bytes; shorten it"
        )


def _convert(kind: Any, given: Any) -> Any:
    if kind is Size:
        return _size(given)
    if get_origin(kind) is tuple:
        return _tuple(kind, given)
    if kind is bool:
        return _boolean(given)
    if kind is str:
        if isinstance(given, bool):
            return "on" if given else "off"  # YAML reads a bare on or off as a boolean
        if isinstance(given, os.PathLike):
            given = os.fspath(given)
        if not isinstance(given, str | int | float):
            raise TypeError
        return str(given)
    if isinstance(given, bool):
        raise TypeError
    value = kind(given)
    if kind is int and not isinstance(given, str) and value != given:  # 9.5, in any type
        raise ValueError
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return value


def _tuple(kind: Any, given: Any) -> tuple:
    inner, *rest = get_args(kind)
    if isinstance(given, str) and inner is not str:
        given = [part for part in re.split(r"[,\s]+", given.strip("[] ")) if part]
    if not isinstance(given, list | tuple):
        given = [given]
    if rest != [Ellipsis] and len(given) != 1 + len(rest):
        raise ValueError
    return tuple(_convert(inner, part) for part in given)


def _boolean(given: Any) -> bool:
    word = str(given).lower()
    if word not in TRUE + FALSE:
        raise ValueError
    return word in TRUE


def _size(given: Any) -> Size:
    if isinstance(given, str):
        given = re.findall(r"\d+", given) if re.fullmatch(r"\s*\d+[xX]\d+\s*", given) else ()
    if isinstance(given, set | frozenset):  # it has no order
        raise TypeError
    width, height = (_convert(int, side) for side in given)
    if min(width, height) < 0:
        raise ValueError
    return Size(width, height)


def _expected(kind: Any) -> str:
    if get_origin(kind) is tuple:
        inner, *rest = get_args(kind)
        count = "a list of" if rest == [Ellipsis] else str(1 + len(rest))
        return f"{count} {'whole numbers' if inner is int else 'numbers' if inner is float else 'texts'}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Size: "WIDTHxHEIGHT",
    }
    return words[kind]
