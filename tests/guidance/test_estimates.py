"""The loss x0 from its definition, in float64: pair by pair, with gradients by autograd."""

from itertools import combinations

import pytest
import torch
from tiny_models import random_inputs, tiny_backbone, tiny_schedule
from toy_family.schedule import ToySchedule

from ditflow.guidance.estimates import (
    DIFFERENCES,
    PERPENDICULAR,
    VALUES,
    EstimateGuidance,
    damped,
    estimate_loss,
    prepare_estimates,
)
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.plain import PlainRunner
from ditflow.models.protocols import Inputs
from ditflow.settings import Settings

SHAPE = (1, 5, 3, 4, 6)
CPU = torch.device("cpu")


def defined_loss(estimate, clip):
    def over(pairs):
        return torch.stack(
            [
                ((estimate[0, j] - estimate[0, i]).abs() - (clip[0, j] - clip[0, i]).abs()).square().mean()
                for i, j in pairs
            ]
        ).mean()

    frames = range(estimate.shape[1])
    neighbours, pairs = [(i, i + 1) for i in frames[:-1]], list(combinations(frames, 2))
    return 20 * (estimate - clip).square().mean() + 5 * over(neighbours) + 5 * over(pairs)


def tensors(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_the_loss_and_its_gradient_are_those_of_the_definition():
    estimate, clip = tensors(2)
    estimate[0, 3] = estimate[0, 2]  # frames that are equal: there the absolute difference has a corner
    loss, gradient = estimate_loss(estimate, clip)
    variable = estimate.clone().requires_grad_()
    expected = defined_loss(variable, clip)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    (wanted,) = torch.autograd.grad(expected, variable)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)
    assert (VALUES, DIFFERENCES) == (20, 5)
    same, nothing = estimate_loss(clip, clip)
    assert same == 0 and not nothing.any()


def test_one_frame_has_only_values():
    estimate, clip = (each[:, :1] for each in tensors(2))
    loss, gradient = estimate_loss(estimate, clip)
    torch.testing.assert_close(loss, 20 * (estimate - clip).square().mean())
    torch.testing.assert_close(gradient, 40 * (estimate - clip) / estimate.numel())


def test_only_the_perpendicular_part_is_damped():
    direction, other = tensors(2)
    across = other - (other * direction).sum() / direction.square().sum() * direction
    torch.testing.assert_close(damped(3 * direction + across, direction), 3 * direction + 0.1 * across)
    assert damped(other, None) is other and PERPENDICULAR == 0.1


class Bent:
    """A runner whose network is one smooth function of latents, prompt and time. It has no `gradient`."""

    def forward(self, batch, injected):
        return [
            torch.tanh(inputs.latents.roll(1, dims=1) * inputs.prompt.mean() + inputs.timestep / 1000)
            for inputs in batch
        ]


def inputs_at(latents, prompt, timestep):
    return Inputs(latents, prompt, timestep, torch.zeros(1))


SCHEDULES = {
    "velocity": lambda: ToySchedule("euler", {"shift": 3.0, "renewed": 0}, 6, CPU, torch.Generator()),
    "v-prediction": lambda: tiny_schedule("ddim", 6),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_updates_are_adam_on_the_definition(kind):
    """Three guided steps with two updates each; x0 as a function of the latents, the velocity a constant."""
    schedule, runner = SCHEDULES[kind](), Bent()
    start, clip, noise, prompt, source = tensors(5)
    guidance = EstimateGuidance(schedule, clip, noise, source, 2, [0.05, 0.04, 0.03])
    latents, mine, velocities = start, start, []
    for index in range(3):
        at = schedule.on_device[index : index + 1]
        found, losses, gradients, _ = guidance.optimise(runner, inputs_at(latents, prompt, at), {}, index)
        latents = found.latents

        # latents = a * clean + b * noise
        a, b = amounts(schedule, at)
        with torch.no_grad():
            noised = a * clip + b * noise
            target = clean_of(kind, runner.forward([inputs_at(noised, source, at)], {})[0], noised, a, b)
        mine = mine.clone().requires_grad_()
        adam = torch.optim.Adam([mine], lr=guidance.learning_rates[index])
        for update in range(2):
            with torch.no_grad():
                clean = clean_of(kind, runner.forward([inputs_at(mine, prompt, at)], {})[0], mine, a, b)
                velocity = (mine - a * clean) / b - clean
                if velocities[:index]:
                    mean = torch.stack(velocities[:index]).mean(0)
                    along = (velocity * mean).sum() / mean.square().sum() * mean
                    used = along + 0.1 * (velocity - along)
                else:
                    used = velocity
                if not update:
                    velocities.append(velocity)
            value = defined_loss((mine - b * used) / (a + b), target)
            torch.testing.assert_close(losses[update], value.detach(), rtol=1e-5, atol=0)
            (mine.grad,) = torch.autograd.grad(value, mine)
            torch.testing.assert_close(gradients[update], mine.grad.sum(), rtol=1e-4, atol=1e-6)
            adam.step()
        mine = mine.detach()
        torch.testing.assert_close(latents, mine, rtol=1e-5, atol=1e-5)
        assert (latents - start).abs().max() > 0.01
    assert found.embedding is not None and guidance.skipped == 0 and not guidance.may_overflow


def amounts(schedule, timestep):
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return schedule.add_noise(one, zero, timestep), schedule.add_noise(zero, one, timestep)


def clean_of(kind, prediction, latents, a, b):
    return latents - b * prediction if kind == "velocity" else a * latents - b * prediction


def test_latents_without_signal_are_updated_too():
    """CogVideoX starts at a terminal SNR of 0, where v-prediction's x0 does not depend on the latents."""
    schedule = tiny_schedule("ddim", 6)
    start, clip, noise, prompt, source = tensors(5)
    at = schedule.on_device[:1]
    assert amounts(schedule, at)[0].abs() < 1e-6
    guidance = EstimateGuidance(schedule, clip, noise, source, 1, [0.01])
    found, *_ = guidance.optimise(Bent(), inputs_at(start, prompt, at), {}, 0)
    torch.testing.assert_close((found.latents - start).abs(), torch.full_like(start, 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_a_true_prediction_means_the_clean_latents(kind):
    schedule = tiny_schedule("ddim", 6)
    schedule.scheduler.register_to_config(prediction_type=kind)
    clean, noise = tensors(2)
    for at in schedule.on_device[1:]:
        a, b = amounts(schedule, at[None])
        prediction = {"v_prediction": a * noise - b * clean, "epsilon": noise, "sample": clean}[kind]
        found = schedule.estimate_clean(prediction, a * clean + b * noise, at[None])
        torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)


def test_the_clip_is_read_with_the_source_prompt_and_nothing_injected():
    given = []

    class Watched(Bent):
        def forward(self, batch, injected):
            given.append((batch[0].latents.clone(), batch[0].prompt, injected))
            return super().forward(batch, injected)

    schedule = tiny_schedule("ddim", 6)
    start, clip, noise, prompt, source = tensors(5)
    at = schedule.on_device[2:3]
    guidance = EstimateGuidance(schedule, clip, noise, source, 2, [0.01])
    guidance.optimise(Watched(), inputs_at(start, prompt, at), {0: "clip's"}, 0)
    latents, prompts, injected = zip(*given, strict=True)
    assert injected == ({}, {0: "clip's"}, {0: "clip's"})
    assert prompts[0] is source and prompts[1] is prompts[2] is prompt
    assert torch.equal(latents[0], schedule.add_noise(clip, noise, at))
    assert torch.equal(latents[1], start) and not torch.equal(latents[2], start)


def test_a_still_clip_is_noticed():
    (clip,) = tensors(1)
    settings, schedule = Settings(model="small", loss="x0"), tiny_schedule("ddim", 6)
    for reference, still in ((clip, False), (clip[:, :1].expand(SHAPE), True)):
        assert prepare_estimates(settings, schedule, reference, clip, clip).still == still


@pytest.mark.parametrize("kind", [PlainRunner, BlockwiseRunner])
def test_a_forward_is_all_that_a_runner_must_do(kind, monkeypatch):
    backbone, schedule = tiny_backbone(), tiny_schedule("ddim", 6)
    inputs = random_inputs(backbone, 3, 8, 12)
    monkeypatch.setattr(kind, "gradient", None)
    clip, noise = torch.randn_like(inputs.latents), torch.randn_like(inputs.latents)
    guidance = EstimateGuidance(schedule, clip, noise, inputs.prompt, 4, [0.02])
    at = schedule.on_device[3:4]
    found, losses, *_ = guidance.optimise(kind(backbone), Inputs(
        inputs.latents, inputs.prompt, at, inputs.embedding
    ), {}, 0)  # fmt: skip
    assert losses[-1] < losses[0] and found.latents.dtype == torch.float32
    assert not found.latents.requires_grad
