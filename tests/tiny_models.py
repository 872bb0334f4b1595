"""Tiny random transformers, and what a test needs to run one.

Tests call these functions instead of the project's constructors, so that a changed constructor changes only
this file.
"""

import torch
from diffusers import CogVideoXTransformer3DModel

from ditflow.models.cogvideox.schedule import CogVideoXSchedule
from ditflow.models.cogvideox.transformer import CogVideoXTransformer
from ditflow.models.protocols import Inputs, Texts

DEPTH = 5  # blocks: enough to keep some resident and stream the others
SCHEDULER = {  # as in the golden runs
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}


def tiny_transformer(rotary=True, layers=3, seed=0, **changes):
    """diffusers' CogVideoX transformer with random weights: no parameter is zero or one, so each matters."""
    torch.manual_seed(seed)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 12,
        "num_layers": layers,
        "sample_width": 12,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 10,
        "use_rotary_positional_embeddings": rotary,
    }
    model = CogVideoXTransformer3DModel(**config | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def backbone_of(transformer, **options):
    """The project's wrapper around a transformer of diffusers."""
    return CogVideoXTransformer(transformer, **options)


def tiny_backbone(rotary=True, layers=3, **changes):
    return backbone_of(tiny_transformer(rotary, layers, **changes))


def random_inputs(backbone, frames, height, width, text_length=10):
    """Inputs of a forward; height and width are in latent pixels."""
    latents = torch.randn(1, frames, 4, height, width)
    prompt = torch.randn(1, text_length, 12)
    embedding = backbone.embedding(backbone.grid(latents))
    return Inputs(latents, prompt, torch.tensor([601]), embedding)


def text_embeddings(prompt, negative=None, source=None):
    """A run's texts. By default the prompt also stands in for the negative prompt and the source prompt."""
    return Texts(prompt, *(prompt if other is None else other for other in (negative, source)))


def settings_schedule(settings):
    """The schedule that a job makes from its settings."""
    return tiny_schedule(settings.scheduler, settings.steps, settings.seed, settings.skipped_steps)


def ddim_schedule(steps):
    return tiny_schedule("ddim", steps)


def tiny_schedule(kind, steps, seed=0, skipped=0):
    generator = torch.Generator().manual_seed(seed)
    return CogVideoXSchedule(kind, SCHEDULER, steps, torch.device("cpu"), generator, skipped)


def square(_, read):
    """A loss: the mean squares of the tensors captured in a block, summed."""
    tensors = read if isinstance(read, tuple) else (read,)
    return sum(tensor.float().square().mean() for tensor in tensors)


class BlockCalls:
    """Records which blocks ran up to their attention (`prepared`) and to their end (`finished`)."""

    def __init__(self, backbone, monkeypatch):
        self.prepared, self.finished, self.heads = [], [], 0
        for name, calls in (("prepare", self.prepared), ("feed_forward", self.finished)):
            original = getattr(backbone, name)

            def counted(index, *rest, original=original, calls=calls):
                calls.append(index)
                return original(index, *rest)

            monkeypatch.setattr(backbone, name, counted)
        head = backbone.head

        def counted_head(*given):
            self.heads += 1
            return head(*given)

        monkeypatch.setattr(backbone, "head", counted_head)
