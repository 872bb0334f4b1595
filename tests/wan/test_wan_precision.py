"""The precision of each weight of Wan, however it is loaded, and weights in fewer bits."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from gguf import GGMLQuantizationType as Kind
from quantised_models import relative, write_gguf
from tiny_wan import tiny_wan, wan_inputs

from ditflow.memory.plain import PlainRunner
from ditflow.models.compute import compute_in
from ditflow.models.gguf_file import load_gguf
from ditflow.models.precision import as_loaded
from ditflow.models.protocols import Capture
from ditflow.models.storage import StoredLinear, store_weights
from ditflow.models.wan.family import WanFamily
from ditflow.models.wan.transformer import WanTransformer

CPU = torch.device("cpu")
PARTS = WanFamily.packed_parts


@pytest.fixture
def exact():
    return tiny_wan(ffn_dim=64).requires_grad_(False)


def dtypes(network):
    return {name: parameter.dtype for name, parameter in network.named_parameters()}


def test_planned_networks_have_the_precisions_of_loaded_ones(exact, tmp_path):
    exact.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    planned = as_loaded(WanTransformer3DModel.from_config(exact.config).bfloat16())
    assert dtypes(planned) == dtypes(loaded)
    assert set(dtypes(loaded).values()) == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_gguf_file_gives_the_model_that_was_written(exact, kind, tmp_path):
    write_gguf(tmp_path / "model.gguf", exact, Kind[kind])
    loaded = load_gguf(tmp_path / "model.gguf", WanTransformer3DModel, exact.config, torch.float32)
    packed = [name for name, module in loaded.named_modules() if isinstance(module, StoredLinear)]
    assert len(packed) == (3 * 10 if kind.startswith("Q") else 0)  # in each block, 4 + 4 + 2
    inputs = wan_inputs(WanTransformer(exact))
    expected, found = (
        PlainRunner(WanTransformer(network)).forward([inputs], {})[0] for network in (exact, loaded)
    )
    assert relative(found, expected.double()) < {"F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q4_0": 0.5}[kind]


def test_gguf_file_keeps_float32_where_diffusers_does(exact, tmp_path):
    write_gguf(tmp_path / "model.gguf", exact, Kind.Q8_0)
    loaded = load_gguf(tmp_path / "model.gguf", WanTransformer3DModel, exact.config, torch.bfloat16)
    for name in dtypes(exact):
        if any(part in name for part in ("time_embedder", "scale_shift_table", "norm2")):
            assert dtypes(loaded)[name] == torch.float32, name
    backbone = WanTransformer(loaded)
    found = PlainRunner(backbone).forward([wan_inputs(backbone)], {})[0]
    assert found.isfinite().all()


@pytest.mark.parametrize("kind, most", [("int8", 0.03), ("fp8", 0.1)])
def test_gradients_through_stored_weights_are_near(exact, kind, most):
    check_near(exact, lambda blocks: store_weights(blocks, PARTS, kind, CPU), most)


@pytest.mark.parametrize("kind", ["int8", "int8-forward"])
def test_gradients_through_products_in_8_bits_are_near(exact, kind):
    check_near(exact, lambda blocks: compute_in(kind, blocks, PARTS, CPU), 0.1)


def check_near(exact, change, most):
    inputs = wan_inputs(WanTransformer(exact))

    def gradient():
        return PlainRunner(WanTransformer(exact)).gradient(
            lambda _, read: read.square().mean(), "latents", inputs, {}, Capture("output", (2,)), 1.0
        )[1]

    expected = gradient()
    change(exact.blocks)
    assert 0 < relative(gradient(), expected.double()) < most
