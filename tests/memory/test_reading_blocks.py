"""Reading the motion of every block takes no more memory than a plain forward, besides the flows."""

import pytest
import torch
from tiny_models import DEPTH, random_inputs, tiny_backbone

from ditflow.guidance.targets import clip_flow, clip_flows
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.placement import make_runner, outside
from ditflow.memory.plain import PlainRunner
from ditflow.memory.presets import presets
from ditflow.memory.streamed import Streamed
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Capture, Grid
from ditflow.planning.phases import BlockTrace, Phases
from ditflow.settings import Settings
from ditflow_kernels.backends import as_on

POLICIES = [("block", "host"), ("block", "device"), ("attention", "device"), ("none", "device")]


def peaks(phases, policy, settings):
    """Peak bytes of one forward, and of reading every block; the bytes of the flows."""
    with fake_tensors(), as_on("cuda"):
        transformer, inputs = phases.transformer, phases.inputs
        blocks = range(len(transformer.blocks))
        held = [inputs.latents, inputs.prompt, *outside(transformer.network, transformer.blocks)]
        runner = make_runner(transformer, BlockTrace(), *policy)
        with Tracker([*held, inputs.embedding]) as forward:
            runner.forward([inputs], {})
        with Tracker(held) as reading:
            flows = clip_flows(runner, settings, blocks, inputs.latents, inputs.prompt)
    assert len(flows) == len(blocks)
    return forward.peak_bytes, reading.peak_bytes, sum(flow.nbytes for flow in flows.values())


@pytest.mark.parametrize("policy", POLICIES, ids=" ".join)
@pytest.mark.parametrize("reference", ["hard", "soft"])
def test_memory_is_that_of_a_forward(small_folder, policy, reference):
    settings = Settings(model=str(small_folder), dtype="float32", size="96x64", reference=reference)
    forward, reading, flows = peaks(Phases(settings), policy, settings)
    assert flows < 0.1 * forward
    assert forward < reading <= forward + flows


def test_memory_of_a_published_model_is_what_is_planned():
    """2B at its own size: the queries and keys of all its blocks would be many times as much."""
    settings = Settings(model="2b", guidance=False, injection=False)
    phases = Phases(settings)
    forward, reading, flows = peaks(phases, POLICIES[0], settings)
    assert forward < reading <= forward + flows
    assert reading <= phases.denoise(True).peak_bytes + flows
    kept = 30 * 2 * 8100 * 1920 * 2  # bytes: blocks, queries and keys, tokens, channels, fp16
    assert reading < 0.5 * kept and flows < 0.02 * kept


@pytest.mark.parametrize(
    "preset",
    [each for each in presets() if each.name in ("4gb", "12gb", "16gb", "24gb")],
    ids=lambda preset: preset.name,
)
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "additive"])
def test_a_reduced_feature_is_what_would_be_kept(preset, rotary):
    """In every runner, with streamed weights, and nothing but the result is kept."""
    plain = PlainRunner(tiny_backbone(rotary, layers=DEPTH))
    inputs, settings, grid = (
        random_inputs(plain.transformer, 3, 8, 12),
        Settings(model="small"),
        Grid(3, 4, 6),
    )
    for what in ("query_key", "key_value", "output"):
        capture = Capture(what, (0, 2, 4))
        whole = plain.features(inputs, {}, capture)
        backbone = tiny_backbone(rotary, layers=DEPTH)
        weights = Streamed(backbone.blocks, torch.device("cpu"), 1)
        runner = make_runner(backbone, weights, preset.checkpoint, preset.block_inputs)

        def reduce(index, read, what=what):
            return (
                clip_flow(read, grid, settings)
                if what == "query_key"
                else (index, sum(t.sum() for t in read))
            )

        found = runner.features(inputs, {}, capture, reduce)
        assert list(found) == [0, 2, 4]
        for index, read in whole.items():
            expected = reduce(index, read)
            if what == "query_key":
                assert torch.equal(found[index], expected) and expected.any()
            else:
                assert found[index] == expected
