"""The clip read at the noise level of each guided step, against plain transcriptions."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from tiny_models import (
    backbone_of,
    random_inputs,
    settings_schedule,
    text_embeddings,
    tiny_backbone,
    tiny_schedule,
    tiny_transformer,
)
from tiny_wan import wan_backbone, wan_inputs
from tiny_wan_pipelines import scheduler

from ditflow.guidance.losses import LOSSES
from ditflow.guidance.targets import NoisedClip, prepare_noised_guidance
from ditflow.memory.plain import PlainRunner
from ditflow.models.protocols import Capture, Grid, Inputs, QueryKey
from ditflow.models.wan.schedule import WanSchedule
from ditflow.sampling.denoising import Denoising
from ditflow.settings import Settings
from ditflow_kernels.motion_flow import reference

CPU, BLOCK, GRID = torch.device("cpu"), 2, Grid(3, 4, 5)
MODES = [
    {}, {"reference": "soft", "rows": "all"}, {"loss": "moft"}, {"loss": "smm"}, {"loss": "smm-release"},
]  # fmt: skip


def settings(**changes):
    return Settings(
        **{
            "model": "small", "dtype": "float32", "steps": 6, "guided": 0.5, "optimisation_steps": 2,
            "learning_rate": [0.05, 0.02], "guidance_blocks": [BLOCK], "injection": False,
            "guidance_scale": 1, "dynamic_scale": False, "scheduler": "ddim", "reference_noise": "step",
            **changes,
        }
    )  # fmt: skip


def wan_schedule():
    generator = torch.Generator().manual_seed(1)
    return WanSchedule("unipc", dict(scheduler().config), 6, (48, 32), CPU, generator)


def amounts(schedule, index):
    """The shares (clean, noise) in the latents of a step, in float64, as schedulers define them."""
    if isinstance(schedule, WanSchedule):
        level = schedule.scheduler.sigmas[index].double()
        return 1 - level, level
    variance = schedule.scheduler.alphas_cumprod.double()[schedule.timesteps[index]]
    return variance.sqrt(), (1 - variance).sqrt()


def loss_towards(read, grid, given):
    """The loss whose target was read of the clip; of `flow` by the definition."""
    if given.loss != "flow":
        loss = LOSSES[given.loss]({BLOCK: read}, grid, given)
        return lambda now: loss(BLOCK, now)
    target = reference.motion_flow(*read, grid, given.temperature, hard=given.reference == "hard")
    return lambda now: reference.motion_flow_loss(*now, target, grid, given.temperature, rows=given.rows)


class Bent:
    """A runner whose features are one smooth function of latents, prompt, embedding and time.

    It gives queries and keys in float32, as the kernels want them; `read` has everything in float64.
    """

    transformer = SimpleNamespace(grid=lambda latents: GRID)

    def read(self, inputs, what):
        tokens = inputs.latents[0].permute(0, 2, 3, 1).flatten(0, 2)  # [S, channels]
        found = torch.tanh(tokens * inputs.prompt.mean() + inputs.embedding.mean() + inputs.timestep / 1000)
        return QueryKey(found[:, None], found.roll(1, dims=1)[:, None]) if what == "query_key" else found

    def given(self, inputs, what):
        found = self.read(inputs, what)
        return QueryKey(*(tensor.float() for tensor in found)) if what == "query_key" else found

    def features(self, inputs, injected, capture):
        return {BLOCK: self.given(inputs, capture.what)}

    def gradient(self, loss, wrt, inputs, injected, capture, scale):
        variable = inputs.latents.detach().requires_grad_()
        now = Inputs(variable, inputs.prompt, inputs.timestep, inputs.embedding)
        value = loss(BLOCK, self.given(now, capture.what))
        return value.detach(), scale * torch.autograd.grad(value, variable)[0]


@pytest.mark.parametrize("made", [lambda: tiny_schedule("ddim", 6), wan_schedule], ids=["ddim", "unipc"])
@pytest.mark.parametrize("changes", MODES, ids=str)
def test_updates_are_adam_towards_the_noised_clip(changes, made):
    """In float64, with a network that is one function: three guided steps of two updates each."""
    given, schedule, runner = settings(**changes), made(), Bent()
    shape = (1, GRID.frames, 8, GRID.height, GRID.width)
    start, clip, noise, prompt, source, embedding = torch.randn(6, *shape, dtype=torch.float64)
    guidance = prepare_noised_guidance(NoisedClip(given, schedule, clip, noise, source, embedding))
    assert guidance.loss is None
    latents = mine = start
    for index in range(3):
        at = schedule.on_device[index : index + 1]
        found, losses, *_ = guidance.optimise(runner, Inputs(latents, prompt, at, embedding), {}, index)
        latents = found.latents

        clean_share, noise_share = amounts(schedule, index)
        noised = Inputs(clean_share * clip + noise_share * noise, source, at, embedding)
        what = LOSSES[given.loss].reads
        loss = loss_towards(runner.read(noised, what), GRID, given)
        mine = mine.clone().requires_grad_()
        adam = torch.optim.Adam([mine], lr=guidance.learning_rates[index])
        for update in range(2):
            value = loss(runner.read(Inputs(mine, prompt, at, embedding), what))
            assert float(losses[update]) == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
            (mine.grad,) = torch.autograd.grad(value, mine)
            adam.step()
        mine = mine.detach()
        assert (latents - mine).norm() < 1e-4 * (mine - start).norm()


def cogvideox(given):
    backbone = backbone_of(tiny_transformer())
    return backbone, random_inputs(backbone, 3, 8, 12), lambda: settings_schedule(given)


def wan(given):
    backbone = wan_backbone()
    return backbone, wan_inputs(backbone), wan_schedule


@pytest.mark.parametrize("family", [cogvideox, wan])
@pytest.mark.parametrize("changes", MODES, ids=str)
def test_a_run_is_that_of_the_definition(family, changes):
    """Whole guided steps of a network: Adam by plain autograd, a forward, and the sampler's step."""
    given = settings(**changes)
    backbone, inputs, schedules = family(given)
    runner, grid, seen = PlainRunner(backbone), backbone.grid(inputs.latents), []
    clip, prompt, source = inputs.latents, inputs.prompt, torch.randn_like(inputs.prompt)
    texts = text_embeddings(prompt, source=source)
    made = Denoising(given, schedules(), texts, clip, seen.append)
    made.run(runner)

    schedule = schedules()
    latents = noise = schedule.initial_noise(clip.shape)
    capture = Capture(LOSSES[given.loss].reads, (BLOCK,))
    for index in range(3):
        at = schedule.on_device[index : index + 1]
        clean_share, noise_share = amounts(schedule, index)
        noised = (clean_share * clip + noise_share * noise).float()
        target = Inputs(noised, source, at, inputs.embedding)
        with torch.no_grad():
            loss = loss_towards(runner.read(target, {}, capture)[BLOCK], grid, given)
        latents = latents.clone().requires_grad_()
        adam = torch.optim.Adam([latents], lr=0.05 - 0.01 * index)
        for update in range(2):
            now = Inputs(latents, prompt, at, inputs.embedding)
            value = loss(runner.read(now, {}, capture)[BLOCK])
            assert seen[index].losses[update] == pytest.approx(value.item(), rel=1e-3, abs=1e-5)
            (latents.grad,) = torch.autograd.grad(value, latents)
            adam.step()
        now = Inputs(latents.detach(), prompt, at, inputs.embedding)
        latents = schedule.step(runner.forward([now], {})[0], index, now.latents)
        assert (seen[index].latents - latents).norm() < 3e-3 * latents.norm()
        latents = seen[index].latents  # so that differences do not grow: Adam normalises small gradients


class Watched(PlainRunner):
    """Records the inputs of every read, and whether an earlier loss was then still held."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.reads, self.losses, self.held = [], [], []

    def features(self, inputs, injected, capture, reduce=None):
        self.reads.append((inputs, injected, capture.what))
        self.held.append(sum(loss() is not None for loss in self.losses))
        return super().features(inputs, injected, capture, reduce)

    def gradient(self, loss, *given):
        if not self.losses or self.losses[-1]() is not loss:
            self.losses.append(weakref.ref(loss))
        return super().gradient(loss, *given)


@pytest.mark.parametrize("optimise", ["latent", "embedding"])
def test_the_clip_is_read_as_it_is_in_each_step(optimise):
    """With the source prompt, the native embedding and nothing injected; the last step's target is freed."""
    given = settings(optimise=optimise, injection=True, injection_blocks=[0])
    backbone, inputs, schedules = cogvideox(given)
    texts = text_embeddings(inputs.prompt, source=torch.randn_like(inputs.prompt))
    made, runner = Denoising(given, schedules(), texts, inputs.latents, lambda _: None), Watched(backbone)
    made.run(runner)
    assert [what for *_, what in runner.reads] == ["key_value", "query_key"] * 3
    for index, (read, injected, _) in enumerate(runner.reads[1::2]):
        at = made.schedule.on_device[index : index + 1]
        assert torch.equal(read.timestep, at) and not injected
        assert torch.equal(read.latents, made.schedule.add_noise(inputs.latents, made.noise, at))
        assert read.prompt is texts.source_prompt
        assert torch.equal(read.embedding, inputs.embedding)
    assert len(runner.losses) == 3 and runner.held[1::2] == [0, 0, 0]


def test_it_is_read_only_where_its_features_are_matched():
    given = settings(x0_after=0.34)
    backbone, inputs, schedules = cogvideox(given)
    runner = Watched(backbone)
    Denoising(given, schedules(), text_embeddings(inputs.prompt), inputs.latents, lambda _: None).run(runner)
    assert len(runner.reads) == 1


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_the_noise_of_a_run_stays_the_same(scheduler):
    """The initial noise, and that which a sampler adds: nothing more is drawn."""
    found = []
    for noise in ("clean", "step"):
        given = settings(reference_noise=noise, scheduler=scheduler)
        backbone, inputs, schedules = cogvideox(given)
        made = Denoising(given, schedules(), text_embeddings(inputs.prompt), inputs.latents, lambda _: None)
        made.run(PlainRunner(backbone))
        found.append((made.noise, made.schedule.state()["generator"], made.result.latents))
    (noise, generator, clean), (other, same, step) = found
    assert torch.equal(noise, other) and torch.equal(generator, same)
    assert (step - clean).norm() > 1e-3 * clean.norm()


def test_a_still_clip_is_noticed():
    """By its latents: with noise, its frames differ."""
    backbone = tiny_backbone()
    clip = random_inputs(backbone, 3, 8, 12).latents
    for latents, still in ((clip, False), (clip[:, :1].expand(clip.shape), True)):
        noised = NoisedClip(settings(), tiny_schedule("ddim", 6), latents, clip, clip, clip)
        assert prepare_noised_guidance(noised).still == still
