"""GGUF files of Wan by the names of diffusers and of the original code, as most people's are."""

import gguf
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from gguf import GGMLQuantizationType as Kind
from quantised_models import relative, write_gguf
from tiny_wan import original_parameter, tiny_wan

from ditflow.errors import DitflowError
from ditflow.models.gguf_file import load_gguf
from ditflow.models.storage import StoredLinear
from ditflow.models.wan.family import WanFamily

LAYOUTS = pytest.mark.parametrize("called", [str, original_parameter], ids=["diffusers", "original"])


@pytest.fixture
def exact():
    return tiny_wan(ffn_dim=64).requires_grad_(False)


def load(path, like, dtype=torch.float32):
    return load_gguf(path, WanTransformer3DModel, like.config, dtype, WanFamily().other_name)


def test_original_names_are_those_that_diffusers_converts(exact):
    names = [name for name, _ in exact.named_parameters()]
    converted = convert_wan_transformer_to_diffusers({original_parameter(name): name for name in names})
    assert converted == {name: name for name in names}
    known = {"patch_embedding.weight", "blocks.0.self_attn.q.weight", "blocks.2.cross_attn.norm_k.weight"}
    known |= {"blocks.1.modulation", "head.modulation", "head.head.bias", "time_embedding.0.weight"}
    known |= {
        "text_embedding.2.weight",
        "time_projection.1.bias",
        "blocks.0.norm3.weight",
        "blocks.0.ffn.2.bias",
    }
    assert known <= {original_parameter(name) for name in names}


@LAYOUTS
@pytest.mark.parametrize("most", [5, 4, 2], ids="at most {} dimensions".format)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16], ids=lambda kind: kind.name)
def test_unrounded_weights_are_those_that_were_written(exact, called, kind, most, tmp_path):
    """Also where a writer leaves out dimensions of one, as C code does, in which there are at most four."""
    write_gguf(tmp_path / "model.gguf", exact, kind, called, most, others=kind)
    found = load(tmp_path / "model.gguf", exact).state_dict()
    assert found.keys() == exact.state_dict().keys()
    for name, value in exact.state_dict().items():
        expected = value if kind is Kind.F32 or value.dim() == 1 else value.half().float()
        assert torch.equal(found[name], expected), name


@LAYOUTS
@pytest.mark.parametrize("kind, bound", [("BF16", 3e-3), ("Q8_0", 1e-2), ("Q4_0", 0.12)])
def test_rounded_weights_are_near(exact, called, kind, bound, tmp_path):
    write_gguf(tmp_path / "model.gguf", exact, Kind[kind], called)
    loaded = load(tmp_path / "model.gguf", exact)
    layers = [module for module in loaded.modules() if isinstance(module, StoredLinear)]
    assert len(layers) == (3 * 10 if kind.startswith("Q") else 0)  # in each block, 4 + 4 + 2
    for name, value in exact.named_parameters():
        module, _, own = name.rpartition(".")
        found = getattr(loaded.get_submodule(module), own)
        assert found.shape == value.shape and relative(found, value.double()) < bound


def test_vectors_in_bfloat16(exact, tmp_path):
    """Some writers keep every tensor in the model's own precision."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "wan")
    for name, tensor in exact.named_parameters():
        values = gguf.quants.quantize(tensor.numpy(), Kind.BF16)
        writer.add_tensor(original_parameter(name), values, raw_dtype=Kind.BF16)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    for name, value in load(tmp_path / "model.gguf", exact).named_parameters():
        assert torch.equal(value, exact.get_parameter(name).bfloat16().float()), name


@pytest.mark.parametrize(
    "called, changes, says",
    [
        (original_parameter, {"num_layers": 4}, r"missing: 27 \(blocks\.3\.modulation, blocks\.3\."),
        (original_parameter, {"num_layers": 2}, r"unexpected: 27 \(blocks\.2\.modulation, blocks\.2\."),
        (str, {"num_layers": 2}, r"unexpected: 27 \(blocks\.2\.scale_shift_table, blocks\.2\."),
        (
            original_parameter,
            {"in_channels": 8},
            r"patch_embedding\.weight is \[32, 4, 1, 2, 2\], expected \[32, 8",
        ),
        (
            original_parameter,
            {"ffn_dim": 96},
            r"of another shape: 9 \(blocks\.0\.ffn\.0\.weight is \[64, 32\]",
        ),
        (lambda name: f"model.{name}", {}, r"missing: \d+ \(scale_shift_table.*unexpected: \d+ \(model\."),
        (
            lambda name: name if name == "proj_out.bias" else original_parameter(name),
            {},
            r"missing: 1 \(head\.head\.bias\); unexpected: 1 \(proj_out\.bias\)",
        ),
    ],
)
def test_files_of_another_model_are_refused(exact, called, changes, says, tmp_path):
    write_gguf(tmp_path / "model.gguf", exact, Kind.Q8_0, called)
    with pytest.raises(DitflowError, match=says) as error:
        load(tmp_path / "model.gguf", tiny_wan(**{"ffn_dim": 64} | changes))
    assert "model.gguf does not fit this model" in str(error.value) and "\n" not in str(error.value)


def test_a_tensor_given_by_both_names_is_refused(exact, tmp_path):
    exact.register_parameter("head", torch.nn.Parameter(torch.ones(3)))
    twice = {"head": "proj_out.bias"}
    write_gguf(
        tmp_path / "model.gguf", exact, Kind.Q8_0, lambda name: twice.get(name, original_parameter(name))
    )
    with pytest.raises(DitflowError, match=r"unexpected: 1 \(proj_out\.bias\)"):
        load(tmp_path / "model.gguf", exact)
