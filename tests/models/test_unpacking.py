"""Stored weights are unpacked once for all products that share them, also in compiled code."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from quantised_models import energy, inputs_of, linear_layers, product
from tiny_models import backbone_of, random_inputs
from torch._dynamo.testing import CompileCounterWithBackend

from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.models.cogvideox import transformer as cogvideox
from ditflow.models.compiling import compile_piece
from ditflow.models.protocols import Capture
from ditflow.models.storage import unpacked

KINDS = ("fp8", "int8", "nf4", "Q8_0")


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_unpacked_once_per_block_and_direction(kind, stored, monkeypatch):
    """However many chunks of tokens a feed-forward's backward takes."""
    monkeypatch.setattr(cogvideox, "CHUNK", 7)
    runner = BlockwiseRunner(backbone_of(stored(kind)))
    inputs, capture = random_inputs(runner.transformer, 3, 8, 12), Capture("query_key", (1,))
    layers = linear_layers(runner.transformer.network)
    count = {}
    for name, layer in layers.items():
        layer.unpack = partial(counted, count, name, layer.unpack)

    runner.forward([inputs], {})
    assert count == dict.fromkeys(layers, 1)
    count.clear()
    _, gradient = runner.gradient(energy, "latents", inputs, {}, capture, 1.0)
    # block 0: forward, recomputed, backward; of its feed-forward the last two share one weight
    first = {name: 2 if name in ("0.up", "0.down") else 3 for name in layers if name.startswith("0.")}
    assert count == first | {"1.q": 2, "1.k": 2, "1.v": 1}

    monkeypatch.setattr(cogvideox, "unpacked", lambda part: nullcontext())
    count.clear()
    _, in_chunks = runner.gradient(energy, "latents", inputs, {}, capture, 1.0)
    assert count["0.down"] > 5 and torch.equal(in_chunks, gradient)


def counted(count, name, unpack, *given):
    count[name] = count.get(name, 0) + 1
    return unpack(*given)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unpacked_weight_is_shared_and_then_dropped(kind, stored):
    layers = linear_layers(stored(kind))
    for name, layer in layers.items():
        tokens, upstream = inputs_of(layer)
        expected = product(layer, tokens, upstream)
        with pytest.raises(KeyError), unpacked(layer):
            assert layer.weight is layer.weight
            assert all(map(torch.equal, product(layer, tokens, upstream), expected)), name
            raise KeyError
        assert layer.unpacked is None


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_serves_the_unpacked_weights_of_all_blocks(kind, stored):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = compile_piece(feed, backend=counter)
    tokens = torch.randn(1, 30, 64, requires_grad=True)
    for block in stored(kind).transformer_blocks:
        with unpacked(block.ff):
            results = [function(block, tokens) for function in (compiled, feed)]
            gradients = [torch.autograd.grad(result.sum(), tokens)[0] for result in results]
        assert torch.equal(*results) and torch.equal(*gradients)
    assert counter.frame_count == 1


def feed(block, tokens):
    return block.ff(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_serves_all_blocks(kind, stored):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = compile_piece(feed, backend=counter)
    tokens = torch.randn(1, 30, 64)
    for block in stored(kind).transformer_blocks:
        assert torch.equal(compiled(block, tokens), feed(block, tokens))
    assert counter.frame_count == 1
