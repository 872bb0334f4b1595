"""The plan of the real 5B model, 480x720: exact, with no clock and no weights."""

import json
from pathlib import Path

import pytest

from bench.presets import FRAMES, PLANNED, planned, table
from ditflow.memory.presets import GIB, presets
from ditflow.memory.ring import Ring
from ditflow.planning.choice import make_plans, phases_of
from ditflow.settings import PRESETS, Settings

PETA = 10**15
TRANSFORMER = ("reference", "injection", "optimise", "denoise")


@pytest.fixture(scope="module")
def plans():
    """By frame count and preset, each preset on its own card."""
    return {
        frames: dict(zip(PRESETS, make_plans(Settings(frames=frames), presets(), "cuda"), strict=True))
        for frames in FRAMES
    }


def test_plans_of_5b(plans):
    """Memory, work, the README and what is on file, in one test: the plans take some seconds."""
    smallest = {phase.name: phase.peak_bytes for phase in plans[49]["4gb"].phases}
    assert len(smallest) == 7
    assert all(peak <= 3.4 * GIB for peak in smallest.values()), smallest

    phases = phases_of(Settings(frames=49), "cuda")
    nothing_stays = Ring(phases.block_bytes, 0).device_bytes
    assert phases.optimise("block", "host").peak_bytes + nothing_stays <= 2.8 * GIB

    assert all(plan.fits for plan in plans[24].values())
    assert [name for name, plan in plans[49].items() if not plan.fits] == ["24gb"]
    whole = plans[24]["24gb"]
    assert whole.preset.checkpoint == "none"
    assert transformer_flops(whole) <= 18.5 * PETA  # the released code: 24.5
    assert transformer_flops(whole) < 0.9 * transformer_flops(plans[24]["8gb"])

    work = {name: plan.total_flops - decoding_flops(plan) for name, plan in plans[24].items()}
    assert list(work.values()) == sorted(work.values(), reverse=True), "a larger preset does more work"
    copies = [sum(phase.times * phase.copied_bytes for phase in plan.phases) for plan in plans[49].values()]
    assert copies[0] > copies[2] > copies[4] > copies[6] == 0

    rows = [list(plans[frames].values()) for frames in FRAMES]
    if PLANNED.exists():
        on_file = json.loads(PLANNED.read_text(encoding="utf-8"))
        assert on_file == planned(rows), f"{PLANNED.name} is out of date: python -m bench.presets"

    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for line in table(rows):
        assert line in readme, f"README is out of date, `python -m bench.presets` prints its table: {line}"


def transformer_flops(plan):
    return sum(phase.times * phase.flops for phase in plan.phases if phase.name in TRANSFORMER)


def decoding_flops(plan):
    return sum(phase.flops for phase in plan.phases if phase.name == "decode")
