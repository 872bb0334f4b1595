"""Reads settings from a file: YAML without aliases or tags, limited in size."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ditflow.errors import DitflowError, SettingsError, nearest, shown
from ditflow.files import regular_file
from ditflow.limits import SETTINGS_BYTES
from ditflow.settings.settings import Settings
from ditflow.settings.speed import speed_settings


def read_settings(path: Path | None = None, /, **given: Any) -> Settings:
    """Settings from an optional YAML file, overridden by `given`; a speed overrides all that a speed sets.

    Raises SettingsError if the file cannot be read, is not a mapping or has a key that is not a setting.
    """
    values = _canonical(read_mapping(Path(path))) if path else {}
    given = _canonical(given)
    if given.get("speed") is not None:
        values = {name: value for name, value in values.items() if name not in speed_settings("exact")}
    values |= {name: value for name, value in given.items() if value is not None}
    known = [item.name for item in fields(Settings)]
    for name in values:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else "`ditflow transfer --print-config` lists them all"
            raise SettingsError(f"unknown setting {name!r}: {hint}")
    return Settings(**values)


def _canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the settings' own names. Raises SettingsError if one has two spellings."""
    names = {item.metadata["spelling"]: item.name for item in fields(Settings) if item.metadata["spelling"]}
    for name in values:
        if name in names and names[name] in values:
            raise SettingsError(f"{name} and {names[name]} are the same setting: give only one of them")
    return {names.get(name, name): value for name, value in values.items()}


def read_mapping(path: Path, what: str = "settings file") -> dict[str, Any]:
    """The values of a YAML file by name; `what` it is, for messages.

    Raises SettingsError if it is not a mapping from names to values.
    """
    return parsed_mapping(read_bytes(path, what), f"{what} {path}")


def parsed_mapping(content: bytes, what: str) -> dict[str, Any]:
    """The values of YAML by name. Raises like `read_mapping`."""
    if len(content) > SETTINGS_BYTES:
        raise SettingsError(f"{what} is larger than {SETTINGS_BYTES} bytes: give a smaller one")
    values = parsed_yaml(content, what)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"{what}: expected lines of `name: value`")
    return values


def parsed_yaml(content: bytes, what: str) -> Any:
    """The content of YAML; `what` it is, for messages. Raises SettingsError."""
    try:
        return yaml.load(content.decode("utf-8"), _PlainLoader)
    except SettingsError as error:
        raise SettingsError(f"{what}, {error}") from None
    except RecursionError:
        raise SettingsError(f"{what} is nested too deeply: give flatter YAML") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{what} is not YAML: {reason}") from None


def read_bytes(path: Path, what: str, most: int = SETTINGS_BYTES) -> bytes:
    """The content of a file of at most `most` bytes; `what` it is, for messages. Raises SettingsError."""
    try:
        with regular_file(path).open("rb") as file:
            content = file.read(most + 1)
    except DitflowError as error:
        raise SettingsError(f"{what} {error}") from None
    except OSError as error:
        raise SettingsError(f"{what} {path}: {error.strerror}; give a readable file") from None
    if len(content) > most:
        raise SettingsError(f"{what} {path} is larger than {most} bytes: give a smaller one")
    return content


def check_output(path: Path, output: str) -> None:
    """Raises SettingsError if a settings file sends output outside its own folder and the current one.

    A settings file from someone else must not choose where on this machine to write.
    """
    if not is_near(path, output):
        raise SettingsError(
            f"settings file {path}: its output {shown(output)} is neither in the file's folder nor in the "
            "current one; give --output"
        )


def is_near(path: Path, output: str) -> bool:
    """Whether `output` is inside the folder of the file at `path`, or inside the current folder."""
    wanted = Path(os.path.realpath(os.path.expanduser(output)))
    return any(wanted.is_relative_to(os.path.realpath(folder)) for folder in (".", path.parent))


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses aliases, tags and repeated names.

    No setting needs an alias or a tag. A few lines of aliases can expand to gigabytes, and a tag chooses the
    Python type to construct.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise SettingsError(f"{where}: *{event.anchor} is an alias; write out the value it stands for")
        if getattr(event, "tag", None) is not None:
            raise SettingsError(f"{where}: {event.tag} is a tag; remove it")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, times in names.most_common(1):
            if times > 1:
                raise SettingsError(
                    f"from line {node.start_mark.line + 1}: {name!r} is given {times} times; give it once"
                )
        return super().construct_mapping(node, deep)
