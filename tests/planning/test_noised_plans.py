"""Plans of runs that read the clip anew in each guided step, and of runs that start from it."""

from dataclasses import replace

import pytest
import torch

from ditflow.guidance.targets import NoisedClip
from ditflow.memory.placement import make_runner, outside, place
from ditflow.memory.presets import GIB, presets
from ditflow.memory.ring import Ring
from ditflow.memory.tracker import Tracker
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Capture
from ditflow.planning import choice
from ditflow.planning.fake import FakeSchedule
from ditflow.planning.phases import Phases

ROOMY, TIGHT = presets()[-1], presets()[0]
CPU = torch.device("cpu")


@pytest.fixture
def guided(settings):
    return replace(settings, steps=10, guided=0.5, optimisation_steps=4, injection=True)


def planned(settings, preset=TIGHT):
    (plan,) = choice.make_plans(settings, [preset], "cpu", 100 * GIB)
    return plan, {phase.name: phase for phase in plan.phases}


@pytest.mark.parametrize("preset", [TIGHT, ROOMY], ids=lambda preset: preset.name)
def test_each_guided_step_reads_the_clip(guided, preset):
    (clean, once), (step, anew) = (
        planned(replace(guided, reference_noise=noise), preset) for noise in ("clean", "step")
    )
    assert (once["reference"].times, anew["reference"].times) == (1, 5)
    assert step.total_flops - clean.total_flops == 4 * once["reference"].flops
    assert {name: phase for name, phase in anew.items() if name != "reference"} == {
        name: phase for name, phase in once.items() if name != "reference"
    }
    # one forward as ever, beside the noised latents and the injected keys and values, which the step holds
    phases = choice.phases_of(replace(guided, reference_noise="step"), "cpu")
    latents, (key, value) = phases.inputs.latents, phases.injected[0]
    sizes = (tensor.numel() * tensor.element_size() for tensor in (latents, key, value))
    assert 0 < anew["reference"].peak_bytes - once["reference"].peak_bytes <= sum(sizes)


def test_only_steps_that_match_features_read_it(guided):
    _, parts = planned(replace(guided, reference_noise="step", x0_after=0.4))
    assert (parts["reference"].times, parts["x0 reference"].times) == (2, 3)


def test_plan_equals_a_real_reading(guided):
    guided = replace(guided, reference_noise="step")
    phases, resident = Phases(guided), 1
    work = phases.reference()
    backbone = ModelFolder(guided.model, guided.dtype, CPU).transformer()
    weights = place(backbone.network, backbone.blocks, CPU, resident, host="pinned")
    runner, given = make_runner(backbone, weights, "block", "device"), phases.inputs
    latents, prompt = torch.randn(given.latents.shape), torch.randn(given.prompt.shape)
    timestep, embedding = torch.zeros(1, dtype=torch.int64), backbone.embedding(backbone.grid(latents))
    inputs = type(given)(latents, prompt, timestep, embedding)
    injected = runner.features(inputs, {}, Capture("key_value", guided.injection_blocks))
    clip, noise = torch.randn_like(latents), torch.randn_like(latents)
    noised = NoisedClip(guided, FakeSchedule(), clip, noise, prompt, embedding)
    noised.loss(runner, timestep)
    before = runner.copied_bytes
    held = [clip, noise, prompt, torch.empty_like(prompt), torch.empty_like(prompt), latents, embedding]
    held += [*injected[0], *weights.device_buffers(), *outside(backbone.network, backbone.blocks)]
    with Tracker(held) as found:
        noised.loss(runner, timestep)
    ring = Ring(phases.block_bytes, resident)
    for _ in range(2):
        copied = sum(ring.replay(order) for order in work.walks)
    assert found.peak_bytes == pytest.approx(work.peak_bytes + ring.device_bytes, rel=0.01)
    assert found.flops == work.flops
    assert runner.copied_bytes - before == copied


def test_a_run_from_the_clip_plans_the_steps_that_it_makes(guided):
    """6 of 10 steps, 3 of them guided. Its phases are those of a run from noise."""
    part = replace(guided, initial_latents="clip:0.6", negative="alternate")
    (_, found), (_, whole) = planned(part), planned(replace(part, initial_latents="noise"))
    times = {name: phase.times for name, phase in found.items()}
    assert times == {
        "text": 1, "encode": 1, "reference": 1, "injection": 3, "optimise": 3 * 4, "denoise": 5,
        "prompt only": 1, "decode": 1,
    }  # fmt: skip
    for name, phase in found.items():
        assert (phase.flops, phase.peak_bytes) == (whole[name].flops, whole[name].peak_bytes)
    assert choice.phases_of(part, "cpu") is choice.phases_of(replace(part, initial_latents="noise"), "cpu")
