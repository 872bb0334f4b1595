"""The toy's row of `ditflow.models.families.FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toy_family.autoencoder import GROUP, SIDE, TILES, ToyAutoencoder, ToyVAE, encoded_frames
from toy_family.schedule import SCHEDULERS, ToySchedule
from toy_family.text import ByteTokenizer, ToyTextConfig, ToyTextEncoder, ToyTextModel
from toy_family.transformer import ToyTransformer, ToyTransformer3DModel


class ToyFamily:
    """Implements `ditflow.models.families.ModelFamily`."""

    pipeline = "ToyPipeline"
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    classes = {"transformer": "ToyTransformer3DModel", "vae": "ToyVAE"}
    packed_parts = ("attn1", "attn2", "ff")
    schedulers = SCHEDULERS
    tiles = TILES
    size_multiple = 8
    least_frames = 5
    frame_rate = 12
    has_dynamic_scale = takes_lora = False

    def defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "negative_prompt": "",
            "frames": 9,
            "size": "48x32",
            "dtype": "float32",
            "guidance_blocks": [config["num_layers"] // 2],
            "guidance_scale": 2.0,
            "guided": 0.5,
            "learning_rate": [0.05, 0.02],
            "moft_channels": 0.5,
            "optimisation_steps": 2,
            "scheduler": "adams",
            "steps": 6,
        }

    def encoded_frames(self, frames: int) -> int:
        return encoded_frames(frames)

    def latent_spans(self, frames: int) -> list[range]:
        starts = range(1, encoded_frames(frames), GROUP)
        return [range(1), *(range(start, start + GROUP) for start in starts)]

    def latent_shape(
        self, frames: int, size: tuple[int, int], vae: Mapping[str, Any]
    ) -> tuple[int, int, int, int, int]:
        width, height = size
        return 1, len(self.latent_spans(frames)), vae["latent_channels"], height // SIDE, width // SIDE

    def prompt_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return config["text_length"], config["text_channels"]

    def depth(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"]

    def embedding_kind(self, config: Mapping[str, Any]) -> str:
        return "rotary"

    def network(self, part: str) -> type:
        return {
            "transformer": ToyTransformer3DModel,
            "vae": ToyVAE,
            "text_encoder": ToyTextModel,
            "tokenizer": ByteTokenizer,
        }[part]

    def load_options(self, part: str) -> dict[str, Any]:
        return {}

    def empty_text_encoder(self, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
        return ToyTextModel(ToyTextConfig(**config))

    def transformer(self, network: nn.Module, attention: str, compiled: bool) -> ToyTransformer:
        return ToyTransformer(network, attention, compiled)

    def autoencoder(self, network: nn.Module) -> ToyAutoencoder:
        return ToyAutoencoder(network)

    def text_encoder(self, network: nn.Module) -> ToyTextEncoder:
        return ToyTextEncoder(network)

    def tokenise(self, tokenizer: ByteTokenizer, prompts: Sequence[str], config: Mapping[str, Any]) -> Tensor:
        return tokenizer.tokenise(prompts, config["text_length"])

    def schedule(
        self,
        kind: str,
        config: Mapping[str, Any],
        steps: int,
        device: torch.device,
        generator: torch.Generator,
    ) -> ToySchedule:
        return ToySchedule(kind, config, steps, device, generator)
