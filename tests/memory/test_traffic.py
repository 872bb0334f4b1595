"""Bytes that operations other than products move, and products in 8 bits, as the tracker counts them."""

import pytest
import torch
import torch.nn.functional as F

from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.host import keep_on_host
from ditflow.memory.tracker import Tracker
from ditflow_kernels import int8_linear, qk_norm_rope

TOKENS, CHANNELS = 32, 64
SIZE = TOKENS * CHANNELS * 2  # of all tokens in 16 bits


@pytest.fixture(autouse=True)
def fakes():
    with fake_tensors():
        yield


def tokens(**options):
    return torch.empty(TOKENS, CHANNELS, dtype=torch.bfloat16, **options)


def moved(work, *given):
    with Tracker() as found:
        kept = work(*given)  # alive until the end, as what a phase returns
    del kept
    return found.moved_bytes


WEIGHT_SHAPE = CHANNELS, CHANNELS


def product(rows):
    return rows @ torch.empty(WEIGHT_SHAPE, dtype=torch.bfloat16)


def gate_and_add(rows, residual):
    """The next block reads the sum after the product."""
    total = residual + product(rows)
    return total, product(F.layer_norm(total, (CHANNELS,)))


@pytest.mark.parametrize(
    "work, passes",
    [
        (lambda a: product(a), 0),
        (lambda a: F.gelu(product(a)), 2),
        (lambda a: product(F.gelu(product(a)).mul(2).add(1)), 2),  # one kernel, whose middle is not written
        (lambda a: product(product(a).mul_(2).add_(1)), 2),
        (lambda a: a * a + a, 2),  # read once
        (lambda a: gate_and_add(a, a), 4),  # reads a product and the residual, writes the sum and its norm
        (lambda a: product(a.t().reshape(TOKENS, CHANNELS)), 2),  # a copy
        (lambda a: product(a.view(TOKENS, CHANNELS)), 0),
        (lambda a: torch.empty_like(a), 0),
        (lambda a: torch.empty_like(a).copy_(a), 2),
        (lambda a: a[:8] + a[8:16] + a[:8], 0.75),  # two slices read, one written
        (lambda a: a[:1].expand(TOKENS, CHANNELS) + a, 2 + 1 / TOKENS),  # a row is read once
    ],
    ids=[
        *("product", "activation", "chain", "in place", "read once", "residual", "copied view", "view"),
        *("allocation", "copy", "slices", "expanded"),
    ],
)
def test_operations_between_products_are_one_kernel(work, passes):
    statistics = 8 * TOKENS  # of a norm
    assert moved(work, tokens()) == pytest.approx(passes * SIZE, abs=statistics)


def test_copies_from_the_host_do_not_count_twice():
    host = tokens()
    keep_on_host(host)
    with Tracker() as found:
        kept = torch.empty_like(tokens()).copy_(host)
    assert kept.shape == host.shape
    assert (found.copied_bytes, found.moved_bytes) == (SIZE, 0)


def test_a_kernel_that_nothing_is_fused_with_reads_and_writes_all():
    query, key = torch.empty(2, 1, TOKENS, 2, 32, dtype=torch.bfloat16)
    assert moved(lambda: qk_norm_rope(query, key, None, None, None, 0)) == 4 * SIZE
    # what is made for it is written, too, and what comes of it read
    both = moved(lambda: qk_norm_rope(query * 2, key, None, None, None, 0)[0] * 2)
    assert both == 4 * SIZE + 2 * SIZE + 2 * SIZE


def test_products_in_8_bits_are_counted_apart_with_their_rounding():
    weight, scale = torch.empty(WEIGHT_SHAPE, dtype=torch.int8), torch.empty(CHANNELS)
    work = 2 * TOKENS * CHANNELS**2
    with Tracker() as found:
        product(int8_linear(tokens(), weight, scale, None))
    assert (found.flops, found.int8_flops, found.attention_flops) == (2 * work, work, 0)
    assert found.moved_bytes == SIZE + SIZE // 2  # reads 16 bits, writes 8

    rows = tokens(requires_grad=True)
    with Tracker() as found:
        result = int8_linear(rows, weight, scale, None, activation="gelu_tanh")
        torch.autograd.grad(result, rows, torch.empty_like(result))
    assert (found.flops, found.int8_flops) == (2 * work, 2 * work)
    rounding = (SIZE + SIZE // 2) + (2 * SIZE + SIZE // 2)  # backward also reads what was activated
    assert found.moved_bytes == pytest.approx(rounding, abs=8 * TOKENS)
