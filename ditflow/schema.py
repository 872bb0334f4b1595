"""Rules for the values in a JSON file, and one message for a value that breaks its rule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ditflow.errors import DitflowError, shown

LONGEST_KEY = 200  # characters of a key that a message names


class Rule:
    """The values that a key may have. Its text completes "expected ..."."""

    def accepts(self, value: Any) -> bool:
        """Whether the value itself is right; its parts have rules of their own."""
        raise NotImplementedError

    def parts(self, value: Any) -> Iterable[tuple[str, Any, Rule]]:
        """What to append to the key, the part and its rule, for each part of an accepted value."""
        return ()


def problem(rule: Rule, value: Any, key: str = "") -> str | None:
    """The first key, in a value or its parts, that is missing or wrong; None if all is right."""
    name = key.removeprefix(".")[:LONGEST_KEY]
    if not rule.accepts(value):
        return f"{name or 'it'} is {shown(value)}, expected {rule}"
    for missing in (each for each in getattr(rule, "required", ()) if each not in value):
        return (
            f"it lacks {f'{key}.{missing}'.removeprefix('.')[:LONGEST_KEY]}, expected {rule.rules[missing]}"
        )
    found = (problem(inner, part, key + suffix) for suffix, part, inner in rule.parts(value))
    return next(filter(None, found), None)


def check(rule: Rule, path: object, value: Any) -> None:
    """Raises DitflowError with the file, the key, what was found and what is expected."""
    if found := problem(rule, value):
        raise DitflowError(f"{path}: {found}; the file is damaged or not of a supported kind")


@dataclass(frozen=True)
class Number(Rule):
    least: float
    most: float
    kinds = (int, float)
    name = "a number"

    def accepts(self, value: Any) -> bool:
        return type(value) in self.kinds and self.least <= value <= self.most  # not bool, not NaN

    def __str__(self) -> str:
        return f"{self.name} from {self.least:.12g} to {self.most:.12g}"


class Whole(Number):
    kinds = (int,)
    name = "a whole number"


@dataclass(frozen=True)
class OneOf(Rule):
    values: tuple

    def accepts(self, value: Any) -> bool:
        return any(
            value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values
        )

    def __str__(self) -> str:
        return " or ".join(json.dumps(value) for value in self.values)


@dataclass(frozen=True)
class Flag(Rule):
    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Rule):
    most: int = 100  # characters

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) <= self.most

    def __str__(self) -> str:
        return f"a text of at most {self.most} characters"


@dataclass(frozen=True)
class ListOf(Rule):
    rule: Rule
    least: int  # entries
    most: int

    def accepts(self, value: Any) -> bool:
        return isinstance(value, list) and self.least <= len(value) <= self.most

    def parts(self, value: list) -> Iterator[tuple[str, Any, Rule]]:
        return ((f"[{index}]", part, self.rule) for index, part in enumerate(value))

    def __str__(self) -> str:
        count = f"{self.least} to {self.most}" if self.least else f"at most {self.most}"
        return f"a list of {self.most if self.least == self.most else count} entries, each {self.rule}"


@dataclass(frozen=True)
class MapOf(Rule):
    rule: Rule  # of the values
    names: str = r"(?s).{1,200}"  # a regular expression for the keys
    most: int = 1_000_000  # keys

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, dict)
            and len(value) <= self.most
            and all(re.fullmatch(self.names, name) for name in value)
        )

    def parts(self, value: dict) -> Iterator[tuple[str, Any, Rule]]:
        return ((f".{name}", part, self.rule) for name, part in value.items())

    def __str__(self) -> str:
        return f"a mapping of at most {self.most} names to {self.rule}"


@dataclass(frozen=True)
class Keys(Rule):
    """A mapping with certain keys; others are not checked, because nothing reads them."""

    rules: Mapping[str, Rule] = field(default_factory=dict)
    required: Iterable[str] = ()

    def accepts(self, value: Any) -> bool:
        return isinstance(value, dict)

    def parts(self, value: dict) -> Iterator[tuple[str, Any, Rule]]:
        return ((f".{key}", value[key], rule) for key, rule in self.rules.items() if key in value)

    def __str__(self) -> str:
        return f"a mapping with {', '.join(self.required) or 'any keys'}"


@dataclass(frozen=True)
class Either(Rule):
    """A value that one of the rules accepts; its parts follow the first that does."""

    rules: tuple[Rule, ...]

    def accepts(self, value: Any) -> bool:
        return any(rule.accepts(value) for rule in self.rules)

    def parts(self, value: Any) -> Iterator[tuple[str, Any, Rule]]:
        yield "", value, next(rule for rule in self.rules if rule.accepts(value))

    def __str__(self) -> str:
        return " or ".join(str(rule) for rule in self.rules)


@dataclass(frozen=True)
class OrNull(Rule):
    rule: Rule

    def accepts(self, value: Any) -> bool:
        return value is None or self.rule.accepts(value)

    def parts(self, value: Any) -> Iterable[tuple[str, Any, Rule]]:
        return () if value is None else [("", value, self.rule)]

    def __str__(self) -> str:
        return f"{self.rule}, or null"


@dataclass(frozen=True)
class Schema(Keys):
    """The rules of a configuration file, and bounds on products of its numbers."""

    products: Mapping[tuple[str, ...], float] = field(default_factory=dict)  # keys: most of their product

    def check(self, path: object, config: Mapping[str, Any]) -> None:
        """Raises DitflowError with the file, the key, what was found and what is expected."""
        check(self, path, config)
        for keys, most in self.products.items():
            size = prod(config[key] for key in keys) if all(key in config for key in keys) else 0
            if size > most:
                raise DitflowError(
                    f"{path}: the product of {', '.join(keys)} is {size:.4g}, expected at most {most:.4g}; "
                    "the file is damaged"
                )


def check_equal(what: str, found: Mapping[str, int]) -> None:
    """Raises DitflowError if the numbers, by where they come from, differ."""
    if len(set(found.values())) > 1:
        given = ", ".join(f"{number} {where}" for where, number in found.items())
        raise DitflowError(f"{what}: {given}, expected equal numbers; give a complete model of one kind")
