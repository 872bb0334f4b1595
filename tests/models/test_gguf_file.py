"""Transformers from GGUF files, and GGUF files that are refused."""

import gguf
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from gguf import GGMLQuantizationType as Kind
from quantised_models import exact_transformer, relative, write_gguf
from torch import nn

from ditflow.errors import DitflowError
from ditflow.models.gguf_file import load_gguf, unpack_gguf
from ditflow.models.storage import StoredLinear


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q5_1"])
def test_gguf_file_gives_the_model_that_was_written(kind, tmp_path):
    exact, path = exact_transformer(), tmp_path / "model.gguf"
    write_gguf(path, exact, Kind[kind])
    loaded = load_gguf(path, CogVideoXTransformer3DModel, exact.config, torch.float32)
    values = dict(exact.named_parameters())
    bound = {"F16": 5e-4, "BF16": 3e-3, "Q4_0": 0.12, "Q5_1": 0.05}[kind]
    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear | StoredLinear | nn.Conv2d | nn.LayerNorm):
            for part in ("weight", "bias"):
                assert relative(getattr(module, part), values[f"{name}.{part}"].double()) < bound
    packed = [module for module in loaded.modules() if isinstance(module, StoredLinear)]
    assert len(packed) == (12 if kind.startswith("Q") else 0)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_NL"])
def test_gguf_kinds_that_need_long_rows(kind):
    """Compared with the gguf package's own reading of the same bytes."""
    weights, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = torch.randint(0, 256, (6, size), dtype=torch.uint8)
    halves = {"Q4_K": (0, 2), "Q6_K": (size - 2,), "IQ4_NL": (0,)}[kind]
    for first in halves:  # the blocks' scales, which random bytes would make infinite
        blocks[:, first : first + 2] = torch.rand(6, 1).half().view(torch.uint8)
    stored = blocks.reshape(3, 2 * size)
    expected = torch.from_numpy(gguf.quants.dequantize(stored.numpy(), Kind[kind]))
    assert expected.shape == (3, 2 * weights)
    assert relative(unpack_gguf(Kind[kind], torch.float32, stored), expected.double()) < 1e-3


def damaged(case, path):
    """Write a faulty file; return the configuration to read it with."""
    exact = exact_transformer()
    write_gguf(path, exact, Kind.Q8_0)
    whole, config = path.read_bytes(), dict(exact.config)
    if case == "not gguf":
        path.write_bytes(b"PK" * 1000)
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "cut in the header":
        path.write_bytes(whole[:300])
    elif case == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif case == "misses a block":
        config["num_layers"] = 3
    elif case == "has a block too many":
        config["num_layers"] = 1
    elif case == "other shapes":
        config["num_attention_heads"] = 4
    return config


@pytest.mark.parametrize(
    "case, says",
    {
        "not gguf": "not a complete GGUF file",
        "empty": "not a complete GGUF file",
        "cut in the header": "not a complete GGUF file",
        "cut": "not a complete GGUF file",
        "misses a block": r"missing: \d+ \(transformer_blocks\.2\.",
        "has a block too many": r"unexpected: \d+ \(transformer_blocks\.1\.",
        "other shapes": r"of another shape: .*weight is \[.*64.*\], expected \[.*128",
    }.items(),
)
def test_faulty_gguf_files_are_refused(case, says, tmp_path):
    path = tmp_path / "model.gguf"
    config = damaged(case, path)
    with pytest.raises(DitflowError, match=says) as raised:
        load_gguf(path, CogVideoXTransformer3DModel, config, torch.float32)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
