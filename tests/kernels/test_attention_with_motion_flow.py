"""Attention and motion flow of the same queries and keys: gradients, one graph, and no attention map."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditflow_kernels import attention_with_motion_flow, motion_flow

GRID, TEXT, HEADS, HEAD_DIM, TEMPERATURE = (2, 5, 7), 6, 3, 16, 2.0
TOKENS = TEXT + 2 * 5 * 7


def tokens():
    return [torch.randn(1, TOKENS, HEADS, HEAD_DIM, requires_grad=True) for _ in range(3)]


def energy(query, key, value):
    output, flow = attention_with_motion_flow(query, key, value, GRID, TEMPERATURE, TEXT)
    return output.sin().sum() + flow.square().sum()


def energy_by_definition(query, key, value):
    logits = torch.einsum("bimd,bjmd->bmij", query, key) / HEAD_DIM**0.5
    output = torch.einsum("bmij,bjmd->bimd", logits.softmax(dim=-1), value)
    video = query[0, TEXT:], key[0, TEXT:]
    flow = motion_flow(*video, GRID, TEMPERATURE, backend="reference")
    return output.sin().sum() + flow.square().sum()


def test_gradients_of_both_results():
    inputs = tokens()
    expected = torch.autograd.grad(energy_by_definition(*(part.double() for part in inputs)), inputs)
    for ours, theirs in zip(torch.autograd.grad(energy(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_compiles_as_one_graph_with_its_gradients():
    inputs = tokens()
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(energy(*inputs), inputs)
    for ours, theirs in zip(torch.autograd.grad(compiled(*inputs), inputs), eager, strict=True):
        torch.testing.assert_close(ours, theirs)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operator returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [part.numel() for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with_gradients"])
def test_no_attention_map_is_returned_or_saved(backward):
    """Many tokens with few channels: the map of one head is larger than all inputs together."""
    grid, heads, head_dim = (2, 12, 16), 2, 8
    count = TEXT + 2 * 12 * 16
    inputs = [torch.randn(1, count, heads, head_dim, requires_grad=backward) for _ in range(3)]
    with Largest() as seen:
        output, flow = attention_with_motion_flow(*inputs, grid, TEMPERATURE, TEXT)
        if backward:
            torch.autograd.grad(output.sum() + flow.sum(), inputs)
    assert 0 < seen.elements < count * count / 4
