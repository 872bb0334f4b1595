"""The GPU benchmark's code on the CPU with tiny sizes; the numbers it prints here are not measurements."""

import json
from dataclasses import asdict

import pytest
import torch
from stand_in_meters import SmokeMeter
from torch.utils._python_dispatch import TorchDispatchMode

from bench import correctness, gpu, steps
from bench.correctness import EPSILON, WrongResult, check_all, compare
from bench.gpu import Row, measure_passes
from bench.harness import Ceilings, Deadline, measure_ceilings
from bench.linear_passes import LIBRARY, ROWS, linear_passes
from bench.passes import SIZES, Size, passes
from bench.steps import Machine, Variant
from bench.tables import kernels_milliseconds, pass_tables, step_tables
from ditflow_kernels.int8_linear.products import _library_is_exact

TINY = Size("tiny", (2, 3, 4), 3, 16, text=5)
TINY_2B = Size("tiny 2B", (2, 3, 4), 2, 16, text=5, dtype=torch.float16, rotary=False)
TINY_WAN = Size("tiny Wan", (2, 3, 4), 3, 16, text=0, rms_norm=True, hidden_channels=80)
CEILINGS = Ceilings(copied_bytes=1e9, product_flops=1e12, int8_product_flops=2e12)


def rows_of(meter, seconds=1e9, compiled=False, skip=("triton",), sizes=(TINY,)):
    machine = Machine(meter, Deadline(seconds), CEILINGS)
    return list(measure_passes(machine, sizes, compiled, skip))


def test_refuses_without_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^bench.gpu: needs a CUDA device, found none$"):
        gpu.main([])
    assert capsys.readouterr().out == ""


def test_refuses_an_old_triton(monkeypatch):
    import triton

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.why_it_cannot_run() is None
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    assert gpu.why_it_cannot_run() == "needs triton 3.6, 3.5.1 is installed"


def test_every_pass_and_rival_runs():
    """No result file is written, and no time is real."""
    meter, sizes = SmokeMeter(), (TINY, TINY_2B, TINY_WAN)
    rows = rows_of(meter, sizes=sizes)
    expected = [
        (each.name, size.name, rival.name)
        for size in sizes
        for each in gpu.all_passes()
        for rival in each.rivals()
        if not rival.compiles and rival.name != "triton"
    ]
    assert [(row.of, row.size, row.rival) for row in rows] == expected
    assert meter.called == gpu.INPUT_SETS * len(rows)
    assert all(row.milliseconds == 2.0 and row.least_milliseconds > 0 for row in rows)
    assert {rival.name for each in gpu.all_passes() for rival in each.rivals() if rival.compiles} == {
        "chunked, compiled",
        "reference, compiled",
        f"{LIBRARY}, compiled",
        f"{ROWS}, compiled",
    }
    assert all(each.rivals()[0].name == "triton" for each in gpu.all_passes())


def test_what_cannot_be_measured_says_why():
    by_memory = rows_of(SmokeMeter(free=10_000))
    assert any(row.reason and row.reason.startswith("needs") for row in by_memory)
    late = rows_of(SmokeMeter(), seconds=-1)
    assert {row.reason for row in late} == {"no time left"}


def test_what_fails_does_not_end_the_others(capsys):
    class Failing(SmokeMeter):
        def milliseconds(self, calls):
            if not self.called:
                self.called = 1
                raise RuntimeError("planted\nat length")
            return super().milliseconds(calls)

    first, *others = rows_of(Failing())
    assert first.reason == "broken: planted" and "RuntimeError: planted" in capsys.readouterr().err
    assert others and not any(row.reason for row in others)
    skipped = ("triton", "reference, compiled", f"{LIBRARY}, compiled", f"{ROWS}, compiled")
    compiled = rows_of(Failing(), compiled=True, skip=skipped)
    assert compiled[0].reason == "does not compile: planted"


def test_what_is_worth_most_comes_first(monkeypatch):
    """Nothing is computed: a row stands for each thing that would be measured."""
    monkeypatch.setattr(gpu, "measure_steps", lambda machine, wanted, models: iter(wanted))
    monkeypatch.setattr(gpu, "measure_passes", lambda machine, sizes, compiled: iter([(*sizes, compiled)]))
    order = list(gpu.measurements(Machine(SmokeMeter(), Deadline(1.0), CEILINGS)))
    measured = [row for row in order if isinstance(row, Variant)]
    assert order[0] == Variant("5b", 24) and set(measured[:6]) == set(steps.variants("5b", 24)[0])
    wan = [Variant("wan-1.3b", 49, speed=speed) for speed in ("exact", "fast", "faster")]
    assert order[6:10] == [(*SIZES[:2], False), *wan] and order[10] == Variant("5b", 49)
    wanted = {
        *wan,
        *(
            each
            for model in ("5b", "2b")
            for frames in (24, 49)
            for each in sum(steps.variants(model, frames), [])
        ),
    }
    assert set(measured) == wanted and len(measured) == len(wanted)
    assert [row for row in order if row not in wanted] == [
        (*SIZES[:2], False),
        (*SIZES[2:], False),
        (*SIZES, True),
    ]


def test_the_rivals_products_have_aligned_rows():
    """Rows of a multiple of 16 bytes, in the products of gradients too."""
    seen = []  # bytes beyond such a multiple

    class Rows(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function.overloadpacket is torch.ops.aten.mm and result.dtype == torch.bfloat16:
                seen.extend(max(each.stride()) * each.element_size() % 16 for each in (*args, result))
            return result

    size = TINY._replace(grid=(3, 5, 7), heads=2, dtype=torch.bfloat16)  # 105 tokens: rows of 210 bytes
    for each in passes()[:2]:
        given = each.inputs(size, torch.device("cpu"), 0)
        for rival in each.rivals():
            if rival.name.startswith("library"):
                with Rows():
                    rival.call(*given)
    assert len(seen) == 3 * (1 + 1 + 3 + 3) and not any(seen)


def test_least_times_are_those_of_the_algebra():
    flow, loss, forward, backward = passes()
    size = SIZES[0]
    assert flow.flops(size) == pytest.approx(0.403e12, rel=1e-2)
    assert loss.flops(size) == 3 * flow.flops(size)
    tensor, rope = (226 + 8100) * 3072 * 2, 4 * 8100 * 64 * 4
    assert (forward.bytes(size), backward.bytes(size)) == (4 * tensor + rope, 6 * tensor + rope)
    assert gpu.least_milliseconds(flow, size, CEILINGS) == pytest.approx(403, rel=1e-2)
    for each in linear_passes():
        assert each.int8_flops(size) == 2 * (226 + 8100) * 3072 * 12288
        assert gpu.least_milliseconds(each, size, CEILINGS) == pytest.approx(314, rel=1e-2)


@pytest.mark.parametrize("size", [TINY._replace(dtype=torch.float32), TINY, TINY_2B], ids=str)
def test_the_rivals_of_linear_layers_compute_the_same_layer(size):
    """To the rounding of 8 bits; those in 8 bits to that of the precision."""
    names = ["chunked", LIBRARY, *([ROWS, f"{ROWS}, compiled"] if _library_is_exact("cpu") else [])]
    if size is not TINY:
        names = names[:3]  # compiling takes a while
    for each in linear_passes():
        given = each.inputs(size, torch.device("cpu"), 0)
        rivals = {rival.name: rival.call for rival in each.rivals()}
        ours, *others = (rivals[name](*given).double() for name in names)
        errors = [((other - ours).norm() / ours.norm()).item() for other in others]
        assert 1e-4 < errors[0] < 0.03
        assert all(error < 2 * EPSILON[size.dtype] for error in errors[1:])


def test_tables():
    rows = [
        Row("flow forward", "small", "chunked", 4.0, 2_000_000, 1.0),
        Row("flow forward", "small", "triton", 2.0, 1_000_000, 1.0),
        Row("flow forward", "small", "reference", reason="out of memory"),
    ]
    lines = pass_tables(list(map(asdict, rows))).strip().splitlines()
    assert lines[0] == "| flow forward: small | ms | of the device's best | MB beyond inputs and results |"
    assert lines[2:] == [
        "| triton | 2.000 | 50 % | 1.0 |",
        "| chunked | 4.000 | 25 % | 2.0 |",
        "| reference | out of memory | - | - |",
    ]


def test_share_of_an_update():
    times = {"preparation forward": 1.0, "preparation backward": 2.0, "loss and gradients": 7.0}
    rows = [asdict(Row(of, "5B, 24 frames", "triton", time, 0, 1.0)) for of, time in times.items()]
    assert kernels_milliseconds(rows, "triton") == 7 + 21 * 3
    assert kernels_milliseconds([row | {"milliseconds": None} for row in rows], "triton") is None
    measured = 700.0, 5 << 30, 6 << 30, 4 << 30, 70.0, "24gb", "42 of 42"
    found = [
        steps.StepRow(Variant("5b", 24)._asdict(), "update", *measured),
        steps.StepRow(Variant("5b", 49)._asdict(), "update", *measured),
        steps.StepRow(Variant("5b", 24, attention="sage")._asdict(), "all", reason="no sage"),
    ]
    lines = step_tables(list(map(asdict, found)), rows).splitlines()
    assert "| plain | update | 700.0 | 5.0 | 4.0 | 6.0 | 70 | 24gb, 42 of 42 | 10.0 % |" in lines
    assert "| plain | update | 700.0 | 5.0 | 4.0 | 6.0 | 70 | 24gb, 42 of 42 | - |" in lines
    assert "| sage | all | no sage | - | - | - | - | - | - |" in lines


def test_the_results_file(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU (80 GB)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    results = gpu.Results(CEILINGS)
    results.add(Row("flow forward", "small", "triton", 2.0, 1, 1.0))
    assert results.path == tmp_path / "results" / "a-gpu-80-gb.json"
    found = json.loads(results.path.read_text())
    assert (found["kind"], found["steps"], found["passes"][0]["rival"]) == ("gpu", [], "triton")
    results.add(late := steps.StepRow(Variant("5b", 24)._asdict(), "update", reason="no time left"))
    assert json.loads(results.path.read_text()) == found | {"steps": [asdict(late)]}
    assert not results.broken and list(results.path.parent.iterdir()) == [results.path]
    results.add(Row("flow forward", "small", "triton", reason="broken: planted"))
    assert results.broken


def test_the_command(tmp_path, monkeypatch, capsys):
    """All of it but the comparisons, with two passes and a step instead of all measurements."""
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "why_it_cannot_run", lambda: None)
    monkeypatch.setattr(gpu, "check_all", lambda device, backend: 7)
    monkeypatch.setattr(gpu, "CudaMeter", lambda device: SmokeMeter())
    monkeypatch.setattr(gpu, "measure_ceilings", lambda meter: CEILINGS)
    for name, value in (
        ("current_device", 0),
        ("get_device_name", "A GPU"),
        ("get_device_capability", (9, 0)),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    step = steps.StepRow(Variant("5b", 24)._asdict(), "update", 700.0, 5, 6, 4, None, "24gb", "42 of 42")
    rows = [Row("flow forward", "5B", "triton", 2.0, 10**6, 1.0), step]
    monkeypatch.setattr(gpu, "measurements", lambda machine: iter(rows))
    gpu.main([])
    out = capsys.readouterr().out
    assert out.startswith(
        "correct: 7 comparisons with float64\ncopies 0.00 TB/s, products 1 TFLOP/s, in int8 2\n\n| flow"
    )
    assert "| triton | 2.000 | 50 % | 1.0 |\n\n| 5b, 24 frames |" in out and "a-gpu.json\n" in out
    rows.append(Row("flow forward", "5B", "chunked", reason="broken: planted"))
    with pytest.raises(SystemExit, match="something of ours is broken"):
        gpu.main(["--minutes", "1"])


def test_ceilings_are_rates():
    ceilings = measure_ceilings(SmokeMeter(), elements=1000, side=10)
    assert ceilings == Ceilings(copied_bytes=2e6, product_flops=1e6, int8_product_flops=1e6)


def test_right_results_pass_and_wrong_ones_do_not():
    size = TINY._replace(name="tiny")
    one_frame = Size("one frame", (1, 3, 4), 2, 16, text=2)
    assert check_all(torch.device("cpu"), "chunked", [size, one_frame, TINY_WAN]) == 3 * 3 * 11
    truth = torch.ones(3, dtype=torch.float64)
    compare("good", [truth.float()], [truth.float()], [truth], 1e-6)
    for wrong in (truth.float() + 1e-3, truth.float() * float("nan")):
        with pytest.raises(WrongResult, match="bad: tensor 0"):
            compare("bad", [wrong], [truth.float()], [truth], 1e-6)


def test_every_wrong_result_is_named(monkeypatch):
    real = correctness.qk_norm_rope
    monkeypatch.setattr(
        correctness,
        "qk_norm_rope",
        lambda *given, backend: (
            real(*given, backend=backend)
            if backend == "reference"
            else [2 * each for each in real(*given, backend=backend)]
        ),
    )
    with pytest.raises(WrongResult) as found:
        check_all(torch.device("cpu"), "chunked", [TINY])
    names = [line.split(",")[0] for line in str(found.value).split("; ")]
    assert names == 3 * ["norm and rope", "norm", "rope"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_operations_are_right_on_the_device():
    assert check_all(torch.device("cuda"), "triton")
