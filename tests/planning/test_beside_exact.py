"""`plan` of a run that saves work shows the exact run beside it; docs/speed.md has the speeds on file."""

import json
from dataclasses import replace
from itertools import product

import pytest
from repository import ROOT

from bench.speeds import DEVICES, FRAMES, MEASURED, PLANNED, motion, planned
from bench.tables import speed_table
from bench.tunnel.modes import read_mode
from bench.tunnel.stages import STAGES
from ditflow.cli.main import main
from ditflow.memory.presets import GIB, budget
from ditflow.planning.beside_exact import beside_exact, plan_for_card
from ditflow.planning.verdict import Target, plan_all
from ditflow.settings.speed import SPEEDS, speed_settings

PLAN = ("plan", "--size", "96x64", "--frames", "9", "--guidance-blocks", "2", "--guidance-scale", "4")
RIVALS = {"negative": "alternate", "gradients": 2, "compute": "int8", "step_cache": "0.1"}


@pytest.fixture(scope="module")
def on_file():
    return json.loads(PLANNED.read_text(encoding="utf-8"))


@pytest.fixture
def rises(settings):
    """A run in which fast and faster each save work."""
    return replace(settings, guidance_scale=4.0, dynamic_scale=True)


def test_an_exact_run_has_nothing_beside_it(settings):
    assert beside_exact(settings, None) is None
    assert beside_exact(replace(settings, speed="fast", **speed_settings("exact")), None) is None


@pytest.mark.parametrize("name", RIVALS)
def test_each_option_that_a_speed_sets_has_the_exact_run_beside_it(settings, name):
    run = replace(settings, guidance_scale=4.0, **{name: RIVALS[name]})
    found = beside_exact(run, None)
    exact = plan_for_card(replace(settings, guidance_scale=4.0), 80)
    assert found.exact == exact and found.planned == plan_for_card(run, 80)
    assert found.exact.budget == budget(80)
    less_work = found.planned.total_flops < exact.total_flops
    assert less_work == (name in ("negative", "gradients"))


def test_the_exact_run_is_planned_in_the_same_memory(rises):
    run = replace(rises, speed="faster", **speed_settings("faster"), memory="8gb")
    target = Target("cuda", 5 * GIB)
    chosen = plan_all(run, target).chosen
    found = beside_exact(run, chosen)
    assert found.planned is chosen and found.exact.budget == chosen.budget == 5 * GIB
    assert found.exact.preset.name == chosen.preset.name == "8gb"  # as asked, not the fastest that fits
    run = replace(run, memory="5")
    fastest = beside_exact(run, plan_all(run, target).chosen)
    assert fastest.exact.preset.name == "80gb"


def test_plan_shows_it_before_the_presets(settings, capsys):
    words = [*PLAN, "--model", settings.model]
    assert main([*words, "--speed", "fast", "--estimate-on", "rtx-3060"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].startswith("The exact run and this one")
    assert "least seconds on rtx-3060, estimated" in printed
    assert main(words) == 0
    assert "The exact run" not in capsys.readouterr().out


def test_json_has_the_times_of_both(settings, capsys):
    words = [
        *PLAN,
        "--model",
        settings.model,
        "--negative",
        "alternate",
        "--json",
        "--estimate-on",
        "rtx-4090",
    ]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)
    found = whole["beside_exact"]
    (listed,) = (preset for preset in whole["presets"] if preset["chosen"])
    for what in ("total_flops", "estimated_seconds", "fits"):
        assert found["planned"][what] == listed[what]
    assert found["planned"]["peak_bytes"] == max(phase["peak_bytes"] for phase in listed["phases"])
    assert found["exact"]["preset"] == found["planned"]["preset"] == listed["name"]
    for what in ("total_flops", "estimated_seconds"):
        assert found["planned"][what] < found["exact"][what]
    assert main([*PLAN, "--model", settings.model, "--json"]) == 0
    assert "beside_exact" not in json.loads(capsys.readouterr().out)


def test_the_speeds_on_file_are_current(on_file):
    for run in planned("fast", 24):
        assert run in on_file["runs"], f"{PLANNED.name} is out of date: python -m bench.speeds"
    assert on_file["motion"] == {speed: motion(speed) for speed in SPEEDS}


def test_the_measured_modes_are_what_the_speeds_set():
    """But for attention, which `auto` leaves as it is on a CPU."""
    for speed, (stage, mode) in MEASURED.items():
        for base in map(STAGES[stage].base, STAGES[stage].variants):
            wanted = replace(base, **speed_settings(speed) | {"attention_forward": "same"})
            tried = base if mode == "exact" else read_mode(mode).apply(base)
            assert replace(tried, attention_forward="same") == wanted


def test_a_higher_speed_takes_less(on_file):
    runs = {(run["speed"], run["frames"], run["device"]): run for run in on_file["runs"]}
    assert set(runs) == set(product(SPEEDS, FRAMES, DEVICES))
    assert all(run["rates"] == "estimated" for run in runs.values())
    for frames, device, what in product(FRAMES, DEVICES, ("flops", "seconds")):
        found = [runs[speed, frames, device][what] for speed in SPEEDS]
        assert found == sorted(found, reverse=True)


def test_the_page_shows_the_speeds_on_file(on_file):
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    table = speed_table(on_file)
    assert table.count("estimated") == len(DEVICES)
    for line in table.splitlines():
        assert line in page, f"speed.md is out of date, `python -m bench.speeds` prints its table: {line}"
