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


MEASURED = {24: ("8gb", "24gb"), 49: ("4gb", "24gb")}  # of what is on file: a plan takes some seconds


@pytest.fixture(scope="module")
def plans():
    """By frame count and preset, each preset on its own card."""
    some = {
        frames: [preset for preset in presets() if preset.name in names] for frames, names in MEASURED.items()
    }
    return {
        frames: dict(zip(MEASURED[frames], make_plans(Settings(frames=frames), wanted, "cuda"), strict=True))
        for frames, wanted in some.items()
    }


@pytest.fixture(scope="module")
def on_file():
    """The same, of every preset."""
    runs = json.loads(PLANNED.read_text(encoding="utf-8"))["runs"]
    return {frames: {run["preset"]: run for run in runs if run["frames"] == frames} for frames in FRAMES}


def test_memory_and_work_of_5b(plans):
    smallest = {phase.name: phase.peak_bytes for phase in plans[49]["4gb"].phases}
    assert len(smallest) == 7
    assert all(peak <= 3.4 * GIB for peak in smallest.values()), smallest

    phases = phases_of(Settings(frames=49), "cuda")
    nothing_stays = Ring(phases.block_bytes, 0).device_bytes
    assert phases.optimise("block", "host").peak_bytes + nothing_stays <= 2.8 * GIB

    whole = plans[24]["24gb"]
    assert whole.fits and whole.preset.checkpoint == "none"
    assert transformer_flops(whole) <= 18.5 * PETA  # the released code: 24.5
    assert transformer_flops(whole) < 0.9 * transformer_flops(plans[24]["8gb"])


def test_what_is_on_file_is_planned(plans, on_file):
    for run in planned({frames: row.values() for frames, row in plans.items()})["runs"]:
        now = on_file[run["frames"]][run["preset"]]
        assert now == run, f"{PLANNED.name} is out of date: python -m bench.presets"


def test_larger_presets_do_less(on_file):
    assert all(list(runs) == list(PRESETS) for runs in on_file.values())
    assert all(run["fits"] for run in on_file[24].values())
    assert [name for name, run in on_file[49].items() if not run["fits"]] == ["24gb"]
    work = [total(run, "flops", but="decode") for run in on_file[24].values()]
    assert work == sorted(work, reverse=True), "a larger preset does more work"
    copies = [total(run, "copied_bytes") for run in on_file[49].values()]
    assert copies[0] > copies[2] > copies[4] > copies[6] == 0


def test_readme_has_what_is_on_file():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for line in table(json.loads(PLANNED.read_text(encoding="utf-8"))):
        assert line in readme, f"README is out of date, `python -m bench.presets` prints its table: {line}"


def total(run, what, but=None):
    return sum(phase["times"] * phase[what] for phase in run["phases"] if phase["name"] != but)


def transformer_flops(plan):
    return sum(phase.times * phase.flops for phase in plan.phases if phase.name in TRANSFORMER)
