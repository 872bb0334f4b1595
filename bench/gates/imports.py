"""How many modules the command line imports for `ditflow --help`."""

import subprocess
import sys

from bench.gates.gate import Gate, Metrics

HELP = """if True:
    import sys
    before = set(sys.modules)
    from ditflow.cli.main import main
    try:
        main(["--help"])
    except SystemExit:
        pass
    print(len(set(sys.modules) - before), file=sys.stderr)"""


def gates() -> dict[str, Gate]:
    return {"imports": measure}


def measure(code: str = HELP) -> dict[str, Metrics]:
    """In a process of its own, without the modules that Python itself starts with."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {"imports/help": {"modules": int(done.stderr)}}
