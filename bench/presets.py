"""README's table of memory presets, from the plan of CogVideoX-5B: `python -m bench.presets`.

What is planned for each phase goes to bench/results/planned.json, for docs/performance.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditflow.memory.presets import GIB, presets
from ditflow.planning.choice import make_plans
from ditflow.planning.plan import Plan
from ditflow.settings import Settings

FRAMES = (24, 49)
PLANNED = Path(__file__).parent / "results" / "planned.json"
CHECKPOINT = {"none": "nothing", "attention": "all but attention", "block": "each block"}


def main() -> None:
    found = planned(
        {frames: make_plans(Settings(model="5b", frames=frames), presets(), "cuda") for frames in FRAMES}
    )
    for line in table(found):
        print(line)
    PLANNED.parent.mkdir(exist_ok=True)
    PLANNED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown, a row a preset, from what `planned` gives."""
    columns = [f"{frames} frames: card, host | blocks on the card" for frames in FRAMES]
    yield f"| preset | cards | computed again | {' | '.join(columns)} |"
    yield f"| --- | --- | --- | {' | '.join(['---'] * 2 * len(FRAMES))} |"
    for preset in presets():
        cells = [preset.name, preset.cards, CHECKPOINT[preset.checkpoint]]
        for run in (run for run in found["runs"] if run["preset"] == preset.name):
            peak, host = (f"{run[name] / GIB:.1f}" for name in ("peak_bytes", "host_bytes"))
            cells += [
                f"{peak}, {host}" if run["fits"] else f"does not fit ({peak})",
                f"{run['resident']} of {run['resident'] + run['streamed']}" if run["fits"] else "-",
            ]
        yield f"| {' | '.join(cells)} |"


def planned(plans: Mapping[int, Sequence[Plan]]) -> dict[str, Any]:
    """Plans by frame count, and the phases of each, to three digits."""
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
                "phases": [
                    {
                        "name": phase.name,
                        "times": phase.times,
                        "peak_bytes": _digits(phase.peak_bytes),
                        "flops": _digits(phase.flops),
                        "attention_flops": _digits(phase.attention_flops),
                        "copied_bytes": _digits(phase.copied_bytes),
                    }
                    for phase in plan.phases
                ],
            }
            for frames, row in plans.items()
            for plan in row
        ],
    }


def _digits(number: float) -> float:
    return float(f"{number:.3g}")


if __name__ == "__main__":
    main()
