"""Every way to keep weights and activations, against plain autograd through the toy's own forward."""

import pytest
import torch

from ditflow.guidance.estimates import EstimateGuidance
from ditflow.guidance.losses import FlowLoss
from ditflow.guidance.targets import flow_targets
from ditflow.memory.placement import make_runner
from ditflow.memory.plain import PlainRunner
from ditflow.memory.presets import presets
from ditflow.memory.streamed import Streamed
from ditflow.models.protocols import Capture
from ditflow.settings import Settings
from toy_family.schedule import ToySchedule
from toy_family.toy_models import random_inputs, toy_transformer

CPU = torch.device("cpu")
CAPTURES = {
    "flow": Capture("query_key", (3,)),
    "two-blocks": Capture("query_key", (1, 4)),
    "output": Capture("output", (0, 2)),
}


def square(_, read):
    """A loss: the mean square of each tensor that was read of a block, summed."""
    return sum(tensor.square().mean() for tensor in (read if isinstance(read, tuple) else (read,)))


def loss_of(runner, capture, toy_folder):
    """The flow loss against another clip, or a loss on what leaves the blocks."""
    if capture.what == "output":
        return square
    other = random_inputs(runner.transformer)
    features = runner.features(other, {}, capture)
    grid = runner.transformer.grid(other.latents)
    settings = Settings(model=str(toy_folder), rows="all")
    return FlowLoss(flow_targets(features, grid, settings), grid, settings)


def assert_equal(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert expected[1].norm() > 0
    assert (found[1] - expected[1]).norm() <= 1e-5 * expected[1].norm()


def recorded(network, capture, monkeypatch):
    """What the network's own forward computes in the captured blocks, filled once it has run."""
    read = {}
    for index in capture.blocks:
        block = network.blocks[index]
        if capture.what == "output":
            block.register_forward_hook(lambda *given, index=index: read.update({index: given[-1][0]}))
            continue

        def attended(query, key, value, index=index, original=block.attn1.attended):
            read[index] = query[0], key[0]
            return original(query, key, value)

        monkeypatch.setattr(block.attn1, "attended", attended)
    return read


@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES.keys())
def test_plain_runner_equals_autograd_through_the_networks_own_forward(capture, toy_folder, monkeypatch):
    transformer = toy_transformer()
    runner, inputs = PlainRunner(transformer), random_inputs(transformer)
    loss = loss_of(runner, capture, toy_folder)
    found = runner.gradient(loss, "latents", inputs, {}, capture, 1.0)

    read, latents = recorded(transformer.network, capture, monkeypatch), inputs.latents.requires_grad_()
    transformer.network(latents, inputs.prompt, inputs.timestep)
    value = torch.stack([loss(index, read[index]) for index in capture.blocks]).mean()
    assert_equal(found, (value.detach(), *torch.autograd.grad(value, latents)))


@pytest.mark.parametrize("wrt", ["latents", "embedding"])
@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES.keys())
@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_each_preset_equals_plain_autograd(preset, capture, wrt, toy_folder):
    plain = PlainRunner(toy_transformer())
    inputs, clip = random_inputs(plain.transformer), random_inputs(plain.transformer)
    injected = plain.features(clip, {}, Capture("key_value", (0, 2)))
    loss = loss_of(plain, capture, toy_folder)
    expected = plain.gradient(loss, wrt, inputs, injected, capture, 8.0)
    prediction = plain.forward([inputs], injected)[0]
    assert (prediction - plain.forward([inputs], {})[0]).norm() > 1e-3 * prediction.norm()

    depth = len(plain.transformer.blocks)
    least = capture.deepest + 1 if preset.checkpoint == "none" else 0  # a graph holds those weights
    for resident in sorted({least, max(least, 3), depth}):
        transformer = toy_transformer()
        weights = Streamed(transformer.blocks, CPU, resident)
        runner = make_runner(transformer, weights, preset.checkpoint, preset.block_inputs)
        for _ in range(2):  # the second finds what the first has left behind
            assert_equal(runner.gradient(loss, wrt, inputs, injected, capture, 8.0), expected)
            assert torch.equal(runner.forward([inputs], injected)[0], prediction)
        assert (weights.copied_bytes > 0) == (resident < depth)


def test_key_value_is_what_prepare_makes():
    transformer = toy_transformer()
    carried, shared = transformer.embed(random_inputs(transformer))
    found = transformer.key_value(1, carried, shared)
    for made, expected in zip(found, transformer.prepare(1, carried, shared).key_value, strict=True):
        torch.testing.assert_close(made, expected)


class Told:
    """A `FirstBlock` that decides as it is told."""

    def __init__(self):
        self.residual, self.reuses, self.seen = None, False, []

    def reused(self, entering, leaving):
        self.seen.append((entering, leaving))
        return self.residual if self.reuses else None

    def keep(self, residual):
        self.residual = residual


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_each_preset_reuses_what_the_other_blocks_added(preset):
    plain = PlainRunner(toy_transformer())
    inputs, other = random_inputs(plain.transformer), random_inputs(plain.transformer)
    whole, after = plain.forward([inputs, other], {}), plain.forward([other], {})[0]
    carried, shared = plain.transformer.embed(inputs)
    video = [carried[0]]
    for index in range(len(plain.transformer.blocks)):
        carried = plain.block(index, carried, shared, {})
        video.append(carried[0])

    for resident in (0, 3, len(plain.transformer.blocks)):
        transformer, told = toy_transformer(), Told()
        weights = Streamed(transformer.blocks, CPU, resident)
        runner = make_runner(transformer, weights, preset.checkpoint, preset.block_inputs)
        found = runner.forward_or_reuse([inputs, other], told)
        assert all(map(torch.equal, found, whole))
        assert all(map(torch.equal, told.seen[0], video[:2])) and len(told.seen) == 1
        torch.testing.assert_close(told.residual, video[-1] - video[1])

        told.reuses = True
        (again,) = runner.forward_or_reuse([inputs, other], told)
        torch.testing.assert_close(again, whole[0], rtol=1e-5, atol=1e-5)
        (reused,) = runner.forward_or_reuse([other], told)
        assert (reused - after).norm() > 1e-3 * after.norm()
        entering, shared = transformer.embed(other)
        first = runner.block(0, entering, shared, {})
        grid = transformer.grid(other.latents)
        expected = transformer.head((first[0] + told.residual, *first[1:]), shared, grid)
        assert torch.equal(reused, expected)


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_each_preset_updates_latents_without_a_backward_pass(preset, toy_folder):
    """With no block resident in any of them: no graph holds the weights."""
    plain = toy_transformer()
    inputs, clip = random_inputs(plain), random_inputs(plain)
    schedule = ToySchedule("euler", {"shift": 3.0, "renewed": 0.5}, 6, CPU, torch.Generator())

    def updated(transformer, runner):
        injected = runner.features(clip, {}, Capture("key_value", (0, 2)))
        guidance = EstimateGuidance(schedule, clip.latents, inputs.latents, inputs.prompt, 2, [0.05])
        return guidance.optimise(runner, inputs, injected, 0)

    expected, losses, *_ = updated(plain, PlainRunner(plain))
    assert losses[1] < losses[0] and not torch.equal(expected.latents, inputs.latents)
    transformer = toy_transformer()
    weights = Streamed(transformer.blocks, CPU, 0)
    runner = make_runner(transformer, weights, preset.checkpoint, preset.block_inputs)
    found, same, *_ = updated(transformer, runner)
    assert torch.equal(found.latents, expected.latents) and torch.equal(same, losses)
    assert weights.copied_bytes > 0
