"""Parts of runs: they start from the same noise, and a stored state continues as if nothing had stopped."""

import math

import pytest
import torch

from bench.motion import Pair
from bench.tunnel.modes import read_mode
from bench.tunnel.runs import NUDGE, NudgedNoise, nudged, session
from ditflow import Settings
from ditflow.run_folder.checkpoint import State

MODES = ("no-op", "gradients=1", "backbone", "dtype=bfloat16", "weights=int8", "scheduler=ddim")


@pytest.fixture(scope="module")
def settings(small_folder, tmp_path_factory):
    common = Settings(
        model=str(small_folder),
        device="cpu",
        dtype="float32",
        frames=9,
        size="48x32",
        negative_prompt="",
        steps=5,
        guided=0.4,
        optimisation_steps=2,
        learning_rate=(0.05, 0.02),
        guidance_blocks=[2],
        guidance_scale=2,
        scheduler="dpm",
        dynamic_scale=True,
    )
    scratch = tmp_path_factory.mktemp("pair")
    return Pair.draw(0, 0, frames=9).settings(common, scratch)


@pytest.fixture(scope="module")
def exact(settings):
    with session(settings) as begun:
        yield begun, begun.run()


def distance(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def test_a_stored_state_continues_exactly(exact, settings):
    begun, part = exact
    assert sorted(part.states) == [-1, 0, 1, 2, 3, 4] and settings.guided_steps == 2
    for index in (-1, 0, 1, 3):
        assert torch.equal(begun.run(part.states[index]).latents, part.latents), index
    with session(settings) as another:
        assert torch.equal(another.run(part.states[1]).latents, part.latents)
    stopped = begun.run(end=2)
    assert max(stopped.states) == 1 and torch.equal(stopped.latents, part.states[1].latents)
    assert torch.equal(begun.run(stopped.states[1]).latents, part.latents)


def test_a_continuation_needs_the_generator_and_the_history(exact):
    """Or the test above would hold by chance."""
    begun, part = exact
    state = part.states[1]
    for wrong in (part.states[2].schedule, {"generator": state.schedule["generator"]}):
        damaged = State(**vars(state) | {"schedule": wrong})
        assert distance(begun.run(damaged).latents, part.latents) > 1e-3


def test_all_modes_see_the_same_noise(exact, settings):
    _, part = exact
    for mode in MODES:
        with session(read_mode(mode).apply(settings)) as tried:
            found = tried.run()
        assert torch.equal(found.states[-1].latents, part.states[-1].latents), mode
        if mode != "scheduler=ddim":  # which draws nothing more
            for index, state in part.states.items():
                assert torch.equal(found.states[index].schedule["generator"], state.schedule["generator"])
        same = torch.equal(found.latents, part.latents)
        assert same == (mode == "no-op"), mode


def test_what_a_step_is_denoised_from_is_what_was_optimised(exact):
    _, part = exact
    for index in range(5):
        moved = distance(part.optimised[index], part.states[index - 1].latents)
        assert (moved > 1e-3) == (index < 2), index


def test_the_control_differs_by_its_share_and_draws_the_same_noise(exact):
    begun, part = exact
    start = part.states[-1]
    other = nudged(start, begun.settings.seed)
    assert distance(other.latents, start.latents) == pytest.approx(NUDGE, rel=0.1)
    assert float(other.latents.std()) == pytest.approx(float(start.latents.std()), rel=0.01)
    mixed = (other.latents - math.sqrt(1 - NUDGE**2) * start.latents).flatten()
    assert abs(float(torch.corrcoef(torch.stack([mixed, start.latents.flatten()]))[0, 1])) < 0.1
    control = begun.run_nudged(start)
    assert distance(control.latents, part.latents) > 0.001
    assert torch.equal(begun.run_nudged(start).latents, control.latents), "the control is not repeatable"
    for index, state in part.states.items():
        assert torch.equal(control.states[index].schedule["generator"], state.schedule["generator"])
    later = begun.run_nudged(part.states[1])
    assert distance(later.states[1].latents, part.states[1].latents) < 0.03
    assert 0.001 < distance(later.latents, part.latents) < distance(control.latents, part.latents)


def test_noise_that_steps_add_differs_by_the_same_share(exact):
    begun, part = exact

    def schedule(seed):
        return begun.job.folder.schedule("dpm", 5, (96, 64), torch.Generator().manual_seed(seed))

    plain, again, another = schedule(1), schedule(1), schedule(4)
    control = NudgedNoise(again, (schedule(2), schedule(3)))
    prediction, latents = torch.randn(2, *part.latents.shape)
    for index in range(4):  # the last step adds none
        inputs = (prediction, index, latents)
        found, wanted = control.step(*inputs), plain.step(*inputs)
        noise = (another.step(*inputs) - wanted).norm() / math.sqrt(2)  # of the size that this step adds
        assert float((found - wanted).norm() / noise) == pytest.approx(NUDGE, rel=0.1), index
        latents = wanted


def test_starting_noise_alone_would_be_no_control(exact):
    """The sampler forgets it: so the control's noise differs in all steps."""
    begun, part = exact
    start = part.states[-1]
    with session(read_mode("backbone").apply(begun.settings)) as tried:
        latents = tried.run(start).latents
        alone = distance(tried.run(nudged(start, begun.settings.seed)).latents, latents)
        assert alone < 0.5 * distance(tried.run_nudged(start).latents, latents)
