"""Plan a run of CogVideoX-5B at every speed on every card with estimated rates: `python -m bench.speeds`.

Prints the table of docs/speed.md, with what the wind tunnel has measured of each speed on the small models.
The plans and these numbers go to bench/results/speeds.json.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.tables import speed_table
from ditflow.planning.beside_exact import plan_for_card
from ditflow.planning.ceilings import read_ceilings
from ditflow.settings import Settings
from ditflow.settings.speed import SPEEDS

FRAMES = (24, 49)
DEVICES = ("rtx-3060", "rtx-4090", "h200")
# the stage and the mode of the wind tunnel that a speed is on a CPU, where all attention is the same
MEASURED = {
    "exact": ("negative", "exact"),
    "fast": ("negative", "negative=alternate"),
    "faster": ("speeds", "faster"),
}
PLANNED = Path(__file__).parent / "results" / "speeds.json"


def main() -> None:
    runs = [run for speed in SPEEDS for frames in FRAMES for run in planned(speed, frames)]
    found = {"kind": "speeds", "model": "CogVideoX-5B in bf16, 720x480", "runs": runs}
    found["motion"] = {speed: motion(speed) for speed in SPEEDS}
    print(speed_table(found))
    PLANNED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def planned(speed: str, frames: int) -> Iterable[dict[str, Any]]:
    """The run on each card, with the fastest preset that fits it."""
    settings = Settings(model="5b", frames=frames, speed=speed)
    for name in DEVICES:
        device = read_ceilings(name)
        plan = plan_for_card(settings, device.gigabytes)
        yield {
            "speed": speed,
            "frames": frames,
            "device": name,
            "rates": device.kind,
            "preset": plan.preset.name,
            "peak_bytes": plan.largest.peak_bytes,
            "flops": plan.total_flops,
            "at_most": settings.step_threshold is not None,  # a run may reuse blocks
            "seconds": round(device.run_seconds(plan), 3),
        }


def motion(speed: str) -> dict[str, dict[str, Any]]:
    """The path fidelity by model; of speeds other than exact, the difference from it."""
    stage, mode = MEASURED[speed]
    tables = json.loads((PLANNED.parent / f"tunnel-{stage}.json").read_text(encoding="utf-8"))["tables"]
    rows = {table["variant"]: {row["mode"]: row for row in table["modes"]} for table in tables}
    return {model: found[mode]["numbers"]["path_fidelity"] for model, found in rows.items()}


if __name__ == "__main__":
    main()
