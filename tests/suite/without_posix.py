"""Run a command as on Windows: without the modules, functions and flags that only POSIX systems have.

Not Windows itself: paths, files and the libraries still behave as on this system.
"""

import ctypes
import os
import pkgutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

# the libraries know the real system
for library in ("diffusers", "peft", "psutil", "rich.progress", "torch", "transformers"):
    import_module(library)

FOREIGN = (".triton", ".app.", ".comfyui.")  # import packages that need not be installed
POSIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
POSIX_NAMES = {
    os: (
        "O_NOFOLLOW",
        "O_DIRECTORY",
        "O_NONBLOCK",
        "fork",
        "getuid",
        "geteuid",
        "sched_getaffinity",
        "mkfifo",
    ),
    signal: ("SIGKILL", "SIGHUP", "SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGALRM", "alarm", "setitimer"),
}
locked: set[tuple[int, int]] = set()  # files, by device and inode


def locking(descriptor: int, mode: int, count: int) -> None:
    """Lock bytes from the current position, once for each file."""
    assert (mode, count) == (2, 1) and os.lseek(descriptor, 0, os.SEEK_CUR) > 0
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) in locked:
        raise PermissionError("locked")
    locked.add((status.st_dev, status.st_ino))


def refuse(original, is_refused):
    """The function, failing as on Windows for some arguments."""

    def call(*arguments, **keywords):
        if is_refused(*arguments, **keywords):
            raise PermissionError(f"not on Windows: {arguments}")
        return original(*arguments, **keywords)

    return call


def main() -> int:
    for name in POSIX_MODULES:
        sys.modules[name] = None
    for module, names in POSIX_NAMES.items():
        for name in names:
            delattr(module, name)
    sys.modules["msvcrt"] = SimpleNamespace(locking=locking, LK_NBLCK=2)
    sys.platform = "win32"
    ctypes.CDLL = refuse(ctypes.CDLL, lambda name=None, *_, **__: name is None)
    # shutil opens folders here, with dir_fd, but not on Windows
    os.open = refuse(os.open, lambda path, *_, **keywords: os.path.isdir(path) and "dir_fd" not in keywords)
    os.replace = refuse(os.replace, lambda _, path: os.path.isdir(path))
    Path.read_text = refuse(Path.read_text, lambda path, **_: path.parts[:2] == ("/", "proc"))

    import ditflow
    import ditflow_kernels

    for package in (ditflow, ditflow_kernels):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__") and not any(part in found.name for part in FOREIGN):
                import_module(found.name)

    from ditflow.cli.main import main as command

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
