"""Plans of runs with the loss x0, in all guided steps or in those after another loss."""

from dataclasses import replace

import pytest
import torch

from ditflow.memory.placement import make_runner, outside, place
from ditflow.memory.presets import GIB, presets
from ditflow.memory.ring import Ring
from ditflow.memory.tracker import Tracker
from ditflow.models.loading import ModelFolder
from ditflow.models.protocols import Capture
from ditflow.planning import choice
from ditflow.planning.phases import Phases
from ditflow.planning.plan import make_plan

ROOMY, TIGHT = presets()[-1], presets()[0]
CPU = torch.device("cpu")


@pytest.fixture
def switched(settings):
    return replace(settings, guided=0.5, x0_after=0.4, optimisation_steps=4, injection=True)


@pytest.mark.parametrize("preset", [TIGHT, ROOMY], ids=lambda preset: preset.name)
def test_work_is_that_of_both_losses(switched, preset):
    """Five guided steps, two before the switch."""

    def planned(**changes):
        (plan,) = choice.make_plans(replace(switched, **changes), [preset], "cpu", 100 * GIB)
        return plan, {phase.name: phase for phase in plan.phases}

    both, parts = planned(gradient_reuse=2)
    (flow, first), (x0, then) = planned(x0_after=1), planned(x0_after=1, loss="x0")
    times = {name: phase.times for name, phase in parts.items()}
    assert times == {
        "text": 1, "encode": 1, "reference": 1, "x0 reference": 3, "injection": 5, "optimise": 2 * 2,
        "x0 optimise": 3 * 4, "denoise": 10, "decode": 1,
    }  # fmt: skip
    for name, phase in parts.items():
        assert phase.flops == (then if name.startswith("x0") else first)[name].flops
    assert both.largest.peak_bytes >= max(flow.largest.peak_bytes, x0.largest.peak_bytes)
    # velocities are kept from the first update with the loss x0 to the end
    latents = choice.phases_of(replace(switched, gradient_reuse=2), "cpu").inputs.latents
    size = latents.numel() * latents.element_size()
    assert parts["denoise"].peak_bytes - first["denoise"].peak_bytes == size
    assert parts["optimise"].peak_bytes == first["optimise"].peak_bytes
    assert parts["x0 optimise"].peak_bytes == then["x0 optimise"].peak_bytes


def test_runs_share_phases_only_if_they_have_the_same_losses(switched):
    others = ({"x0_after": 0.2}, {"steps": 40, "x0_after": 0.9})
    shared = choice.phases_of(switched, "cpu")
    for change in others:
        run = replace(switched, **change)
        assert choice.phases_of(run, "cpu") is shared
        (plan,) = choice.make_plans(run, [TIGHT], "cpu", GIB)
        assert plan == make_plan(Phases(run, "cpu"), run, TIGHT, GIB)
    for change in ({"x0_after": 1}, {"x0_after": 1, "loss": "x0"}, {"guidance": False}):
        assert choice.phases_of(replace(switched, **change), "cpu") is not shared
    # one step, which the switch would come after
    assert choice.phases_of(replace(switched, guided=0.1), "cpu") is not shared


@pytest.mark.parametrize("part", ["x0 reference", "x0 optimise"])
def test_plan_equals_a_real_part_of_a_step(switched, part):
    phases, resident = Phases(switched), 1
    work = phases.x0_reference() if part == "x0 reference" else phases.x0_optimise()
    backbone = ModelFolder(switched.model, switched.dtype, CPU).transformer()
    weights = place(backbone.network, backbone.blocks, CPU, resident, host="pinned")
    runner, given = make_runner(backbone, weights, "block", "device"), phases.inputs
    latents, prompt = torch.randn(given.latents.shape), torch.randn(given.prompt.shape)
    timestep, embedding = torch.zeros(1, dtype=torch.int64), backbone.embedding(backbone.grid(latents))
    inputs = type(given)(latents, prompt, timestep, embedding)
    guidance = replace(
        phases.estimate_guidance, reference=torch.randn_like(latents), noise=torch.randn_like(latents),
        source_prompt=prompt, velocities=torch.randn_like(latents),
    )  # fmt: skip
    injected = runner.features(inputs, {}, Capture("key_value", switched.injection_blocks))

    held = [guidance.reference, guidance.noise, guidance.velocities, prompt, torch.empty_like(prompt)]
    held += [torch.empty_like(prompt), latents, embedding, *injected[0], *weights.device_buffers()]
    clip = guidance.clip_estimate(runner, inputs)
    if part == "x0 optimise":
        guidance.update(runner, inputs, injected, 0, clip)
        held.append(clip)
    before = runner.copied_bytes
    with Tracker([*held, *outside(backbone.network, backbone.blocks)]) as found:
        if part == "x0 optimise":
            guidance.update(runner, inputs, injected, 0, clip)
        else:
            guidance.clip_estimate(runner, inputs)
    ring = Ring(phases.block_bytes, resident)
    for _ in range(2):
        copied = sum(ring.replay(order) for order in work.walks)
    assert found.peak_bytes == pytest.approx(work.peak_bytes + ring.device_bytes, rel=0.01)
    assert found.flops == work.flops
    assert runner.copied_bytes - before == copied
