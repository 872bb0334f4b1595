"""The chunked backends keep to their byte budget: every tensor that they allocate is counted."""

import pytest
import torch
from kernel_cases import Shape, reference_for, video_tokens
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditflow_kernels.int8_linear import chunked as chunked_linear
from ditflow_kernels.motion_flow import chunked
from ditflow_kernels.motion_flow.scaling import scale_into
from ditflow_kernels.qk_norm_rope import chunked as chunked_preparation
from ditflow_kernels.qk_norm_rope.layout import Wanted

SHAPE = Shape((3, 9, 11), 1, 16)
TOKENS, CHANNELS = 3 * 9 * 11, 16
ROWS = 3 * 3 * 9 * 11  # of the flow
PRECISIONS = [torch.float32, torch.bfloat16]
BUDGETS = [100_000, 200_000]


class PeakBytes(TorchDispatchMode):
    """Peak bytes of the storages that operators allocated while the mode was on."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.alive = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.alive = {at: held for at, held in self.alive.items() if not held[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.alive.setdefault(storage.data_ptr(), (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_flow_forward(hard, precision):
    query, key = (tokens.to(precision) for tokens in video_tokens(SHAPE))
    peaks = []
    for budget in BUDGETS:
        with PeakBytes(query, key) as counted:
            if hard:
                chunked.hard_flow(query, key, SHAPE.grid, budget)
            else:
                chunked.soft_flow(query, key, SHAPE.grid, 2.0, budget)
        copies = 2 * TOKENS * CHANNELS * 4 if hard and precision != torch.float32 else 0
        flows = ROWS * (8 + 8 + 8)  # expected coordinates with log2sumexp, or likeliest cells; the flow
        assert counted.peak <= budget + copies + flows
        peaks.append(counted.peak)
    assert BUDGETS[0] / 3 < peaks[1] - peaks[0] < TOKENS**2 * 4


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_flow_backward(precision):
    query, key = (tokens.to(precision) for tokens in video_tokens(SHAPE))
    peaks = []
    for budget in BUDGETS:
        kept = chunked.soft_flow(query, key, SHAPE.grid, 2.0, budget)
        grad = torch.ones_like(kept[0])
        with PeakBytes(query, key, grad, *kept) as counted:
            chunked.flow_gradients(grad, query, key, *kept, SHAPE.grid, 2.0, budget)
        peaks.append(counted.peak)
    assert_gradients_within(peaks, query)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("rows", ["moving", "given", "all"])
def test_loss_and_gradients(rows, precision):
    query, key = (tokens.to(precision) for tokens in video_tokens(SHAPE))
    reference = reference_for(rows, SHAPE)
    peaks = []
    for budget in BUDGETS:
        with PeakBytes(query, key, reference) as counted:
            arguments = query, key, reference, SHAPE.grid, 2.0, rows, budget
            _, *unscaled, factor = chunked.loss_and_gradients(*arguments)
            for gradient in unscaled:
                scale_into(torch.empty_like(gradient, dtype=precision), gradient, factor)
        peaks.append(counted.peak)
    assert_gradients_within(peaks, query)


def assert_gradients_within(peaks, query):
    """Besides chunks: query gradients, float32 sums of key gradients, two tensors the size of the flow."""
    beside = query.nbytes + TOKENS * CHANNELS * 4 + 2 * ROWS * 8
    for budget, peak in zip(BUDGETS, peaks, strict=True):
        assert peak <= budget + beside
    assert BUDGETS[0] / 3 < peaks[1] - peaks[0]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("rms", [False, True], ids=["layer_norm", "rms_norm"])
@pytest.mark.parametrize("budget", [50_000, 100_000])
def test_preparation(budget, rms, precision, monkeypatch):
    monkeypatch.setattr(chunked_preparation, "workspace_bytes", lambda device: budget)
    query, key = torch.randn(2, 1, 40 + TOKENS, 4, 16).to(precision)
    norm = (torch.ones(4 * 16), None, 1e-6) if rms else (torch.ones(16), torch.zeros(16), 1e-6)
    weights = [part for part in norm[:2] if part is not None]
    rope = torch.randn(2, 2, TOKENS, 16)
    given = query, key, norm, norm, rope, 40
    with PeakBytes(query, key, rope, *weights) as counted:
        prepared = chunked_preparation.qk_norm_rope_forward(*given)
    assert counted.peak <= budget + 2 * query.nbytes
    with PeakBytes(query, key, rope, *prepared, *weights) as counted:
        chunked_preparation.qk_norm_rope_backward(*prepared, *given, Wanted(True, True, True))
    assert counted.peak <= budget + 2 * query.nbytes + rope.nbytes


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("budget", [100_000, 200_000])
def test_int8_linear(budget, precision, monkeypatch):
    monkeypatch.setattr(chunked_linear, "workspace_bytes", lambda device: budget)
    x, grad = torch.randn(2 * TOKENS, 64).to(precision), torch.randn(2 * TOKENS, 96).to(precision)
    weight, scale, bias = torch.ones(96, 64, dtype=torch.int8), torch.ones(96), torch.ones(96)
    chunked_linear.int8_linear_backward(grad[:1], weight, scale, None)  # tries torch's int8 product once
    with PeakBytes(x, weight, scale, bias) as counted:
        _, before = chunked_linear.int8_linear_forward(x, weight, scale, bias, "gelu_tanh", True)
    assert budget / 3 < counted.peak - 2 * grad.nbytes <= budget
    with PeakBytes(grad, weight, scale, before) as counted:
        chunked_linear.int8_linear_backward(grad, weight, scale, before)
    assert budget / 3 < counted.peak - x.nbytes <= budget
