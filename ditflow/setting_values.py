"""The value of one setting: from YAML, the command line or Python to its type, within its bounds."""

from __future__ import annotations

import math
import re
from dataclasses import Field
from typing import Any, NamedTuple, get_args, get_origin

from ditflow.errors import SettingsError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def read_value(item: Field, kind: Any, given: Any) -> Any:
    """`given` as `kind`, checked against the field's choices and bounds; raises SettingsError."""
    try:
        value = _convert(kind, given)
    except (TypeError, ValueError):
        raise SettingsError(f"{item.name}: {given!r} given, {_expected(kind)} accepted") from None
    limits = item.metadata
    if limits["choices"] and value not in limits["choices"]:
        raise SettingsError(f"{item.name}: {given!r} given, accepted: {', '.join(limits['choices'])}")
    for number in value if isinstance(value, tuple) else (value,):
        if limits["least"] is not None and number < limits["least"]:
            raise SettingsError(f"{item.name}: {given!r} given, at least {limits['least']} accepted")
        if limits["most"] is not None and number > limits["most"]:
            raise SettingsError(f"{item.name}: {given!r} given, at most {limits['most']} accepted")
    if kind is Size and (min(value) < 16 or value.width % 16 or value.height % 16):
        raise SettingsError(
            f"{item.name}: {value} given, multiples of 16 accepted; nearest: {_nearest(value)}"
        )
    return value


def plain(value: Any) -> Any:
    """A value as YAML writes it."""
    if isinstance(value, Size):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _convert(kind: Any, given: Any) -> Any:
    if kind is Size:
        return _size(given)
    if get_origin(kind) is tuple:
        return _tuple(kind, given)
    if kind is bool:
        return _truth(given)
    if kind is str:
        if isinstance(given, bool):
            return "on" if given else "off"  # YAML reads the bare words as truth values
        if not isinstance(given, str | int | float):
            raise TypeError
        return str(given)
    if isinstance(given, bool):
        raise TypeError
    if kind is int and isinstance(given, float) and not given.is_integer():
        raise ValueError
    value = kind(given)
    if not math.isfinite(value):
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


def _truth(given: Any) -> bool:
    word = str(given).lower()
    if word not in TRUE + FALSE:
        raise ValueError
    return word in TRUE


def _size(given: Any) -> Size:
    if isinstance(given, str):
        given = re.findall(r"\d+", given) if re.fullmatch(r"\s*\d+[xX]\d+\s*", given) else ()
    width, height = given
    return Size(int(width), int(height))


def _nearest(size: Size) -> Size:
    return Size(*(max(16, round(side / 16) * 16) for side in size))


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
