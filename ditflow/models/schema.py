"""What a model's configuration files may hold, checked before anything is built from them.

A family has a `Schema` for each file. Keys without a rule are not checked, because nothing reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

from ditflow.errors import DitflowError, shown


class Rule(Protocol):
    """The values that a key may have; its text completes "expected ..."."""

    def accepts(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Number:
    least: float
    most: float
    kinds = (int, float)
    name = "a number"

    def accepts(self, value: object) -> bool:
        return type(value) in self.kinds and self.least <= value <= self.most  # not bool, not NaN

    def __str__(self) -> str:
        return f"{self.name} from {self.least:.12g} to {self.most:.12g}"


class Whole(Number):
    kinds = (int,)
    name = "a whole number"


@dataclass(frozen=True)
class OneOf:
    values: tuple

    def accepts(self, value: object) -> bool:
        return any(
            value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values
        )

    def __str__(self) -> str:
        return " or ".join(json.dumps(value) for value in self.values)


@dataclass(frozen=True)
class Flag:
    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text:
    most: int = 100  # characters

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and len(value) <= self.most

    def __str__(self) -> str:
        return f"text of at most {self.most} characters"


@dataclass(frozen=True)
class ListOf:
    rule: Rule
    least: int  # entries
    most: int

    def accepts(self, value: object) -> bool:
        return (
            isinstance(value, list)
            and self.least <= len(value) <= self.most
            and all(map(self.rule.accepts, value))
        )

    def __str__(self) -> str:
        return f"a list of {self.least} to {self.most} entries, each {self.rule}"


@dataclass(frozen=True)
class MapOf:
    rule: Rule  # of the values
    names: str  # a regular expression for the keys

    def accepts(self, value: object) -> bool:
        return isinstance(value, dict) and all(
            re.fullmatch(self.names, name) and self.rule.accepts(held) for name, held in value.items()
        )

    def __str__(self) -> str:
        return f"a mapping of names ({self.names}) to {self.rule}"


@dataclass(frozen=True)
class OrNull:
    rule: Rule

    def accepts(self, value: object) -> bool:
        return value is None or self.rule.accepts(value)

    def __str__(self) -> str:
        return f"null or {self.rule}"


@dataclass(frozen=True)
class Schema:
    """The rules of one file."""

    rules: Mapping[str, Rule] = field(default_factory=dict)
    required: Iterable[str] = ()
    products: Mapping[tuple[str, ...], float] = field(default_factory=dict)  # keys: most of their product

    def check(self, path: object, config: Mapping[str, Any]) -> None:
        """Raises DitflowError with the file, the key, what was found and what is expected."""
        for key, rule in self.rules.items():
            if key not in config and key in self.required:
                raise DitflowError(f"{path} lacks {key}, expected {rule}: give a complete model")
            if key in config and not rule.accepts(config[key]):
                raise DitflowError(
                    f"{path}: {key} is {shown(config[key])}, expected {rule}; the file is damaged or not of "
                    "a supported kind"
                )
        for keys, most in self.products.items():
            found = prod(config[key] for key in keys) if all(key in config for key in keys) else 0
            if found > most:
                raise DitflowError(
                    f"{path}: the product of {', '.join(keys)} is {found:.4g}, expected at most {most:.4g}; "
                    "the file is damaged"
                )
