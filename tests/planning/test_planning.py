"""Plans compared with a real step, and the preset that is chosen from them."""

import json
import re
from dataclasses import replace

import pytest
import torch

from ditflow.cli.main import main
from ditflow.errors import DitflowError
from ditflow.memory.presets import GIB, PRESETS, budget, presets
from ditflow.memory.ring import Ring
from ditflow.planning import choice
from ditflow.planning.fake import FakeModel
from ditflow.planning.phases import Phases
from ditflow.planning.plan import Phase, Plan, make_plan

MIB = 1 << 20


@pytest.fixture(scope="module")
def phases(settings):
    return Phases(settings)


def named(name):
    return presets()[PRESETS.index(name)]


def test_as_many_blocks_are_resident_as_fit(phases, settings):
    sizes = phases.block_bytes
    roomy = make_plan(phases, settings, named("8gb"), 100 * GIB)
    assert (roomy.resident, roomy.streamed) == (len(sizes), 0)
    model = {phase.name: phase for phase in roomy.phases if phase.name not in ("text", "encode", "decode")}
    beside = max(phase.peak_bytes for phase in model.values()) - sum(sizes)
    for wanted in range(len(sizes) - 2):
        plan = make_plan(phases, settings, named("8gb"), beside + Ring(sizes, wanted).device_bytes)
        assert plan.resident == wanted
        assert make_plan(phases, settings, named("8gb"), plan.budget - 1).resident == max(wanted - 1, 0)
        peaks = [phase.peak_bytes for phase in plan.phases if phase.name in model]
        assert max(peaks) == plan.budget == plan.peak_of("denoise")


def test_guided_blocks_are_resident_without_checkpointing(phases, settings):
    """Autograd's graph holds their weights, whether they fit or not."""
    plan = make_plan(phases, settings, named("24gb"), 0)
    assert plan.resident == 3
    assert not plan.fits


def test_work_of_a_run(phases, settings):
    plan = make_plan(phases, settings, named("8gb"), 100 * GIB)
    times = {phase.name: phase.times for phase in plan.phases}
    assert times == {
        "text": 1, "encode": 1, "reference": 1, "injection": 2, "optimise": 10, "denoise": 10, "decode": 1,
    }  # fmt: skip
    assert plan.total_flops == sum(phase.times * phase.flops for phase in plan.phases)


def test_counting_each_tile_shape_once_gives_the_same_plan(phases, monkeypatch):
    from contextlib import nullcontext

    from ditflow.models.cogvideox import vae as module

    quick = phases.decode("144x96"), phases.encode()
    monkeypatch.setattr(module, "each_shape_once", lambda *_: nullcontext())
    phases.measured.clear()
    whole = phases.decode("144x96"), phases.encode()
    assert quick == whole


@pytest.mark.parametrize("resident", [0, 3])
@pytest.mark.parametrize("name", ["4gb", "8gb", "16gb"])
def test_plan_equals_a_real_step(settings, phases, name, resident):
    """Peak memory, FLOPs and copied bytes of one optimisation step with streamed weights."""
    from ditflow.guidance.targets import prepare_guidance
    from ditflow.memory.placement import make_runner, outside, place
    from ditflow.memory.tracker import Tracker
    from ditflow.models.loading import ModelFolder
    from ditflow.models.protocols import Capture

    preset = named(name)
    sizes = phases.block_bytes
    work = phases.optimise(preset.checkpoint, preset.block_inputs)
    with torch.device("cpu"):
        backbone = ModelFolder(settings.model, settings.dtype, torch.device("cpu")).transformer()
        weights = place(backbone.network, backbone.blocks, torch.device("cpu"), resident, host="pinned")
        runner = make_runner(backbone, weights, preset.checkpoint, preset.block_inputs)
    given = phases.inputs
    inputs = type(given)(
        torch.randn(given.latents.shape), torch.randn(given.prompt.shape), torch.zeros(1, dtype=torch.int64),
        backbone.embedding(backbone.grid(torch.empty(given.latents.shape))),
    )  # fmt: skip
    guidance = prepare_guidance(
        runner, settings, backbone.grid(inputs.latents), inputs.latents, inputs.prompt, inputs.embedding
    )
    guidance.steps = 1
    injected = runner.features(inputs, {}, Capture("key_value", settings.injection_blocks))
    guidance.optimise(runner, inputs, injected, 0)
    before = runner.copied_bytes
    held = [torch.empty_like(inputs.latents) for _ in range(2)]
    held += [torch.empty_like(inputs.prompt) for _ in range(3)]
    held += [inputs.latents, inputs.embedding, *injected[0], *weights.device_buffers()]
    with Tracker([*held, *outside(backbone.network, backbone.blocks)]) as found:
        guidance.optimise(runner, inputs, injected, 0)
    ring = Ring(sizes, resident)
    for _ in range(2):
        copied = sum(ring.replay(order) for order in work.walks)
    assert found.peak_bytes == pytest.approx(work.peak_bytes + ring.device_bytes, rel=0.01)
    assert found.flops == work.flops
    assert runner.copied_bytes - before == copied + work.copied_bytes


@pytest.fixture
def free_memory(monkeypatch):
    """Sets the number of bytes that plans may use."""

    def with_free(size):
        monkeypatch.setattr(choice, "usable_bytes", lambda memory, device: size)

    return with_free


def test_the_largest_preset_that_fits(settings, free_memory, monkeypatch):
    """With plans that need exactly the memory of their preset's card."""

    def as_large_as_its_card(phases, settings, preset, budget):
        return Plan(preset, 0, 0, budget, 0, (Phase("denoise", 1, preset.gigabytes * GIB, 1, 0, 0, 0, 0),))

    monkeypatch.setattr(choice, "make_plan", as_large_as_its_card)

    def chosen(size, **given):
        free_memory(size * GIB)
        return choice.choose_plan(replace(settings, **given), torch.device("cpu")).preset.name

    assert (chosen(90), chosen(80), chosen(79), chosen(13)) == ("80gb", "80gb", "48gb", "12gb")
    assert chosen(90, memory="8gb") == chosen(90, memory="90", preset="8gb") == "8gb"
    too_large = (
        r"preset 16gb does not fit: denoise needs 16.0 GiB, 3.0 GiB more than the 13.0 .* --memory 12gb"
    )
    with pytest.raises(DitflowError, match=too_large):
        chosen(13, memory="16gb")
    with pytest.raises(DitflowError, match=r"not enough memory: .* needs 4.0 GiB.* fewer --frames"):
        chosen(3)


def test_each_fallback_needs_less(settings, free_memory):
    """The last one has no resident block."""
    free_memory(100 * GIB)
    plan = choice.choose_plan(settings, torch.device("cpu"))
    seen = [plan]
    while plan := choice.smaller_plan(settings, torch.device("cpu"), plan, "denoise"):
        assert plan.peak_of("denoise") < seen[-1].peak_of("denoise")
        seen.append(plan)
    assert len(seen) > 2
    assert seen[-1].resident == 0


def test_budgets():
    assert budget(4) == pytest.approx(3.4 * GIB, abs=1)
    sizes = [preset.budget for preset in presets()]
    assert sizes == sorted(sizes)
    assert [preset.name for preset in presets()] == list(PRESETS)
    assert all(f"{preset.gigabytes}gb" == preset.name for preset in presets())


def test_runs_with_equal_phases_share_them(settings):
    """Sharing does not change a plan."""
    few = replace(settings, steps=4, guided=0.5, optimisation_steps=2, injection=False)
    other = replace(
        few, steps=10, guided=0.3, optimisation_steps=3, learning_rate=(0.5, 0.1), scheduler="dpm"
    )
    assert choice.phases_of(few, "cpu") is choice.phases_of(other, "cpu")
    assert choice.phases_of(few, "cpu") is not choice.phases_of(replace(few, guided=0), "cpu")
    for run, steps, updates in ((few, 4, 4), (other, 10, 9)):
        (plan,) = choice.make_plans(run, [named("8gb")], "cpu", GIB)
        assert plan == make_plan(Phases(run, "cpu"), run, named("8gb"), GIB)
        times = {phase.name: phase.times for phase in plan.phases}
        assert (times["denoise"], times["optimise"]) == (steps, updates)


def test_plan_as_json(settings, capsys):
    words = ["plan", "--model", settings.model, "--size", "96x64", "--frames", "9", "--json", "--memory", "8"]
    assert main([*words, "--guidance-blocks", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [preset["name"] for preset in plan["presets"]] == list(PRESETS)
    assert [preset["chosen"] for preset in plan["presets"]] == [False] * 7 + [True]
    for preset in plan["presets"]:
        assert preset["fits"]
        assert preset["total_flops"] == sum(p["times"] * p["flops"] for p in preset["phases"])
        assert [p["name"] for p in preset["phases"]] == [
            "text", "encode", "reference", "injection", "optimise", "denoise", "decode",
        ]  # fmt: skip
        assert all(p["peak_bytes"] > 0 and p["copied_bytes"] >= 0 for p in preset["phases"])


@pytest.mark.parametrize(
    "words, says",
    [
        ([], None),
        (["--attention-forward", "sdpa"], None),
        (["--attention-forward", "sage"], "sage in forwards without gradient and sdpa in the others"),
        (["--attention", "flash"], "flash in forwards without gradient and flash in the others"),
    ],
    ids=["default", "sdpa", "forward", "both"],
)
def test_plan_says_which_attention_it_does_not_show(settings, words, says, capsys):
    size = ["--size", "96x64", "--frames", "9", "--guidance-blocks", "2"]
    assert main(["plan", "--model", settings.model, *size, "--json", *words]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert (says in notes and "planned with sdpa" in notes) if says else not notes


def test_plan_as_tables(settings, capsys):
    words = ["plan", "--model", settings.model, "--size", "96x64", "--frames", "9", "--guidance-blocks", "2"]
    assert main([*words, "--estimate-on", "rtx-3060"]) == 0
    printed = capsys.readouterr().out
    assert "planned on fake tensors" in printed
    assert all(name in printed for name in (*PRESETS, "optimise", "denoise", "decode"))


@pytest.mark.parametrize(
    "words, says",
    [
        (["--model", "nobody/nothing"], "nobody/nothing.*configs/models"),
        (["--model", "nonsense"], "nonsense.*configs/models"),
        (["--model", "5b", "--estimate-on", "abacus"], "abacus.*its rates are unknown"),
        (["--model", "5b", "--memory", "7gb"], "memory: '7gb' given; accepted: auto, gigabytes"),
    ],
    ids=["hub", "model", "device", "memory"],
)
def test_what_cannot_be_planned(words, says, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries again and again
    assert main(["plan", *words]) in (1, 2)
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize("weights", ["full", "fp8"])
@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"optimise": "embedding"}, {"loss": "smm"}, {"loss": "moft"}], ids=str
)
def test_every_kind_of_run_can_be_planned(settings, change, weights):
    asked = replace(settings, weights=weights, **change)
    plan = choice.make_plans(asked, [named("4gb")], "cuda")[0]
    optimise = next(phase for phase in plan.phases if phase.name == "optimise")
    whole = sum(Phases(replace(asked, weights="full")).block_bytes)
    assert optimise.flops > 0
    assert (sum(Phases(asked).block_bytes) < whole) == (weights == "fp8")
    assert optimise.peak_bytes > sum(Phases(asked).block_bytes)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--weights", "foo"], "--weights foo: unknown; accepted: full, fp8, int8, nf4 or a .gguf file"),
        (["--weights", "absent.gguf"], "no such file"),
        (["--guidance-blocks", "60"], "guidance_blocks: block 60 given, this model has blocks 0 to 5"),
        (
            ["--guidance-blocks", "2", "--injection-blocks", "99"],
            "injection_blocks: block 99 given, this model has blocks 0 to 5",
        ),
        (["--set", "guidance_blocks=[]"], "guidance_blocks is empty"),
    ],
)
def test_a_plan_checks_what_a_run_checks(settings, words, says, capsys):
    assert main(["plan", "--model", settings.model, *words]) in (1, 2)
    assert re.search(says, capsys.readouterr().err)


def test_a_plan_builds_each_model_once(settings, monkeypatch):
    made, real = [], FakeModel.autoencoder

    def counted(model):
        made.append(model)
        return real(model)

    monkeypatch.setattr(FakeModel, "autoencoder", counted)
    phases = Phases(settings)
    first = phases.encode(), phases.decode("none"), phases.decode("144x96")
    assert (phases.encode(), phases.decode("none"), phases.decode("144x96")) == first
    assert len(made) == 1
