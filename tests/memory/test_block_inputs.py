"""Block inputs that are moved to host memory and back."""

import weakref
from copy import deepcopy

import pytest
import torch
from tiny_models import DEPTH, backbone_of, random_inputs, square, tiny_backbone, tiny_transformer

from ditflow.memory.block_inputs import HostBlockInputs
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.streamed import Streamed
from ditflow.memory.tracker import Tracker
from ditflow.models.protocols import Capture, Inputs

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def tokens(dtype=torch.float32, length=6):
    return torch.randn(1, length, 8).to(dtype), torch.randn(1, 3, 8).to(dtype)


def test_inputs_come_back_unchanged():
    saved = HostBlockInputs(CPU)
    for dtype, length, count in [(torch.float32, 6, 4), (torch.bfloat16, 6, 4), (torch.float32, 9, 2)]:
        pushed = [tokens(dtype, length) for _ in range(count)]
        saved.begin(count, pushed[0])
        for each in pushed:
            saved.push(each)
        for expected in reversed(pushed):
            found = saved.pop()
            assert all(map(torch.equal, found, expected))


def test_one_input_at_a_time_is_on_the_device():
    """The caller keeps no reference: only the last input that was pushed is still alive."""
    saved, kept = HostBlockInputs(CPU), []
    saved.begin(5, tokens())
    for _ in range(5):
        pushed = tokens()
        kept.append(weakref.ref(pushed[0].untyped_storage()))
        saved.push(pushed)
        del pushed
    assert [storage() is not None for storage in kept] == [False] * 4 + [True]
    with Tracker() as found:
        for _ in range(5):
            saved.pop()
    size = 4 * (6 + 3) * 8
    assert found.peak_bytes == 2 * size  # one returned, one being copied back
    assert found.copied_bytes == saved.copied_bytes == 4 * size


def test_buffers_are_allocated_once():
    backbone = tiny_backbone(layers=DEPTH)
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (3,))
    runner = BlockwiseRunner(backbone, block_inputs="host")
    places, copied = [], []
    for _ in range(3):
        runner.gradient(square, "latents", inputs, {}, capture, 1.0)
        places.append([buffer.data_ptr() for buffer in runner.block_inputs.buffers])
        copied.append(runner.copied_bytes)
    assert len(places[0]) == 3  # for the inputs of blocks 0, 1 and 2; block 3's stays on the device
    assert places[0] == places[1] == places[2]
    one = 4 * (10 + 3 * 4 * 6) * 32
    assert copied == [3 * one, 6 * one, 9 * one]
    assert 3 * one <= runner.host_bytes <= 2 * 3 * one


def test_a_failed_gradient_leaves_nothing_behind():
    backbone = tiny_backbone(layers=DEPTH)
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (1, 3))
    runner = BlockwiseRunner(backbone, keep="attention", block_inputs="host")
    expected = runner.gradient(square, "latents", inputs, {}, capture, 1.0)[1]

    def out_of_memory(block, read):
        if block == 1:
            raise RuntimeError("out of memory")
        return square(block, read)

    with pytest.raises(RuntimeError, match="out of memory"):
        runner.gradient(out_of_memory, "latents", inputs, {}, capture, 1.0)
    assert torch.equal(runner.gradient(square, "latents", inputs, {}, capture, 1.0)[1], expected)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("place", ["pinned", "pageable"])
@pytest.mark.parametrize("late", ["computing", "copying"])
def test_copies_and_computations_wait_for_each_other(late, place, monkeypatch):
    """One of the two is made slow: if the other does not wait for it, values are wrong."""
    cuda = torch.device("cuda")
    model = tiny_transformer(layers=DEPTH)
    backbone = backbone_of(model)
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (1, 3))
    inputs = Inputs(
        *(getattr(inputs, name).to(cuda) for name in ("latents", "prompt", "timestep", "embedding"))
    )
    expected = BlockwiseRunner(backbone_of(deepcopy(model).to(cuda))).gradient(
        square, "latents", inputs, {}, capture, 1.0
    )[1]
    for part in (model.patch_embed, model.time_embedding, model.norm_final, model.norm_out, model.proj_out):
        part.to(cuda)
    weights = Streamed(backbone.blocks, cuda, 1, place)
    runner = BlockwiseRunner(backbone, weights, keep="attention", block_inputs="host")

    def slow(where, name, stream=None):
        original = getattr(where, name)

        def slowed(*given):
            with torch.cuda.stream(stream):  # None: the current stream
                torch.cuda._sleep(10**7)  # cycles, some milliseconds
            return original(*given)

        monkeypatch.setattr(where, name, slowed)

    if late == "computing":
        slow(backbone, "prepare")
        slow(backbone, "feed_forward_backward")
    else:
        for block in weights.blocks:
            slow(block, "copy_to")
        slow(runner.block_inputs, "_copy", runner.block_inputs.copies)
    for _ in range(3):
        found = runner.gradient(square, "latents", inputs, {}, capture, 1.0)[1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
