"""Removes the home folder, user name, host name and secrets from text that others will read."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)  # in names of environment variables
SHORTEST = 6  # characters of a secret; shorter values are more likely switches
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")  # in a URL


def make_redactor() -> Callable[[str], str]:
    """A function that removes private details from a line."""
    hidden = {}
    for name in {platform.node(), platform.node().partition(".")[0]}:
        hidden[name] = "HOST"
    with suppress(OSError, KeyError, ImportError):
        hidden[getpass.getuser()] = "USER"
    with suppress(RuntimeError):
        home = Path.home()
        for path in (home, home.resolve()):
            if path != Path(path.anchor):
                hidden |= {path.name: "USER", str(path): "~"}
    hidden.pop("", None)
    longest_first = sorted(hidden, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)")
    found = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST]
    secrets = sorted(found, key=len, reverse=True)  # the longest first: one may begin with another

    def redact(line: str) -> str:
        for secret in secrets:
            line = line.replace(secret, "HIDDEN")
        return pattern.sub(lambda found: hidden[found[0]], LOGIN.sub("", line))

    return redact
