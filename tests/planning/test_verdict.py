"""What `ditflow plan` says first: whether a run fits, where, and how long it takes."""

from dataclasses import replace

import pytest
import torch

from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.jobs import plan as command
from ditflow.memory.presets import GIB, PRESETS, budget
from ditflow.planning import verdict
from ditflow.planning.ceilings import Ceilings, read_ceilings
from ditflow.planning.verdict import Target, plan_all, time_in_words

PLAN = ("plan", "--size", "96x64", "--frames", "9", "--guidance-blocks", "2")


def first_lines(capsys, settings, *words):
    assert main([*PLAN, "--model", settings.model, *words]) == 0
    return capsys.readouterr().out.splitlines()[:2]


def test_a_run_on_the_cpu_names_no_preset(settings, capsys, monkeypatch):
    """Presets are named after GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*PLAN, "--model", settings.model, "--negative", "alternate"]) == 0
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()[:2]
    assert first.startswith("It fits: on the CPU it takes ") and "gradient checkpointing off" in first
    assert "not estimated" in second and "--estimate-on with one of epyc-2-cores, h200" in second
    assert "this run" in captured.out and not [name for name in PRESETS if name in captured.out]
    assert captured.err == f"ditflow: planning {settings.model}, 9 frames of 96x64\n"
    assert main([*PLAN, "--model", settings.model, "--quiet"]) == 0
    assert not capsys.readouterr().err


def test_a_named_card_has_a_preset_and_a_time(settings, capsys):
    first, second = first_lines(capsys, settings, "--estimate-on", "rtx-4090")
    assert first.startswith("It fits: 80gb is chosen, the fastest that fits, and takes ")
    assert f"of {budget(24) / GIB:.1f} GiB on the GPU." in first
    assert second.startswith("It takes at least ") and second.endswith("on rtx-4090 (estimated rates).")
    first, _ = first_lines(capsys, settings, "--estimate-on", "rtx-4090", "--memory", "8gb")
    assert first.startswith("It fits: 8gb is chosen, as requested") and f"{budget(8) / GIB:.1f} GiB" in first


def test_a_measured_cpu_is_no_card(settings, capsys):
    first, second = first_lines(capsys, settings, "--estimate-on", "epyc-2-cores")
    assert "on the CPU" in first and second.endswith("on epyc-2-cores (measured rates).")


def test_without_a_gpu_the_cards_that_fit_are_named(settings):
    found = plan_all(settings, Target("cuda", None))
    assert found.chosen is None
    assert found.verdict.startswith("It fits GPUs of 4 GB or more (4gb). No preset is chosen")


def test_what_does_not_fit_is_said_with_its_excess(settings):
    found = plan_all(settings, Target("cuda", 1 << 20))
    assert found.chosen is None
    assert found.verdict.startswith("Not enough memory: ")
    assert "more than the 1 MiB available" in found.verdict
    assert time_in_words(found, read_ceilings("h200")) == ""


@pytest.mark.parametrize(
    "memory, card, gigabytes",
    [("auto", None, None), ("auto", 24, 24), ("8", None, 8), ("8gb", 24, 8), ("48", 24, 24)],
)
def test_the_memory_of_a_card_that_is_not_here(settings, memory, card, gigabytes):
    found = Target.elsewhere(replace(settings, memory=memory), card)
    assert found == Target("cuda", None if gigabytes is None else budget(gigabytes))


def test_the_gpu_of_this_machine_is_looked_up(settings, monkeypatch):
    monkeypatch.setattr(command, "gpu_count", lambda: 1)
    monkeypatch.setattr(command, "is_on_cpu", lambda settings: False)
    monkeypatch.setattr(command, "choose_device", lambda settings: torch.device("cuda:1"))
    monkeypatch.setattr(verdict, "usable_bytes", lambda memory, device: device.index * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert command.plan_target(settings, None) == (Target("cuda", GIB), read_ceilings("h200"))
    asked = command.plan_target(settings, read_ceilings("rtx-3060"))
    assert asked == (Target("cuda", budget(12)), None)


@pytest.mark.parametrize(
    "seconds, said", [(1.26, "1.3 seconds"), (110, "110 seconds"), (121, "2.0 minutes"), (40000, "11 hours")]
)
def test_times_are_readable(settings, seconds, said, monkeypatch):
    monkeypatch.setattr(Ceilings, "run_seconds", lambda rates, plan: seconds)
    planned = plan_all(settings, Target("cuda", 8 * GIB))
    assert f"at least {said} on h200 (estimated" in time_in_words(planned, read_ceilings("h200"))


def test_a_plan_refuses_what_a_run_refuses(settings):
    with pytest.raises(DitflowError, match="guidance_blocks: block 60 given"):
        plan_all(replace(settings, guidance_blocks=(60,)), Target("cuda", None))
