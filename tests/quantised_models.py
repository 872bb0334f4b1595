"""A transformer to quantise, its layers, a writer of GGUF files, and the relative error."""

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from tiny_models import tiny_transformer


def exact_transformer():
    """A float32 transformer whose rows are long enough for every kind of quantisation under test."""
    return tiny_transformer(layers=2, attention_head_dim=32).requires_grad_(False)


def write_gguf(path, transformer, kind, called=str, most=5, others=Kind.F16):
    """Write a transformer: its blocks' matrices in `kind`, other matrices in `others`, vectors in float32.

    `called`: the name of a parameter in the file. `most`: the dimensions that a tensor may have there; beyond
    it, those of one are left out.
    """
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in transformer.named_parameters():
        in_block = name.startswith(("transformer_blocks", "blocks")) and "norm" not in name
        found = Kind.F32 if tensor.dim() == 1 else kind if in_block else others
        values = tensor.detach().numpy()
        values = values.squeeze() if values.ndim > most else values
        writer.add_tensor(called(name), gguf.quants.quantize(values, found), raw_dtype=found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def relative(found, expected):
    """The error's norm over the expected norm: sees both a wrong scale and a wrong direction."""
    return ((found.double() - expected).norm() / expected.norm()).item()


def linear_layers(transformer):
    """The layers whose weights are stored: those of attention and feed-forward."""
    layers = {}
    for index, block in enumerate(transformer.transformer_blocks):
        attention, feed = block.attn1, block.ff.net
        layers |= {
            f"{index}.q": attention.to_q,
            f"{index}.k": attention.to_k,
            f"{index}.v": attention.to_v,
            f"{index}.out": attention.to_out[0],
            f"{index}.up": feed[0].proj,
            f"{index}.down": feed[2],
        }
    return layers


def product(layer, tokens, upstream):
    """A layer's output, and the gradient to its input."""
    tokens = tokens.clone().requires_grad_()
    out = layer(tokens)
    return out.detach(), torch.autograd.grad(out, tokens, upstream)[0]


def inputs_of(layer):
    outputs, inputs = layer.weight.shape
    return torch.randn(2, 30, inputs), torch.randn(2, 30, outputs)


def energy(_, read):
    return read.query.square().mean() + read.key.square().mean()
