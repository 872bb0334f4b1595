"""The record of a finished run, run.json: what it must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ditflow.errors import DitflowError
from ditflow.files import regular_file
from ditflow.limits import RECORD_BYTES
from ditflow.run_folder.schema import STEPS
from ditflow.schema import Flag, Keys, ListOf, MapOf, Number, OrNull, Text, problem

MOST = 1000  # denoising steps, and optimisation steps in each
AMOUNT = OrNull(Number(0, 1e18))  # seconds, bytes or a count; older versions wrote NaN, which is read as null
LOSSES = ListOf(OrNull(Number(-1e300, 1e300)), 0, MOST)
RECORD = Keys(
    {
        "versions": MapOf(Text(200), most=MOST),
        "device": Text(200),
        "phases": MapOf(
            Keys({"seconds": AMOUNT, "peak_bytes": AMOUNT}, required=("seconds", "peak_bytes")), most=MOST
        ),
        "losses": ListOf(LOSSES, 0, MOST),
        "resumed": Flag(),
        "skipped_optimisation_steps": AMOUNT,
        "steps": STEPS,
        "threads": AMOUNT,
    },
    required=("versions", "device", "phases"),
)


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's run.json. NaN and infinity, which older versions wrote, become None.

    Raises DitflowError, which names the key, if it is damaged.
    """
    try:
        with regular_file(path).open("rb") as file:
            content = file.read(RECORD_BYTES + 1)
        if len(content) > RECORD_BYTES:
            raise ValueError(f"it has more than {RECORD_BYTES} bytes")
        record = json.loads(content, parse_constant=lambda _: None)
        if found := problem(RECORD, record):
            raise ValueError(found)
    except (DitflowError, OSError, ValueError, RecursionError) as error:
        raise DitflowError(f"{path} is damaged ({error}): make the run again") from None
    return record
