"""Writes GGUF files with the tensors of a published model and no values in them, for plans."""

import os
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from bench.subjects import random_network, shipped_config
from ditflow.memory.fake_tensors import fake_tensors

BYTES = {Kind.F32: np.dtype(np.float32), Kind.F16: np.dtype(np.float16)}


def write_empty_gguf(path: Path, model: str, kind: Kind) -> None:
    """The matrices of the blocks are in `kind`, other matrices in float16, vectors in float32.

    The file has a hole in place of the data, so it takes no space on most file systems.
    """
    with fake_tensors():
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in random_network(model, shipped_config(model)).named_parameters()
        }
    writer, data = gguf.GGUFWriter(path, model), 0
    for name, shape in shapes.items():
        in_block = name.startswith("blocks.") and len(shape) == 2
        found = kind if in_block else Kind.F32 if len(shape) == 1 else Kind.F16
        if in_block:
            shape = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        dtype = BYTES.get(found, np.dtype(np.uint8))
        size = prod(shape) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, size, raw_dtype=found)
        data += writer.ggml_pad(size, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, writer.ggml_pad(path.stat().st_size, writer.data_alignment) + data)
