"""The timed benchmarks' own logic, with invented times instead of a clock."""

import json
import subprocess
import sys

import pytest
import torch
from repository import ROOT
from stand_in_meters import Machine

from bench import subjects
from bench.passes import Size
from bench.rivals import WITH_OUR_LOSS
from bench.subjects import Case
from bench.tables import ratio_table
from bench.timed import bounds as bounds_file
from bench.timed import contests as pieces
from bench.timed.bounds import CALLS, Bound, accepted, broken, caught, read_bounds, write_bounds
from bench.timed.contests import OURS, ROUNDS, contests, operations, play
from ditflow.models.protocols import Grid

TINY = Size("tiny", (2, 3, 4), 3, 16, text=5)
TINY_CASE = Case(layers=2, guidance_block=1, grid=Grid(2, 2, 3), steps=5, optimisation_steps=1)


def played(machine, planted=False, ours=2.0):
    sides = {
        "slow": machine.work("slow", 6.0),
        OURS: machine.work(OURS, ours),
        "even": machine.work("even", 2.0),
    }
    return play(sides, machine, planted, machine.clock)


def test_sides_take_turns_within_a_round():
    machine = Machine()
    seconds, ratios = played(machine)
    assert ratios == {"slow": pytest.approx(3), "even": pytest.approx(1)}
    assert seconds == 2.0
    one_round = ["slow"] * CALLS + ["even"] * CALLS + [OURS] * CALLS
    assert machine.order == ["slow", "even", OURS] + ROUNDS * one_round


def test_other_load_slows_all_sides():
    """From the fourth round on everything takes ten times as long: no ratio changes."""
    _, ratios = played(Machine(lambda turn: 10.0 if turn > 2 else 1.0))
    assert ratios["slow"] == pytest.approx(3)


def test_medians_are_of_rounds():
    paces = [1.0, 5.0, 3.0, 1.0, 9.0, 3.0, 3.0]
    seconds, _ = played(Machine(lambda turn: paces[turn]))
    assert seconds == 3 * 2.0


def test_the_planted_slowdown_is_half_as_much_work_again():
    _, ratios = played(Machine(), planted=True)
    assert ratios == {"slow": pytest.approx(2), "even": pytest.approx(2 / 3)}


def written(**found):
    """What pytest-benchmark writes of a process that measured one contest."""
    row = {"name": "it", "seconds": 1.0, "load": [0.5, 1.25], "threads": 2, "commit": "0123456789ab"}
    return {
        "machine_info": {"cpu": {"brand_raw": "A CPU"}},
        "datetime": "2026-11-26T10:00:00",
        "benchmarks": [{"extra_info": row | found}],
    }


def test_bounds_are_quiet_and_catch_the_slowdown():
    _, ratios = played(Machine())
    bounds, _ = accepted([written(ratios=ratios)])
    assert broken("it", ratios, bounds) == [] == caught("it", ratios, bounds)
    for noise in (0.83, 1.2):
        assert broken("it", {name: ratio * noise for name, ratio in ratios.items()}, bounds) == []
    _, slowed = played(Machine(), planted=True)
    for noise in (0.83, 1.2):
        noisy = {name: ratio * noise for name, ratio in slowed.items()}
        assert caught("it", noisy, bounds) == ["slow", "even"]
        assert all("ours has become slower" in line for line in broken("it", noisy, bounds))
    _, faster = played(Machine(), ours=1.2)
    assert len(broken("it", faster, bounds)) == 2 and caught("it", faster, bounds) == []


def test_processes_that_differ():
    """Bounds are set around the median if the processes are close enough to each other."""
    runs = [
        written(ratios={"steady": steady, "odd": odd})
        for steady, odd in ((1.0, 1.0), (1.1, 3.0), (1.21, 1.3))
    ]
    bounds, results = accepted(runs)
    steady = bounds["it", "steady"]
    assert (steady.least, steady.most) == (pytest.approx(1.1 / 1.5**0.5), pytest.approx(1.1 * 1.5**0.5))
    assert broken("it", {"odd": 9.0}, bounds) == broken("it", {"odd": 0.1}, bounds) == []
    assert caught("it", {"odd": 0.1, "steady": 1.21 / 1.5}, bounds) == ["steady"]
    assert bounds["it", "odd"].set.endswith("measured 1 to 3, too unsteady")
    assert results["contests"][0]["ratios"] == {"steady": 1.1, "odd": 1.3}


def test_a_steady_process_keeps_what_it_frees():
    """Freed memory stays with the process, so that the system need not provide it again."""
    code = """
import torch
from bench.harness import resident_mib, steady

steady()
before = resident_mib("VmRSS")
torch.ones(2**24)
print(torch.get_num_threads(), resident_mib("VmRSS") - before)
"""
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    threads, kept = found.stdout.split()
    assert threads == "1" and float(kept) > 60


def test_a_ratio_without_bounds_fails():
    (line,) = broken("it", {"new": 1.0}, {})
    assert line == (
        "it against new: ratio 1 has no bounds; set them on a quiet machine: make bench-accept-ratios"
    )
    assert caught("it", {"new": 1e-9}, {}) == []


def test_setting_bounds(tmp_path, monkeypatch, capsys):
    """Rows that were not measured keep their bounds; each row says how it was set."""
    table, results, file = tmp_path / "ratios.csv", tmp_path / "results" / "cpu.json", tmp_path / "found.json"
    monkeypatch.setattr(bounds_file, "TABLE", table)
    monkeypatch.setattr(bounds_file, "RESULTS", results)
    monkeypatch.setattr(bounds_file.read_bounds, "__defaults__", (table,))
    monkeypatch.setattr(bounds_file.write_bounds, "__defaults__", (table,))
    kept = Bound(1.0, 2.0, "earlier")
    write_bounds({("other", "rival"): kept, ("it", "slow"): kept}, table)
    measured = written(ratios={"slow": 3.0})
    file.write_text(json.dumps(measured))
    monkeypatch.setattr("sys.argv", ["bounds", str(file)])
    bounds_file.main()
    found = read_bounds(table)
    assert found["other", "rival"] == kept
    assert found["it", "slow"] == Bound(
        2.45, 3.67, "2026-11-26 at 012345678, A CPU, threads 2, load 0.5 to 1.2: measured 3 to 3"
    )
    saved = json.loads(results.read_text())
    assert (saved["kind"], saved["device"], saved["date"]) == ("cpu", "A CPU", "2026-11-26")
    assert saved["contests"][0]["ratios"] == {"slow": 3.0}
    assert "1 bounds written" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["bounds", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="--benchmark-json=FILE"):
        bounds_file.main()


def faults(bounds):
    """Rows of a contest that is no more, rows that a slowdown does not break, rows nobody measured."""
    names = {contest.name for contest in contests()}
    return [
        row
        for row, bound in bounds.items()
        if row[0] not in names
        or not (1 < bound.most / bound.least <= 1.6 if bound.least else bound.set.endswith("too unsteady"))
        or not ("load" in bound.set and "measured" in bound.set)
    ]


def test_the_committed_table_is_of_use():
    bounds = read_bounds()
    assert faults(bounds) == []
    assert {name for (name, _), bound in bounds.items() if bound.least} == {each.name for each in contests()}
    known, how = (contests()[0].name, "rival"), "load 0.5 to 0.6: measured 1.2"
    assert faults({known: Bound(1.0, 1.5, how)}) == []
    assert faults({("gone", "rival"): Bound(1.0, 1.5, how)}) and faults({known: Bound(1.0, 9.0, how)})
    assert faults({known: Bound(1.0, 1.5, "a guess")})


def test_table():
    found = [{"name": "it", "seconds": 0.002, "ratios": {"slow": 3.0, "new": 0.5}}]
    lines = ratio_table(found, {("it", "slow"): Bound(2.449, 3.674, "")}).splitlines()
    assert lines[2:] == ["| it | 2.0 | slow | 3.00 | 2.45 to 3.67 |", "| it | 2.0 | new | 0.50 | none |"]


def test_every_operation_has_its_rivals():
    names = [contest.name for contest in operations(TINY)]
    assert names == ["flow forward", "loss and gradients", "preparation forward", "preparation backward"]
    for contest in operations(TINY):
        sides = contest.sides()
        assert OURS in sides and "reference" in sides and "triton" not in sides
        assert "chunked, compiled" in contest.compiled() and OURS not in contest.compiled()
        for make in sides.values():
            make()()


def same(results, tolerance=1e-4):
    first, *others = results
    for other in others:
        torch.testing.assert_close(other, first, rtol=tolerance, atol=tolerance)


def test_rows_of_the_library_are_the_flow():
    size = TINY._replace(dtype=torch.float32)
    for contest, rows in zip(operations(size), ("product and", "products and"), strict=False):
        sides = contest.sides()
        (theirs,) = (make for name, make in sides.items() if f"library {rows}" in name)
        same([sides["reference"]()(), theirs()()])


def test_all_sides_of_a_guided_step_agree():
    sides = pieces.guided_step(TINY_CASE)
    assert list(sides) == ["released way", OURS, "attention kept", "block by block", WITH_OUR_LOSS]
    same([make()() for make in sides.values()])


def test_all_sides_of_a_denoising_step_agree():
    sides = pieces.denoising_step(TINY_CASE)
    assert set(sides) == {OURS, "released way", "diffusers, both in a batch"}
    same([torch.cat(list(make()())) for make in sides.values()])


def test_all_sides_of_a_whole_run_agree():
    sides = pieces.whole_run(TINY_CASE)
    assert len(sides) == 3
    results = [make()() for make in sides.values()]
    assert all(len(result.losses) == TINY_CASE.settings.guided_steps == 1 for result in results)
    for result in results:
        apart = (result.latents - results[0].latents).norm()
        assert apart <= 1e-4 * results[0].latents.norm()
    ours = sides[OURS]()
    same([ours().latents, ours().latents], 0)


@pytest.mark.parametrize("piece", [pieces.encode, pieces.decode])
def test_ours_is_diffusers_own_with_the_same_tiles(piece, monkeypatch):
    monkeypatch.setattr(subjects, "FRAMES", 1)
    sides = piece()
    assert list(sides) == [OURS, "diffusers, the same tiles", "diffusers, whole frames"]
    ours, theirs, whole = (make()() for make in sides.values())
    assert theirs.shape == whole.shape and not torch.equal(theirs, whole)
    if piece is pieces.encode:
        same([ours, theirs.transpose(1, 2) * subjects.VAE["scaling_factor"]], 1e-5)
    else:
        pixels = ((theirs[0].permute(1, 2, 3, 0)[:1] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        assert torch.equal(ours, pixels)
