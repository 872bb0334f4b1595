"""Plans of runs that save work: fewer passes of the negative prompt, fewer gradients, a step cache."""

from dataclasses import replace

import pytest
import torch

from ditflow.cli.main import main
from ditflow.memory.presets import GIB, presets
from ditflow.memory.ring import Ring
from ditflow.planning import choice
from ditflow.planning.phases import Phases

(PRESET,) = (preset for preset in presets() if preset.name == "8gb")


def test_steps_without_a_negative_prompt_are_planned(settings):
    """As many as a run takes: tests/sampling/test_reuse.py counts the same rule in a run."""
    guided = replace(settings, steps=10, guided=0.2, guidance_scale=4.0, injection=False)
    always = replace(guided, negative="alternate", dynamic_scale=False)
    (scales,) = Phases(guided).model.guidance_scales(replace(guided, dynamic_scale=True))
    low = sum(scale < 3 for scale in scales[2:])
    assert 0 < low < 8
    for run, alone in ((always, 4), (replace(guided, negative_below=3.0, dynamic_scale=True), low)):
        (plan,) = choice.make_plans(run, [PRESET], "cpu", 100 * GIB)
        (exact,) = choice.make_plans(guided, [PRESET], "cpu", 100 * GIB)
        parts = {phase.name: phase for phase in plan.phases}
        assert (parts["denoise"].times, parts["prompt only"].times) == (10 - alone, alone)
        assert 2 * parts["prompt only"].flops == parts["denoise"].flops
        assert exact.total_flops - plan.total_flops == alone * parts["prompt only"].flops


@pytest.mark.parametrize(
    "changes", [{"negative": "alternate"}, {"negative_below": 3.0}], ids=lambda each: next(iter(each))
)
def test_the_difference_that_a_run_keeps_is_planned(settings, changes):
    """By either option; a phase is found in the cache only for a run that keeps as much."""
    guided = replace(settings, steps=10, guided=0.2, guidance_scale=4.0, injection=False)
    peaks = [
        next(phase.peak_bytes for phase in plan.phases if phase.name == "denoise")
        for run in (guided, replace(guided, **changes))
        for plan in choice.make_plans(run, [PRESET], "cpu", 100 * GIB)
    ]
    latents = choice.phases_of(guided, "cpu").inputs.latents
    assert peaks[1] - peaks[0] == latents.numel() * latents.element_size()


def test_fewer_gradients_are_planned(settings):
    for changes, gradients in (({"gradients": 2}, 2), ({"gradient_reuse": 2}, 3), ({"gradient_reuse": 9}, 1)):
        run = replace(settings, steps=10, guided=0.2, **changes)
        (plan,) = choice.make_plans(run, [PRESET], "cpu", 100 * GIB)
        times = {phase.name: phase.times for phase in plan.phases}
        assert times["optimise"] == 2 * gradients


def test_plan_of_a_step_with_a_step_cache_equals_a_real_one(settings):
    """A step whose blocks all run, while what the last one kept is still there for the checkpoint."""
    from ditflow.memory.placement import make_runner, outside, place
    from ditflow.memory.tracker import Tracker
    from ditflow.models.loading import ModelFolder
    from ditflow.sampling.reuse import Reuse

    run = replace(settings, step_cache="0.000000001", guidance_scale=4.0, injection=False)
    phases, cpu = Phases(run), torch.device("cpu")
    work = phases.denoise()
    backbone = ModelFolder(run.model, run.dtype, cpu).transformer()
    weights = place(backbone.network, backbone.blocks, cpu, 1, host="pinned")
    runner, given = make_runner(backbone, weights, "block", "device"), phases.inputs
    latents, prompt = torch.randn(given.latents.shape), torch.randn(given.prompt.shape)
    embedding = backbone.embedding(backbone.grid(latents))
    inputs = type(given)(latents, prompt, torch.zeros(1, dtype=torch.int64), embedding)
    reuse = Reuse(run)
    reuse.predict(runner, replace(inputs, latents=torch.randn_like(latents)), prompt, 4.0)
    before, kept = runner.copied_bytes, reuse.state()
    held = [torch.empty_like(each) for each in (latents, latents, prompt, prompt)]
    held += [prompt, latents, embedding, *weights.device_buffers(), *kept.values()]
    with Tracker([*held, *outside(backbone.network, backbone.blocks)]) as found:
        _, passes = reuse.predict(runner, inputs, prompt, 4.0)
    assert passes == ("run", "run")
    ring = Ring(phases.block_bytes, 1)
    for _ in range(2):
        copied = sum(ring.replay(order) for order in work.walks)
    assert found.peak_bytes == pytest.approx(work.peak_bytes + ring.device_bytes, rel=0.01)
    assert found.flops == work.flops == Phases(replace(run, step_cache="off")).denoise().flops
    assert runner.copied_bytes - before == copied


def test_a_plan_with_a_step_cache_says_that_it_is_the_most(settings, capsys):
    words = ["plan", "--model", settings.model, "--size", "96x64", "--frames", "9", "--guidance-blocks", "2"]
    for more, said in (([], False), (["--step-cache", "0.1"], True)):
        assert main([*words, *more]) == 0
        assert ("The work is the most that a run takes" in " ".join(capsys.readouterr().out.split())) == said
