"""Steps after the guided ones that do less, against a plain loop written from the definition."""

from dataclasses import replace

import pytest
import torch
from tiny_models import DEPTH, random_inputs, settings_schedule, text_embeddings, tiny_backbone

from ditflow.errors import DitflowError
from ditflow.memory.placement import make_runner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.presets import presets
from ditflow.memory.streamed import Streamed, flat_bytes
from ditflow.run_folder.checkpoint import State, StateFolder, StateWriter, read_state
from ditflow.run_folder.run import Run
from ditflow.run_folder.schema import Shapes
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

    def forward_or_reuse(self, batch, first_block):
        residual = first_block.residual
        found = super().forward_or_reuse(batch, first_block)
        self.passes.append(0 if first_block.residual is residual else len(found))
        return found

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
    exact = replace(given, negative="every", negative_below=1.0, step_cache="off")
    denoising(exact, inputs, texts, seen=states).run(runner)
    return states[GUIDED - 1]


def by_definition(given, inputs, texts, runner, start):
    """The latents of a run from `start`, and how many prompts each step ran."""
    schedule = settings_schedule(given)
    schedule.restore(start.schedule)
    latents, difference, made, counts = start.latents, None, -9, []
    for index in range(start.index + 1, STEPS):
        scale = schedule.dynamic_scale(given.scale_of(0), index)
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
    scales = [schedule.dynamic_scale(given.scale_of(0), index) for index in range(STEPS)]
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


def whole_forward(backbone, inputs):
    """The video tokens entering the first block, leaving it and leaving the last, and the prediction."""
    carried, shared = backbone.embed(inputs)
    tokens = [carried[0]]
    for index in range(len(backbone.blocks)):
        attention = backbone.prepare(index, carried, shared)
        carried = backbone.add_attention(index, carried, shared, attention, backbone.attend(attention))
        carried = backbone.feed_forward(index, carried, shared)
        tokens.append(carried[0])
    return tokens[0], tokens[1], tokens[-1], backbone.head(carried, shared, backbone.grid(inputs.latents))


@torch.no_grad()
def cached_by_definition(given, inputs, texts, backbone, start):
    """As `by_definition`, with the joint rule of the first block."""
    schedule, threshold = settings_schedule(given), float(given.step_cache)
    schedule.restore(start.schedule)
    grid, latents, counts = backbone.grid(inputs.latents), start.latents, []
    kept = difference = None
    is_old = True  # whether the last difference may not be used by another step whose blocks all run
    for index in range(start.index + 1, STEPS):
        scale = schedule.dynamic_scale(given.scale_of(0), index)
        timestep = schedule.on_device[index : index + 1]
        now = replace(inputs, latents=latents, timestep=timestep, prompt=texts.prompt)
        h0, h1, last, prompt = whole_forward(backbone, now)
        mark, wanted = h1 - h0, scale >= given.negative_below
        near = kept is not None and (mark - kept[0]).abs().mean() < threshold * kept[0].abs().mean()
        if near and (difference is not None or not wanted):
            prompt, count = backbone.head((h1 + kept[1],), backbone.embed(now)[1], grid), 0
        else:
            kept, count = (mark, last - h1), 1
            if not wanted:
                difference = None
            elif given.negative == "every" or difference is None or is_old:
                negative = whole_forward(backbone, replace(now, prompt=texts.negative_prompt))[3]
                difference, is_old, count = prompt - negative, False, 2
            else:
                is_old = True
        prediction = prompt + (scale - 1) * difference if wanted else prompt
        latents = schedule.step(prediction, index, latents)
        counts.append(count)
    return latents, counts


CACHED = {
    "step-cache": {"step_cache": "0.5"},
    "step-cache-alternate": {"step_cache": "0.8", "negative": "alternate"},
    "step-cache-both": {"step_cache": "0.8", "negative": "alternate", "negative_below": 2.0},
}


@pytest.mark.parametrize("changes", CACHED.values(), ids=CACHED.keys())
def test_step_cache_by_definition(changes, backbone, inputs, texts):
    given, runner = settings(**changes), Counted(backbone)
    start = after_the_guided_steps(given, inputs, texts, runner)
    expected, counts = cached_by_definition(given, inputs, texts, backbone, start)
    assert 0 in counts and counts.count(0) < len(counts) - 2, counts

    runner.passes.clear()
    found = denoising(given, inputs, texts, resume_from=start).run(runner)
    assert runner.passes == counts
    torch.testing.assert_close(found.latents, expected, rtol=1e-4, atol=1e-4)
    for step, count in zip(found.steps[GUIDED:], counts, strict=True):
        assert (step["prompt"] == "run") == (count > 0) and (step["negative"] == "run") == (count == 2)


def test_a_tiny_threshold_changes_no_bit(backbone, inputs, texts):
    runner = Counted(backbone)
    found = denoising(settings(step_cache="0.000000001"), inputs, texts).run(runner)
    assert runner.passes == [2] * STEPS
    assert torch.equal(found.latents, denoising(settings(), inputs, texts).run(runner).latents)


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
@pytest.mark.parametrize("resident", [0, 2])
def test_streaming_does_not_load_blocks_that_do_not_run(resident, preset, inputs, texts):
    backbone = tiny_backbone(layers=DEPTH)
    given = settings(guided=0.0, steps=10, scheduler="ddim", step_cache="0.5")
    expected = denoising(given, inputs, texts).run(PlainRunner(backbone))
    walked = []
    weights = Streamed(backbone.blocks, torch.device("cpu"), resident)
    walk = weights.walk
    weights.walk = lambda order: walk(walked.append(list(order)) or walked[-1])
    runner = make_runner(backbone, weights, preset.checkpoint, preset.block_inputs)
    copied = []
    made = denoising(given, inputs, texts)
    made.on_step = lambda step: copied.append(weights.copied_bytes)
    found = made.run(runner)
    assert torch.equal(found.latents, expected.latents) and found.steps == expected.steps
    reused = [step["prompt"] == "reused" for step in found.steps]
    assert True in reused and False in reused
    others = list(range(1, DEPTH))
    assert walked == [order for skipped in reused for order in ([[0]] if skipped else [[0], others])]
    size = flat_bytes(backbone.blocks[0])
    for before, after, skipped in zip(copied, copied[1:], reused[1:], strict=False):
        if skipped:
            assert after - before in ((0, size) if resident == 0 else (0,))
        else:
            assert after - before >= size * (DEPTH - max(resident, 1) - 2)


@pytest.mark.parametrize("name", ["mark", "residual", "difference", "uses"])
def test_a_damaged_state_is_refused(name, backbone, inputs, texts, tmp_path):
    states = []
    denoising(settings(**CACHED["step-cache"]), inputs, texts, seen=states).run(PlainRunner(backbone))
    shape, state = Shapes((1,), (1,), tuple(inputs.latents.shape)), states[-1].reuse
    shape.check_reuse(tmp_path, state)
    for damaged in (state | {name: torch.ones(2, 2)}, {key: state[key] for key in state if key != name}):
        with pytest.raises(DitflowError, match="start a new run"):
            shape.check_reuse(tmp_path, damaged)


TOGETHER = {"gradients": 1, "negative": "alternate", "negative_below": 2.0, "step_cache": "0.8"}
OPTIONS = NEGATIVES | GRADIENTS | CACHED | {"together": TOGETHER}


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
    """Fails at the end of the n-th forward."""

    def __init__(self, backbone, fails_at):
        super().__init__(backbone)
        self.left = fails_at

    def heads(self, *given):
        found = super().heads(*given)
        self.left -= 1
        if not self.left:
            raise torch.OutOfMemoryError("planted")
        return found


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
def test_another_runner_continues_after_a_failed_step(changes, backbone, inputs, texts):
    given = settings(**changes)
    expected = denoising(given, inputs, texts).run(PlainRunner(backbone))
    for fails_at in range(GUIDED + 1, STEPS + 1, 2):
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
