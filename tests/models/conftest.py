"""A transformer whose blocks' weights are stored in few bits."""

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from quantised_models import exact_transformer, write_gguf

from ditflow.models.cogvideox.family import CogVideoXFamily
from ditflow.models.gguf_file import load_gguf
from ditflow.models.storage import store_weights


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Makes the same transformer with its blocks' weights stored in a given kind."""
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(file, exact_transformer(), Kind.Q8_0)

    def make(kind, dtype=torch.float32):
        transformer = exact_transformer()
        if dtype != torch.float32:  # fake modules cannot be converted
            transformer = transformer.to(dtype)
        if kind == "Q8_0":
            return load_gguf(file, type(transformer), transformer.config, dtype).requires_grad_(False).eval()
        store_weights(transformer.transformer_blocks, CogVideoXFamily.packed_parts, kind, torch.device("cpu"))
        return transformer

    return make
