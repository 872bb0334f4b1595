"""The GGUF files that plans are made from."""

from gguf import GGMLQuantizationType as Kind

from bench.empty_gguf import write_empty_gguf
from bench.subjects import shipped_config
from ditflow.models.families import family_of
from ditflow.models.gguf_file import check_gguf


def test_a_file_has_the_models_tensors_and_takes_no_space(tmp_path):
    path = tmp_path / "weights.gguf"
    write_empty_gguf(path, "wan-1.3b", Kind.Q4_K)
    network, config = family_of("wan-1.3b").network("transformer"), shipped_config("wan-1.3b")
    empty, tensors = check_gguf(path, network, config)
    found = {name: tensor.tensor_type for name, tensor in tensors.items()}
    assert found["blocks.3.ffn.net.0.proj.weight"] == found["blocks.3.attn2.to_k.weight"] == Kind.Q4_K
    assert found["patch_embedding.weight"] == found["proj_out.weight"] == Kind.F16
    assert found["blocks.3.ffn.net.0.proj.bias"] == found["blocks.3.norm2.weight"] == Kind.F32
    whole = sum(tensor.numel() for tensor in empty.parameters())
    assert 4.5 < 8 * path.stat().st_size / whole < 5  # bits a weight
    assert 512 * path.stat().st_blocks < 1 << 20
