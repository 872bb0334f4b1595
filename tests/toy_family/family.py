"""The toy's row of `ditflow.models.families.FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditflow.models.experts import ONE
from ditflow.models.protocols import Grid
from ditflow.schema import Number, Schema, Whole, check_equal
from toy_family.autoencoder import GROUP, SIDE, TILES, ToyAutoencoder, ToyVAE, encoded_frames
from toy_family.schedule import SCHEDULERS, ToySchedule
from toy_family.text import ByteTokenizer, ToyTextConfig, ToyTextEncoder, ToyTextModel
from toy_family.transformer import PATCH, ToyTransformer, ToyTransformer3DModel

SCHEMAS = {
    "transformer": Schema(
        {
            "num_layers": Whole(1, 50),
            "num_attention_heads": Whole(1, 50),
            "attention_head_dim": Whole(6, 600),
            "in_channels": Whole(1, 100),
            "time_channels": Whole(2, 1000),
            "text_channels": Whole(1, 1000),
            "text_length": Whole(1, 1000),
        },
        required=("num_layers", "text_length", "text_channels"),
    ),
    "vae": Schema(
        {"latent_channels": Whole(1, 100), "latent_scale": Number(1e-3, 1e3)}, required=("latent_channels",)
    ),
    "text_encoder": Schema(
        {"channels": Whole(1, 1000), "num_layers": Whole(1, 50), "vocabulary": Whole(1, 1000)}
    ),
    "scheduler": Schema({"shift": Number(0.1, 100), "renewed": Number(0, 1)}, required=("shift", "renewed")),
}


class ToyFamily:
    """Implements `ditflow.models.families.ModelFamily`."""

    pipeline = "ToyPipeline"
    relatives: Mapping[str, str] = {}
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    experts = ONE
    classes = {"transformer": "ToyTransformer3DModel", "vae": "ToyVAE"}
    packed_parts = ("attn1", "attn2", "ff")
    schedulers = SCHEDULERS
    tiles = TILES
    size_multiple = 8
    least_frames = 5
    frame_rate = 12
    has_dynamic_scale = takes_lora = False

    def variant(self, index: Mapping[str, Any]) -> ToyFamily:
        return self

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

    def latent_spans(self, frames: int) -> list[range]:
        starts = range(1, encoded_frames(frames), GROUP)
        return [range(1), *(range(start, start + GROUP) for start in starts)]

    def latent_shape(
        self, frames: int, size: tuple[int, int], vae: Mapping[str, Any]
    ) -> tuple[int, int, int, int, int]:
        width, height = size
        return 1, len(self.latent_spans(frames)), vae["latent_channels"], height // SIDE, width // SIDE

    def grid(self, latent_shape: Sequence[int], config: Mapping[str, Any]) -> Grid:
        _, frames, _, height, width = latent_shape
        return Grid(frames, height // PATCH[0], width // PATCH[1])

    def prompt_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return config["text_length"], config["text_channels"]

    def depth(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"]

    def embedding_kind(self, config: Mapping[str, Any]) -> str:
        return "rotary"

    def config_schema(self, part: str) -> Schema:
        return SCHEMAS.get(part, Schema())

    def check_configs(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        transformer, vae = configs["transformer"], configs["vae"]
        channels = {"transformer": transformer.get("in_channels", 6), "vae": vae["latent_channels"]}
        check_equal("latent channels", channels)

    def check_tokenizer(self, folder: Path, encoder: Mapping[str, Any]) -> None:
        """The tokenizer has a single file, which its class checks."""

    def other_name(self, layer: str) -> str:
        return layer

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

    def transformer(
        self, network: nn.Module, attention: str, compiled: bool, attention_forward: str | None = None
    ) -> ToyTransformer:
        return ToyTransformer(network, attention, compiled, attention_forward)

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
        size: tuple[int, int],
        device: torch.device,
        generator: torch.Generator,
        skipped: int = 0,
    ) -> ToySchedule:
        return ToySchedule(kind, config, steps, device, generator, skipped)
