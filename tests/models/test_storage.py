"""Weights in 8 or 4 bits: their rounding is bounded, and everything else is exact."""

import pytest
import torch
from quantised_models import energy, exact_transformer, inputs_of, linear_layers, product, relative
from tiny_models import backbone_of, random_inputs
from torch import nn

from ditflow.errors import DitflowError, SettingsError
from ditflow.memory.blockwise import BlockwiseRunner
from ditflow.memory.fake_tensors import fake_tensors
from ditflow.memory.plain import PlainRunner
from ditflow.memory.streamed import Streamed
from ditflow.models import storage
from ditflow.models.cogvideox.family import CogVideoXFamily
from ditflow.models.protocols import Capture
from ditflow.models.storage import StoredLinear, check_weights, pack_rows, store_weights

CPU = torch.device("cpu")
# bound on the relative error of a product and its backward with normally distributed weights, and bytes per
# weight; Q8_0 weights come from a GGUF file
KINDS = {"fp8": (0.035, 1.0), "int8": (0.015, 1.0), "nf4": (0.12, 0.5625), "Q8_0": (0.01, 1.0625)}


def of_whole_weights(transformer):
    """Replace each stored layer by an ordinary one with the same weight."""
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, StoredLinear):
            whole = nn.Linear(*reversed(layer.weight.shape))
            whole.weight.data, whole.bias.data = layer.weight, layer.bias.data
            transformer.set_submodule(name, whole.requires_grad_(False))
    return transformer


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_errors_of_products_and_gradients_are_those_of_the_kind(kind, stored):
    small, exact = stored(kind), exact_transformer()
    bound, _ = KINDS[kind]
    for (name, layer), original in zip(
        linear_layers(small).items(), linear_layers(exact).values(), strict=True
    ):
        assert isinstance(layer, StoredLinear), name
        tokens, upstream = inputs_of(layer)
        weight, bias = original.weight.double(), original.bias.double()
        out, gradient = product(layer, tokens, upstream)
        assert bound / 10 < relative(out - layer.bias, tokens.double() @ weight.T) < bound, name
        assert relative(out, tokens.double() @ weight.T + bias) < bound
        wanted = upstream.double() @ weight
        assert relative(gradient, wanted) < bound
        cosine = torch.cosine_similarity(gradient.double().flatten(), wanted.flatten(), dim=0)
        assert cosine > 1 - bound**2
        assert gradient.norm() / wanted.norm() == pytest.approx(1, abs=bound)


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_layer_adds_no_error_to_that_of_its_weight(kind, dtype, bound, stored):
    """Weights are rounded once, when stored; the products equal float64 to the model's precision."""
    for name, layer in linear_layers(stored(kind, dtype)).items():
        tokens, upstream = inputs_of(layer)
        out, gradient = product(layer, tokens.to(dtype), upstream.to(dtype))
        assert out.dtype == gradient.dtype == layer.weight.dtype == dtype
        weight = layer.weight.double()
        assert relative(out, tokens.double() @ weight.T + layer.bias.double()) < bound, name
        assert relative(gradient, upstream.double() @ weight) < bound, name


@pytest.mark.parametrize("wrong", ["scale", "transposed", "rows"])
def test_a_wrong_weight_is_noticed(wrong):
    """The bounds above can fail."""
    weight = 0.2 * torch.randn(64, 64)
    values, scale = pack_rows(weight, torch.int8)
    stored = {
        "scale": (values, 1.05 * scale),
        "transposed": (values.T.contiguous(), scale),
        "rows": (values, scale.flip(0)),
    }[wrong]
    layer = StoredLinear(storage.unpack_rows, stored, None, torch.float32)
    tokens, upstream = inputs_of(layer)
    _, gradient = product(layer, tokens, upstream)
    assert relative(gradient, upstream.double() @ weight.double()) > KINDS["int8"][0]


def test_rows_of_zeros_and_of_any_size_are_kept():
    weight = torch.randn(5, 64) * torch.tensor([[0], [1e-30], [1], [1e4], [1e30]])
    for dtype, bound in ((torch.float8_e4m3fn, 0.035), (torch.int8, 0.015)):
        whole = storage.unpack_rows(torch.float32, *pack_rows(weight, dtype))
        assert torch.equal(whole[0], weight[0])
        assert all(
            relative(found, row.double()) < bound for found, row in zip(whole[1:], weight[1:], strict=True)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_saved_and_layers_that_are_not_stored(kind, stored):
    small, exact = stored(kind), exact_transformer()
    weights = sum(layer.weight.numel() for layer in linear_layers(exact).values())
    rows = sum(len(layer.weight) for layer in linear_layers(exact).values())
    scales = 4 * rows if kind in ("fp8", "int8") else 0

    def size(model):
        return sum(tensor.nbytes for tensor in model.parameters())

    assert size(exact) - size(small) == 4 * weights - KINDS[kind][1] * weights - scales
    names = {name for name, module in small.named_modules() if isinstance(module, StoredLinear)}
    assert len(names) == 12
    assert not any("norm" in name or not name.startswith("transformer_blocks") for name in names)
    assert small.dtype == torch.float32  # how diffusers reports a model's precision


def held_weights(function, *sizes):
    """Bytes of weights, known by their first dimension, that a function's graph saves; and its result."""
    held = {}

    def keep(tensor):
        if tensor.dim() == 2 and tensor.shape[0] in sizes:
            held[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    return sum(held.values()), result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_graph_saves_stored_weights_only(kind, compiled, stored):
    small, exact = stored(kind), exact_transformer()
    tokens = torch.randn(1, 30, 64, requires_grad=True)

    def feed(model):
        forward = model.transformer_blocks[0].ff
        if compiled:
            torch.compiler.reset()
            forward = torch.compile(forward.forward, backend="aot_eager", fullgraph=True)
        return held_weights(lambda: forward(tokens), 64, 256)

    layers = small.transformer_blocks[0].ff
    stored = sum(tensor.nbytes for name, tensor in layers.named_parameters() if "stored" in name)
    found, out = feed(small)
    assert 0 < found <= stored
    assert feed(exact)[0] == 2 * 4 * 64 * 256  # the count sees saved weights

    expected = layers(tokens)
    assert torch.equal(out, expected)
    upstream = torch.randn_like(out)
    gradients = (torch.autograd.grad(result, tokens, upstream)[0] for result in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_guided_gradient_equals_that_of_the_unpacked_weights(kind, stored):
    small, exact = stored(kind), exact_transformer()
    backbone = backbone_of(small)
    whole = PlainRunner(backbone_of(of_whole_weights(stored(kind))))
    inputs, capture = random_inputs(backbone, 3, 8, 12), Capture("query_key", (1,))

    def both(runner):
        _, gradient = runner.gradient(energy, "latents", inputs, {}, capture, 1.0)
        return gradient, runner.forward([inputs], {})[0]

    expected = both(whole)
    runners = [PlainRunner(backbone), BlockwiseRunner(backbone)]
    for runner in runners:
        for found, wanted in zip(both(runner), expected, strict=True):
            assert relative(found, wanted.double()) < 1e-6
    rounded = relative(both(PlainRunner(backbone_of(exact)))[0], expected[0].double())
    assert rounded > 1e-4  # the comparison sees rounding

    resident = both(BlockwiseRunner(backbone))
    streamed = BlockwiseRunner(backbone, Streamed(backbone.blocks, CPU, 0, host="pageable"))
    assert all(map(torch.equal, both(streamed), resident))


@pytest.mark.parametrize("kind", KINDS)
def test_fake_tensors_have_the_same_sizes(kind, stored):
    def sizes():
        transformer = stored(kind)
        tokens = torch.zeros(1, 30, 64, requires_grad=True)
        (gradient,) = torch.autograd.grad(transformer.transformer_blocks[0].ff(tokens).sum(), tokens)
        tensors = (*transformer.named_parameters(), ("gradient", gradient))
        return {name: (tensor.shape, tensor.dtype, tensor.nbytes) for name, tensor in tensors}

    real = sizes()
    with fake_tensors():
        assert sizes() == real


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_equals_cpu(kind, stored):
    layers = linear_layers(stored(kind))
    for name, layer in linear_layers(stored(kind).cuda()).items():
        tokens, upstream = inputs_of(layer)
        expected = product(layers[name], tokens, upstream)
        found = product(layer, tokens.cuda(), upstream.cuda())
        assert all(
            relative(one.cpu(), other.double()) < 1e-5 for one, other in zip(found, expected, strict=True)
        )


@pytest.mark.parametrize("kind", storage.PACKINGS)
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_weights_packed_on_a_gpu_return_to_the_cpu(kind, stored):
    packed = exact_transformer()
    store_weights(packed.transformer_blocks, CogVideoXFamily.packed_parts, kind, torch.device("cuda"))
    assert {tensor.device.type for tensor in packed.parameters()} == {"cpu"}
    layers = linear_layers(stored(kind))
    for name, layer in linear_layers(packed).items():
        assert relative(layer.weight, layers[name].weight.double()) < KINDS[kind][0] / 10


def test_weights_are_checked_before_anything_is_loaded(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    for kind in ("full", "fp8", "int8", "nf4", str(file)):
        check_weights(kind)
    with pytest.raises(SettingsError, match="fp16: .*full, fp8, int8, nf4 or a .gguf file"):
        check_weights("fp16")
    with pytest.raises(DitflowError, match="other.gguf: no such file"):
        check_weights(str(tmp_path / "other.gguf"))
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    for kind, package in {"nf4": "bitsandbytes", str(file): "gguf"}.items():
        with pytest.raises(DitflowError, match=rf'needs {package}: pip install "ditflow\[quantize\]"'):
            check_weights(kind)
    check_weights("fp8")  # needs no package
