"""Estimated times: work by kind, measured or estimated rates, and what `plan --estimate-on` prints."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from bench.ceilings import facts, measure
from ditflow.cli.main import main
from ditflow.errors import SettingsError
from ditflow.files import shipped, shipped_names
from ditflow.planning.ceilings import Ceilings, as_ceilings, ceilings_of_card, read_ceilings
from ditflow.planning.phases import Phases
from ditflow.planning.plan import Phase

ESTIMATED = ("h200", "rtx-3060", "rtx-4090")
RATES = ("product_flops", "attention_flops", "int8_flops", "moved_bytes", "copied_bytes")
PLAN = ("plan", "--size", "96x64", "--frames", "9", "--guidance-blocks", "2")


def work(phases):
    """A denoising step, and an optimisation step that recomputes blocks."""
    return phases.denoise(), phases.optimise("block", "device")


def test_products_are_counted_by_kind(settings):
    """With int8, all products that the option replaces; with int8-forward, of gradients none."""
    exact, both, forwards = (
        work(Phases(replace(settings, compute=compute))) for compute in ("bf16", "int8", "int8-forward")
    )
    assert all(each.int8_flops == 0 for each in exact)
    for one, other, third in zip(exact, both, forwards, strict=True):
        assert one.flops == other.flops == third.flops
        assert one.attention_flops == other.attention_flops == third.attention_flops
        assert one.moved_bytes < other.moved_bytes  # rounding
    assert both[0] == forwards[0]  # which has no gradient
    assert 0.8 < both[0].int8_flops / (both[0].flops - both[0].attention_flops) < 1
    assert 0 < forwards[1].int8_flops < both[1].int8_flops


def test_weights_in_8_bits_are_not_products_in_8_bits(settings):
    """They are unpacked, which moves bytes."""
    full, stored = (work(Phases(replace(settings, weights=weights)))[0] for weights in ("full", "int8"))
    assert stored.int8_flops == 0
    assert stored.moved_bytes > full.moved_bytes


def test_seconds_of_a_phase():
    rates = Ceilings("it", "bfloat16", product_flops=4.0, attention_flops=2.0, copied_bytes=1.0)
    phase = Phase("denoise", 3, 0, flops=20, attention_flops=4, int8_flops=8, moved_bytes=50, copied_bytes=1)
    everything = replace(rates, int8_flops=8.0, moved_bytes=10.0)
    assert everything.seconds(phase) == (20 - 4 - 8) / 4 + 4 / 2 + 8 / 8 + 50 / 10
    assert replace(everything, moved_bytes=None).seconds(phase) == 2 + 2 + 1
    assert everything.seconds(replace(phase, copied_bytes=11)) == 11  # copies run beside
    assert rates.seconds(replace(phase, int8_flops=0)) == 4 + 2


@pytest.mark.parametrize("device", ESTIMATED)
def test_estimated_rates_have_a_source_for_every_number(device):
    file, found = shipped(f"devices/{device}.yaml"), read_ceilings(device)
    assert found.kind == "estimated" and found.measured is None and found.gigabytes in (12, 24, 141)
    assert tuple(sorted(file["estimated"])) == tuple(sorted(RATES))
    for name, each in file["estimated"].items():
        assert getattr(found, name) == pytest.approx(each["peak"] * each["share"], rel=1e-3)
        assert 0.3 < each["share"] < 1 and len(each["peak_source"]) > 10 and len(each["share_source"]) > 10
        unknown = set(each) - {"peak", "share", "peak_source", "share_source"}
        assert not unknown, unknown
    assert found.product_flops < found.int8_flops


def test_every_device_can_be_read():
    kinds = {name: read_ceilings(name).kind for name in shipped_names("devices")}
    assert {name for name, kind in kinds.items() if kind == "estimated"} == set(ESTIMATED)
    assert kinds["epyc-2-cores"] == "measured"


def test_a_gpu_is_known_by_its_name():
    for name in ESTIMATED:
        assert ceilings_of_card(read_ceilings(name).card) == read_ceilings(name)
    assert ceilings_of_card("NVIDIA GeForce RTX 4090 Laptop GPU") is None


def test_what_is_measured_makes_a_device():
    """On the device at hand, at a small size."""
    import torch

    found = measure(torch.device("cpu"), tokens=64, heads=2)
    device = as_ceilings({"device": "here", "measured": "today", **found})
    assert device.kind == "measured"
    assert all(getattr(device, name) > 0 for name in RATES)
    assert set(found) <= {field.name for field in fields(Ceilings)}


def test_a_measured_gpu_is_named(monkeypatch):
    """So that `plan` finds its rates, and takes it for a GPU."""
    import torch

    found = SimpleNamespace(name="NVIDIA L40S", total_memory=48_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert facts(torch.device("cuda")) == {"card": "NVIDIA L40S", "gigabytes": 45}
    assert facts(torch.device("cpu")) == {}


def test_products_in_8_bits_need_a_rate(settings, capsys):
    words = [*PLAN, "--model", settings.model, "--compute", "int8", "--estimate-on"]
    assert main([*words, "epyc-2-cores"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "epyc-2-cores" in line and "no rate of products in 8 bits" in line and "bench.ceilings" in line
    read_ceilings("epyc-2-cores").check_compute("bf16")
    with pytest.raises(SettingsError, match="--compute int8-forward"):
        read_ceilings("epyc-2-cores").check_compute("int8-forward")


@pytest.mark.parametrize(
    "device, says, other",
    [
        ("rtx-4090", "Least seconds, estimated, not measured", "rates measured on"),
        ("epyc-2-cores", "at the best rates measured on epyc-2-cores", "estimated, not measured"),
    ],
)
def test_tables_say_where_times_come_from(settings, device, says, other, capsys):
    assert main([*PLAN, "--model", settings.model, "--estimate-on", device]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert says in printed and other not in printed


def test_json_has_the_parts(settings, capsys):
    words = [*PLAN, "--model", settings.model, "--compute", "int8", "--json"]
    assert main([*words, "--estimate-on", "h200"]) == 0
    found, device = json.loads(capsys.readouterr().out), read_ceilings("h200")
    assert found["device"]["kind"] == "estimated"
    assert found["device"]["int8_flops"] == device.int8_flops
    for preset in found["presets"]:
        assert preset["estimated_seconds"] == pytest.approx(
            sum(phase["times"] * phase["estimated_seconds"] for phase in preset["phases"])
        )
        for phase in preset["phases"]:
            names = [field.name for field in fields(Phase)]
            assert phase["estimated_seconds"] == device.seconds(Phase(*(phase[name] for name in names)))
        assert any(phase["int8_flops"] for phase in preset["phases"])
        assert all(phase["moved_bytes"] for phase in preset["phases"])
    assert main(words) == 0
    assert "device" not in json.loads(capsys.readouterr().out)
