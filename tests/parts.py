"""Run the parts of `make test` one after the other, and print how long each took.

Each argument is `NAME: COMMAND`. The first failure ends the run, and its exit status becomes this program's.
"""

import subprocess
import sys
import time


def main(parts: list[str]) -> int:
    seconds: dict[str, float] = {}
    status = 0
    for part in parts:
        name, _, command = part.partition(": ")
        began = time.monotonic()
        status = subprocess.run(command, shell=True).returncode
        seconds[name] = time.monotonic() - began
        if status:
            break
    whole = sum(seconds.values()) or 1.0
    print()
    for part in parts:
        name = part.partition(": ")[0]
        if name in seconds:
            failed = ", failed" if status and name == list(seconds)[-1] else ""
            print(f"{name:<22}{seconds[name]:7.1f} s{seconds[name] / whole:6.0%}{failed}")
        else:
            print(f"{name:<22}not run")
    print(f"{'all':<22}{sum(seconds.values()):7.1f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
