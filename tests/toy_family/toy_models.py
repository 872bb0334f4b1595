"""A toy transformer with random weights and inputs for it."""

import torch

from ditflow.models.protocols import Inputs
from toy_family.family import ToyFamily
from toy_family.pipeline import randomised
from toy_family.transformer import ToyTransformer, ToyTransformer3DModel


def toy_transformer(**changes) -> ToyTransformer:
    torch.manual_seed(0)
    return ToyFamily().transformer(randomised(ToyTransformer3DModel(**changes)), "sdpa", False)


def random_inputs(transformer, frames=3, height=4, width=6) -> Inputs:
    """Inputs of a forward; height and width are those of the latents."""
    latents = torch.randn(1, frames, 6, height, width)
    prompt = torch.randn(1, 20, 10)
    embedding = transformer.embedding(transformer.grid(latents))
    return Inputs(latents, prompt, torch.tensor([601.5]), embedding)
