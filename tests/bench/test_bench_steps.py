"""The benchmark of whole steps, on the CPU with a tiny model: what it measures and reports."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from stand_in_meters import SmokeMeter
from tiny_wan_pipelines import write_wan

from bench import harness, steps
from bench.harness import Ceilings, Cost, Deadline, counter_of, energy_counter
from bench.steps import STEPS, Machine, Models, Variant, measure_steps
from ditflow.errors import DitflowError
from ditflow.models.cogvideox.transformer import CogVideoXTransformer
from ditflow.models.compute import Int8Linear
from ditflow.models.precision import stays_float32
from ditflow.models.wan.transformer import WanTransformer
from ditflow.planning.plan import PROMPT_ONLY
from ditflow.settings import Settings

EXACT = [step for step in STEPS if step != PROMPT_ONLY]  # of a run that runs every pass


@pytest.fixture
def small(small_folder, monkeypatch):
    """A variant of the tiny model on the CPU, and its `Models`."""
    from diffusers import CogVideoXTransformer3DModel

    tiny = {"size": "48x32", "dtype": "float32", "guidance_blocks": [2]}
    monkeypatch.setattr(steps, "Settings", partial(Settings, **tiny))
    config = CogVideoXTransformer3DModel.load_config(small_folder / "transformer")
    models = Models(SmokeMeter(), lambda model: config)
    return Variant(str(small_folder), 9, kernels="chunked"), models


def steps_of(wanted, models, seconds=1e9, flops=1e12, meter=None):
    ceilings = Ceilings(copied_bytes=1e9, product_flops=flops, int8_product_flops=flops)
    machine = Machine(meter or SmokeMeter(), Deadline(seconds), ceilings)
    return list(measure_steps(machine, wanted, models))


def test_steps_of_variants(small, monkeypatch):
    """A resident model, a streamed one, and one whose attention has no gradient."""
    variant, models = small
    no_gradient = replace(steps.KERNELS["sdpa"], gradient=False)
    monkeypatch.setitem(steps.KERNELS, "sage", no_gradient)
    streamed = variant._replace(preset="8gb")
    plan = steps.make_plans

    def nothing_stays(*given, **named):
        return [
            replace(each, resident=0, streamed=6) if each.preset.name == "8gb" else each
            for each in plan(*given, **named)
        ]

    monkeypatch.setattr(steps, "make_plans", nothing_stays)
    found = steps_of([variant, streamed, variant._replace(attention="sage")], models)
    assert [row.step for row in found] == [*EXACT, *EXACT, "denoising step"]
    assert all(row.reason is None and (row.milliseconds, row.joules) == (3.0, 70.0) for row in found)
    assert [row.resident for row in found] == ["6 of 6"] * 3 + ["0 of 6"] * 3 + ["6 of 6"]
    assert [row.preset for row in found] == ["80gb"] * 3 + ["8gb"] * 3 + ["80gb"]
    assert all(row.planned_bytes > 0 for row in found)
    (made,), (home,) = models.made.values(), models.home.values()
    assert all(tensor.data_ptr() == at.data_ptr() for tensor, at in zip(made.parameters(), home, strict=True))


def test_steps_at_each_speed(small):
    """`faster`: one update, not five, and 8-bit products. Both have passes without the negative prompt."""
    variant, models = small
    found = steps_of([variant, variant._replace(speed="fast"), variant._replace(speed="faster")], models)
    assert all(row.reason is None for row in found)
    assert [row.step for row in found] == [*EXACT, *STEPS, *STEPS]
    assert [row.variant["speed"] for row in found[::4]] == ["exact", "fast", "faster"]
    (_, exact), (_, faster) = models.made
    assert (exact, faster) == ("bf16", "int8") and len(models.made) == 2
    kinds = [{type(part) for part in made.modules()} for made in models.made.values()]
    assert Int8Linear not in kinds[0] and Int8Linear in kinds[1]


@pytest.fixture
def small_wan(tmp_path, monkeypatch):
    """A variant of a tiny Wan model on the CPU, and its `Models`."""
    from diffusers import WanTransformer3DModel

    write_wan(folder := tmp_path / "wan")
    monkeypatch.setattr(steps, "Settings", partial(Settings, size="48x32", guidance_blocks=[2]))
    config = WanTransformer3DModel.load_config(folder / "transformer")
    return Variant(str(folder), 9, kernels="chunked"), Models(SmokeMeter(), lambda model: config)


def forwards_of_each(wanted, models, transformer, monkeypatch):
    """The rows of every step, and how many forwards each step makes."""
    made, counts, embed = [], [], transformer.embed

    def counted(self, inputs):
        made.append(inputs)
        return embed(self, inputs)

    class Counter(SmokeMeter):
        def cost(self, call):
            before = len(made)
            cost = super().cost(call)
            counts.append(len(made) - before)
            return cost

    monkeypatch.setattr(transformer, "embed", counted)
    return steps_of(wanted, models, meter=Counter()), counts


def test_a_guided_step_is_all_its_updates_and_a_denoising(small, monkeypatch):
    variant, models = small
    wanted = [variant, variant._replace(speed="faster")]
    _, counts = forwards_of_each(wanted, models, CogVideoXTransformer, monkeypatch)
    assert counts == [1, 2, 1 + 5 + 2, 1, 2, 1, 1 + 1 + 2]


def test_steps_of_wan_at_each_speed(small_wan, monkeypatch):
    """Without injection, on weights in the precisions that they are loaded in."""
    variant, models = small_wan
    wanted = [variant._replace(speed=speed) for speed in ("exact", "fast", "faster")]
    found, counts = forwards_of_each(wanted, models, WanTransformer, monkeypatch)
    assert all(row.reason is None and row.planned_bytes > 0 for row in found)
    assert [row.step for row in found] == [*EXACT, *STEPS, *STEPS]
    assert counts == [1, 2, 10 + 2, 1, 2, 1, 10 + 2, 1, 2, 1, 1 + 2]
    network = models.made[variant.model, "bf16"]
    kinds = {name: parameter.dtype for name, parameter in network.named_parameters()}
    assert {stays_float32(network, name) for name in kinds} == {True, False}
    assert all((kinds[name] == torch.float32) == stays_float32(network, name) for name in kinds)


def test_steps_that_cannot_be_measured_say_why(small, monkeypatch):
    variant, models = small
    (late,) = steps_of([variant], models, seconds=-1)
    assert late.reason.startswith("no time left: needs about 10 s, 0 are left")
    (long,) = steps_of([variant], models, seconds=100, flops=1e6)
    assert long.reason.startswith("no time left: needs about ")
    (absent,) = steps_of([variant._replace(attention="flash")], models)
    assert "flash_attn is not installed" in absent.reason or "needs a CUDA GPU" in absent.reason
    with monkeypatch.context() as patch:
        patch.setattr(steps, "usable_bytes", lambda memory, device: 1 << 20)
        (large,) = steps_of([variant._replace(preset="4gb")], models)
    assert large.reason.startswith("preset 4gb does not fit: ")
    monkeypatch.setattr(steps.psutil, "virtual_memory", lambda: SimpleNamespace(available=10))
    (poor,) = steps_of([variant._replace(preset="8gb")], models)
    assert "of host memory" in poor.reason


def test_what_fails_ends_nothing(small, monkeypatch, capsys):
    variant, models = small

    def fails(error):
        def cost(self, call):
            raise error

        return type("Meter", (SmokeMeter,), {"cost": cost})()

    compiled = variant._replace(compiled=True)
    (row,) = steps_of([compiled], models, meter=fails(DitflowError("no compiler\nat all")))
    assert row.reason == "fails: no compiler"
    (row,) = steps_of([variant], models, meter=fails(torch.OutOfMemoryError("planted")))
    assert row.reason == "out of memory"
    broken, fine = steps_of([variant], models, meter=fails(DitflowError("ours"))), steps_of([variant], models)
    assert [row.reason for row in broken] == [
        "broken: ours"
    ] and "DitflowError: ours" in capsys.readouterr().err
    assert [row.reason for row in fine] == [None] * len(EXACT)


def test_variants_cover_what_there_is():
    plain, changed = steps.variants("5b", 24)
    assert [each.preset for each in plain] == [*["auto"] * 3, "24gb", "16gb", "12gb"]
    assert [each.speed for each in plain[:3]] == ["exact", "fast", "faster"]
    found = [*plain, *changed]
    assert all(each[:2] == ("5b", 24) for each in found) and len(set(found)) == len(found)
    assert {each.preset for each in found} == {"auto", *steps.PRESETS}
    assert {each.attention for each in found} == set(steps.KERNELS)
    assert sum(each.compiled for each in found) == sum(each.kernels == "chunked" for each in found) == 1
    usual = "auto", "sdpa", False, "triton", "exact"
    assert all(
        sum(one != other for one, other in zip(each[2:], usual, strict=True)) == 1 for each in found[1:]
    )


class Driver:
    """The functions of NVML that are called here; 0 means success."""

    def __init__(self, counts=True):
        self.counts, self.millijoules = counts, 5_000

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        return 0 if uuid == b"GPU-1" else 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, place):
        if not self.counts:
            return 3
        place._obj.value = self.millijoules
        return 0


def test_energy_is_the_drivers_counter(monkeypatch):
    driver = Driver()
    joules = counter_of(driver, "GPU-1")
    assert joules() == 5.0
    driver.millijoules += 1_500
    assert joules() == 6.5
    assert counter_of(driver, "GPU-2")() is None
    assert counter_of(Driver(counts=False), "GPU-1")() is None
    monkeypatch.setattr(harness, "NVML", "libabsent.so.1")
    assert energy_counter(torch.device("cuda"))() is None


def test_cost_of_a_step(monkeypatch):
    """The first call is not counted; long calls are made once more, short ones a few times."""
    peaks = {"synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None}
    peaks |= {"max_memory_allocated": 7, "max_memory_reserved": 8}
    for name, value in peaks.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    now = [0.0]
    monkeypatch.setattr(harness, "energy_counter", lambda device: lambda: 100 * now[0])
    meter = harness.CudaMeter(torch.device("cuda"), clock=lambda: now[0])

    def taking(*seconds):
        left = list(seconds)

        def call():
            now[0] += left.pop(0)

        return call, left

    call, left = taking(60.0, 1.0, 3.0, 2.0, 9.0)
    assert meter.cost(call) == Cost(2000.0, 7, 8, 200.0) and left == [9.0]
    call, left = taking(60.0, 30.0, 9.0)
    assert meter.cost(call) == Cost(30_000.0, 7, 8, 3000.0) and left == [9.0]
