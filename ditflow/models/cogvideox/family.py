"""CogVideoX 2B, 5B and models with the same layout, as a `ditflow.models.families.ModelFamily`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ditflow.files import shipped
from ditflow.models.cogvideox.config import SCHEMAS
from ditflow.models.cogvideox.frames import latent_spans
from ditflow.models.experts import ONE
from ditflow.models.t5.family import T5Family
from ditflow.schema import Schema, check_equal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ditflow.models.cogvideox.schedule import CogVideoXSchedule
    from ditflow.models.cogvideox.text import T5TextEncoder
    from ditflow.models.cogvideox.transformer import CogVideoXTransformer
    from ditflow.models.cogvideox.vae import CogVideoXAutoencoder
    from ditflow.models.protocols import Grid


class CogVideoXFamily(T5Family):
    """Implements `ModelFamily`."""

    pipeline = "CogVideoXPipeline"
    relatives = {
        "CogVideoXImageToVideoPipeline": "image to video",
        "CogVideoXFunControlPipeline": "control videos",
    }
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    experts = ONE
    classes = {"transformer": "CogVideoXTransformer3DModel", "vae": "AutoencoderKLCogVideoX"}
    packed_parts = ("attn1", "ff")
    schedulers = ("ddim", "dpm")
    tiles = ("360x240", "288x192", "240x160", "192x128", "144x96")  # these join to the right size
    size_multiple = 16
    least_frames = 9
    frame_rate = 8
    has_dynamic_scale = True
    takes_lora = True

    def variant(self, index: Mapping[str, Any]) -> CogVideoXFamily:
        return self

    def defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
        like = "5b" if self.embedding_kind(config) == "rotary" else "2b"
        return shipped(f"models/{like}.yaml")["settings"]

    def latent_spans(self, frames: int) -> list[range]:
        return latent_spans(frames)

    def latent_shape(
        self, frames: int, size: tuple[int, int], vae: Mapping[str, Any]
    ) -> tuple[int, int, int, int, int]:
        width, height = size
        side = 2 ** (len(vae["block_out_channels"]) - 1)  # pixels
        channels = vae.get("latent_channels", 16)
        return 1, len(latent_spans(frames)), channels, height // side, width // side

    def grid(self, latent_shape: Sequence[int], config: Mapping[str, Any]) -> Grid:
        from ditflow.models.protocols import Grid

        _, frames, _, height, width = latent_shape
        patch = config.get("patch_size", 2)
        return Grid(frames, height // patch, width // patch)

    def prompt_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return config["max_text_seq_length"], config["text_embed_dim"]

    def depth(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"]

    def embedding_kind(self, config: Mapping[str, Any]) -> Literal["rotary", "additive"]:
        return "rotary" if config["use_rotary_positional_embeddings"] else "additive"

    def config_schema(self, part: str) -> Schema:
        return SCHEMAS[part]

    def check_configs(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        transformer, vae, encoder = (configs[part] for part in ("transformer", "vae", "text_encoder"))
        channels = {
            "in transformer/ (in_channels)": transformer.get("in_channels", 16),
            "in vae/ (latent_channels)": vae.get("latent_channels", 16),
        }
        check_equal("latent channels", channels)
        widths = {
            "in transformer/ (text_embed_dim)": transformer["text_embed_dim"],
            "in text_encoder/ (d_model)": encoder.get("d_model", 512),
        }
        check_equal("text channels", widths)

    def other_name(self, layer: str) -> str:
        return layer

    def network(self, part: str) -> type:
        if part == "transformer":
            from diffusers import CogVideoXTransformer3DModel as found
        elif part == "vae":
            from diffusers import AutoencoderKLCogVideoX as found
        elif part == "text_encoder":
            from transformers import T5EncoderModel as found
        else:
            from transformers import T5Tokenizer as found
        return found

    def transformer(
        self,
        network: nn.Module,
        attention: str = "sdpa",
        compiled: bool = False,
        attention_forward: str | None = None,
    ) -> CogVideoXTransformer:
        from ditflow.models.cogvideox.transformer import CogVideoXTransformer

        return CogVideoXTransformer(network, attention, compiled, attention_forward)

    def autoencoder(self, network: nn.Module) -> CogVideoXAutoencoder:
        from ditflow.models.cogvideox.vae import CogVideoXAutoencoder

        return CogVideoXAutoencoder(network)

    def text_encoder(self, network: nn.Module) -> T5TextEncoder:
        from ditflow.models.cogvideox.text import T5TextEncoder

        return T5TextEncoder(network)

    def tokenise(self, tokenizer: Any, prompts: Sequence[str], config: Mapping[str, Any]) -> Tensor:
        from ditflow.models.t5.prompts import tokenise

        return tokenise(tokenizer, prompts, self.prompt_shape(config)[0])

    def schedule(
        self,
        kind: str,
        config: Mapping[str, Any],
        steps: int,
        size: tuple[int, int],
        device: torch.device,
        generator: torch.Generator,
        skipped: int = 0,
    ) -> CogVideoXSchedule:
        from ditflow.models.cogvideox.schedule import CogVideoXSchedule

        return CogVideoXSchedule(kind, config, steps, device, generator, skipped)
