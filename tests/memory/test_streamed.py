"""Streamed weights: the same results, computed on the device, with as many bytes copied as planned."""

import random

import pytest
import torch
from tiny_models import DEPTH, random_inputs, square, tiny_backbone
from torch import nn

from ditflow.memory import host
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.host import HostBuffers
from ditflow.memory.plain import PlainRunner
from ditflow.memory.ring import Ring
from ditflow.memory.streamed import Streamed
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Capture

CPU = torch.device("cpu")


@pytest.fixture
def streamed_backbone(monkeypatch):
    """A transformer whose blocks fail if they compute with weights that are not on the device."""
    backbone = tiny_backbone(layers=DEPTH)

    def watch(weights):
        pool = {buffer.untyped_storage().data_ptr() for buffer in weights.device_buffers()}
        for name in ("prepare", "add_attention", "feed_forward", "feed_forward_backward"):
            original = getattr(backbone, name)

            def checked(index, *rest, original=original):
                found = {
                    tensor.untyped_storage().data_ptr() for tensor in backbone.blocks[index].parameters()
                }
                assert found <= pool, f"block {index} computes with weights in host memory"
                return original(index, *rest)

            monkeypatch.setattr(backbone, name, checked)

    return backbone, watch


@pytest.mark.parametrize("keep", ["inputs", "attention"])
@pytest.mark.parametrize("place", ["pinned", "pageable"])
@pytest.mark.parametrize("resident", [0, 2, DEPTH - 1, DEPTH])
def test_streaming_weights_changes_no_result(streamed_backbone, resident, place, keep):
    backbone, watch = streamed_backbone
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (1, 3))
    plain = BlockwiseRunner(backbone)
    expected = plain.gradient(square, "latents", inputs, {}, capture, 1.0), plain.forward([inputs], {})

    weights = Streamed(backbone.blocks, CPU, resident, place)
    watch(weights)
    runner = BlockwiseRunner(backbone, weights, keep=keep, block_inputs="host")
    for _ in range(2):
        found = runner.gradient(square, "latents", inputs, {}, capture, 1.0), runner.forward([inputs], {})
        assert torch.equal(found[0][1], expected[0][1])
        assert torch.equal(found[1][0], expected[1][0])


def test_weights_in_host_memory_are_noticed(streamed_backbone):
    """The check above can fail: nobody has copied this block."""
    backbone, watch = streamed_backbone
    watch(Streamed(backbone.blocks, CPU, 0))
    with pytest.raises(AssertionError, match="block 0 computes with weights in host memory"):
        PlainRunner(backbone).forward([random_inputs(backbone, 3, 8, 12)], {})


def test_reversing_the_order_copies_nothing_twice():
    backbone = tiny_backbone(layers=DEPTH)
    weights = Streamed(backbone.blocks, CPU, 1)
    block = weights.blocks[0].bytes

    def copies(order):
        before = weights.copied_bytes
        assert list(weights.walk(order)) == list(order)
        return (weights.copied_bytes - before) / block

    assert copies(range(DEPTH)) == DEPTH - 1  # all but the resident one
    assert copies([4, 3, 2, 1, 0]) == DEPTH - 3  # nor the two that the ring still has
    assert copies([0, 1]) == 0
    assert copies([0]) == 0


@pytest.mark.parametrize("place", ["pinned", "pageable"])
def test_a_walk_that_ends_early_leaves_the_ring_usable(place):
    backbone = tiny_backbone(layers=DEPTH)
    inputs = random_inputs(backbone, 3, 8, 12)
    (expected,) = PlainRunner(backbone).forward([inputs], {})
    weights = Streamed(backbone.blocks, CPU, 0, place)
    for end in (0, 2):
        for index in weights.walk(range(DEPTH)):
            if index == end:
                break
        assert torch.equal(PlainRunner(backbone, weights).forward([inputs], {})[0], expected)


@pytest.mark.parametrize("place", ["pinned", "pageable"])
@pytest.mark.parametrize("resident", [0, 1, 3, 4])
def test_a_replay_predicts_the_real_copies(resident, place):
    """Random walks over blocks of different sizes: the ring predicts the bytes that are counted and seen."""
    blocks = nn.ModuleList(nn.Linear(8, width, dtype=torch.bfloat16) for width in (5, 40, 7, 64, 16))
    blocks.requires_grad_(False)
    values = [[tensor.clone() for tensor in block.parameters()] for block in blocks]
    weights, draw = Streamed(blocks, CPU, resident, place), random.Random(0)
    ring = Ring([block.bytes for block in weights.blocks], resident)
    # copied tensor by tensor, without the gaps between them
    exact = Ring([sum(tensor.nbytes for tensor in block.parameters()) for block in blocks], resident)
    for _ in range(30):
        start, end = draw.randrange(5), draw.randrange(5)
        order = range(start, end + 1) if start <= end else range(start, end - 1, -1)
        before = weights.copied_bytes
        with Tracker() as seen:
            for index in weights.walk(order):
                assert all(map(torch.equal, blocks[index].parameters(), values[index]))
        expected, without_gaps = ring.replay(order), exact.replay(order)
        assert weights.copied_bytes - before == expected
        assert seen.copied_bytes == (expected if place == "pinned" else without_gaps)
    assert weights.device_bytes == ring.device_bytes == sum(map(len, weights.device_buffers()))


def test_pageable_tensors_stay_where_they_were_loaded():
    """For example in memory-mapped files: a walk allocates nothing and leaves them in the same memory."""
    blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)).requires_grad_(False)
    blocks[1].weight.data = torch.randn(8, 8).T  # a mapped tensor may have any strides
    value = blocks[1].weight.clone()
    places = [tensor.data_ptr() for tensor in blocks.parameters()]
    weights = Streamed(blocks, CPU, 0, "pageable")
    for index in weights.walk(range(4)):
        assert blocks[index].weight.data_ptr() not in places
        assert index != 1 or torch.equal(blocks[1].weight, value)
    list(weights.walk([2, 3]))
    assert [tensor.data_ptr() for tensor in blocks.parameters()][:4] == places[:4]  # those outside the ring
    assert weights.host_bytes == 0


def test_any_type_of_tensor_streams():
    """Stored weights of one byte each, with scales in buffers; a scale may be a scalar."""
    blocks = nn.ModuleList(nn.Module() for _ in range(4))
    for block in blocks:
        block.weight = nn.Parameter(torch.randn(7, 3).to(torch.float8_e4m3fn), requires_grad=False)
        block.packed = nn.Parameter(torch.randint(256, (5,), dtype=torch.uint8), requires_grad=False)
        block.register_buffer("scale", torch.randn(()), persistent=False)
        block.register_buffer("nothing", torch.empty(0, 3))
    values = [(block.weight.float(), block.packed.clone(), block.scale.clone()) for block in blocks]
    weights = Streamed(blocks, CPU, 1)
    for index in weights.walk([*range(4), 3, 2, 1, 0]):
        block = blocks[index]
        assert block.weight.dtype == torch.float8_e4m3fn
        assert all(map(torch.equal, (block.weight.float(), block.packed, block.scale), values[index]))


def test_host_buffers_are_cut_from_few_allocations(monkeypatch):
    """The pinned allocator rounds up to a power of two: three buffers of 300 bytes take 1024, one 512."""
    monkeypatch.setattr(host, "SLAB", 1024)
    found = HostBuffers([300] * 4, pinned=False)
    assert [len(buffer) for buffer in found.buffers] == [300] * 4
    assert len({buffer.untyped_storage().data_ptr() for buffer in found.buffers}) == 2
    assert found.bytes == 1024 + 512
    found.buffers[0].fill_(1), found.buffers[1].fill_(2)
    assert found.buffers[0].unique().tolist() == [1]


def test_a_tracker_counts_the_ring_resident_blocks_and_activations():
    """On fake tensors, as in a plan: weights that wait in host memory are not counted."""

    def peak(resident):
        blocks = nn.ModuleList(nn.Linear(256, 256) for _ in range(8)).requires_grad_(False)
        with Tracker() as found:
            weights = Streamed(blocks, CPU, resident)
            tokens = torch.empty(4, 256)
            for index in weights.walk([*range(8), *reversed(range(8))]):
                tokens = blocks[index](tokens)
        return found.peak_bytes, weights

    with fake_tensors():
        for resident in (0, 3, 8):
            found, weights = peak(resident)
            size = weights.blocks[0].bytes
            assert weights.device_bytes == (resident + min(2, 8 - resident)) * size
            assert found == weights.device_bytes + 2 * 4 * 256 * 4  # plus the tokens before and after a block
