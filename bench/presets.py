"""Plan every memory preset for CogVideoX-5B and print README's table: `python -m bench.presets`.

The plans go to bench/results/planned.json, from which docs/performance.md is made too.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.tables import preset_table
from ditflow.memory.presets import presets
from ditflow.planning.choice import make_plans
from ditflow.planning.plan import Plan
from ditflow.settings import Settings

FRAMES = (24, 49)
PLANNED = Path(__file__).parent / "results" / "planned.json"


def main() -> None:
    plans = {frames: make_plans(Settings(model="5b", frames=frames), presets(), "cuda") for frames in FRAMES}
    found = planned(plans)
    print(preset_table(found))
    PLANNED.parent.mkdir(exist_ok=True)
    PLANNED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def planned(plans: Mapping[int, Iterable[Plan]]) -> dict[str, Any]:
    """Plans by frame count, to the byte: tables round, the file does not."""
    return {
        "kind": "planned",
        "model": "CogVideoX-5B in bf16, 480x720",
        "runs": [
            {
                "frames": frames,
                "preset": plan.preset.name,
                "gigabytes": plan.preset.gigabytes,
                "fits": plan.fits,
                "resident": plan.resident,
                "streamed": plan.streamed,
                "peak_bytes": plan.largest.peak_bytes,
                "host_bytes": plan.host_bytes,
                "phases": [asdict(phase) for phase in plan.phases],
            }
            for frames, row in plans.items()
            for plan in row
        ],
    }


if __name__ == "__main__":
    main()
