"""Lines that may be shown to anybody: without the home folder, the user, the machine's name, secrets."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)  # in names of the environment
SHORTEST = 6  # characters of a secret: shorter values are switches
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")  # in an address


def without_private() -> Callable[[str], str]:
    """A function that takes out of a line what tells of its user: home folder, names, secrets."""
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
    kept = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST]
    secrets = sorted(kept, key=len, reverse=True)  # one may begin with another

    def private(line: str) -> str:
        for secret in secrets:
            line = line.replace(secret, "HIDDEN")
        return pattern.sub(lambda found: hidden[found[0]], LOGIN.sub("", line))

    return private
