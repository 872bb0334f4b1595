"""Plan runs of the published models on every size of card: `python -m bench.presets`.

Prints the tables of README and docs/models.md. The plans go to bench/results/planned*.json, from which
`bench.report` makes the tables of docs/performance.md.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from gguf import GGMLQuantizationType as Kind

from bench.empty_gguf import write_empty_gguf
from bench.tables import card_table, headline_table
from ditflow.memory.presets import presets
from ditflow.planning.beside_exact import plan_for_card
from ditflow.planning.choice import make_plans
from ditflow.planning.plan import Plan
from ditflow.settings import Settings

FRAMES = (24, 49)
CARDS = (4, 6, 8, 12, 16, 24)  # GB
LENGTHS = {  # frames, the most first
    **dict.fromkeys(("5b", "2b"), (49, 24)),
    **dict.fromkeys(("wan-1.3b", "wan-5b", "wan-14b", "wan-a14b"), (81, 49, 25)),
}
RESULTS = Path(__file__).parent / "results"
PLANNED = RESULTS / "planned.json"
PLANNED_CARDS = RESULTS / "planned-cards.json"
PLANNED_WAN = RESULTS / "planned-wan.json"


class WanRun(NamedTuple):
    """A guided run of Wan in 832x480, and the preset that has to fit it."""

    model: str
    frames: int
    preset: str
    weights: str = "full"  # int8, or the name of a kind of GGUF weights


WAN_RUNS = (
    WanRun("wan-1.3b", 49, "4gb"),
    WanRun("wan-1.3b", 81, "6gb"),
    WanRun("wan-5b", 81, "8gb"),
    WanRun("wan-14b", 49, "12gb"),
    WanRun("wan-14b", 49, "8gb", "int8"),
    WanRun("wan-14b", 49, "8gb", "Q4_K"),
)


def main() -> None:
    plans = {frames: make_plans(Settings(model="5b", frames=frames), presets(), "cuda") for frames in FRAMES}
    cogvideox = planned(plans)
    wan = {"kind": "planned-wan", "runs": [*map(wan_row, WAN_RUNS)]}
    cards = {"kind": "planned-cards", "runs": [*card_rows()]}
    for path, found in ((PLANNED, cogvideox), (PLANNED_WAN, wan), (PLANNED_CARDS, cards)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(headline_table(cogvideox, wan), card_table(cards), sep="\n\n")


def planned(plans: Mapping[int, Iterable[Plan]]) -> dict[str, Any]:
    """Plans of CogVideoX-5B by frame count."""
    return {
        "kind": "planned",
        "model": "CogVideoX-5B in bf16, 720x480",
        "runs": [{"frames": frames} | plan_row(plan) for frames, row in plans.items() for plan in row],
    }


def plan_row(plan: Plan) -> dict[str, Any]:
    """A plan to the byte: tables round, files do not."""
    return {
        "preset": plan.preset.name,
        "gigabytes": plan.preset.gigabytes,
        "fits": plan.fits,
        "resident": plan.resident,
        "streamed": plan.streamed,
        "peak_bytes": plan.largest.peak_bytes,
        "host_bytes": plan.host_bytes,
        "phases": [asdict(phase) for phase in plan.phases],
    }


def wan_row(run: WanRun) -> dict[str, Any]:
    """The plan of a run on a card of its preset's size."""
    (preset,) = (each for each in presets() if each.name == run.preset)
    with TemporaryDirectory() as folder:
        weights = run.weights
        if weights in Kind.__members__:
            weights = str(Path(folder) / "weights.gguf")
            write_empty_gguf(Path(weights), run.model, Kind[run.weights])
        settings = Settings(model=run.model, frames=run.frames, weights=weights)
        (plan,) = make_plans(settings, [preset], "cuda")
    return run._asdict() | plan_row(plan)


def card_rows() -> Iterator[dict[str, Any]]:
    """For each model and card, the longest run that fits, with the fastest preset; 0 frames if none does."""
    for model, card in product(LENGTHS, CARDS):  # a model's phases are measured once for all cards
        row = {"model": model, "card": card, "frames": 0}
        for frames in LENGTHS[model]:
            plan = plan_for_card(Settings(model=model, frames=frames), card)
            if plan.fits:
                row |= {
                    "frames": frames,
                    "preset": plan.preset.name,
                    "peak_bytes": plan.largest.peak_bytes,
                    "host_bytes": plan.host_bytes,
                }
                break
        yield row


if __name__ == "__main__":
    main()
