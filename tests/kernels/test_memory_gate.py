"""Memory that the Triton passes allocate at the sizes of CogVideoX-5B, on fake tensors without a GPU."""

from itertools import count

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditflow_kernels.motion_flow import operators
from ditflow_kernels.motion_flow import triton as passes

MB = 10**6
FRAMES_24, FRAMES_49 = (6, 30, 45), (13, 30, 45)
HEADS, HEAD_DIM = 48, 64


class LiveBytes(TorchDispatchMode):
    """Records, after each operator, which storages that operators allocated are alive."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive = {}  # by address: weak reference, number, bytes
        self.moments = []  # after each operator, bytes by number
        self.numbers = count()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.alive = {at: held for at, held in self.alive.items() if not held[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in self.alive:
                    self.alive[storage._cdata] = StorageWeakRef(storage), next(self.numbers), storage.nbytes()
        self.moments.append({number: size for _, number, size in self.alive.values()})
        return result

    def peak_beside(self, *outputs) -> int:
        """Peak bytes, without the storages of the outputs."""
        ours = {self.alive[tensor.untyped_storage()._cdata][1] for tensor in outputs}
        return max(
            sum(size for number, size in moment.items() if number not in ours) for moment in self.moments
        )


def video(grid, precision=torch.bfloat16, heads=HEADS):
    frames, height, width = grid
    query = torch.empty(frames * height * width, heads, HEAD_DIM, dtype=precision)
    reference = torch.empty(frames, frames, height * width, 2)
    return query, torch.empty_like(query), reference


def flow_bytes(grid, workspace_bytes=None):
    with FakeTensorMode():
        query, key, _ = video(grid)
        with LiveBytes(query, key) as live:
            flow, _ = passes.soft_flow(query, key, grid, 2.0, workspace_bytes, launch=False)
        return live.peak_beside(flow)


def hard_bytes(grid):
    with FakeTensorMode():
        query, key, _ = video(grid)
        with LiveBytes(query, key) as live:
            flow = passes.hard_flow(query, key, grid, None, launch=False)
        return live.peak_beside(flow)


def loss_bytes(grid, workspace_bytes=None, precision=torch.bfloat16, heads=HEADS):
    with FakeTensorMode():
        query, key, reference = video(grid, precision, heads)
        given = query, key, reference, grid, 2.0, "moving", workspace_bytes
        with LiveBytes(query, key, reference) as live:
            outputs = passes.loss_and_gradients(*given, launch=False)
        return live.peak_beside(*outputs)


def backward_bytes(grid, workspace_bytes=None, precision=torch.bfloat16, heads=HEADS):
    with FakeTensorMode():
        query, key, flow = video(grid, precision, heads)
        given = torch.empty_like(flow), query, key, flow, torch.empty_like(flow[..., 0])
        with LiveBytes(*given) as live:
            outputs = passes.flow_gradients(*given, grid, 2.0, workspace_bytes, launch=False)
        return live.peak_beside(*outputs)


@pytest.mark.parametrize("grid", [FRAMES_24, FRAMES_49], ids=["24", "49"])
def test_flow_forward(grid):
    assert 0 < flow_bytes(grid) <= 48 * MB
    assert 0 < hard_bytes(grid) <= 48 * MB


@pytest.mark.parametrize(
    ("grid", "limit", "panels"), [(FRAMES_24, 256 * MB, 1), (FRAMES_49, 560 * MB, 2)], ids=["24", "49"]
)
def test_loss_with_gradients(grid, limit, panels):
    tokens = grid[0] * grid[1] * grid[2]
    assert 2 * tokens * tokens / panels < loss_bytes(grid) <= limit
    half = limit // 2
    assert half / 2 < loss_bytes(grid, half) <= half


@pytest.mark.parametrize("grid", [FRAMES_24, FRAMES_49], ids=["24", "49"])
def test_flow_backward(grid):
    assert backward_bytes(grid) <= 560 * MB
    assert backward_bytes(grid, 280 * MB) <= 280 * MB


@pytest.mark.parametrize("budget", [150 * MB, 300 * MB])
def test_fp16(budget):
    """CogVideoX-2B: gradients are summed in place in float32 until the last cast."""
    assert budget / 3 < loss_bytes(FRAMES_49, budget, torch.float16, heads=30) <= budget
    budget += 2 * 4 * 13 * 30 * 45 * 30 * HEAD_DIM
    assert budget / 3 < backward_bytes(FRAMES_49, budget, torch.float16, heads=30) <= budget


def test_any_grid_keeps_the_bound_of_the_flow():
    assert flow_bytes((21, 45, 80)) <= 48 * MB + 4 * 21 * 21 * 45 * 80  # plus the log2sumexp


def test_the_count_sees_what_stays_alive():
    """The bounds above would notice one more tensor."""
    with FakeTensorMode(), LiveBytes() as live:
        kept = [torch.empty(MB, dtype=torch.uint8) for _ in range(3)]
        del kept[0]
        last = torch.empty(MB, dtype=torch.uint8)
    assert live.peak_beside(last) == 3 * MB


def test_the_operators_fake_is_the_launcher_without_the_launch(monkeypatch):
    called = []

    def recorded(launcher):
        def launched(*arguments, **options):
            called.append(options)
            return launcher(*arguments, **options)

        return launched

    for name in ("soft_flow", "hard_flow", "flow_gradients", "loss_and_gradients"):
        monkeypatch.setattr(passes, name, recorded(getattr(passes, name)))
    with FakeTensorMode():
        query, key, reference = video((2, 5, 7))
        settings = (2, 5, 7), 2.0, "triton", None
        flow, log2sumexp = operators.soft_flow(query, key, *settings)
        operators.flow_gradients(flow, query, key, flow, log2sumexp, *settings)
        operators.loss_and_gradients(query, key, reference, (2, 5, 7), 2.0, "moving", "triton", None)
        operators.hard_flow(query, key, (2, 5, 7), "triton", None)
    assert called == [{"launch": False}] * 4
