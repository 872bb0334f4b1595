"""Which code was measured."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The checkout's, `+` where files differ from it; "unknown" outside one."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")
