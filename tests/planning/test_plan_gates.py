"""Plans for the real 5B model at 720x480: exact figures, without a clock or weights."""

import json
from dataclasses import replace

import pytest

from bench.presets import FRAMES, PLANNED, planned
from ditflow.memory.presets import GIB, PRESETS, presets
from ditflow.memory.ring import Ring
from ditflow.planning.ceilings import read_ceilings
from ditflow.planning.choice import make_plans, phases_of
from ditflow.planning.plan import Phase
from ditflow.settings import Settings

PETA = 10**15
TRANSFORMER = ("reference", "injection", "optimise", "denoise")
MEASURED = ("4gb", "24gb")  # at 49 frames; the gates of steps and coding cover 24


@pytest.fixture(scope="module")
def plans():
    """By preset, each on a card of its size."""
    wanted = [preset for preset in presets() if preset.name in MEASURED]
    return dict(zip(MEASURED, make_plans(Settings(frames=49), wanted, "cuda"), strict=True))


@pytest.fixture(scope="module")
def on_file():
    """The plans on file, by frame count and preset."""
    runs = json.loads(PLANNED.read_text(encoding="utf-8"))["runs"]
    return {frames: {run["preset"]: run for run in runs if run["frames"] == frames} for frames in FRAMES}


def test_memory_of_5b(plans):
    smallest = {phase.name: phase.peak_bytes for phase in plans["4gb"].phases}
    assert len(smallest) == 7
    assert all(peak <= 3.4 * GIB for peak in smallest.values()), smallest

    phases = phases_of(Settings(frames=49), "cuda")
    streaming_ring = Ring(phases.block_bytes, 0).device_bytes
    assert phases.optimise("block", "host").peak_bytes + streaming_ring <= 2.8 * GIB


def test_guidance_without_backward_takes_what_a_plain_step_takes():
    """With the loss x0 on the smallest card: memory, copies and work of forwards alone."""
    settings = Settings(frames=49, loss="x0", injection=False)
    (plan,) = make_plans(settings, presets()[:1], "cuda")
    (plain,) = make_plans(replace(settings, guidance=False), presets()[:1], "cuda")
    phases = {phase.name: phase for phase in plan.phases}
    step = next(phase for phase in plain.phases if phase.name == "denoise")
    for name in ("x0 reference", "x0 optimise", "denoise"):
        assert phases[name].peak_bytes <= step.peak_bytes + 0.2 * GIB, name
    assert plan.resident == plain.resident
    assert (phases["x0 reference"].times, phases["x0 optimise"].times) == (10, 50)
    for name in ("x0 reference", "x0 optimise"):  # one forward; a denoising step takes two
        assert 2 * phases[name].flops == step.flops
        assert phases[name].copied_bytes == step.copied_bytes


def test_the_plans_on_file_are_current(plans, on_file):
    for run in planned({49: plans.values()})["runs"]:
        now = on_file[49][run["preset"]]
        assert now == run, f"{PLANNED.name} is out of date: python -m bench.presets"


def test_work_of_5b(on_file):
    whole, smaller = (transformer_flops(on_file[24][name]) for name in ("24gb", "8gb"))
    assert whole <= 18.5 * PETA  # the released code does 24.5
    assert whole < 0.9 * smaller


def test_larger_presets_do_less(on_file):
    assert all(list(runs) == list(PRESETS) for runs in on_file.values())
    assert all(run["fits"] for run in on_file[24].values())
    assert [name for name, run in on_file[49].items() if not run["fits"]] == ["24gb"]
    work = [total(run, "flops", but="decode") for run in on_file[24].values()]
    assert work == sorted(work, reverse=True), "a larger preset does more work"
    copies = [total(run, "copied_bytes") for run in on_file[49].values()]
    assert copies[0] > copies[2] > copies[4] > copies[6] == 0


@pytest.mark.parametrize(
    "device, preset, least, most",
    [("rtx-3060", "12gb", 1.4, 1.8), ("rtx-4090", "24gb", 1.4, 1.7), ("h200", "80gb", 1.1, 1.3)],
)
def test_gain_of_products_in_8_bits(on_file, device, preset, least, most):
    """Of a whole run, estimated: less than the products' own gain, as attention and memory stay."""
    rates, exact = read_ceilings(device), on_file[24][preset]
    (wanted,) = (each for each in presets() if each.name == preset)
    (plan,) = make_plans(Settings(frames=24, compute="int8"), [wanted], "cuda")
    before = sum(phase["times"] * rates.seconds(Phase(**phase)) for phase in exact["phases"])
    assert least < before / rates.run_seconds(plan) < most < rates.int8_flops / rates.product_flops


def total(run, what, but=None):
    return sum(phase["times"] * phase[what] for phase in run["phases"] if phase["name"] != but)


def transformer_flops(run):
    return sum(phase["times"] * phase["flops"] for phase in run["phases"] if phase["name"] in TRANSFORMER)
