"""README's table of memory presets, from the plan of CogVideoX-5B: `python -m bench.presets`.

What is planned for each phase goes to bench/results/planned.json, for docs/performance.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
    plans = [make_plans(Settings(model="5b", frames=frames), presets(), "cuda") for frames in FRAMES]
    for line in table(plans):
        print(line)
    PLANNED.parent.mkdir(exist_ok=True)
    PLANNED.write_text(json.dumps(planned(plans), indent=1) + "\n", encoding="utf-8")


def table(plans: Sequence[Sequence[Plan]]) -> Iterator[str]:
    """Markdown, a row a preset; `plans` by frame count, then by preset."""
    columns = [f"{frames} frames: card, host | blocks on the card" for frames in FRAMES]
    yield f"| preset | cards | computed again | {' | '.join(columns)} |"
    yield f"| --- | --- | --- | {' | '.join(['---'] * 2 * len(FRAMES))} |"
    for row in zip(*plans, strict=True):
        preset = row[0].preset
        cells = [preset.name, preset.cards, CHECKPOINT[preset.checkpoint]]
        for plan in row:
            peak = f"{plan.largest.peak_bytes / GIB:.1f}"
            cells += [
                f"{peak}, {plan.host_bytes / GIB:.1f}" if plan.fits else f"does not fit ({peak})",
                f"{plan.resident} of {plan.resident + plan.streamed}" if plan.fits else "-",
            ]
        yield f"| {' | '.join(cells)} |"


def planned(plans: Sequence[Sequence[Plan]]) -> dict[str, Any]:
    """The phases of each plan, to three digits; `plans` as for `table`."""
    return {
        "kind": "planned",
        "model": "CogVideoX-5B in bf16, 480x720",
        "runs": [
            {
                "frames": frames,
                "preset": plan.preset.name,
                "gigabytes": plan.preset.gigabytes,
                "fits": plan.fits,
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
            for frames, row in zip(FRAMES, plans, strict=True)
            for plan in row
        ],
    }


def _digits(number: float) -> float:
    return float(f"{number:.3g}")


if __name__ == "__main__":
    main()
