"""Losses from their definitions, the Adam loop, float16's loss scale and injection."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from tiny_models import backbone_of, random_inputs, tiny_backbone, tiny_transformer

from ditflow.errors import DitflowError
from ditflow.guidance.losses import FlowLoss, MoftLoss, SmmLoss
from ditflow.guidance.optimise import LOSS_SCALE, Guidance, learning_rates, loss_scaler
from ditflow.guidance.targets import check_blocks, flow_targets
from ditflow.memory.plain import PlainRunner
from ditflow.models.protocols import Capture, Grid, QueryKey
from ditflow.settings import Settings

GRID = Grid(3, 4, 5)
CHANNELS = 8


def settings(**changes):
    return Settings(model="small", **changes)


def features(seed):
    torch.manual_seed(seed)
    return torch.randn(GRID.frames * GRID.height * GRID.width, CHANNELS)


def test_smm_compares_each_videos_own_differences():
    """Each video's own anchors, cosine over channels, without the anchor frame: written out by frame."""
    clip, video = features(0), features(1)
    means = [rearrange(x, "(f n) c -> f n c", f=GRID.frames).mean(1) for x in (clip, video)]
    distances = [
        1 - F.cosine_similarity(means[0][g] - means[0][f], means[1][g] - means[1][f], dim=0)
        for f in range(GRID.frames)
        for g in range(GRID.frames)
        if f != g
    ]
    loss = SmmLoss({0: clip}, GRID, settings(loss="smm"))
    torch.testing.assert_close(loss(0, video), torch.stack(distances).mean())
    assert loss(0, clip).abs() < 1e-6
    assert loss(0, video + 3.0).allclose(loss(0, video), atol=1e-5)  # a constant shift is not motion
    released = SmmLoss({0: clip}, GRID, settings(loss="smm-release"))
    assert (released(0, video) - loss(0, video)).abs() > 1e-2


def test_moft_looks_only_at_the_channels_that_move():
    clip = torch.zeros_like(features(0))
    clip[:, 3] = features(0)[:, 3] * 10
    loss = MoftLoss({0: clip}, GRID, settings(loss="moft", moft_channels=1 / CHANNELS))
    assert loss.channels[0].tolist() == [3]
    video = features(1)
    video[:, 3] = clip[:, 3]
    assert loss(0, video).abs() < 1e-6
    video[:, 3] = -clip[:, 3]
    torch.testing.assert_close(loss(0, video), torch.tensor(2.0))


@pytest.mark.parametrize("kind", [FlowLoss, MoftLoss, SmmLoss])
def test_still_clip_is_noticed(kind):
    frame = torch.randn(GRID.height * GRID.width, CHANNELS)
    still, moving = frame.repeat(GRID.frames, 1), features(2)
    for clip, expected in ((still, True), (moving, False)):
        if kind is FlowLoss:  # orthogonal tokens: each is most like itself
            tokens = (
                torch.eye(GRID.height * GRID.width).repeat(GRID.frames, 1)[:, None]
                if expected
                else clip[:, None]
            )
            found = flow_targets({0: QueryKey(tokens, tokens)}, GRID, settings())
        else:
            found = {0: clip}
        assert kind(found, GRID, settings()).still == expected


def test_flow_loss_of_a_still_clip_is_zero_not_nan():
    tokens = torch.eye(20).repeat(3, 1)[:, None]
    loss = FlowLoss(flow_targets({0: QueryKey(tokens, tokens)}, GRID, settings()), GRID, settings())
    query = torch.randn_like(tokens).requires_grad_()
    value = loss(0, QueryKey(query, tokens))
    (gradient,) = torch.autograd.grad(value, query)
    assert value == 0
    assert not gradient.any()


def guidance(
    loss, variable="latents", steps=3, rates=(0.1,), blocks=(1,), what="output", dtype=torch.float32
):
    scaler = loss_scaler(dtype, torch.device("cpu"))
    return Guidance(loss, Capture(what, blocks), variable, steps, list(rates), scaler)


@pytest.mark.parametrize("variable", ["latents", "embedding"])
def test_optimisation_is_plain_adam(backbone, variable):
    """The same updates as torch's Adam over plain autograd, and the loss before each update."""
    runner, inputs = PlainRunner(backbone), random_inputs(backbone, 3, 8, 12)
    loop = guidance(lambda _, read: read.square().mean(), variable)
    found, losses, gradients, _ = loop.optimise(runner, inputs, {}, 0)

    expected = getattr(inputs, variable).clone().requires_grad_()
    adam = torch.optim.Adam([expected], lr=0.1)
    for loss, total in zip(losses, gradients, strict=True):
        given = {"latents": inputs.latents, "embedding": inputs.embedding, variable: expected}
        carried, shared = backbone.embed(
            SimpleNamespace(prompt=inputs.prompt, timestep=inputs.timestep, **given)
        )
        for index in range(2):
            carried = runner.block(index, carried, shared, {})
        value = carried[0].square().mean()
        torch.testing.assert_close(loss, value.detach())
        adam.zero_grad()
        value.backward()
        torch.testing.assert_close(total, expected.grad.sum(), rtol=1e-4, atol=1e-4)
        adam.step()
    torch.testing.assert_close(getattr(found, variable), expected.detach())
    other = "embedding" if variable == "latents" else "latents"
    assert getattr(found, other) is getattr(inputs, other)


def test_several_blocks_are_averaged(backbone):
    runner, inputs = PlainRunner(backbone), random_inputs(backbone, 3, 8, 12)

    def gradient(*blocks):
        capture = Capture("output", blocks)
        return runner.gradient(lambda _, read: read.square().mean(), "latents", inputs, {}, capture, 1.0)

    (first, a), (second, b), (both, c) = gradient(0), gradient(2), gradient(2, 0)
    torch.testing.assert_close(both, (first + second) / 2)
    torch.testing.assert_close(c, (a + b) / 2)


def test_published_learning_rates():
    """linspace(high, low, guided + 1) without its last value: the published defaults end at 0.0011."""
    rates = learning_rates(0.002, 0.001, 10)
    assert len(rates) == 10
    assert rates[0] == 0.002
    assert rates[-1] == pytest.approx(0.0011)


def test_float16_gradient_survives_only_with_the_loss_scale():
    backbone = backbone_of(tiny_transformer().half())
    runner, inputs = PlainRunner(backbone), random_inputs(backbone, 3, 8, 12)

    def tiny_loss(_, read):
        return read.float().square().mean() * 1e-5

    def gradient(scale):
        return runner.gradient(tiny_loss, "latents", inputs, {}, Capture("output", (1,)), scale)[1] / scale

    exact = PlainRunner(tiny_backbone()).gradient(
        lambda _, read: read.square().mean() * 1e-5,
        "latents",
        inputs,
        {},
        Capture("output", (1,)),
        1.0,
    )[1]
    assert (gradient(LOSS_SCALE) - exact).norm() < 0.02 * exact.norm()
    assert (gradient(1.0) - exact).norm() > 0.5 * exact.norm()


def test_overflowing_step_is_skipped_and_counted():
    backbone = backbone_of(tiny_transformer().half())
    runner, inputs = PlainRunner(backbone), random_inputs(backbone, 3, 8, 12)
    loss = guidance(lambda _, read: read.float().square().sum() / 4, steps=8, dtype=torch.float16)
    found, losses, *_ = loss.optimise(runner, inputs, {}, 0)
    assert 0 < loss.skipped < 8
    assert loss.scaler.get_scale() == LOSS_SCALE / 2**loss.skipped
    assert len(losses) == 8
    assert found.latents.isfinite().all()
    assert not torch.equal(found.latents, inputs.latents)


def test_the_loss_scale_is_restored_with_the_state():
    loop = guidance(None, dtype=torch.float16)
    loop.restore(3, {})
    assert loop.skipped == 3 and loop.scaler.get_scale() == LOSS_SCALE / 8
    assert loop.may_overflow
    loop.restore(17, {})
    assert not loop.may_overflow  # a gradient that overflows at half its size is faulty
    assert not loss_scaler(torch.float32, torch.device("cpu")).is_enabled()


def test_injected_keys_and_values_are_the_clips(backbone):
    """Injecting a block's own keys and values changes nothing; another clip's change the prediction."""
    runner, inputs = PlainRunner(backbone), random_inputs(backbone, 3, 8, 12)
    other = random_inputs(backbone, 3, 8, 12)
    (plain,) = runner.forward([inputs], {})
    own = runner.features(inputs, {}, Capture("key_value", (1,)))
    assert torch.equal(runner.forward([inputs], own)[0], plain)
    both = runner.features(inputs, {}, Capture("key_value", (1, 2)))[1]  # captured on the way to block 2
    assert all(torch.equal(a, b) for a, b in zip(both, own[1], strict=True))
    theirs = runner.features(other, {}, Capture("key_value", (1,)))
    assert (runner.forward([inputs], theirs)[0] - plain).abs().max() > 1e-3


def test_blocks_outside_the_model_are_refused():
    with pytest.raises(DitflowError, match=r"block 7 given, this model has blocks 0 to 5"):
        check_blocks(settings(guidance_blocks=[7]), 6)
    with pytest.raises(DitflowError, match="injection_blocks"):
        check_blocks(settings(injection=True, injection_blocks=[6]), 6)
    check_blocks(settings(guidance=False, guidance_blocks=[7]), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reuse", [2, 3, 7])
def test_a_reused_gradient_makes_the_updates_of_plain_adam(reuse, dtype):
    """In float16 too, where an update divides its gradient by the loss scale in place."""
    backbone = backbone_of(tiny_transformer().to(dtype))
    runner, inputs = Counted(backbone), random_inputs(backbone, 3, 8, 12)
    loop = guidance(lambda _, read: read.float().square().mean(), steps=5, dtype=dtype)
    loop.gradient_reuse = reuse
    found = loop.optimise(runner, inputs, {}, 0)
    assert runner.gradients == len(found.losses) == len(found.gradients) == -(-5 // reuse)

    expected, gradients = inputs.latents.clone().requires_grad_(), []
    adam = torch.optim.Adam([expected], lr=0.1)
    for update in range(5):
        if update % reuse == 0:
            now = replace(inputs, latents=expected.detach())
            gradients.append(runner.gradient(loop.loss, "latents", now, {}, loop.capture, LOSS_SCALE)[1])
        expected.grad = gradients[-1] / LOSS_SCALE
        adam.step()
    torch.testing.assert_close(found.inputs.latents, expected.detach(), rtol=1e-5, atol=1e-5)
    if len(gradients) == 1:
        assert found.cosine is None
    else:
        first, second = (each.flatten().double() for each in gradients[:2])
        assert float(found.cosine) == pytest.approx(
            float(first @ second / first.norm() / second.norm()), abs=1e-4
        )


def test_an_overflowed_gradient_that_is_reused_counts_once():
    backbone = backbone_of(tiny_transformer().half())
    runner, inputs = PlainRunner(backbone), random_inputs(backbone, 3, 8, 12)
    loop = guidance(lambda _, read: read.float().square().sum() / 4, steps=8, dtype=torch.float16)
    loop.gradient_reuse = 4
    found = loop.optimise(runner, inputs, {}, 0)
    assert 0 < loop.skipped == int((~found.gradients.isfinite()).sum())


class Counted(PlainRunner):
    gradients = 0

    def gradient(self, *given):
        self.gradients += 1
        return super().gradient(*given)


class FixedGradient:
    """A runner whose gradient is always the same tensor, with its axes in another order in memory."""

    def __init__(self, gradient):
        self.memory = gradient.transpose(1, 2).contiguous()

    def gradient(self, loss, variable, inputs, injected, capture, scale):
        return torch.zeros(()), scale * self.memory.transpose(1, 2).clone()


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_gradient_in_another_order_in_memory_moves_the_right_numbers(reuse):
    """As Wan's is, whose latents have their axes of frames and channels exchanged."""
    inputs = random_inputs(tiny_backbone(), 3, 8, 12)
    gradient = torch.randn_like(inputs.latents)
    runner = FixedGradient(gradient)
    assert runner.gradient(None, None, None, None, None, 1)[1].stride() != inputs.latents.stride()
    scaler = loss_scaler(torch.float32, inputs.latents.device)
    guidance = Guidance(None, None, "latents", 3, [0.1], scaler, gradient_reuse=reuse)
    found = guidance.optimise(runner, inputs, {}, 0).inputs.latents

    expected = inputs.latents.clone()
    adam = torch.optim.Adam([expected], lr=0.1, foreach=False, fused=False)
    for _ in range(3):
        expected.grad = gradient.clone()
        adam.step()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
