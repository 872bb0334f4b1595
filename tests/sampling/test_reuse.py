"""Steps after the guided ones that do less, against a plain loop written from the definition."""

from dataclasses import replace

import pytest
import torch
from tiny_models import random_inputs, settings_schedule, text_embeddings, tiny_backbone

from ditflow.memory.plain import PlainRunner
from ditflow.run_folder.checkpoint import State, StateFolder, StateWriter, read_state
from ditflow.run_folder.run import Run
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings

STEPS, GUIDED = 12, 3
IDENTITY = {"format": "2", "settings": "{}", "weights": "{}", "clip": "0"}


class Counted(PlainRunner):
    """Counts the inputs that go through whole forwards, and the gradients."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.passes = []
        self.gradients = 0

    def forward(self, batch, injected):
        self.passes.append(len(batch))
        return super().forward(batch, injected)

    def gradient(self, *given):
        self.gradients += 1
        return super().gradient(*given)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def inputs(backbone):
    torch.manual_seed(1)
    return random_inputs(backbone, 3, 8, 12)


@pytest.fixture(scope="module")
def texts(inputs):
    torch.manual_seed(2)
    return text_embeddings(inputs.prompt, torch.randn_like(inputs.prompt))


def settings(**changes):
    return Settings(
        **{
            "model": "small", "dtype": "float32", "steps": STEPS, "guided": GUIDED / STEPS,
            "optimisation_steps": 2, "guidance_blocks": [2], "guidance_scale": 4, "dynamic_scale": True,
            "scheduler": "dpm", **changes,
        }
    )  # fmt: skip


def denoising(given, inputs, texts, resume_from=None, seen=None):
    def on_step(_):
        if seen is not None:
            seen.append(made.state)

    schedule = settings_schedule(given)
    made = Denoising(given, schedule, texts, inputs.latents, on_step, resume_from=resume_from)
    return made


def after_the_guided_steps(given, inputs, texts, runner):
    """The state of an exact run after its guided steps."""
    states = []
    exact = replace(given, negative="every", negative_below=1.0)
    denoising(exact, inputs, texts, seen=states).run(runner)
    return states[GUIDED - 1]


def by_definition(given, inputs, texts, runner, start):
    """The latents of a run from `start`, and how many prompts each step ran."""
    schedule = settings_schedule(given)
    schedule.restore(start.schedule)
    latents, difference, made, counts = start.latents, None, -9, []
    for index in range(start.index + 1, STEPS):
        scale = schedule.dynamic_scale(given.guidance_scale, index)
        timestep = schedule.on_device[index : index + 1]
        now = replace(inputs, latents=latents, timestep=timestep, prompt=texts.prompt)
        prompt = runner.forward([now], {})[0]
        if scale < given.negative_below:
            prediction, count = prompt, 1
        elif given.negative == "alternate" and made == index - 1:
            prediction, count = prompt - difference + scale * difference, 1
        else:
            negative = runner.forward([replace(now, prompt=texts.negative_prompt)], {})[0]
            difference, made, count = prompt - negative, index, 2
            prediction = negative + scale * difference
        latents = schedule.step(prediction, index, latents)
        counts.append(count)
    return latents, counts


NEGATIVES = {
    "alternate": {"negative": "alternate"},
    "below": {"negative_below": 3.0},
    "both": {"negative": "alternate", "negative_below": 2.0},
}


@pytest.mark.parametrize("changes", NEGATIVES.values(), ids=NEGATIVES.keys())
def test_negative_prompt_by_definition(changes, backbone, inputs, texts):
    given, runner = settings(**changes), Counted(backbone)
    start = after_the_guided_steps(given, inputs, texts, runner)
    expected, counts = by_definition(given, inputs, texts, PlainRunner(backbone), start)
    assert {1, 2} == set(counts)

    runner.passes.clear()
    found = denoising(given, inputs, texts, resume_from=start).run(runner)
    torch.testing.assert_close(found.latents, expected, rtol=1e-4, atol=1e-4)
    assert runner.passes == counts
    ran = [1 + (step["negative"] == "run") for step in found.steps[GUIDED:]]
    assert ran == counts and all(step["prompt"] == "run" for step in found.steps)
    schedule = settings_schedule(given)
    scales = [schedule.dynamic_scale(given.guidance_scale, index) for index in range(STEPS)]
    assert [step["guidance_scale"] for step in found.steps] == scales


def test_guided_steps_run_both_prompts(backbone, inputs, texts):
    runner = Counted(backbone)
    found = denoising(settings(negative="alternate", negative_below=101), inputs, texts).run(runner)
    assert runner.passes == [2] * GUIDED + [1] * (STEPS - GUIDED)
    assert [step["negative"] for step in found.steps] == ["run"] * GUIDED + ["none"] * (STEPS - GUIDED)


def test_alternate_runs_every_second_negative(backbone, inputs, texts):
    runner = Counted(backbone)
    given = settings(negative="alternate", dynamic_scale=False)
    denoising(given, inputs, texts).run(runner)
    assert runner.passes == [2] * GUIDED + [2, 1, 2, 1, 2, 1, 2, 1, 2]


GRADIENTS = {"gradients": {"gradients": 1}, "gradient-reuse": {"gradient_reuse": 2}}


@pytest.mark.parametrize("optimise", ["latent", "embedding"])
@pytest.mark.parametrize("changes", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_one_gradient_a_guided_step(changes, optimise, backbone, inputs, texts):
    given = settings(optimise=optimise, **changes)
    runner = Counted(backbone)
    found = denoising(given, inputs, texts).run(runner)
    assert given.computed_gradients == 1 and runner.gradients == GUIDED
    assert [len(losses) for losses in found.losses] == [1] * GUIDED
    assert all(step["gradient_cosine"] is None for step in found.steps)


def test_fewer_gradients_are_optimisation_steps_at_a_higher_rate(backbone, inputs, texts):
    """The updates' total stays: each has the size of the learning rate at first."""
    few = settings(optimisation_steps=4, gradients=2, learning_rate=(0.02, 0.01))
    same = settings(optimisation_steps=2, learning_rate=(0.04, 0.02))
    found, expected = (denoising(each, inputs, texts).run(PlainRunner(backbone)) for each in (few, same))
    assert torch.equal(found.latents, expected.latents) and found.steps == expected.steps


def test_the_second_gradients_cosine_with_the_first_is_recorded(backbone, inputs, texts):
    found = denoising(settings(), inputs, texts).run(PlainRunner(backbone))
    cosines = [step["gradient_cosine"] for step in found.steps]
    assert all(-1 < cosine < 1 for cosine in cosines[:GUIDED]) and cosines[GUIDED:] == [None] * (
        STEPS - GUIDED
    )


OPTIONS = NEGATIVES | GRADIENTS


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_continues_bit_for_bit_from_every_state(changes, backbone, inputs, texts, tmp_path):
    given, states = settings(**changes), []
    expected = denoising(given, inputs, texts, seen=states).run(PlainRunner(backbone))
    exact = denoising(settings(), inputs, texts).run(PlainRunner(backbone))
    assert not torch.equal(expected.latents, exact.latents)
    for state in states:
        (tmp_path / str(state.index)).mkdir()
        files = StateFolder(Run(tmp_path / str(state.index)), IDENTITY)
        with StateWriter(files, 0) as writer:
            writer.put(state)
        found = denoising(given, inputs, texts, resume_from=read_state(files)).run(PlainRunner(backbone))
        assert torch.equal(found.latents, expected.latents)
        assert (found.losses, found.steps) == (expected.losses, expected.steps)


class OutOfMemory(PlainRunner):
    """Fails at the n-th forward, after it has been computed."""

    def __init__(self, backbone, fails_at):
        super().__init__(backbone)
        self.left = fails_at

    def forward(self, *given):
        found = super().forward(*given)
        self.left -= 1
        if not self.left:
            raise torch.OutOfMemoryError("planted")
        return found


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_another_runner_continues_after_a_failed_step(changes, backbone, inputs, texts):
    given = settings(**changes)
    expected = denoising(given, inputs, texts).run(PlainRunner(backbone))
    for fails_at in range(GUIDED, STEPS + 1):
        interrupted = denoising(given, inputs, texts)
        with pytest.raises(torch.OutOfMemoryError):
            interrupted.run(OutOfMemory(backbone, fails_at))
        found = interrupted.run(PlainRunner(backbone))
        assert torch.equal(found.latents, expected.latents) and found.steps == expected.steps


def test_a_state_without_steps_of_an_older_version_is_read(tmp_path):
    files = StateFolder(Run(tmp_path), IDENTITY)
    tensors = {"latents": torch.ones(1, 2), "generator": torch.zeros(3, dtype=torch.uint8)}
    files.write("step", tensors, index=0, losses=[], skipped=0, embeddings=0)
    found = read_state(files)
    assert isinstance(found, State) and found.steps == [] and found.reuse == {}
