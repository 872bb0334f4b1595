"""README's table of memory presets, from the plan of CogVideoX-5B: `python -m bench.presets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ditflow.memory.presets import GIB, presets
from ditflow.planning.choice import make_plans
from ditflow.planning.plan import Plan
from ditflow.settings import Settings

FRAMES = (24, 49)
CHECKPOINT = {"none": "nothing", "attention": "all but attention", "block": "each block"}


def main() -> None:
    for line in table(
        [make_plans(Settings(model="5b", frames=frames), presets(), "cuda") for frames in FRAMES]
    ):
        print(line)


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


if __name__ == "__main__":
    main()
