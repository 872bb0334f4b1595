"""The argument parser: errors in one line that name the nearest flag or command, and defaults in `--help`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from ditflow.errors import nearest
from ditflow.settings.defaults import default_in_words

USAGE = 2  # exit code
FLAG = re.compile(r"-[A-Za-z]$|--[^\s=]+(=|$)")  # a word with a space in its name is a value


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, without the usage text."""

    commands: Iterable[str] = ()  # if the first word that is no flag must be one of them

    def error(self, message: str) -> NoReturn:
        self._refuse(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As the base class, but unknown flags and commands are refused before a missing one is."""
        words = list(sys.argv[1:] if args is None else args)
        own = list(takewhile(FLAG.match, words)) if self.commands else words
        for word in takewhile(lambda word: word != "--", own):
            name = word.partition("=")[0]
            # argparse completes the beginning of a flag
            known = any(flag.startswith(name) for flag in self._option_string_actions)
            if FLAG.match(word) and not known:
                self._refuse_unknown("flag", name, self._option_string_actions)
        if self.commands and len(own) < len(words) and words[len(own)] not in self.commands:
            self._refuse_unknown("command", words[len(own)], self.commands)
        return super().parse_known_args(words, namespace)

    def _refuse_unknown(self, kind: str, given: str, known: Iterable[str]) -> NoReturn:
        names = {name.lstrip("-"): name for name in known}
        near = nearest(given.lstrip("-"), names)
        hint = f"did you mean {names[near]}?" if near else f"`{self.prog} --help` lists them all"
        self._refuse(f"unknown {kind} {given}; {hint}")

    def _refuse(self, message: str) -> NoReturn:
        self.exit(USAGE, f"ditflow: {' '.join(message.split())}\n")


class Version(argparse.Action):
    """Prints the program's version and exits."""

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        from importlib import metadata  # brings fifty modules, which --help does not need

        print(f"ditflow {metadata.version('ditflow')}")
        parser.exit()


class WithDefaults(argparse.HelpFormatter):
    """Adds its default to the help of each flag that has one.

    The default of a flag for a setting is not its own: `setting` is the name of what it sets.
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        own = "" if action.default is argparse.SUPPRESS else action.default
        setting = getattr(action, "setting", None)
        default = default_in_words(setting) if setting else str(own or "")
        return f"{action.help} (default: {default.replace('%', '%%')})" if default else action.help
