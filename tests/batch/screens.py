"""What a terminal shows: enough of its escapes to read what rich draws."""

import fcntl
import os
import pty
import re
import struct
import termios
import time

ESCAPE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Screen:
    """Lines from the first one written; `top` is the first that is still on the screen."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.lines, self.row, self.column, self.cursor = [""], 0, 0, True

    @property
    def top(self):
        return max(0, len(self.lines) - self.rows)

    @property
    def shown(self):
        """The lines on the screen, without empty ones at the end."""
        return "\n".join(self.lines[self.top :]).rstrip("\n").split("\n")

    def write(self, text):
        while text:
            if found := ESCAPE.match(text):
                self._escape(*found.groups())
            elif text[0] == "\r":
                self.column = 0
            elif text[0] == "\n":
                self._down()
            else:
                self._put(text[0])
            text = text[found.end() if found else 1 :]

    def _escape(self, number, kind):
        if kind == "A":
            self.row = max(self.top, self.row - int(number or 1))
        elif (number, kind) == ("2", "K"):
            self.lines[self.row] = ""
        elif number == "?25":
            self.cursor = kind == "h"
        else:
            assert kind == "m", f"an escape that is not known here: {number}{kind}"

    def _put(self, character):
        if self.column == self.columns:
            self.column = 0
            self._down()
        line = self.lines[self.row].ljust(self.columns)
        self.lines[self.row] = (line[: self.column] + character + line[self.column + 1 :]).rstrip()
        self.column += 1

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")


def drawn(act, columns, rows):
    """Call `act(pause)` in a fork with a terminal. The screen at each `pause()`, and at the end."""
    process, terminal = pty.fork()
    if not process:
        code = 1
        try:
            os.environ["TERM"] = "xterm"
            for size in ("COLUMNS", "LINES"):  # a test runner may have set them
                os.environ.pop(size, None)
            os.read(0, 1)  # the terminal has its size
            act(lambda: (os.write(2, b"\0"), os.read(0, 1)))
            code = 0
        finally:
            os._exit(code)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    flags = termios.tcgetattr(terminal)
    flags[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, flags)
    os.write(terminal, b"\n")
    screen, pauses, pending = Screen(columns, rows), [], b""  # a read may end amid an escape
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            pending += os.read(terminal, 1 << 16)
        except OSError:  # the fork has ended
            break
        *amid, pending = pending.split(b"\0")
        for text in amid:
            screen.write(text.decode())
            pauses.append((screen.shown, screen.cursor))
            os.write(terminal, b"\n")
    screen.write(pending.decode())
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, screen.lines
    return pauses, screen
