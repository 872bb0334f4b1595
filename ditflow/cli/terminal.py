"""The one way to standard output and standard error: text is cleaned, and a write never ends a run."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

ENCODING = "ascii"  # of a stream that does not name one


def clean(text: str, strict: bool = False) -> str:
    """The text with control characters escaped, so that no name or message can steer a terminal.

    Keeps line breaks and tabs. `strict` escapes everything that is not printable, such as marks that reverse
    the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _is_harmless(c, strict) else ascii(c)[1:-1] for c in text)


def one_line(*parts: str) -> str:
    """The parts as one line of printable text."""
    return clean(" ".join("; ".join(parts).split()), strict=True)


class Output:
    """Standard output or standard error, whatever becomes of its reader.

    A closed pipe, a full disk or a closed terminal makes it quiet: `lost` keeps the error, and later text is
    dropped. Characters that the stream cannot encode are escaped.
    """

    def __init__(self, stream: TextIO | None, styled: bool = False):
        self.stream = stream  # None if the process was started without it
        self.styled = styled  # the writer cleans its text and adds escapes of its own
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        if self.stream is not None and self.lost is None:
            encoding = getattr(self.stream, "encoding", None) or ENCODING
            shown = text if self.styled else clean(text, strict=self.isatty())
            self._try(self.stream.write, shown.encode(encoding, "backslashreplace").decode(encoding))
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self.stream is not None and self.lost is None:
            self._try(self.stream.flush)

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # it is closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, act: Any, *given: str) -> None:
        try:
            act(*given)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.lost = error
            with suppress(OSError, ValueError, AttributeError):  # a stream in memory has no descriptor
                # what is still in the stream's buffer would fail again at exit
                _point_at_nothing(self.stream.fileno())


@contextmanager
def steady_output() -> Iterator[tuple[Output, Output]]:
    """Make everything that this process prints go through an `Output`; yields standard output and error."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by the caller: the next file to be opened would become standard output
            _point_at_nothing(descriptor)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (each if isinstance(each, Output) else Output(each) for each in before)
    try:
        yield sys.stdout, sys.stderr
    finally:
        sys.stdout, sys.stderr = before


def styled(output: TextIO | Output) -> Output:
    """The same output for a writer that cleans its text and adds escapes of its own."""
    return Output(output.stream if isinstance(output, Output) else output, styled=True)


def _is_harmless(character: str, strict: bool) -> bool:
    return character.isprintable() or not (strict or unicodedata.category(character) in ("Cc", "Cs"))


def _point_at_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != descriptor:
        os.dup2(nothing, descriptor)
        os.close(nothing)
